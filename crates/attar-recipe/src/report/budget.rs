//! How budgets of the step `quantize` were spent.

use attar_eval::{Outcome, REFERENCE, perplexity::DIVERGENCE};
use serde::{Deserialize, Serialize};

use super::{
    evals::{EvalReport, estimate},
    finding::{Finding, Found},
};
use crate::{
    shown::in_markdown,
    table::{Table, bytes},
};

/// How a budget was spent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocationReport {
    /// As in the recipe: `bits = 3.5`.
    pub budget: String,
    /// How losses were predicted.
    pub sensitivity: String,
    /// Bits per selected weight that the budget allows: true bits, or coded ones.
    pub allowed: f64,
    /// Bits per selected weight that the choices take, of the same kind.
    pub bits_per_weight: f64,
    /// Bytes of the whole model with these choices.
    pub bytes: u64,
    /// The smallest and the largest choices, in such bits per selected weight.
    pub range: [f64; 2],
    /// The sum of what the choices lose: in nats of KL divergence per token, or else without a unit.
    pub predicted: f64,
    /// Whether the prediction is a KL divergence.
    pub divergence: bool,
    /// Whether no other choices within the budget have a smaller sum.
    pub optimal: bool,
    /// What each selected weight gets, in the graph's order.
    pub choices: Vec<ChoiceReport>,
}

/// What a budget gave one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// Canonical name.
    pub name: String,
    /// Its format.
    pub scheme: String,
    /// Bits per weight, of the budget's kind.
    pub bits_per_weight: f64,
    /// What it loses.
    pub predicted: f64,
    /// Of a budget of coded bits: the share of zeros among its codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zeros: Option<f64>,
}

impl Finding for AllocationReport {
    fn sections(found: &Found<'_, Self>, evals: &[EvalReport]) -> String {
        sections(found, evals)
    }
}

/// Which weight got what under a budget, the summed prediction next to what was measured.
fn sections(variants: &Found<'_, AllocationReport>, evals: &[EvalReport]) -> String {
    let mut text = String::new();
    for (variant, allocation) in variants.iter().flat_map(|(name, found)| found.iter().map(move |a| (*name, a))) {
        let of = if variant.is_empty() { String::new() } else { format!(" of {}", in_markdown(variant)) };
        let kind = if allocation.is_coded() { "coded" } else { "true" };
        let unit = if allocation.divergence { " nats of KL divergence per token" } else { "" };
        text += &format!(
            "## Budget{of}: `{}`\n\n{:.4} {kind} bits per selected weight of {:.4} allowed; {} in all. Predicted loss (`{}`): {:.5}{unit}{}.\n\n{}\n",
            allocation.budget,
            allocation.bits_per_weight,
            allocation.allowed,
            bytes(allocation.bytes),
            allocation.sensitivity,
            allocation.predicted,
            measured_divergences(variant, evals),
            choice_table(allocation).markdown()
        );
    }
    text
}

/// `; measured on EVAL: KL`, for each eval of a variant that has it.
fn measured_divergences(variant: &str, evals: &[EvalReport]) -> String {
    let mut text = String::new();
    for eval in evals.iter().filter(|e| e.runner == REFERENCE && e.variant.as_deref().unwrap_or_default() == variant) {
        let Outcome::Measured(measured) = &eval.outcome else { continue };
        if let Some(kl) = measured.estimate(DIVERGENCE) {
            text += &format!("; measured on `{}`: {}", in_markdown(&eval.eval), estimate(&kl, 5));
        }
    }
    text
}

impl AllocationReport {
    /// Whether its bits are those of a coder's stream, as estimated.
    fn is_coded(&self) -> bool {
        self.choices.iter().any(|choice| choice.zeros.is_some())
    }
}

/// One row per weight, costly ones first.
fn choice_table(allocation: &AllocationReport) -> Table {
    let mut choices: Vec<&ChoiceReport> = allocation.choices.iter().collect();
    choices.sort_by(|a, b| b.predicted.total_cmp(&a.predicted));
    let coded = allocation.is_coded();
    let row = |c: &&ChoiceReport| {
        let own = [c.name.clone(), c.scheme.clone(), format!("{:.3}", c.bits_per_weight), format!("{:.2e}", c.predicted)];
        let zeros = c.zeros.map_or_else(|| "-".to_owned(), |zeros| format!("{:.1}%", 100.0 * zeros));
        own.into_iter().chain(coded.then_some(zeros)).collect()
    };
    let head: &[&str] = match coded {
        true => &["weight", "scheme", "coded bits/weight", "predicted loss", "zeros"],
        false => &["weight", "scheme", "bits/weight", "predicted loss"],
    };
    Table { head, rows: choices.iter().map(row).collect() }
}
