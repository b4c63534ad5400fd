//! GPTQ (Frantar et al. 2022): columns are rounded one after another, and what each loses is made up for by those that
//! are still to come, as far as the inputs let them.
//!
//! Columns go in the order of falling `E[x_j^2]` (activation ordering). Scales are chosen before, for groups of neighbours
//! in the original order, so the result is stored like any other; the search for a scale weighs each weight's error by its
//! input's `E[x_j^2]`. The Hessian is factored in f64. Where it is not positive definite the damping grows until it is.

use attar_tensor::{BlobWriter, Damage, QuantizedTensor, Scheme};
use faer::{Mat, Side, linalg::solvers::DenseSolveCore};
use rayon::prelude::*;

use super::{Needs, Quantizer, Seen, WeightRows};
use crate::{Error, Hessian, Result, RowFits, ScaleSearch, Shared, row_fits};

/// GPTQ.
pub(super) struct Gptq;

/// Rows that are worked on together: their weights and a row of the factor stay in the processor's cache.
const ROWS: usize = 16;

/// Damping, as a share of the mean of the diagonal, and how often it may grow tenfold.
pub(super) const DAMPING: f64 = 0.01;
const ATTEMPTS: i32 = 6;

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

/// Writes the codes that come near to `target`, and returns what they do to `original`.
pub(super) fn round_towards(
    weights: &dyn WeightRows,
    [original, target]: [&[f32]; 2],
    hessian: &Hessian,
    scheme: Scheme,
    search: ScaleSearch,
    to: &mut BlobWriter<'_>,
) -> Result<Damage> {
    let [rows, columns] = weights.dims();
    let factor = hessian.factor(Factor::of)?;
    let importance: Vec<f32> = (0..columns).map(|j| hessian.mean(j, j) as f32).collect();
    let refused = |source| Error::Scale { weight: weights.name().into(), rows: 0..rows, columns: 0..columns, source };
    let shared = Shared::weighted(&scheme, search, target, &importance).map_err(refused)?;
    let task = Task { name: weights.name(), scheme, search, columns, factor: &factor, importance: &importance, shared };
    let parts = target.par_chunks(ROWS * columns).zip(original.par_chunks(ROWS * columns)).enumerate();
    let parts: Vec<(QuantizedTensor, Damage)> =
        parts.map(|(at, (rows, original))| task.rows(at * ROWS, rows, original)).collect::<Result<_>>()?;
    let mut damage = Damage::default();
    for (part, lost) in &parts {
        damage.squared_error += lost.squared_error;
        damage.energy += lost.energy;
        to.append(part)?;
    }
    Ok(damage)
}

/// The upper Cholesky factor `U` of the inverse Hessian, `H^-1 = U^T U`, in the order in which columns are rounded.
pub(crate) struct Factor {
    order: Vec<usize>,
    /// `[columns, columns]`, row `j` divided by its diagonal.
    rows: Vec<f32>,
    /// The damping, as a share of the mean of the diagonal, where the usual was not enough.
    pub(crate) raised: Option<f64>,
}

impl Factor {
    fn of(hessian: &Hessian) -> Result<Factor> {
        let n = hessian.inputs();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| hessian.mean(*b, *b).total_cmp(&hessian.mean(*a, *a)));
        let (lower, damping) = damped(hessian, DAMPING, |damping| {
            let damped = Mat::from_fn(n, n, |i, j| hessian.mean(order[i], order[j]) + if i == j { damping } else { 0.0 });
            let inverse = damped.llt(Side::Lower).ok()?.inverse();
            inverse.llt(Side::Lower).ok().map(|cholesky| cholesky.L().to_owned())
        })?;
        let rows = (0..n).flat_map(|j| (0..n).map(move |i| (i, j)));
        let rows = rows.map(|(i, j)| if i < j { 0.0 } else { (lower[(i, j)] / lower[(j, j)]) as f32 }).collect();
        Ok(Factor { rows, order, raised: (damping > DAMPING).then_some(damping) })
    }
}

