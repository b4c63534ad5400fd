//! The loops of a whole gated unit: for each block of rows, tiles of the inner width are made, gated and summed into the
//! result without leaving the chip. Weights pass once for each block of rows, except those that are kept. Behind a norm the
//! rows come in int16; where there is room they stay until they are added to the result.

use super::{Builder, Entry, Lowered, at_buffer, at_operand, compute, entry::Norming, load, open, region, release, tiles, wait};
use crate::{
    Element, Program,
    plan::{Compute, Span, Statement},
    program::{Column, Epilogue, Mlp, Norm},
    tile::{Limits, Objective, Rates},
};

const ROWS: u8 = 0;
const INNER: u8 = 1;
const OUT: u8 = 2;

/// How a gated unit is tiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlpTiles {
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
    /// Whether rows that are normed come all at once and stay until they are added, being the residual, too.
    pub added: bool,
    /// Whether `x` (what is normed), the output and the residual are kept on the chip.
    pub on_chip: [bool; 3],
    align: u64,
}

/// The sizes of a gated unit.
struct Shape {
    /// Rows, width, inner width.
    m: u64,
    d: u64,
    f: u64,
    gate: Element,
    down: Element,
    out: Element,
}

impl Shape {
    fn of(program: &Program, mlp: &Mlp) -> Shape {
        let [m, d, pairs] = program.product(&mlp.gated);
        let [gate, down] = [&mlp.gated, &mlp.down].map(|linear| program.get(linear.weight).element);
        Shape { m, d, f: pairs / 2, gate, down, out: program.get(mlp.down.out[0].tensor).element }
    }

    /// Bytes of the weights of `width` inner columns: gate with up, and down.
    fn weights(&self, width: u64) -> [u64; 2] {
        [self.gate.bytes(2 * width * self.d), self.down.bytes(width * self.d)]
    }
}

