//! The tiles and the code of a norm: blocks of rows in, blocks of rows out.

use super::{Builder, First, Lowered, at_buffer, at_operand, compute, load, open, region, release, tiles, wait};
use crate::{
    Program,
    plan::{Compute, Constant, Span, Statement, View},
    program::Norm,
    tile::Limits,
};

/// How a norm is tiled.
#[derive(Clone, Debug, PartialEq)]
pub struct NormTiles {
    /// Rows at a time.
    pub rows: u64,
    /// Whether `x` and the output are kept on the chip.
    pub on_chip: [bool; 2],
    align: u64,
}

impl NormTiles {
    /// The most rows, up to 64, that fit with two buffers each way.
    ///
    /// # Errors
    /// Where not even one row fits.
    pub fn search(program: &Program, norm: &Norm, on_chip: [bool; 2], limits: &Limits) -> crate::Result<NormTiles> {
        let m = program.get(norm.out).rows;
        let tiles = |rows: u64| NormTiles { rows, on_chip, align: limits.align };
        let fits = (1..=m.min(64)).rev().map(tiles).find(|tiles| tiles.sram(program, norm) <= limits.sram);
        fits.ok_or_else(|| crate::Error::TileTooLarge { needed: tiles(1).sram(program, norm), sram: limits.sram })
    }

    fn sram(&self, program: &Program, norm: &Norm) -> u64 {
        let row = |id| program.get(id).element.bytes(program.get(id).columns);
        let slot = |bytes: u64| bytes.next_multiple_of(self.align);
        let [x, out] = [(norm.x, self.on_chip[0]), (norm.out, self.on_chip[1])]
            .map(|(id, chip)| if chip { 0 } else { 2 * slot(self.rows * row(id)) });
        x + out + slot(row(norm.gains))
    }

    /// The code of a kernel.
    pub fn lower(&self, program: &Program, norm: &Norm, name: &str) -> Lowered {
        let mut builder = Builder::new(name, self.align);
        let [x, gains, out] = [norm.x, norm.gains, norm.out].map(|id| builder.operand(id));
        let (gains_tensor, count) = (program.get(norm.gains), program.get(norm.out).rows);
        let gains_buffer = builder.ring("gains", gains_tensor.element, 1, gains_tensor.bytes());
        let all = region(Span::all(1), Span::all(gains_tensor.columns));
        let body = self.block(program, norm, [x, out], at_buffer(gains_buffer, all), &mut builder);
        let code = vec![
            load(gains_buffer, gains, all),
            wait(gains_buffer, all),
            tiles(0, count, self.rows, [0, count.div_ceil(self.rows)], body),
            release(gains_buffer),
        ];
        builder.done(code, &|at| First { row: if at as u32 == x { norm.row } else { 0 }, position: false })
    }

    /// A block of rows: load, norm, store.
    fn block(&self, program: &Program, norm: &Norm, [x, out]: [u32; 2], gains: View, builder: &mut Builder) -> Vec<Statement> {
        let rows = region(Span::tile(0), Span::all(program.get(norm.x).columns));
        let [x_buffer, out_buffer] =
            [(norm.x, "x", self.on_chip[0]), (norm.out, "out", self.on_chip[1])].map(|(id, name, on_chip)| {
                let tensor = program.get(id);
                (!on_chip).then(|| builder.ring(name, tensor.element, 2, self.rows * tensor.element.bytes(tensor.columns)))
            });
        let constant = builder.constant(Constant::Norm { epsilon: norm.epsilon, gain_shift: norm.gain_shift });
        let mut code = Vec::new();
        code.extend(x_buffer.into_iter().flat_map(|buffer| [load(buffer, x, rows), wait(buffer, rows)]));
        code.extend(out_buffer.map(|buffer| open(buffer, rows)));
        let view = |operand: u32, buffer: Option<u32>| buffer.map_or(at_operand(operand, rows), |buffer| at_buffer(buffer, rows));
        code.push(compute(Compute::Norm { x: view(x, x_buffer), gains, out: view(out, out_buffer), constant }));
        code.extend(x_buffer.map(release));
        code.extend(out_buffer.map(|buffer| Statement::Store { buffer, operands: vec![(out, 0)], region: rows }));
        code
    }
}
