//! What the passes of the step `fuse` did to the graph.

use attar_compile::pass::PassReport;
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, or_dash};

/// What a pass did to a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusionReport {
    /// Its name.
    pub pass: String,
    /// How many values it made anew, replaced or dropped.
    pub changes: usize,
    /// How many nodes there were before.
    pub before: usize,
    /// And after; what is inside a fused node does not count.
    pub after: usize,
}

impl FusionReport {
    /// Without the time: reports hold none.
    pub fn of(report: &PassReport) -> FusionReport {
        let [before, after] = report.nodes;
        FusionReport { pass: report.name.into(), changes: report.changes.len(), before, after }
    }
}

impl Finding for FusionReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Passes over the graph", table(found))]
    }
}

/// Passes: one row each.
fn table(variants: &Found<'_, FusionReport>) -> Table {
    fusion_table(variants.iter().flat_map(|(name, found)| found.iter().map(move |fusion| (*name, fusion))))
}

/// The same of any reports, each with the name of its variant.
pub fn fusion_table<'f>(fusions: impl IntoIterator<Item = (&'f str, &'f FusionReport)>) -> Table {
    let row = |(variant, f): (&str, &FusionReport)| {
        let counts = [f.changes, f.before, f.after].map(|n| n.to_string());
        [or_dash(variant), f.pass.clone()].into_iter().chain(counts).collect()
    };
    Table { head: &["variant", "pass", "changes", "nodes before", "nodes after"], rows: fusions.into_iter().map(row).collect() }
}
