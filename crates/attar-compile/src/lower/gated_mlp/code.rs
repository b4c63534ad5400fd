//! The code of a gated MLP.
//!
//! ```text
//! load the kept weights
//! for ROWS:
//!   load x (and norm it)
//!   for INNER, kept tiles, then streamed ones:
//!     gate sums = x gate^T;  gated = finish(gate sums);  sums += gated down^T
//!   for OUT: out = finish(sums), with the residual
//! ```

use super::{GatedMlpTiles, Shape, added};
use crate::{
    Element, Program,
    lower::{Builder, First, Lowered, at_buffer, at_operand, compute, entry::Norming, load, open, region, release, tiles, wait},
    plan::{Compute, Finish, Region, Span, Statement, View},
    program::{Column, Epilogue, GatedMlp, Norm},
};

const ROWS: u8 = 0;
const INNER: u8 = 1;
const OUT: u8 = 2;

impl GatedMlpTiles {
    /// The code of a kernel, with `norm` at its entry if these are tiles for that.
    pub fn lower(&self, program: &Program, mlp: &GatedMlp, norm: Option<&Norm>, name: &str) -> Lowered {
        let mut builder = Builder::new(name, self.align);
        let nest = Nest::new(self, program, mlp, norm, &mut builder);
        let (code, out, row) = (nest.code(), nest.operands.out, mlp.down.out[0].row);
        builder.done(code, &|at| First { row: if at as u32 == out { row } else { 0 }, ..First::default() })
    }
}

/// Tensors, by the number of their operand. Pairs are gate (with up) and down.
struct Operands {
    x: u32,
    weights: [u32; 2],
    columns: [u32; 2],
    residual: Option<u32>,
    out: u32,
}

/// Places on the chip. Pairs are gate (with up) and down.
struct Buffers {
    kept: Option<[u32; 2]>,
    streamed: Option<[u32; 2]>,
    columns: [u32; 2],
    sums: u32,
    gate_sums: u32,
    gated: u32,
    x: Option<u32>,
    /// Where it has a buffer of its own.
    residual: Option<u32>,
    out: Option<u32>,
}

/// Everything that the loops refer to.
struct Nest<'a> {
    tiles: &'a GatedMlpTiles,
    shape: Shape,
    norming: Option<Norming>,
    operands: Operands,
    buffers: Buffers,
    /// Of gate with up, and of down.
    finish: [Finish; 2],
    narrow: [u8; 2],
}

impl Operands {
    fn new(mlp: &GatedMlp, norm: Option<&Norm>, norming: Option<Norming>, builder: &mut Builder) -> Operands {
        let x = norming.map_or_else(|| builder.operand(mlp.gated.x), |norming| norming.x);
        let [gate, gate_columns] = [mlp.gated.weight, mlp.gated.columns].map(|id| builder.operand(id));
        let [down, down_columns] = [mlp.down.weight, mlp.down.columns].map(|id| builder.operand(id));
        let residual = match mlp.down.epilogue {
            Epilogue::Add { .. } if added(mlp, norm) => Some(x),
            Epilogue::Add { residual } => Some(builder.operand(residual)),
            _ => None,
        };
        let out = builder.operand(mlp.down.out[0].tensor);
        Operands { x, weights: [gate, down], columns: [gate_columns, down_columns], residual, out }
    }
}

impl Buffers {
    fn new(tiles: &GatedMlpTiles, shape: &Shape, norms: bool, adds: bool, builder: &mut Builder) -> Buffers {
        let weights = shape.weights(tiles.inner);
        let kept = (tiles.kept > 0).then(|| {
            let [gate, down] = weights.map(|bytes| tiles.kept * bytes.next_multiple_of(tiles.align));
            [builder.packed("kept gate", shape.gate, gate), builder.packed("kept down", shape.down, down)]
        });
        let streamed = (tiles.kept < shape.f.div_ceil(tiles.inner)).then(|| {
            let [gate, down] = weights;
            [builder.ring("gate", shape.gate, 2, gate), builder.ring("down", shape.down, 2, down)]
        });
        let columns = [("gate columns", 2 * tiles.inner), ("down columns", tiles.finished)]
            .map(|(name, count)| builder.ring(name, Column::ELEMENT, 1, Column::ELEMENT.bytes(count)));
        let sums = builder.ring("sums", shape.sums[1], 1, shape.sums[1].bytes(tiles.rows * shape.d));
        let gate_sums = builder.ring("gate sums", shape.sums[0], 1, shape.sums[0].bytes(2 * tiles.rows * tiles.inner));
        let gated = builder.ring("gated", shape.gated, 1, shape.gated.bytes(tiles.rows * tiles.inner));
        let x = Buffers::x(tiles, shape, norms, builder);
        let finished = shape.out.bytes(tiles.finished) * tiles.rows;
        let own_residual = adds && !tiles.on_chip[2] && !(tiles.added && x.is_some());
        let residual = own_residual.then(|| builder.ring("residual", shape.out, 1, finished));
        let out = (!tiles.on_chip[1]).then(|| builder.ring("out", shape.out, 1, finished));
        Buffers { kept, streamed, columns, sums, gate_sums, gated, x, residual, out }
    }

