//! The tiles of a whole gated MLP: for each block of rows, tiles of inner columns are computed, gated and multiplied by the
//! down projection without leaving the chip. Weights are streamed once per block of rows, except those that are kept. With a
//! norm at the entry the rows arrive in int16; where there is room they stay until they are added to the result.

mod code;

use super::Entry;
use crate::{
    Element, Program,
    program::{Column, Epilogue, GatedMlp, Norm},
    tile::{Limits, Objective, Rates},
};

/// How a gated MLP is tiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatedMlpTiles {
    /// Rows at a time.
    pub rows: u64,
    /// Inner columns at a time.
    pub inner: u64,
    /// How many tiles of inner columns keep their weights on the chip.
    pub kept: u64,
    /// Columns of the result that are finished at a time.
    pub finished: u64,
    /// Rows that are normed at a time, if `x` is normed before it is read.
    pub piece: Option<u64>,
    /// Bytes of the constants of that norm.
    gains: u64,
    /// Whether rows that are normed come all at once and stay until they are added, being the residual, too.
    pub added: bool,
    /// Whether `x` (what is normed), the output and the residual are kept on the chip.
    pub on_chip: [bool; 3],
    align: u64,
}

/// The sizes of a gated MLP.
struct Shape {
    /// Rows, width, inner width.
    m: u64,
    d: u64,
    f: u64,
    gate: Element,
    down: Element,
    out: Element,
    /// What gate and up read, and what down reads.
    x: Element,
    gated: Element,
    /// Sums of gate and up, and of down.
    sums: [Element; 2],
}

impl Shape {
    fn of(program: &Program, mlp: &GatedMlp) -> Shape {
        let [m, d, pairs] = program.product(&mlp.gated);
        let [gate, down] = [&mlp.gated, &mlp.down].map(|linear| program.get(linear.weight).element);
        let [x, gated, out] = [mlp.gated.x, mlp.down.x, mlp.down.out[0].tensor].map(|id| program.get(id).element);
        let sums = [&mlp.gated, &mlp.down].map(|linear| program.sums(linear));
        Shape { m, d, f: pairs / 2, gate, down, out, x, gated, sums }
    }

    /// Bytes of the weights of `width` inner columns: gate with up, and down.
    fn weights(&self, width: u64) -> [u64; 2] {
        [self.gate.bytes(2 * width * self.d), self.down.bytes(width * self.d)]
    }
}

impl GatedMlpTiles {
    /// The tiles with the least DRAM traffic that fit, with `norm` at the entry if there is one.
    ///
    /// # Errors
    /// Where not even one row fits.
    pub fn search(
        program: &Program,
        mlp: &GatedMlp,
        norm: Option<&Norm>,
        on_chip: [bool; 3],
        limits: &Limits,
        array: [u64; 2],
    ) -> crate::Result<GatedMlpTiles> {
        let shape = Shape::of(program, mlp);
        let piece = norm.map(|_| Entry::piece(limits, shape.d, on_chip[0]));
        let gains = norm.map_or(0, |norm| program.get(norm.gains).bytes());
        let (whole, finished) = (added(mlp, norm) && !on_chip[0], shape.d.min(2 * array[1]));
        let tiles = |rows: u64, inner: u64, added: bool| {
            let rows = rows.next_multiple_of(piece.unwrap_or(1)).min(shape.m);
            GatedMlpTiles { rows, inner, kept: 0, finished, piece, gains, added, on_chip, align: limits.align }
        };
        let unit = array[1].max(u64::from(shape.down.per)).next_multiple_of(u64::from(shape.down.per));
        let mut best: Option<([u64; 3], GatedMlpTiles)> = None;
        let inners: Vec<u64> = match limits.stored {
            Some([_, pairs]) => vec![pairs / 2],
            None => (1..=shape.f.div_ceil(unit)).map(|units| (units * unit).min(shape.f)).collect(),
        };
        for inner in inners {
            for blocks in (1..=shape.m.min(64)).chain([shape.m]) {
                for added in [false, true].into_iter().filter(|added| whole || !added) {
                    let mut tiles = tiles(shape.m.div_ceil(blocks), inner, added);
                    tiles.kept = tiles.most_kept(&shape, limits.sram);
                    if tiles.sram(&shape) > limits.sram {
                        continue;
                    }
                    let traffic = tiles.traffic(program, mlp) + Objective::TRANSFER * tiles.transfers(&shape);
                    let key = [traffic, tiles.sram(&shape), inner];
                    if best.as_ref().is_none_or(|(least, _)| key < *least) {
                        best = Some((key, tiles));
                    }
                }
            }
        }
        let least = || tiles(1, unit.min(shape.f), false);
        best.map(|(_, tiles)| tiles).ok_or_else(|| crate::Error::TileTooLarge { needed: least().sram(&shape), sram: limits.sram })
    }

