//! What the step `prune` removed, and what that cost.

use attar_compress::prune::Shape;
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::{
    size::ModelSize,
    table::{Table, bytes, rows_of},
};

/// A model that became smaller in shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// How the units that stay were chosen.
    pub method: String,
    /// What the layers that read them were fitted to.
    pub fit: String,
    /// Before the step.
    pub before: ModelSize,
    /// After it.
    pub after: ModelSize,
    /// KL divergence from the model before the step, in nats per token, on calibration text that was kept aside.
    pub divergence: f64,
    /// Tokens of that text.
    pub tokens: usize,
    /// Shapes that met the budget, those first that were expected to lose least. The one with the least divergence was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<CandidateReport>,
    /// What left of the residual stream, in the order in which it was chosen: `blocks.25`, numbered as before the step; and the
    /// KL divergence without it and all before it, on the first windows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedReport>,
    /// Layers that lost units, in running order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<CutReport>,
}

/// A shape under a budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateReport {
    /// What stays of every block, and the blocks that stay.
    #[serde(flatten)]
    pub shape: Shape,
    /// The channels of every MLP in running order, where they differ from the shape's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widths: Vec<usize>,
    /// What it costs.
    pub size: ModelSize,
    /// Predicted seconds for one token on the device of the budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// KL divergence, as for the model that was made; fitted to the layers' own outputs.
    pub divergence: f64,
}

/// Something that no longer adds to the residual stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovedReport {
    /// `blocks.25`, `blocks.25.attention` or `blocks.25.mlp`.
    pub name: String,
    /// In nats per token.
    pub divergence: f64,
}

/// A layer that reads fewer units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutReport {
    /// Canonical name of its weight.
    pub name: String,
    /// Units before the step.
    pub before: usize,
    /// The units that stay.
    pub after: usize,
}

impl Finding for PruneReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Shapes that became smaller", table(found)), ("Shapes within the budget", candidates(found))]
    }

    fn sections(found: &Found<'_, Self>, _: &[super::evals::EvalReport]) -> String {
        let reports = found.iter().flat_map(|(_, reports)| reports.iter()).filter(|report| !report.removed.is_empty());
        let line = |report: &PruneReport| {
            let removed: Vec<String> =
                report.removed.iter().map(|gone| format!("`{}` (KL {:.4})", gone.name, gone.divergence)).collect();
            format!("Removed, in this order: {}.\n\n", removed.join(", "))
        };
        reports.map(line).collect()
    }
}

/// Steps: four rows each.
fn table(variants: &Found<'_, PruneReport>) -> Table {
    let rows = |report: &PruneReport| {
        let (before, after) = (report.before, report.after);
        let row = |what: &str, from: u64, to: u64, show: fn(u64) -> String| {
            let share = if from == 0 { "-".into() } else { format!("{:+.1}%", 100.0 * (to as f64 / from as f64 - 1.0)) };
            vec![what.to_owned(), show(from), show(to), share]
        };
        vec![
            row("blocks", before.blocks as u64, after.blocks as u64, |n| n.to_string()),
            row("parameters", before.parameters, after.parameters, |n| n.to_string()),
            row("weights", before.bytes, after.bytes, bytes),
            row("multiply-accumulates per token", before.macs, after.macs, |n| n.to_string()),
            row("KV cache per token", before.kv_bytes, after.kv_bytes, bytes),
            vec!["KL divergence, nats per token".into(), "0".into(), format!("{:.4}", report.divergence), "-".into()],
        ]
    };
    Table { head: &["variant", "pruned", "before", "after", "change"], rows: rows_of(variants.iter().copied(), rows) }
}

/// Shapes: one row each.
fn candidates(variants: &Found<'_, PruneReport>) -> Table {
    let row = |candidate: &CandidateReport| {
        let Shape { mlp, heads, kv_heads, blocks } = candidate.shape;
        let mut cells: Vec<String> = [mlp, heads, kv_heads, blocks].iter().map(ToString::to_string).collect();
        if let (Some(least), Some(most)) = (candidate.widths.iter().min(), candidate.widths.iter().max()) {
            cells[0] = format!("{least} to {most}");
        }
        let size = candidate.size;
        cells.extend([size.parameters.to_string(), bytes(size.bytes), size.macs.to_string(), bytes(size.kv_bytes)]);
        cells.push(candidate.latency.map_or_else(|| "-".into(), |seconds| format!("{:.4} ms", 1e3 * seconds)));
        cells.push(format!("{:.4}", candidate.divergence));
        cells
    };
    let rows = |report: &PruneReport| report.candidates.iter().map(row).collect::<Vec<_>>();
    Table {
        head: &[
            "variant",
            "MLP channels",
            "heads",
            "KV heads",
            "blocks",
            "parameters",
            "weights",
            "MACs per token",
            "KV per token",
            "token on device",
            "KL",
        ],
        rows: rows_of(variants.iter().copied(), rows),
    }
}
