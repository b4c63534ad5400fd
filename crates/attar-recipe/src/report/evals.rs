//! What was measured of the variants.

use std::sync::LazyLock;

use attar_eval::{
    DEFAULT_TASK, DEVICE, Digits, Estimate, Evaluation, Measurements, Metric, Mode, Outcome, PREDICTED, REFERENCE, TASKS, Task,
};

use crate::table::{Table, or_dash};

/// One eval of one variant by one runner.
pub type EvalReport = Evaluation;

/// How a task's table looks: its title and the names of its columns.
struct Look {
    title: String,
    head: Vec<&'static str>,
}

/// One per task.
static LOOKS: LazyLock<Vec<Look>> = LazyLock::new(|| TASKS.iter().map(|task| Look::of(task)).collect());

impl Look {
    fn of(task: &Task) -> Look {
        let title = if task.name == DEFAULT_TASK { "Evals".into() } else { format!("Evals: {}", task.name) };
        let columns = columns(task).map(|(_, head, _)| head);
        Look { title, head: ["eval", "variant", "runner"].into_iter().chain(columns).collect() }
    }
}

fn columns(task: &Task) -> impl Iterator<Item = (&'static Metric, &'static str, Digits)> {
    task.metrics.iter().filter_map(|metric| metric.column.as_ref().map(|column| (metric, column.head, column.digits)))
}

/// A table per task, with its title.
pub(crate) fn tables(evals: &[EvalReport]) -> Vec<(&'static str, Table)> {
    let tables = TASKS.iter().zip(LOOKS.iter()).map(|(task, look)| {
        let of_task: Vec<&EvalReport> = evals.iter().filter(|eval| eval.task == task.name && eval.eval != DEVICE).collect();
        (look.title.as_str(), Table { head: &look.head, rows: rows(task, &of_task) })
    });
    tables.chain([(PREDICTIONS, Table { head: PREDICTED_BY, rows: predictions(evals) })]).collect()
}

/// The title and the head of the table of what compilers of vendors predict.
const PREDICTIONS: &str = "Predicted by vendors' compilers";
const PREDICTED_BY: &[&str] =
    &["variant", "compiler", "prompt, ms", "token, ms", "SRAM, KiB", "DRAM, MB", "traffic, MB", "compiled, MB", "notes"];

fn predictions(evals: &[EvalReport]) -> Vec<Vec<String>> {
    let by_vendors = evals.iter().filter(|eval| eval.eval == DEVICE && eval.runner != PREDICTED);
    let row = |eval: &EvalReport| {
        let none = |first: &str| [first, "-", "-", "-", "-", "-"].map(str::to_owned);
        let (numbers, notes) = match &eval.outcome {
            Outcome::Predicted(predicted) => {
                let scaled = |number: Option<f64>, by: f64, digits: usize| {
                    number.map_or("-".into(), |number| format!("{:.digits$}", number * by))
                };
                let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
                let numbers = [
                    scaled(predicted.latency, 1e3, 3),
                    scaled(predicted.decode_latency, 1e3, 3),
                    scaled(bytes(predicted.peak_sram), 1.0 / 1024.0, 1),
                    scaled(bytes(predicted.peak_dram), 1e-6, 2),
                    scaled(bytes(predicted.dram_bytes), 1e-6, 2),
                    scaled(bytes(predicted.compiled_bytes), 1e-6, 2),
                ];
                (numbers, predicted.notes.join("; "))
            }
            Outcome::Skipped { reason } => (none("not run"), reason.clone()),
            Outcome::Measured(_) => (none("-"), String::new()),
        };
        let compiler = runner(&eval.runner, eval.mode, eval.device.as_deref());
        [or_dash(eval.variant.as_deref().unwrap_or_default()), compiler].into_iter().chain(numbers).chain([notes]).collect()
    };
    by_vendors.map(row).collect()
}

/// Measurements of one task: one row per eval, variant, runner and mode; the baseline first.
fn rows(task: &Task, evals: &[&EvalReport]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    for eval in evals {
        let who = runner(&eval.runner, eval.mode, eval.device.as_deref());
        let variant = eval.variant.as_deref().unwrap_or_default();
        let measured = match &eval.outcome {
            Outcome::Predicted(_) => unreachable!("predictions have a table of their own"),
            Outcome::Skipped { reason } => {
                rows.push(row(task, &eval.eval, variant, who, vec!["not run".into(), reason.clone()]));
                continue;
            }
            Outcome::Measured(measured) => measured,
        };
        // The whole, and then its parts.
        let parts = measured.parts(task).into_iter().map(|(name, part)| (format!("{}: {name}", eval.eval), part));
        let all: Vec<(String, Measurements)> = std::iter::once((eval.eval.clone(), measured.clone())).chain(parts).collect();
        if !seen.contains(&&eval.eval) {
            seen.push(&eval.eval);
            for (name, measured) in &all {
                let cells: Vec<String> = columns(task).map(|(metric, _, digits)| base(metric, measured, digits)).collect();
                if cells.iter().any(|cell| cell != "-") {
                    rows.push(row(task, name, "(baseline)", REFERENCE.into(), cells));
                }
            }
        }
        for (name, measured) in &all {
            let cells = columns(task).map(|(metric, _, digits)| cell(measured.estimate(metric.at), digits)).collect();
            rows.push(row(task, name, variant, who.clone(), cells));
        }
    }
    rows
}

/// A runner with its mode and device.
pub(crate) fn runner(name: &str, mode: Option<Mode>, device: Option<&str>) -> String {
    let how: Vec<String> = mode.iter().map(ToString::to_string).chain(device.map(Into::into)).collect();
    if how.is_empty() { name.into() } else { format!("{name} ({})", how.join(", ")) }
}

/// Cells that are not given are dashes.
fn row(task: &Task, eval: &str, variant: &str, who: String, cells: Vec<String>) -> Vec<String> {
    let mut row = vec![eval.to_owned(), or_dash(variant), who];
    row.extend(cells);
    row.resize(3 + columns(task).count(), "-".into());
    row
}

fn base(metric: &Metric, measured: &Measurements, digits: Digits) -> String {
    cell(metric.base.and_then(|base| measured.estimate(base)), digits)
}

fn cell(found: Option<Estimate>, digits: Digits) -> String {
    match (found, digits) {
        (None, _) => "-".into(),
        (Some(found), Digits::Fixed(digits)) => estimate(&found, digits),
        (Some(found), Digits::Thousandths(digits)) => format!("{:.digits$}", 1e3 * found.value),
        (Some(found), Digits::Exponent) => format!("{:.1e}", found.value),
    }
}

pub(super) fn estimate(estimate: &Estimate, digits: usize) -> String {
    match estimate.standard_error {
        Some(error) => format!("{:.digits$} ± {error:.digits$}", estimate.value),
        None => format!("{:.digits$}", estimate.value),
    }
}