    /// As many kept tiles as fit: all, or those that leave room for two streamed ones.
    fn most_kept(&self, shape: &Shape, sram: u64) -> u64 {
        // One block of rows uses every tile once: what is kept would only come before the rest.
        if self.rows >= shape.m {
            return 0;
        }
        let all = shape.f.div_ceil(self.inner);
        if (GatedMlpTiles { kept: all, ..self.clone() }).sram(shape) <= sram {
            return all;
        }
        let room = sram.saturating_sub(self.sram(shape));
        let tile: u64 = shape.weights(self.inner).iter().map(|bytes| bytes.next_multiple_of(self.align)).sum();
        (room / tile.max(1)).min(all - 1)
    }

    /// Loads of weights and rescalings.
    fn transfers(&self, shape: &Shape) -> u64 {
        let (blocks, all) = (shape.m.div_ceil(self.rows), shape.f.div_ceil(self.inner));
        2 * self.kept + blocks * (2 * (all - self.kept) + all)
    }

    /// DRAM bytes.
    pub fn traffic(&self, program: &Program, mlp: &GatedMlp) -> u64 {
        let shape = Shape::of(program, mlp);
        let blocks = shape.m.div_ceil(self.rows);
        let (all, full) = (shape.f.div_ceil(self.inner), shape.f / self.inner);
        let bytes = |width: u64| shape.weights(width).iter().sum::<u64>();
        let tiles = |count: u64| count.min(full) * bytes(self.inner) + if count > full { bytes(shape.f % self.inner) } else { 0 };
        let weights = tiles(self.kept) + blocks * (tiles(all) - tiles(self.kept));
        let columns = blocks * Column::ELEMENT.bytes(2 * shape.f + shape.d);
        let [x, out, residual] = self.operands(program, mlp);
        weights + columns + self.gains + x + out + residual
    }

    /// Predicted cycles, where norming each row once takes `norm` cycles of work: rows that are normed come before the rest of
    /// their block begins.
    pub(crate) fn cycles(&self, program: &Program, mlp: &GatedMlp, rates: &Rates, norm: f64) -> f64 {
        let shape = Shape::of(program, mlp);
        let macs = 3 * shape.m * shape.d * shape.f;
        let products = macs as f64 / rates.array.iter().product::<u64>() as f64;
        let loads = self.operands(program, mlp)[0] as f64 / rates.read;
        let entry = match self.piece {
            None => 0.0,
            Some(_) if self.added => norm + loads,
            Some(_) => norm.max(loads),
        };
        (products + entry).max(self.traffic(program, mlp) as f64 / rates.read)
    }

    /// DRAM bytes of x, output and residual.
    fn operands(&self, program: &Program, mlp: &GatedMlp) -> [u64; 3] {
        let residual = match mlp.down.epilogue {
            Epilogue::Add { residual } if !self.added => program.get(residual).bytes(),
            _ => 0,
        };
        let [x, out] = [mlp.gated.x, mlp.down.out[0].tensor].map(|id| program.get(id).bytes());
        let wide = Element::INT16.bytes(program.get(mlp.gated.x).columns) * program.get(mlp.gated.x).rows;
        let bytes = [if self.piece.is_some() { wide } else { x }, out, residual];
        std::array::from_fn(|at| if self.on_chip[at] { 0 } else { bytes[at] })
    }

    fn sram(&self, shape: &Shape) -> u64 {
        let slot = |bytes: u64| bytes.next_multiple_of(self.align);
        let (rows, blocks) = (self.rows, shape.m.div_ceil(self.rows));
        let tile = shape.weights(self.inner).map(slot);
        let streamed = if self.kept == shape.f.div_ceil(self.inner) { 0 } else { 2 };
        let x = match self.piece {
            None if self.on_chip[0] => 0,
            None => blocks.min(2) * slot(shape.x.bytes(rows * shape.d)),
            Some(rows_once) => {
                let entry =
                    Entry::Once { rows: rows_once }.bytes([rows, shape.d], shape.x, self.on_chip[0] || self.added, self.align);
                let wide = if self.added { slot(Element::INT16.bytes(rows * shape.d)) } else { 0 };
                slot(shape.x.bytes(rows * shape.d)) + entry + wide + slot(self.gains)
            }
        };
        let [out, residual] = [self.on_chip[1], self.on_chip[2] || self.added]
            .map(|chip| if chip { 0 } else { slot(shape.out.bytes(self.finished) * rows) });
        let columns = slot(Column::ELEMENT.bytes(2 * self.inner)) + slot(Column::ELEMENT.bytes(self.finished));
        let sums = slot(shape.sums[1].bytes(rows * shape.d))
            + slot(shape.sums[0].bytes(2 * rows * self.inner))
            + slot(shape.gated.bytes(rows * self.inner));
        x + out + residual + columns + sums + (self.kept + streamed) * tile.iter().sum::<u64>()
    }
}

/// Whether what is normed is the residual, too.
fn added(mlp: &GatedMlp, norm: Option<&Norm>) -> bool {
    matches!(mlp.down.epilogue, Epilogue::Add { residual } if norm.is_some_and(|norm| norm.x == residual))
}
