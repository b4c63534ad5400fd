//! What the step `prune` removed, and what that cost.

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
    /// What left of the residual stream, in the order in which it was chosen: `blocks.25`, numbered as before the step; and the
    /// KL divergence without it and all before it, on the first windows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedReport>,
    /// Layers that lost units, in running order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<CutReport>,
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
        vec![("Shapes that became smaller", table(found))]
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
