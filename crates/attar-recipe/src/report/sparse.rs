//! Which weights the step `prune` made sparse, what that cost, and what a device gains by it.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, rows_of};

/// A model of which single weights left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparseReport {
    /// What was asked for: `0.5` or `2:4`.
    pub sparsity: String,
    /// How the weights that stay were chosen.
    pub method: String,
    /// What their values were fitted to.
    pub fit: String,
    /// The device that the model is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Matrices that became sparse.
    pub layers: usize,
    /// Numbers in them.
    pub weights: u64,
    /// Zeros in them.
    pub zeros: u64,
    /// Numbers in all weights of the model.
    pub parameters: u64,
    /// KL divergence from the model before the step, in nats per token, on calibration text that was kept aside.
    pub divergence: f64,
    /// Tokens of that text.
    pub tokens: usize,
    /// What the device gains, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gains: Vec<String>,
    /// What zeros will not bring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl Finding for SparseReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Sparse weights", table(found))]
    }

    fn sections(found: &Found<'_, Self>, _: &[super::evals::EvalReport]) -> String {
        let reports = found.iter().flat_map(|(_, reports)| reports.iter());
        let said = |report: &SparseReport| {
            let on = |device: &String| format!("On `{device}`, {}.\n\n", report.gains.join("; "));
            let gains = report.device.as_ref().filter(|_| !report.gains.is_empty()).map(on);
            let warning = report.warning.as_ref().map(|warning| format!("{warning}.\n\n"));
            [gains, warning].into_iter().flatten().collect::<String>()
        };
        reports.map(said).collect()
    }
}

/// Steps: three rows each.
fn table(variants: &Found<'_, SparseReport>) -> Table {
    let rows = |report: &SparseReport| {
        let share = |of: u64| format!("{:.1}%", 100.0 * report.zeros as f64 / of.max(1) as f64);
        let step = format!("{} by `{}`, fit `{}`", report.sparsity, report.method, report.fit);
        let row = |what: &str, value: String| vec![step.clone(), what.to_owned(), value];
        vec![
            row(&format!("zeros of the {} weights of {} matrices", report.weights, report.layers), share(report.weights)),
            row(&format!("zeros of the {} weights of the model", report.parameters), share(report.parameters)),
            row("KL divergence, nats per token", format!("{:.4}", report.divergence)),
        ]
    };
    Table { head: &["variant", "sparsity", "what", "value"], rows: rows_of(variants.iter().copied(), rows) }
}
