//! What the step `memory-plan` placed.

use serde::{Deserialize, Serialize};

use crate::table::{Table, rows_of};

/// Placed buffers; no two live buffers overlap (verified).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// Where they come from.
    pub file: String,
    /// How many.
    pub buffers: usize,
    /// Bytes that there are, if that was said.
    pub capacity: Option<u64>,
    /// The most bytes that live at one moment.
    pub max_live: u64,
    /// Bytes that the placement takes.
    pub height: u64,
    /// No placement takes fewer, where that was asked for.
    pub at_least: Option<u64>,
    /// The share of the height that is above what lives at once.
    pub fragmentation: f64,
    /// What found it.
    pub method: String,
    /// Nodes that were searched.
    pub nodes: u64,
}

/// Memories: one row each.
pub(super) fn table(variants: &[(&str, &[PlacementReport])]) -> Table {
    let row = |p: &PlacementReport| {
        let size = |bytes: Option<u64>| bytes.map_or("-".into(), |bytes| bytes.to_string());
        let bytes = [size(p.capacity), p.max_live.to_string(), p.height.to_string(), size(p.at_least)];
        let head = [p.file.clone(), p.buffers.to_string()];
        let tail = [format!("{:.2}%", 100.0 * p.fragmentation), p.method.clone(), p.nodes.to_string()];
        [head.into_iter().chain(bytes).chain(tail).collect::<Vec<_>>()]
    };
    Table { head: HEAD, rows: rows_of(variants.iter().copied(), row) }
}

/// Columns of buffers in memories; sizes are bytes.
const HEAD: &[&str] =
    &["variant", "file", "buffers", "capacity", "peak live", "height", "lower bound", "fragmentation", "method", "search nodes"];
