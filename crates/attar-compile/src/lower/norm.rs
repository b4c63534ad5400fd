//! The tiles and the code of a norm: blocks of rows in, blocks of rows out.

use super::{Builder, First, Lowered, at_buffer, at_operand, compute, load, open, region, release, tiles, wait};
use crate::{
    Program, TensorId,
    plan::{Compute, Constant, Span, Statement, View},
    program::Norm,
    tile::Limits,
};

/// How a norm is tiled.
#[derive(Clone, Debug, PartialEq)]
pub struct NormTiles {
    /// Rows at a time.
    pub rows: u64,
    /// Whether `x`, the output and the residual are kept on the chip.
    pub on_chip: [bool; 3],
    align: u64,
}

impl NormTiles {
    /// The most rows, up to 64, that fit with two buffers each way.
    ///
    /// # Errors
    /// Where not even one row fits.
    pub fn search(program: &Program, norm: &Norm, on_chip: [bool; 3], limits: &Limits) -> crate::Result<NormTiles> {
        let m = program.get(norm.out).rows;
        let tiles = |rows: u64| NormTiles { rows, on_chip, align: limits.align };
        let fits = (1..=m.min(64)).rev().map(tiles).find(|tiles| tiles.sram(program, norm) <= limits.sram);
        fits.ok_or_else(|| crate::Error::TileTooLarge { needed: tiles(1).sram(program, norm), sram: limits.sram })
    }

    /// What has a row for each row, by its name in the code, and whether it is on the chip.
    fn tensors(&self, norm: &Norm) -> Vec<(&'static str, TensorId, bool)> {
        let [x, out, residual] = self.on_chip;
        let added = norm.residual.map(|id| ("residual", id, residual));
        [("x", norm.x, x), ("out", norm.out, out)].into_iter().chain(added).collect()
    }

    fn sram(&self, program: &Program, norm: &Norm) -> u64 {
        let row = |id| program.get(id).element.bytes(program.get(id).columns);
        let slot = |bytes: u64| bytes.next_multiple_of(self.align);
        let moved = self.tensors(norm).into_iter().filter(|(.., chip)| !chip);
        let moved: u64 = moved.map(|(_, id, _)| 2 * slot(self.rows * row(id))).sum();
        moved + slot(program.get(norm.gains).bytes())
    }

    /// The code of a kernel.
    pub fn lower(&self, program: &Program, norm: &Norm, name: &str) -> Lowered {
        let mut builder = Builder::new(name, self.align);
        let [x, gains, out] = [norm.x, norm.gains, norm.out].map(|id| builder.operand(id));
        let residual = norm.residual.map(|id| builder.operand(id));
        let (gains_tensor, count) = (program.get(norm.gains), program.get(norm.out).rows);
        let gains_buffer = builder.ring("gains", gains_tensor.element, 1, gains_tensor.bytes());
        let all = region(Span::all(gains_tensor.rows), Span::all(gains_tensor.columns));
        let operands = [Some(x), Some(out), residual];
        let body = self.block(program, norm, operands, at_buffer(gains_buffer, all), &mut builder);
        let code = vec![
            load(gains_buffer, gains, all),
            wait(gains_buffer, all),
            tiles(0, count, self.rows, [0, count.div_ceil(self.rows)], body),
            release(gains_buffer),
        ];
        builder.done(code, &|at| First { row: if at as u32 == x { norm.row } else { 0 }, ..First::default() })
    }

    /// A block of rows: load, norm, store. The operands are those of [`NormTiles::tensors`].
    fn block(
        &self,
        program: &Program,
        norm: &Norm,
        operands: [Option<u32>; 3],
        gains: View,
        builder: &mut Builder,
    ) -> Vec<Statement> {
        let rows = region(Span::tile(0), Span::all(program.get(norm.x).columns));
        let places: Vec<(u32, Option<u32>)> = self
            .tensors(norm)
            .into_iter()
            .zip(operands.into_iter().flatten())
            .map(|((name, id, on_chip), operand)| {
                let tensor = program.get(id);
                let bytes = self.rows * tensor.element.bytes(tensor.columns);
                (operand, (!on_chip).then(|| builder.ring(name, tensor.element, 2, bytes)))
            })
            .collect();
        let constant = builder.constant(Constant::of(norm));
        let view = |at: usize| {
            let (operand, buffer) = *places.get(at)?;
            Some(buffer.map_or(at_operand(operand, rows), |buffer| at_buffer(buffer, rows)))
        };
        let ([(x, x_buffer), (out, out_buffer), added @ ..], [Some(x_view), Some(out_view)]) = (&places[..], [view(0), view(1)])
        else {
            unreachable!("a norm has rows and a result")
        };
        let loads = || [(*x, *x_buffer)].into_iter().chain(added.iter().copied()).filter_map(|(at, buffer)| Some((at, buffer?)));
        let mut code: Vec<Statement> = loads().map(|(operand, buffer)| load(buffer, operand, rows)).collect();
        code.extend(loads().map(|(_, buffer)| wait(buffer, rows)));
        code.extend(out_buffer.map(|buffer| open(buffer, rows)));
        code.push(compute(Compute::Norm { x: x_view, gains, residual: view(2), out: out_view, constant }));
        code.extend(loads().map(|(_, buffer)| release(buffer)));
        code.extend(out_buffer.map(|buffer| Statement::Store { buffer, operands: vec![(*out, 0)], region: rows }));
        code
    }
}
