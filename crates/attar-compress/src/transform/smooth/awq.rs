//! AWQ (Lin et al. 2023): `s = mean|x|^alpha`, with the alpha of 20 that leaves the least error in the layers' outputs
//! (equations 4 and 5).
//!
//! The error of a layer is `sum over rows of d H d^T`, where `d` is a row of `Q(W s) / s - W` and `H` the second moments of
//! what it reads: the mean of the squared error over every calibration token, exactly. `Q` rounds to nearest.

use attar_tensor::Scheme;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{Choice, Seeing, Smooth, Smoother};
use crate::{Error, Result, ScaleSearch, Shared, row_fits};

/// AWQ.
pub(super) struct Awq;

/// Exponents tried: 0, 1/20, …, 19/20.
const STEPS: u32 = 20;

/// The least scale before normalisation.
const LEAST: f64 = 1e-4;

impl Smoother for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn version(&self) -> u32 {
        1
    }

    fn check(&self, settings: &Smooth) -> Result<()> {
        settings.has_no("alpha", settings.alpha.is_some())?;
        settings.needs("grid", settings.grid.is_some())
    }

    fn memory(&self, layers: &[[usize; 2]]) -> u64 {
        let weights: u64 = layers.iter().map(|[rows, columns]| 4 * (rows * columns) as u64).sum();
        let largest = layers.iter().map(|[rows, columns]| 4 * (rows * columns) as u64).max().unwrap_or(0);
        // The weights, the errors of one layer, their products, and the moments in f32.
        weights + 3 * largest + layers.first().map_or(0, |[_, columns]| 4 * (columns * columns) as u64)
    }

    fn scales(&self, settings: &Smooth, weights: &[(usize, Vec<f32>)], seen: &Seeing, channel: &[usize]) -> Result<Choice> {
        let scheme = settings.scheme().expect("`check` wants a grid");
        let columns = channel.len();
        let moments: Vec<f32> = (0..columns * columns).map(|at| seen.hessian.mean(at / columns, at % columns) as f32).collect();
        let moments = Tensor::from_vec(moments, (columns, columns), &Device::Cpu)?;
        let magnitudes = magnitudes(seen, channel);
        let mut best: Option<Choice> = None;
        let mut without = 0.0;
        for step in 0..STEPS {
            let alpha = f64::from(step) / f64::from(STEPS);
            let scales = scales(&magnitudes, alpha);
            let by_column: Vec<f32> = channel.iter().map(|channel| scales[*channel]).collect();
            let mut error = 0.0;
            for (_, values) in weights {
                error += output_error(values, &by_column, &scheme, settings.scales, &moments)?;
            }
            without = if step == 0 { error } else { without };
            if best.as_ref().is_none_or(|best| error < best.error) {
                best = Some(Choice { scales, alpha, error });
            }
        }
        let best = best.expect("at least one exponent was tried");
        Ok(Choice { error: if without > 0.0 { best.error / without } else { 1.0 }, ..best })
    }
}

/// The mean magnitude of every channel, over the columns that it is.
fn magnitudes(seen: &Seeing, channel: &[usize]) -> Vec<f64> {
    let channels = channel.iter().max().map_or(0, |last| last + 1);
    let (mut sums, mut counts) = (vec![0.0; channels], vec![0u32; channels]);
    for (column, channel) in channel.iter().enumerate() {
        sums[*channel] += seen.mean_abs(column);
        counts[*channel] += 1;
    }
    sums.iter().zip(counts).map(|(sum, count)| sum / f64::from(count.max(1))).collect()
}

/// `magnitude^alpha`, so that the largest times the smallest is 1.
fn scales(magnitudes: &[f64], alpha: f64) -> Vec<f32> {
    let raw: Vec<f64> = magnitudes.iter().map(|m| m.powf(alpha).max(LEAST)).collect();
    let (low, high) = raw.iter().fold((f64::INFINITY, 0.0f64), |(low, high), s| (low.min(*s), high.max(*s)));
    let middle = (low * high).sqrt();
    raw.iter().map(|s| (s / middle) as f32).collect()
}

/// The sum of `d H d^T` over the rows of a layer.
fn output_error(values: &[f32], by_column: &[f32], scheme: &Scheme, search: ScaleSearch, moments: &Tensor) -> Result<f64> {
    let columns = by_column.len();
    let lost = lost(values, by_column, scheme, search)?;
    let lost = Tensor::from_vec(lost, (values.len() / columns, columns), &Device::Cpu)?;
    let weighed = (lost.matmul(moments)? * &lost)?;
    let sums = attar_graph::kernel::with_f32(&weighed, |all| {
        all.par_chunks(columns).map(|row| row.iter().map(|x| f64::from(*x)).sum::<f64>()).collect::<Vec<f64>>()
    })?;
    Ok(sums.iter().sum())
}

/// `Q(W s) / s - W`.
fn lost(values: &[f32], by_column: &[f32], scheme: &Scheme, search: ScaleSearch) -> Result<Vec<f32>> {
    let columns = by_column.len();
    let mut rounded: Vec<f32> =
        values.chunks_exact(columns).flat_map(|row| row.iter().zip(by_column).map(|(w, s)| w * s)).collect();
    let refused = Error::Tensor;
    let shared = Shared::weighted(scheme, search, &rounded, &vec![1.0; columns]).map_err(refused)?;
    rounded.par_chunks_mut(columns).try_for_each(|row| {
        let fits = row_fits(scheme, search, &shared, row, None).map_err(|(_, source)| refused(source))?.fits;
        let mut codes = vec![0; columns];
        let size = scheme.group(columns).max(1);
        for ((group, codes), fit) in row.chunks_mut(size).zip(codes.chunks_mut(size)).zip(fits) {
            scheme.grid.encode(group, fit, codes);
            scheme.grid.decode(codes, fit, group);
        }
        Ok::<_, Error>(())
    })?;
    for (row, original) in rounded.chunks_exact_mut(columns).zip(values.chunks_exact(columns)) {
        row.iter_mut().zip(by_column).zip(original).for_each(|((q, s), w)| *q = *q / s - w);
    }
    Ok(rounded)
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Error {
        Error::Graph(error.into())
    }
}
