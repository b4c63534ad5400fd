//! What the step `tile` tiled.

use attar_compile::{
    Tiled,
    report::{ProductReport, columns},
};

use super::finding::{Finding, Found};
use crate::table::{Table, rows_of};

impl Finding for Tiled {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Matrix products tiled for SRAM", table(found))]
    }
}

/// Products for devices: one row each.
fn table(variants: &Found<'_, Tiled>) -> Table {
    let rows = |tiled: &Tiled| {
        let rows = tiled.products.iter().flat_map(ProductReport::rows);
        rows.map(|row| std::iter::once(tiled.device.clone()).chain(row).collect()).collect::<Vec<Vec<String>>>()
    };
    Table { head: HEAD, rows: rows_of(variants.iter().copied(), rows) }
}

/// Columns of products cut for devices.
const HEAD: &[&str] = &columns::<{ 2 + ProductReport::HEAD.len() }>(&["variant", "device"], ProductReport::HEAD);
