//! Layer normalisation, vectors of length one, and the mean over positions.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{LANES, PART, scale, wide, with_f32};

wide! {
    /// The sum of `(x - offset)^2`, or of `x - offset`.
    fn moment(row: &[f32], offset: f32, squares: bool) -> f32 {
        let mut lanes = [0.0f32; LANES];
        for chunk in row.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let x = x - offset;
                *lane += if squares { x * x } else { x };
            }
        }
        lanes.iter().sum()
    }
}

wide! {
    fn layer_norm_row(x: &mut [f32], gain: &[f32], bias: &[f32], epsilon: f32) {
        let count = x.len() as f32;
        let mean = moment(x, 0.0, false) / count;
        let factor = 1.0 / (moment(x, mean, true) / count + epsilon).sqrt();
        for (x, gain) in x.iter_mut().zip(gain) {
            *x = (*x - mean) * factor * gain;
        }
        for (x, bias) in x.iter_mut().zip(bias) {
            *x += bias;
        }
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * gain + bias` over the last dimension; both vectors are as long.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, epsilon: f32) -> Result<Tensor> {
    let (gain, bias) = (gain.to_vec1::<f32>()?, bias.map_or(Ok(Vec::new()), Tensor::to_vec1::<f32>)?);
    by_rows(x, |row| layer_norm_row(row, &gain, &bias, epsilon))
}

wide! {
    /// The sum of products.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        lanes.iter().sum()
    }
}

wide! {
    /// Replaces the gradient of a normalized row by that of the row, and adds that of the gain.
    fn rms_norm_row_back(x: &[f32], gain: &[f32], gradient: &mut [f32], of_gain: &mut [f32], epsilon: f32) {
        let count = x.len() as f32;
        let factor = 1.0 / (moment(x, 0.0, true) / count + epsilon).sqrt();
        for (((g, x), gain), sum) in gradient.iter_mut().zip(x).zip(gain).zip(of_gain) {
            *sum += *g * x * factor;
            *g *= gain;
        }
        let along = dot(gradient, x) * factor * factor / count;
        for (g, x) in gradient.iter_mut().zip(x) {
            *g = (*g - x * along) * factor;
        }
    }
}

/// The gradients of root mean square normalisation, `x / sqrt(mean(x^2) + epsilon) * gain`, with respect to `x` and `gain`, given
/// that of its result.
pub fn rms_norm_gradients(x: &Tensor, gain: &Tensor, gradient: &Tensor, epsilon: f32) -> Result<[Tensor; 2]> {
    let (width, gain) = (x.dim(D::Minus1)?.max(1), gain.to_vec1::<f32>()?);
    let rows = PART.div_ceil(width) * width;
    let mut of_x = with_f32(gradient, <[f32]>::to_vec)?;
    let sums: Vec<Vec<f32>> = with_f32(x, |x| {
        let parts = of_x.par_chunks_mut(rows).zip(x.par_chunks(rows));
        let part = |(gradient, x): (&mut [f32], &[f32])| {
            let mut of_gain = vec![0.0; width];
            for (gradient, x) in gradient.chunks_mut(width).zip(x.chunks(width)) {
                rms_norm_row_back(x, &gain, gradient, &mut of_gain, epsilon);
            }
            of_gain
        };
        parts.map(part).collect()
    })?;
    let mut of_gain = vec![0.0; width];
    sums.iter().for_each(|part| of_gain.iter_mut().zip(part).for_each(|(sum, g)| *sum += g));
    Ok([Tensor::from_vec(of_x, x.shape(), x.device())?, Tensor::from_vec(of_gain, width, x.device())?])
}

/// `x / max(|x|, epsilon)`, where `|x|` is the Euclidean length of the last dimension.
pub fn normalize(x: &Tensor, epsilon: f32) -> Result<Tensor> {
    by_rows(x, |row| scale(row, 1.0 / moment(row, 0.0, true).sqrt().max(epsilon)))
}

/// The mean over `seq` of `x [batch, seq, width]`.
pub fn mean_pool(x: &Tensor) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    let out = with_f32(x, |x| {
        let mut out = vec![0.0; batch * width];
        let windows = x.par_chunks((seq * width).max(1)).zip(out.par_chunks_mut(width.max(1)));
        windows.for_each(|(x, out)| {
            x.chunks(width).for_each(|row| out.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
            scale(out, 1.0 / seq as f32);
        });
        out
    })?;
    Tensor::from_vec(out, (batch, width), x.device())
}

/// A copy in which `f` changed every row of the last dimension.
fn by_rows(x: &Tensor, f: impl Fn(&mut [f32]) + Sync) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?.max(1);
    let mut out = with_f32(x, <[f32]>::to_vec)?;
    let rows = PART.div_ceil(width) * width;
    out.par_chunks_mut(rows).for_each(|part| part.chunks_mut(width).for_each(&f));
    Tensor::from_vec(out, x.shape(), x.device())
}