impl MlpTiles {
    /// The least DRAM traffic that fits, behind `norm` if there is one.
    ///
    /// # Errors
    /// Where not even one row fits.
    pub fn search(
        program: &Program,
        mlp: &Mlp,
        norm: Option<&Norm>,
        on_chip: [bool; 3],
        limits: &Limits,
        array: [u64; 2],
    ) -> crate::Result<MlpTiles> {
        let shape = Shape::of(program, mlp);
        let piece = norm.map(|_| Entry::piece(limits, shape.d, on_chip[0]));
        let (whole, finished) = (added(mlp, norm) && !on_chip[0], shape.d.min(2 * array[1]));
        let tiles = |rows: u64, inner: u64, added: bool| {
            let rows = rows.next_multiple_of(piece.unwrap_or(1)).min(shape.m);
            MlpTiles { rows, inner, kept: 0, finished, piece, added, on_chip, align: limits.align }
        };
        let unit = array[1].max(u64::from(shape.down.per)).next_multiple_of(u64::from(shape.down.per));
        let mut best: Option<([u64; 3], MlpTiles)> = None;
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
        if (MlpTiles { kept: all, ..self.clone() }).sram(shape) <= sram {
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
    pub fn traffic(&self, program: &Program, mlp: &Mlp) -> u64 {
        let shape = Shape::of(program, mlp);
        let blocks = shape.m.div_ceil(self.rows);
        let (all, full) = (shape.f.div_ceil(self.inner), shape.f / self.inner);
        let bytes = |width: u64| shape.weights(width).iter().sum::<u64>();
        let tiles = |count: u64| count.min(full) * bytes(self.inner) + if count > full { bytes(shape.f % self.inner) } else { 0 };
        let weights = tiles(self.kept) + blocks * (tiles(all) - tiles(self.kept));
        let columns = blocks * Column::ELEMENT.bytes(2 * shape.f + shape.d);
        let gains = self.piece.map_or(0, |_| Element::INT32.bytes(shape.d));
        let [x, out, residual] = self.operands(program, mlp);
        weights + columns + gains + x + out + residual
    }

    /// Predicted cycles, where norming each row once takes `norm` cycles of work: rows that are normed come before the rest of
    /// their block begins.
    pub(crate) fn cycles(&self, program: &Program, mlp: &Mlp, rates: &Rates, norm: f64) -> f64 {
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
    fn operands(&self, program: &Program, mlp: &Mlp) -> [u64; 3] {
        let residual = match mlp.down.epilogue {
            Epilogue::Add { residual } if !self.added => program.get(residual).bytes(),
            _ => 0,
        };
        let [x, out] = [mlp.gated.x, mlp.down.out[0].tensor].map(|id| program.get(id).bytes());
        let bytes = [if self.piece.is_some() { 2 * x } else { x }, out, residual];
        std::array::from_fn(|at| if self.on_chip[at] { 0 } else { bytes[at] })
    }

    fn sram(&self, shape: &Shape) -> u64 {
        let slot = |bytes: u64| bytes.next_multiple_of(self.align);
        let (rows, blocks) = (self.rows, shape.m.div_ceil(self.rows));
        let tile = shape.weights(self.inner).map(slot);
        let streamed = if self.kept == shape.f.div_ceil(self.inner) { 0 } else { 2 };
        let x = match self.piece {
            None if self.on_chip[0] => 0,
            None => blocks.min(2) * slot(rows * shape.d),
            Some(rows_once) => {
                let entry = Entry::Once { rows: rows_once }.bytes(rows, shape.d, self.on_chip[0] || self.added, self.align);
                let wide = if self.added { slot(Element::INT16.bytes(rows * shape.d)) } else { 0 };
                slot(rows * shape.d) + entry + wide
            }
        };
        let [out, residual] = [self.on_chip[1], self.on_chip[2] || self.added]
            .map(|chip| if chip { 0 } else { slot(shape.out.bytes(self.finished) * rows) });
        let columns = slot(Column::ELEMENT.bytes(2 * self.inner)) + slot(Column::ELEMENT.bytes(self.finished));
        let sums = slot(4 * rows * shape.d) + slot(8 * rows * self.inner) + slot(rows * self.inner);
        x + out + residual + columns + sums + (self.kept + streamed) * tile.iter().sum::<u64>()
    }

    /// The code of a kernel, behind `norm` if these are tiles for that.
    pub fn lower(&self, program: &Program, mlp: &Mlp, norm: Option<&Norm>, name: &str) -> Lowered {
        let shape = Shape::of(program, mlp);
        let mut b = Builder::new(name, self.align);
        let norming = self.piece.zip(norm).map(|(rows, norm)| {
            let pieces = (!self.on_chip[0] && !self.added).then_some(rows);
            Norming::new(&mut b, program, norm, self.rows, pieces)
        });
        let x = norming.map_or_else(|| b.operand(mlp.gated.x), |norming| norming.x);
        let [gate, gate_columns] = [mlp.gated.weight, mlp.gated.columns].map(|id| b.operand(id));
        let [down, down_columns] = [mlp.down.weight, mlp.down.columns].map(|id| b.operand(id));
        let residual = match mlp.down.epilogue {
            Epilogue::Add { .. } if added(mlp, norm) => Some(x),
            Epilogue::Add { residual } => Some(b.operand(residual)),
            _ => None,
        };
        let out = b.operand(mlp.down.out[0].tensor);
        let [gate_bytes, down_bytes] = shape.weights(self.inner);
        let count = shape.f.div_ceil(self.inner);
        let slot = |bytes: u64| bytes.next_multiple_of(self.align);
        let kept = (self.kept > 0).then(|| {
            [
                b.packed("kept gate", shape.gate, self.kept * slot(gate_bytes)),
                b.packed("kept down", shape.down, self.kept * slot(down_bytes)),
            ]
        });
        let streamed =
            (self.kept < count).then(|| [b.ring("gate", shape.gate, 2, gate_bytes), b.ring("down", shape.down, 2, down_bytes)]);
        let gate_ring = b.ring("gate columns", Column::ELEMENT, 1, Column::ELEMENT.bytes(2 * self.inner));
        let down_ring = b.ring("down columns", Column::ELEMENT, 1, Column::ELEMENT.bytes(self.finished));
        let sums = b.ring("sums", Element::INT32, 1, 4 * self.rows * shape.d);
        let gate_sums = b.ring("gate sums", Element::INT32, 1, 8 * self.rows * self.inner);
        let gated = b.ring("gated", Element::INT8, 1, self.rows * self.inner);

        let [gate_finish, finish] = [&mlp.gated, &mlp.down].map(|linear| b.finish(&linear.epilogue));
        let rows = Span::tile(ROWS);
        let (width, wide) = (Span::all(shape.d), Span::Tile { variable: INNER, base: 0, unit: 2 });
        let weights = [(gate, region(wide, width)), (down, region(width, Span::tile(INNER)))];
        let loads = |buffers: [u32; 2]| -> Vec<Statement> {
            buffers.iter().zip(weights).map(|(buffer, (operand, place))| load(*buffer, operand, place)).collect()
        };
        let x_place = region(rows, width);
        let mut body = Vec::new();
        let blocks = shape.m.div_ceil(self.rows).min(2);
        let x_buffer = match norming {
            _ if self.on_chip[0] => None,
            None => Some(b.ring("x", Element::INT8, blocks, self.rows * shape.d)),
            Some(_) if self.added => Some(b.ring("x", Element::INT16, 1, Element::INT16.bytes(self.rows * shape.d))),
            Some(_) => None,
        };
        let loaded = x_buffer.map(|buffer| {
            body.extend([load(buffer, x, x_place), wait(buffer, x_place)]);
            at_buffer(buffer, x_place)
        });
        let x_view = match (norming, loaded) {
            (None, loaded) => loaded.unwrap_or(at_operand(x, x_place)),
            (Some(norming), loaded) => {
                body.extend(loaded.map_or_else(|| norming.panel(ROWS), |wide| norming.tile(wide).to_vec()));
                norming.view(rows, width)
            }
        };
        body.push(open(sums, x_place));
        let step = |buffers: [u32; 2]| -> Vec<Statement> {
            let [gate_view, down_view] = std::array::from_fn(|at| at_buffer(buffers[at], weights[at].1));
            let columns = region(Span::all(1), wide);
            let gate_sums_view = at_buffer(gate_sums, region(rows, wide));
            let gated_place = region(rows, Span::tile(INNER));
            vec![
                load(gate_ring, gate_columns, columns),
                open(gate_sums, region(rows, wide)),
                wait(buffers[0], weights[0].1),
                compute(Compute::Multiply { x: x_view, w: gate_view, sums: gate_sums_view, first: None }),
                wait(gate_ring, columns),
                open(gated, gated_place),
                compute(Compute::Finish {
                    sums: gate_sums_view,
                    columns: at_buffer(gate_ring, columns),
                    beside: None,
                    out: at_buffer(gated, gated_place),
                    finish: gate_finish,
                }),
                release(gate_ring),
                wait(buffers[1], weights[1].1),
                compute(Compute::Multiply {
                    x: at_buffer(gated, gated_place),
                    w: down_view,
                    sums: at_buffer(sums, x_place),
                    first: Some(INNER),
                }),
            ]
        };
        if let Some(buffers) = kept {
            body.push(tiles(INNER, shape.f, self.inner, [0, self.kept], step(buffers)));
        }
        if let Some(buffers) = streamed {
            let mut code = loads(buffers);
            code.extend(step(buffers));
            code.extend(buffers.map(release));
            body.push(tiles(INNER, shape.f, self.inner, [self.kept, count], code));
        }
        body.extend(x_buffer.filter(|_| !self.added).map(release));
        let place = region(rows, Span::tile(OUT));
        let columns = region(Span::all(1), Span::tile(OUT));
        let mut last = vec![load(down_ring, down_columns, columns)];
        let mut after = vec![release(down_ring)];
        let beside = residual.map(|residual| match (self.on_chip[2], x_buffer.filter(|_| self.added)) {
            (true, _) => at_operand(residual, place),
            (false, Some(buffer)) => at_buffer(buffer, place),
            (false, None) => {
                let buffer = b.ring("residual", shape.out, 1, shape.out.bytes(self.finished) * self.rows);
                last.extend([load(buffer, residual, place), wait(buffer, place)]);
                after.push(release(buffer));
                at_buffer(buffer, place)
            }
        });
        last.push(wait(down_ring, columns));
        let out_view = match self.on_chip[1] {
            true => at_operand(out, place),
            false => {
                let buffer = b.ring("out", shape.out, 1, shape.out.bytes(self.finished) * self.rows);
                last.push(open(buffer, place));
                after.push(Statement::Store { buffer, operands: vec![(out, 0)], region: place });
                at_buffer(buffer, place)
            }
        };
        last.push(compute(Compute::Finish {
            sums: at_buffer(sums, place),
            columns: at_buffer(down_ring, columns),
            beside,
            out: out_view,
            finish,
        }));
        last.extend(after);
        body.push(tiles(OUT, shape.d, self.finished, [0, shape.d.div_ceil(self.finished)], last));
        body.extend(x_buffer.filter(|_| self.added).map(release));

        let mut code: Vec<Statement> = norming.iter().flat_map(Norming::start).collect();
        code.extend(kept.map(|buffers| tiles(INNER, shape.f, self.inner, [0, self.kept], loads(buffers))));
        code.push(tiles(ROWS, shape.m, self.rows, [0, shape.m.div_ceil(self.rows)], body));
        code.extend(kept.into_iter().flatten().map(release));
        code.extend(norming.map(|norming| norming.end()));
        let row = mlp.down.out[0].row;
        b.done(code, &|at| if at as u32 == out { row } else { 0 })
    }
}

/// Whether what is normed is the residual, too.
fn added(mlp: &Mlp, norm: Option<&Norm>) -> bool {
    matches!(mlp.down.epilogue, Epilogue::Add { residual } if norm.is_some_and(|norm| norm.x == residual))
}