    /// Where rows are loaded: nowhere if they are on the chip, or if the norm at the entry loads them piece by piece.
    fn x(tiles: &GatedMlpTiles, shape: &Shape, norms: bool, builder: &mut Builder) -> Option<u32> {
        let blocks = shape.m.div_ceil(tiles.rows).min(2);
        match norms {
            _ if tiles.on_chip[0] => None,
            false => Some(builder.ring("x", shape.x, blocks, shape.x.bytes(tiles.rows * shape.d))),
            true if tiles.added => Some(builder.ring("x", Element::INT16, 1, Element::INT16.bytes(tiles.rows * shape.d))),
            true => None,
        }
    }
}

impl<'a> Nest<'a> {
    fn new(tiles: &'a GatedMlpTiles, program: &Program, mlp: &GatedMlp, norm: Option<&Norm>, builder: &mut Builder) -> Nest<'a> {
        let shape = Shape::of(program, mlp);
        let norming = tiles.piece.zip(norm).map(|(rows, norm)| {
            let pieces = (!tiles.on_chip[0] && !tiles.added).then_some(rows);
            Norming::new(builder, program, norm, tiles.rows, pieces)
        });
        let operands = Operands::new(mlp, norm, norming, builder);
        let buffers = Buffers::new(tiles, &shape, norming.is_some(), operands.residual.is_some(), builder);
        let finish = [&mlp.gated, &mlp.down].map(|linear| builder.finish(&linear.epilogue));
        let narrow = [mlp.gated.narrow, mlp.down.narrow];
        Nest { tiles, shape, norming, operands, buffers, finish, narrow }
    }

    /// All loops.
    fn code(&self) -> Vec<Statement> {
        let (shape, kept) = (&self.shape, self.buffers.kept);
        let mut code: Vec<Statement> = self.norming.iter().flat_map(Norming::start).collect();
        code.extend(kept.map(|buffers| self.inner([0, self.tiles.kept], self.load_weights(buffers))));
        code.push(tiles(ROWS, shape.m, self.tiles.rows, [0, shape.m.div_ceil(self.tiles.rows)], self.block()));
        code.extend(kept.into_iter().flatten().map(release));
        code.extend(self.norming.map(|norming| norming.end()));
        code
    }

    /// A block of rows.
    fn block(&self) -> Vec<Statement> {
        let mut code = Vec::new();
        let x = self.load_x(&mut code);
        code.push(open(self.buffers.sums, self.x_region()));
        if let Some(buffers) = self.buffers.kept {
            code.push(self.inner([0, self.tiles.kept], self.step(x, buffers)));
        }
        if let Some(buffers) = self.buffers.streamed {
            let mut streamed = self.load_weights(buffers);
            streamed.extend(self.step(x, buffers));
            streamed.extend(buffers.map(release));
            code.push(self.inner([self.tiles.kept, self.shape.f.div_ceil(self.tiles.inner)], streamed));
        }
        // Rows that are the residual, too, stay until they are added.
        let (done, added) = if self.tiles.added { (None, self.buffers.x) } else { (self.buffers.x, None) };
        code.extend(done.map(release));
        code.push(self.finish());
        code.extend(added.map(release));
        code
    }

    /// A loop over tiles of inner columns.
    fn inner(&self, range: [u64; 2], body: Vec<Statement>) -> Statement {
        tiles(INNER, self.shape.f, self.tiles.inner, range, body)
    }

    /// Rows of the block, whole.
    fn x_region(&self) -> Region {
        region(Span::tile(ROWS), Span::all(self.shape.d))
    }

    /// Rows of the block, normed if a norm is at the entry.
    fn load_x(&self, code: &mut Vec<Statement>) -> View {
        let place = self.x_region();
        let loaded = self.buffers.x.map(|buffer| {
            code.extend([load(buffer, self.operands.x, place), wait(buffer, place)]);
            at_buffer(buffer, place)
        });
        let Some(norming) = self.norming else { return loaded.unwrap_or(at_operand(self.operands.x, place)) };
        code.extend(loaded.map_or_else(|| norming.panel(ROWS), |wide| norming.tile(wide).to_vec()));
        norming.view(place.rows, place.columns)
    }

    /// Accumulator columns of a tile: gate and up of each inner column.
    fn wide(&self) -> Span {
        Span::Tile { variable: INNER, base: 0, unit: 2 }
    }

    /// The tiles of both weights.
    fn weight_regions(&self) -> [Region; 2] {
        let width = Span::all(self.shape.d);
        [region(self.wide(), width), region(width, Span::tile(INNER))]
    }

    fn load_weights(&self, buffers: [u32; 2]) -> Vec<Statement> {
        let each = buffers.into_iter().zip(self.operands.weights).zip(self.weight_regions());
        each.map(|((buffer, operand), place)| load(buffer, operand, place)).collect()
    }

    /// A tile of inner columns: gate and up, the activation, and its share of the sums of down.
    fn step(&self, x: View, buffers: [u32; 2]) -> Vec<Statement> {
        let [gate_place, down_place] = self.weight_regions();
        let (columns, rows) = (region(Span::all(1), self.wide()), Span::tile(ROWS));
        let gate_sums = at_buffer(self.buffers.gate_sums, region(rows, self.wide()));
        let gated = at_buffer(self.buffers.gated, region(rows, Span::tile(INNER)));
        let columns_buffer = self.buffers.columns[0];
        vec![
            load(columns_buffer, self.operands.columns[0], columns),
            open(self.buffers.gate_sums, gate_sums.region),
            wait(buffers[0], gate_place),
            compute(Compute::Multiply { x, w: at_buffer(buffers[0], gate_place), sums: gate_sums, first: None }),
            wait(columns_buffer, columns),
            open(self.buffers.gated, gated.region),
            compute(Compute::Finish {
                sums: gate_sums,
                columns: at_buffer(columns_buffer, columns),
                extra: None,
                out: gated,
                narrow: self.narrow[0],
                finish: self.finish[0],
            }),
            release(columns_buffer),
            wait(buffers[1], down_place),
            compute(Compute::Multiply {
                x: gated,
                w: at_buffer(buffers[1], down_place),
                sums: at_buffer(self.buffers.sums, self.x_region()),
                first: Some(INNER),
            }),
        ]
    }

    /// From sums to the output, some columns at a time.
    fn finish(&self) -> Statement {
        let (shape, finished, columns_buffer) = (&self.shape, self.tiles.finished, self.buffers.columns[1]);
        let place = region(Span::tile(ROWS), Span::tile(OUT));
        let columns = region(Span::all(1), Span::tile(OUT));
        let mut code = vec![load(columns_buffer, self.operands.columns[1], columns)];
        let extra = self.operands.residual.map(|residual| self.residual(residual, place, &mut code));
        code.push(wait(columns_buffer, columns));
        let out = match self.buffers.out {
            None => at_operand(self.operands.out, place),
            Some(buffer) => {
                code.push(open(buffer, place));
                at_buffer(buffer, place)
            }
        };
        let sums = at_buffer(self.buffers.sums, place);
        let columns = at_buffer(columns_buffer, columns);
        code.push(compute(Compute::Finish { sums, columns, extra, out, narrow: self.narrow[1], finish: self.finish[1] }));
        code.push(release(columns_buffer));
        code.extend(self.buffers.residual.map(release));
        let store = |buffer| Statement::Store { buffer, operands: vec![(self.operands.out, 0)], region: place };
        code.extend(self.buffers.out.map(store));
        tiles(OUT, shape.d, finished, [0, shape.d.div_ceil(finished)], code)
    }

    /// Where a tile of the residual is: kept on the chip, loaded into a buffer of its own, or among the rows of x.
    fn residual(&self, operand: u32, place: Region, code: &mut Vec<Statement>) -> View {
        if self.tiles.on_chip[2] {
            return at_operand(operand, place);
        }
        match (self.buffers.residual, self.buffers.x) {
            (Some(buffer), _) => {
                code.extend([load(buffer, operand, place), wait(buffer, place)]);
                at_buffer(buffer, place)
            }
            (None, Some(x)) => at_buffer(x, place),
            (None, None) => unreachable!("a residual that is not on the chip has a buffer"),
        }
    }
}
