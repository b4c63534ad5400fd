//! Which rows of quantized weights are kept worst, and which are lost.

use std::collections::BTreeMap;

use attar_compress::{Losses, Lost, RowLoss};
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, or_dash};

/// Weights that the text of a report shows of each variant.
const WORST: usize = 5;

/// How the rows of a quantized weight are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    /// Canonical name.
    pub name: String,
    /// The rows of least signal-to-noise ratio, the worst first, three at most; none where all rows are exact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worst: Vec<RowLoss>,
    /// Rows and groups of non-zero weights that are lost, as `lost = "report"` allows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: usize,
    /// The first ten of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<Lost>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl LossReport {
    /// Of every weight, the ones with the worst rows first.
    pub(crate) fn of(losses: &BTreeMap<String, Losses>) -> Vec<LossReport> {
        let report = |(name, found): (&String, &Losses)| LossReport {
            name: name.clone(),
            worst: found.worst.clone(),
            lost: found.lost,
            first: found.first.clone(),
        };
        let told = |report: &LossReport| !report.worst.is_empty() || report.lost > 0;
        losses.iter().map(report).filter(told).collect()
    }
}

impl Finding for LossReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Weights with the worst rows", worst(found)), ("Weights that are lost", lost(found))]
    }

    fn arrange(found: &mut [Self]) {
        let least = |report: &LossReport| report.worst.first().map_or(f64::INFINITY, |row| row.snr_db);
        found.sort_by(|a, b| least(a).total_cmp(&least(b)));
    }
}

/// The worst row of five weights of each variant.
fn worst(variants: &Found<'_, LossReport>) -> Table {
    let mut rows = Vec::new();
    for (variant, reports) in variants {
        let worst = reports.iter().filter_map(|report| Some((report, report.worst.first()?)));
        rows.extend(
            worst.take(WORST).map(|(report, row)| {
                vec![or_dash(variant), report.name.clone(), row.row.to_string(), format!("{:.1}", row.snr_db)]
            }),
        );
    }
    Table { head: &["variant", "weight", "row", "SNR dB"], rows }
}

/// Rows and groups of which nothing is left, the first ones of each weight.
fn lost(variants: &Found<'_, LossReport>) -> Table {
    let mut rows = Vec::new();
    for (variant, reports) in variants {
        for (report, lost) in reports.iter().flat_map(|r| r.first.iter().map(move |lost| (r, lost))) {
            let others = format!("{} in all", report.lost);
            rows.push(vec![or_dash(variant), report.name.clone(), lost.to_string(), lost.became.to_string(), others]);
        }
    }
    Table { head: &["variant", "weight", "where", "what", "how many"], rows }
}
