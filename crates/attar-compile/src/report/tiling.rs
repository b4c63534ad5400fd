//! Tilings of products, as data and as rows of a table. Cycles and energy are predicted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Table, distance};
use crate::tile::{Limits, Product, Rates, Tiling};

/// A product and its tiling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductReport {
    /// Name of its kernel, with a star for the number of its block.
    pub name: String,
    /// Number of kernels with this product.
    pub kernels: u64,
    /// `[m, k, n]`; `n` counts columns of sums.
    pub product: [u64; 3],
    /// Bits of a weight.
    pub weight_bits: u32,
    /// Lower bound on the bytes that any schedule moves.
    pub lower_bound: u64,
    /// The best tiling by the goal.
    pub best: TilingReport,
    /// The Pareto front by falling SRAM, if it was requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<TilingReport>,
}

/// A tiling of a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TilingReport {
    /// Its loops from the outermost: `mnk`.
    pub order: String,
    /// Of m, k and n.
    pub tile: [u64; 3],
    /// Tiles of activations and of weights that stay on the chip.
    pub kept: [u64; 2],
    /// Slots that the other tiles stream through.
    pub slots: [u64; 2],
    /// Rows of a tile of outputs that are finished and stored at once.
    pub strip: u64,
    /// Bytes moved.
    pub dram_bytes: u64,
    /// Bytes moved divided by the lower bound.
    pub distance: f64,
    /// Bytes on the chip.
    pub sram_bytes: u64,
    /// Predicted.
    pub cycles: f64,
    /// Predicted picojoules.
    pub energy_pj: f64,
}

impl TilingReport {
    /// Names of the columns of [`TilingReport::row`].
    pub const HEAD: &'static [&'static str] =
        &["order", "tile m, k, n", "resident x, w tiles", "DRAM bytes", "× bound", "SRAM bytes", "cycles (predicted)"];

    /// A tiling of `product`, of which no schedule moves fewer than `bound` bytes.
    pub fn new(tiling: &Tiling, product: &Product, limits: &Limits, rates: &Rates, bound: u64) -> TilingReport {
        let cost = tiling.cost(product, limits, rates);
        TilingReport {
            order: format!("{:?}", tiling.order).to_lowercase(),
            tile: tiling.tile,
            kept: tiling.kept,
            slots: tiling.slots,
            strip: tiling.strip,
            dram_bytes: tiling.dram.total(),
            distance: distance(tiling.dram.total(), bound),
            sram_bytes: tiling.sram,
            cycles: cost.cycles,
            energy_pj: cost.energy,
        }
    }

    /// Cells below [`TilingReport::HEAD`].
    pub fn row(&self) -> Vec<String> {
        let [m, k, n] = self.tile;
        // Rows that are stored at once, where these are not all.
        let rows = if self.strip < m { format!("{m} by {}", self.strip) } else { m.to_string() };
        vec![
            self.order.clone(),
            format!("[{rows}, {k}, {n}]"),
            format!("{:?}", self.kept),
            self.dram_bytes.to_string(),
            format!("{:.3}", self.distance),
            self.sram_bytes.to_string(),
            format!("{:.0}", self.cycles),
        ]
    }
}

impl ProductReport {
    /// Names of the columns of [`ProductReport::rows`].
    pub const HEAD: &'static [&'static str] =
        &columns::<{ 4 + TilingReport::HEAD.len() }>(&["product", "m x k x n", "weight bits", "lower bound"], TilingReport::HEAD);

    /// A row for the best tiling, or for each on the Pareto front if that is known, below [`ProductReport::HEAD`].
    pub fn rows(&self) -> Vec<Vec<String>> {
        let name = if self.kernels == 1 { self.name.clone() } else { format!("{} x {}", self.kernels, self.name) };
        let [m, k, n] = self.product;
        let head = [name, format!("{m} x {k} x {n}"), self.weight_bits.to_string(), self.lower_bound.to_string()];
        let shown = if self.front.is_empty() { std::slice::from_ref(&self.best) } else { &self.front };
        shown.iter().map(|tiling| head.iter().cloned().chain(tiling.row()).collect()).collect()
    }

    /// All rows of many.
    pub fn table<'a>(products: impl IntoIterator<Item = &'a ProductReport>) -> Table {
        Table { head: ProductReport::HEAD, rows: products.into_iter().flat_map(ProductReport::rows).collect() }
    }
}

/// The columns of one head before those of another; `N` of both.
pub const fn columns<const N: usize>(before: &[&'static str], after: &[&'static str]) -> [&'static str; N] {
    assert!(before.len() + after.len() == N, "all columns are named");
    let (mut all, mut at) = ([""; N], 0);
    while at < N {
        all[at] = if at < before.len() { before[at] } else { after[at - before.len()] };
        at += 1;
    }
    all
}

/// Columns as wide as their widest cell, two spaces between.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<String> = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        let lines = || std::iter::once(&head).chain(&self.rows);
        let widths: Vec<usize> =
            (0..head.len()).map(|at| lines().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
        for line in lines() {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}