/// What `make` makes of a damping, the first of `share` of the mean second moment, ten times that and so on for which it makes
/// something; with the share.
pub(super) fn damped<T>(hessian: &Hessian, share: f64, mut make: impl FnMut(f64) -> Option<T>) -> Result<(T, f64)> {
    let n = hessian.inputs();
    let mean = (0..n).map(|j| hessian.mean(j, j)).sum::<f64>() / n as f64;
    // An input that is always zero says nothing about its column.
    let scale = if mean > 0.0 { mean } else { 1.0 };
    let mut shares = (0..ATTEMPTS).map(|attempt| share * 10f64.powi(attempt));
    let found = shares.find_map(|share| make(share * scale).map(|made| (made, share)));
    found.ok_or(Error::NotPositiveDefinite { inputs: n, damping: share * 10f64.powi(ATTEMPTS - 1) })
}

struct Task<'a> {
    name: &'a str,
    scheme: Scheme,
    search: ScaleSearch,
    columns: usize,
    factor: &'a Factor,
    importance: &'a [f32],
    shared: Shared,
}

impl Task<'_> {
    /// Some rows `[.., columns]`, the first of which is `first`.
    fn rows(&self, first: usize, target: &[f32], original: &[f32]) -> Result<(QuantizedTensor, Damage)> {
        let (scheme, columns) = (&self.scheme, self.columns);
        let size = scheme.group(columns).max(1);
        let fits: Vec<RowFits> =
            target.chunks(columns).enumerate().map(|(at, row)| self.fits(first + at, row)).collect::<Result<_>>()?;
        let codes = self.round(target, &fits, size);
        let mut all = QuantizedTensor::empty(*scheme, columns);
        codes.chunks(columns).zip(&fits).for_each(|(codes, fits)| fits.push_row(codes, &mut all));
        let mut decoded = vec![0.0; target.len()];
        all.decode(&mut decoded);
        let mut damage = Damage::default();
        for (w, q) in original.iter().zip(&decoded) {
            damage.squared_error += f64::from(w - q).powi(2);
            damage.energy += f64::from(*w).powi(2);
        }
        Ok((all, damage))
    }

    /// The scale and zero of every group of a row.
    fn fits(&self, row: usize, original: &[f32]) -> Result<RowFits> {
        let refused = |(columns, source)| Error::Scale { weight: self.name.into(), rows: row..row + 1, columns, source };
        row_fits(&self.scheme, self.search, &self.shared, original, Some(self.importance)).map_err(refused)
    }

    /// The recursion: w[.., j+1..] -= (w_j - q_j) / U_jj * U[j, j+1..].
    fn round(&self, original: &[f32], fits: &[RowFits], size: usize) -> Vec<u8> {
        let (columns, order) = (self.columns, &self.factor.order);
        // In the order of the recursion, so that what is still to come lies together.
        let mut w: Vec<f32> = original.chunks(columns).flat_map(|row| order.iter().map(|j| row[*j])).collect();
        let mut codes = vec![0u8; original.len()];
        for (step, column) in order.iter().enumerate() {
            let update = &self.factor.rows[step * columns + step + 1..(step + 1) * columns];
            for (row, fits) in fits.iter().enumerate() {
                let fit = fits.fit(column / size);
                let (now, ahead) = w[row * columns + step..(row + 1) * columns].split_at_mut(1);
                let (mut code, mut value) = ([0], [0.0]);
                self.scheme.grid.encode(now, fit, &mut code);
                self.scheme.grid.decode(&code, fit, &mut value);
                codes[row * columns + column] = code[0];
                let error = now[0] - value[0];
                ahead.iter_mut().zip(update).for_each(|(w, u)| *w -= error * u);
            }
        }
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[[a, b], [b, a]]` has the eigenvalues `a + b` and `a - b`.
    #[test]
    fn damping_grows_until_second_moments_are_positive_definite() {
        let raised = |b: f64| {
            let hessian = Hessian::of_moments(2, vec![1.0, 0.0, b, 1.0]);
            hessian.factor(Factor::of).map(|_| hessian.raised_damping())
        };
        assert_eq!(raised(0.5).ok(), Some(None));
        assert_eq!(raised(1.05).ok(), Some(Some(DAMPING * 10.0)));
        assert_eq!(raised(1.5).ok(), Some(Some(DAMPING * 100.0)));
        assert!(matches!(raised(1e6), Err(Error::NotPositiveDefinite { inputs: 2, .. })));
    }
}
