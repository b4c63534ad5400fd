//! The loop of a norm: rows in, rows out.

use super::{Builder, Lowered, at_buffer, at_operand, compute, load, open, region, release, tiles, wait};
use crate::{
    Program,
    plan::{Compute, Constant, Span, Statement},
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
        let [x_tensor, gains_tensor, out_tensor] = [norm.x, norm.gains, norm.out].map(|id| program.get(id));
        let width = Span::all(x_tensor.columns);
        let gains_buffer = builder.ring("gains", gains_tensor.element, 1, gains_tensor.bytes());
        let all = region(Span::all(1), width);
        let rows = region(Span::tile(0), width);
        let (mut body, mut after) = (Vec::new(), Vec::new());
        let x_view = match self.on_chip[0] {
            true => at_operand(x, rows),
            false => {
                let buffer = builder.ring("x", x_tensor.element, 2, self.rows * x_tensor.element.bytes(x_tensor.columns));
                body.extend([load(buffer, x, rows), wait(buffer, rows)]);
                after.push(release(buffer));
                at_buffer(buffer, rows)
            }
        };
        let out_view = match self.on_chip[1] {
            true => at_operand(out, rows),
            false => {
                let buffer = builder.ring("out", out_tensor.element, 2, self.rows * out_tensor.element.bytes(out_tensor.columns));
                body.push(open(buffer, rows));
                after.push(Statement::Store { buffer, operands: vec![(out, 0)], region: rows });
                at_buffer(buffer, rows)
            }
        };
        let gains_view = at_buffer(gains_buffer, all);
        let constant = builder.constant(Constant::Norm { epsilon: norm.epsilon, gain_shift: norm.gain_shift });
        body.push(compute(Compute::Norm { x: x_view, gains: gains_view, out: out_view, constant }));
        body.extend(after);
        let count = out_tensor.rows;
        let code = vec![
            load(gains_buffer, gains, all),
            wait(gains_buffer, all),
            tiles(0, count, self.rows, [0, count.div_ceil(self.rows)], body),
            release(gains_buffer),
        ];
        builder.done(code, &|at| if at as u32 == x { norm.row } else { 0 })
    }
}
