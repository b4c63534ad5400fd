//! What was measured of the variants.

use attar_eval::{Evaluation, Outcome};

use crate::table::{Table, or_dash};

/// One eval of one variant by one runner.
pub type EvalReport = Evaluation;

/// Measurements: one row per eval, variant, runner and mode; the untouched model first.
pub(crate) fn table(evals: &[EvalReport]) -> Table {
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    for eval in evals {
        let who = match eval.mode {
            Some(mode) => format!("{} ({mode})", eval.runner),
            None => eval.runner.clone(),
        };
        let variant = eval.variant.clone().unwrap_or_default();
        let row = match &eval.outcome {
            Outcome::Skipped { reason } => {
                let mut row = vec![eval.eval.clone(), or_dash(&variant), who, "not run".into()];
                row.extend([reason.clone(), "-".into(), "-".into(), "-".into(), "-".into()]);
                row
            }
            // In a table of its own.
            Outcome::Predicted(_) => continue,
            Outcome::Measured(m) => {
                if let Some(base) = &m.against_base
                    && !seen.contains(&eval.eval)
                {
                    seen.push(eval.eval.clone());
                    let mut row =
                        vec![eval.eval.clone(), "(untouched)".into(), "reference".into(), estimate(&base.perplexity, 3)];
                    row.resize(9, "-".into());
                    rows.push(row);
                }
                let base = m.against_base.as_ref();
                let of = |pick: fn(&attar_eval::AgainstBase) -> &attar_eval::Estimate, digits| {
                    base.map_or("-".into(), |b| estimate(pick(b), digits))
                };
                vec![
                    eval.eval.clone(),
                    or_dash(&variant),
                    who,
                    estimate(&m.perplexity, 3),
                    of(|b| &b.perplexity_ratio, 4),
                    of(|b| &b.kl_mean, 5),
                    of(|b| &b.kl_p99, 4),
                    of(|b| &b.top1_agreement, 4),
                    m.agreement.as_ref().map_or("-".into(), |a| format!("{:.1e}", a.relative)),
                ]
            }
        };
        rows.push(row);
    }
    let head = &["eval", "variant", "runner", "perplexity", "ratio", "KL mean", "KL p99", "top-1", "max logit difference"];
    Table { head, rows }
}

pub(super) fn estimate(estimate: &attar_eval::Estimate, digits: usize) -> String {
    match estimate.standard_error {
        Some(error) => format!("{:.digits$} ± {error:.digits$}", estimate.value),
        None => format!("{:.digits$}", estimate.value),
    }
}
