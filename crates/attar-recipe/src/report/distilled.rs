//! What the step `distill` learned.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, rows_of};

/// A run of training.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DistillReport {
    /// The teacher: its checkpoint, or `model`, for the recipe's before its steps.
    pub teacher: String,
    /// Numbers that learned.
    pub weights: u64,
    /// Optimizer steps that were made.
    pub steps: usize,
    /// Tokens that the model saw, those of a text that it saw twice counted twice.
    pub tokens: u64,
    /// Tokens that were kept aside.
    pub held_out_tokens: u64,
    /// After how many steps the weights that were kept stood; absent without held-out text, where the last ones are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<usize>,
    /// The weighted loss on the training text: up to which step, and the mean over the steps since the point before.
    pub losses: Vec<(usize, f64)>,
    /// Losses on the held-out text on the way.
    pub held_out: Vec<MeasuredPoint>,
}

/// Mean losses on the held-out text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeasuredPoint {
    /// After so many steps.
    pub step: usize,
    /// KL divergence from the teacher, in nats per token.
    pub kl: f64,
    /// Cross-entropy with the text, in nats per token.
    pub labels: f64,
}

impl Finding for DistillReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Distillation", table(found))]
    }
}

/// A row for every run of training.
fn table(variants: &Found<'_, DistillReport>) -> Table {
    let row = |report: &DistillReport| {
        let best = report.held_out.iter().find(|point| Some(point.step) == report.best_step);
        let pair = |of: fn(&MeasuredPoint) -> f64, digits: usize| match (report.held_out.first(), best) {
            (Some(before), Some(after)) => format!("{:.digits$} -> {:.digits$}", of(before), of(after)),
            _ => "-".into(),
        };
        let kept = report.best_step.unwrap_or(report.steps);
        let counts = [report.weights.to_string(), format!("{kept} of {}", report.steps), report.tokens.to_string()];
        let head = [report.teacher.clone()].into_iter().chain(counts);
        let ends = [report.losses.first(), report.losses.last()].map(|point| point.map_or(f64::NAN, |(_, loss)| *loss));
        let head = head.chain([format!("{:.4} -> {:.4}", ends[0], ends[1])]);
        [head.chain([pair(|p| p.kl, 4), pair(|p| p.labels.exp(), 2)]).collect::<Vec<_>>()]
    };
    Table { head: HEAD, rows: rows_of(variants.iter().copied(), row) }
}

/// Columns of runs of training.
const HEAD: &[&str] = &["variant", "teacher", "weights", "kept step", "tokens", "loss", "held-out KL", "held-out perplexity"];
