//! How `bits = "auto"` of the step `activations` was decided.

use serde::{Deserialize, Serialize};

use super::{
    evals::EvalReport,
    finding::{Finding, Found},
};
use crate::{shown::in_markdown, table::Table};

/// Which activations have 16 bits, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WidthsReport {
    /// As in the recipe: `cycles = "10%"`.
    pub budget: String,
    /// How losses were found.
    pub sensitivity: String,
    /// Whether losses are KL divergences in nats per token; otherwise they have no unit.
    pub divergence: bool,
    /// What has the budget: `cycles` or `bytes`.
    pub cost: String,
    /// What 8 bits throughout cost.
    pub least: u64,
    /// What is allowed.
    pub allowed: u64,
    /// What the choices cost.
    pub spent: u64,
    /// What 16 bits cost wherever they are of use.
    pub most: u64,
    /// The sum of what the choices lose.
    pub predicted: f64,
    /// The sum of what 8 bits throughout lose.
    pub predicted_least: f64,
    /// Whether no other choices within the budget have a smaller sum.
    pub optimal: bool,
    /// Activations with 16 bits.
    pub wide: usize,
    /// Activations whose bits were chosen.
    pub activations: usize,
    /// Each of them, in running order.
    pub choices: Vec<WidthReport>,
}

/// What a budget gave one activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WidthReport {
    /// The value's name in the graph.
    pub name: String,
    /// Bits of its codes.
    pub bits: u32,
    /// What it loses in 8 and in 16 bits.
    pub losses: [f64; 2],
    /// Weights of the linear layers that read it.
    pub feeds: Vec<String>,
}

impl Finding for WidthsReport {
    fn sections(found: &Found<'_, Self>, _: &[EvalReport]) -> String {
        let each = found.iter().flat_map(|(name, found)| found.iter().map(move |widths| section(name, widths)));
        each.collect()
    }
}

fn section(variant: &str, widths: &WidthsReport) -> String {
    let of = if variant.is_empty() { String::new() } else { format!(" of {}", in_markdown(variant)) };
    let unit = match widths.sensitivity.as_str() {
        _ if widths.divergence => " nats of KL divergence per token",
        "drift" => " of cosine distance of the embeddings",
        _ => "",
    };
    let more = |amount: u64| 100.0 * (amount as f64 / widths.least.max(1) as f64 - 1.0);
    format!(
        "## Bits of activations{of}: `{}`\n\n{} of {} activations have 16 bits: {} {:+.1}%, of {:+.1}% allowed; all of them would take {:+.1}%. \
         Predicted loss (`{}`): {:.5}{unit}; with 8 bits throughout {:.5}.\n\n{}\n",
        widths.budget,
        widths.wide,
        widths.activations,
        widths.cost,
        more(widths.spent),
        more(widths.allowed),
        more(widths.most),
        widths.sensitivity,
        widths.predicted,
        widths.predicted_least,
        table(widths).markdown()
    )
}

/// One row per activation, those that lose most in 8 bits first.
fn table(widths: &WidthsReport) -> Table {
    let mut choices: Vec<&WidthReport> = widths.choices.iter().collect();
    choices.sort_by(|a, b| b.losses[0].total_cmp(&a.losses[0]));
    let row = |choice: &&WidthReport| {
        let [eight, sixteen] = choice.losses.map(|loss| format!("{loss:.2e}"));
        vec![choice.name.clone(), choice.bits.to_string(), eight, sixteen, choice.feeds.join(", ")]
    };
    Table { head: &["activation", "bits", "loss in 8 bits", "in 16", "read by"], rows: choices.iter().map(row).collect() }
}
