//! What the step `memory-plan` placed.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, rows_of};

/// Buffers placed in a memory. No two live buffers overlap (verified).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// The file that lists them.
    pub file: String,
    /// Number of buffers.
    pub buffers: usize,
    /// Bytes of the memory, if a capacity was given.
    pub capacity: Option<u64>,
    /// Peak of live bytes: a lower bound on the height.
    pub max_live: u64,
    /// Bytes that the placement takes.
    pub height: u64,
    /// Proven lower bound on the height, where it was asked for.
    pub at_least: Option<u64>,
    /// Share of the height above the peak of live bytes.
    pub fragmentation: f64,
    /// Algorithm that found the placement.
    pub method: String,
    /// Number of search nodes.
    pub nodes: u64,
}

impl Finding for PlacementReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Buffers placed", table(found))]
    }
}

/// Memories: one row each.
fn table(variants: &Found<'_, PlacementReport>) -> Table {
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
    &["variant", "buffers of", "buffers", "capacity", "live at once", "height", "at least", "fragmentation", "found by", "nodes"];
