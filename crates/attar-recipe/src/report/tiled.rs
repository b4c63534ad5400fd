//! What the step `tile` cut.

use attar_compile::{
    Tiled,
    report::{ProductReport, columns},
};

use crate::table::{Table, rows_of};

/// Products for devices: one row each.
pub(super) fn table(variants: &[(&str, &[Tiled])]) -> Table {
    let rows = |tiled: &Tiled| {
        let rows = tiled.products.iter().flat_map(ProductReport::rows);
        rows.map(|row| std::iter::once(tiled.device.clone()).chain(row).collect()).collect::<Vec<Vec<String>>>()
    };
    Table { head: HEAD, rows: rows_of(variants.iter().copied(), rows) }
}

/// Columns of products cut for devices.
const HEAD: &[&str] = &columns::<{ 2 + ProductReport::HEAD.len() }>(&["variant", "device"], ProductReport::HEAD);
