//! GPTQ (Frantar et al. 2022): columns are rounded one after another, and the columns not yet rounded are updated to compensate
//! for the error of each.
//!
//! Columns are rounded in order of falling `E[x_j^2]` (activation ordering). Scales are fixed before, for groups of neighbours
//! in the original order, so the result is stored like any other; the search for a scale weights each error by its input's
//! `E[x_j^2]`. The Hessian is factored in f64, with damping that grows until it is positive definite ([`Factor`]).
//!
//! A weight that was pruned is rounded to zero whatever the updates made of it, and its error is compensated for like any other.

use std::borrow::Cow;

use attar_tensor::{BlobWriter, Damage, QuantizedTensor, Scheme};
use rayon::prelude::*;

use super::{Needs, Quantizer, Seen, WeightRows, rate::Coder};
use crate::{Error, Factor, Hessian, Result, RowFits, ScaleSearch, Shared, row_fits};

/// GPTQ.
pub(super) struct Gptq;

/// Rows per task: their weights and a row of the factor fit in the processor's cache.
const ROWS: usize = 16;

impl Quantizer for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn version(&self) -> u32 {
        1
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn weighs_bits(&self) -> bool {
        true
    }

    fn memory(&self, [rows, columns]: [usize; 2]) -> u64 {
        // The weights twice, and the Hessian, its inverse and their factors.
        (8 * rows * columns) as u64 + 4 * Hessian::bytes(columns)
    }

    fn quantize(
        &self,
        weights: &dyn WeightRows,
        seen: Seen<'_>,
        scheme: Scheme,
        search: ScaleSearch,
        mut to: BlobWriter<'_>,
        rows_done: &(dyn Fn(usize) + Sync),
    ) -> Result<Damage> {
        let hessian = seen.hessian.expect("the caller gives what `needs` asks for");
        let all = whole(weights)?;
        let damage = round_towards(weights, [&all, &all], hessian, scheme, search, &mut to)?;
        rows_done(weights.dims()[0]);
        to.finish(damage)?;
        Ok(damage)
    }
}

/// A whole matrix, if it is finite.
pub(super) fn whole(weights: &dyn WeightRows) -> Result<Vec<f32>> {
    let [rows, columns] = weights.dims();
    let mut all = vec![0.0; rows * columns];
    weights.read(0..rows, &mut all)?;
    super::check_finite(weights, 0, &all)?;
    Ok(all)
}

/// Rounds `target` and writes its codes; returns their error against `original`.
pub(super) fn round_towards(
    weights: &dyn WeightRows,
    [original, target]: [&[f32]; 2],
    hessian: &Hessian,
    scheme: Scheme,
    search: ScaleSearch,
    to: &mut BlobWriter<'_>,
) -> Result<Damage> {
    let [rows, columns] = weights.dims();
    let factor = hessian.factor()?;
    let importance: Vec<f32> = (0..columns).map(|j| hessian.mean(j, j) as f32).collect();
    let refused = |source| Error::Scale { weight: weights.name().into(), rows: 0..rows, columns: 0..columns, source };
    let fitted = what_stays(weights.keeps_zeros(), target, original);
    let shared = Shared::weighted(&scheme, search, &fitted, &importance).map_err(refused)?;
    let zeros = weights.keeps_zeros();
    let coder = weights.rate().map(|rate| Coder::new(rate, &fitted, columns, &factor));
    let task =
        Task { name: weights.name(), scheme, search, columns, factor: &factor, importance: &importance, shared, zeros, coder };
    let parts = target.par_chunks(ROWS * columns).zip(original.par_chunks(ROWS * columns)).enumerate();
    let parts: Vec<(QuantizedTensor, Damage)> =
        parts.map(|(at, (rows, original))| task.rows(at * ROWS, rows, original)).collect::<Result<_>>()?;
    let mut damage = Damage::default();
    for (part, lost) in &parts {
        damage += *lost;
        to.append(part)?;
    }
    Ok(damage)
}

/// `target` with zeros where the `original` weights have such, if they stay: what scales are fitted to.
fn what_stays<'a>(zeros: bool, target: &'a [f32], original: &[f32]) -> Cow<'a, [f32]> {
    match zeros {
        true => target.iter().zip(original).map(|(w, original)| if *original == 0.0 { 0.0 } else { *w }).collect(),
        false => target.into(),
    }
}

struct Task<'a> {
    name: &'a str,
    scheme: Scheme,
    search: ScaleSearch,
    columns: usize,
    factor: &'a Factor,
    importance: &'a [f32],
    shared: Shared,
    /// Whether original weights that are zero stay zero.
    zeros: bool,
    /// Where the bits of codes count.
    coder: Option<Coder>,
}

impl Task<'_> {
    /// Quantizes some rows `[.., columns]`, the first of which is row `first`.
    fn rows(&self, first: usize, target: &[f32], original: &[f32]) -> Result<(QuantizedTensor, Damage)> {
        let (scheme, columns) = (&self.scheme, self.columns);
        let size = scheme.group(columns).max(1);
        let fitted = what_stays(self.zeros, target, original);
        let fits: Vec<RowFits> =
            fitted.chunks(columns).enumerate().map(|(at, row)| self.fits(first + at, row)).collect::<Result<_>>()?;
        let codes = self.round([original, target], &fits, size);
        let mut all = QuantizedTensor::empty(*scheme, columns);
        codes.chunks(columns).zip(&fits).for_each(|(codes, fits)| fits.push_row(codes, &mut all));
        let mut decoded = vec![0.0; target.len()];
        all.decode(&mut decoded);
        Ok((all, Damage::between(original, &decoded)))
    }

    /// The scale and zero of every group of a row.
    fn fits(&self, row: usize, original: &[f32]) -> Result<RowFits> {
        let refused = |(columns, source)| Error::Scale { weight: self.name.into(), rows: row..row + 1, columns, source };
        match &self.coder {
            Some(coder) => coder.fits(&self.scheme, original).map_err(|source| refused((0..self.columns, source))),
            None => row_fits(&self.scheme, self.search, &self.shared, original, Some(self.importance)).map_err(refused),
        }
    }

    /// The recursion: w[.., j+1..] -= (w_j - q_j) / U_jj * U[j, j+1..].
    fn round(&self, [original, target]: [&[f32]; 2], fits: &[RowFits], size: usize) -> Vec<u8> {
        let (columns, order) = (self.columns, &self.factor.order());
        // In the order of the recursion, so that columns not yet rounded are contiguous.
        let mut w: Vec<f32> = target.chunks(columns).flat_map(|row| order.iter().map(|j| row[*j])).collect();
        let mut codes = vec![0u8; original.len()];
        for (step, column) in order.iter().enumerate() {
            let update = self.factor.update(step);
            for (row, fits) in fits.iter().enumerate() {
                let fit = fits.fit(column / size);
                let (now, ahead) = w[row * columns + step..(row + 1) * columns].split_at_mut(1);
                let (mut code, mut value) = ([0], [0.0]);
                let gone = self.zeros && original[row * columns + column] == 0.0;
                let wanted = match &self.coder {
                    _ if gone => 0.0,
                    Some(coder) => coder.round(now[0], fit.scale, self.factor.variance(step)),
                    None => now[0],
                };
                self.scheme.grid.encode(&[wanted], fit, &mut code);
                self.scheme.grid.decode(&code, fit, &mut value);
                codes[row * columns + column] = code[0];
                let error = now[0] - value[0];
                ahead.iter_mut().zip(update).for_each(|(w, u)| *w -= error * u);
            }
        }
        codes
    }
}
