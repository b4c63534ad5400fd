//! HQQ (Badri & Shaji 2023): half-quadratic quantization. Needs no data, and tolerates a few large errors.
//!
//! Minimizes `phi(W - Q^-1(Q(W)))`, the lp norm of the error with p < 1, over the scale and zero of a group. Half-quadratic
//! splitting gives the outliers a variable of their own, `W_e`, and alternates:
//!
//! ```text
//! (3)  W_e = shrink(W - W_r, beta)                shrink(x) = sign(x) relu(|x| - |x|^(p - 1) / beta)
//! (4)  z   = mean(W_q - (W - W_e) / s)            s = <W - W_e, W_q - z> / <W_q - z, W_q - z>
//!      beta = kappa beta
//! ```
//!
//! The paper fixes `s` and lets `z` be any number. Here zeros are codes, so `z` is rounded and `s` is optimized, too; in a
//! symmetric group, only `s` is. Errors are measured in steps of the initial scale, so that the magnitude of the weights does not
//! matter. Of all iterations, the one of least norm is taken whose squared error does not exceed that of the initial scales.
//! Scales of a whole tensor and learned tables stay as the search found them.

use attar_tensor::{BlobWriter, Damage, Fit, Granularity, Levels, Scheme};

use super::{Needs, Quantizer, Seen, WeightRows, rtn};
use crate::{Result, RowFits, ScaleSearch, Shared, row_fits, scale::Refusal};

/// Half-quadratic quantization.
pub(super) struct Hqq;

/// The paper's settings, but for p, which is 0.7 there: roots of roots are the same on every machine.
const BETA: f32 = 10.0;
const KAPPA: f32 = 1.01;
const TURNS: usize = 20;

impl Quantizer for Hqq {
    fn name(&self) -> &'static str {
        "hqq"
    }

    fn version(&self) -> u32 {
        1
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn memory(&self, dims: [usize; 2]) -> u64 {
        rtn::Rtn.memory(dims)
    }

    fn quantize(
        &self,
        weights: &dyn WeightRows,
        _: Seen<'_>,
        scheme: Scheme,
        search: ScaleSearch,
        to: BlobWriter<'_>,
        rows_done: &(dyn Fn(usize) + Sync),
    ) -> Result<Damage> {
        rtn::by_rows(weights, scheme, search, to, rows_done, fits)
    }
}

/// The scales of a row.
fn fits(scheme: &Scheme, search: ScaleSearch, shared: &Shared, row: &[f32]) -> Result<RowFits, Refusal> {
    let mut absmax = row_fits(scheme, ScaleSearch::Absmax, shared, row, None)?;
    if scheme.granularity == Granularity::Tensor || scheme.grid.levels() == Levels::Learned {
        return row_fits(scheme, search, shared, row, None);
    }
    let bounds = improve(scheme, row, &mut absmax, None);
    if search == ScaleSearch::Absmax {
        return Ok(absmax);
    }
    let mut found = row_fits(scheme, search, shared, row, None)?;
    improve(scheme, row, &mut found, Some(&bounds));
    // Another super scale moves every code: the search may lose what it wins.
    let squared = |fits: &RowFits| -> f64 {
        of_groups(scheme, row, fits).map(|(group, fit)| f64::from(scheme.grid.error(group, fit))).sum()
    };
    Ok(if squared(&found) <= squared(&absmax) { found } else { absmax })
}

fn of_groups<'a>(scheme: &Scheme, row: &'a [f32], fits: &RowFits) -> impl Iterator<Item = (&'a [f32], Fit<'static>)> {
    row.chunks(scheme.group(row.len()).max(1)).zip(fits.fits.clone())
}

/// Improves the fit of every group and returns the squared errors, none of which exceeds its initial value or its bound.
fn improve(scheme: &Scheme, row: &[f32], fits: &mut RowFits, bounds: Option<&[f32]>) -> Vec<f32> {
    let groups: Vec<(&[f32], Fit<'static>)> = of_groups(scheme, row, fits).collect();
    let mut errors = Vec::with_capacity(groups.len());
    for (at, (group, first)) in groups.into_iter().enumerate() {
        let start = scheme.grid.error(group, first);
        let bound = bounds.map_or(start, |bounds| bounds[at].min(start));
        let best = Group { scheme, weights: group, over: fits.super_scale, step: first.scale.abs() }.best(first, bound);
        errors.push(scheme.grid.error(group, best));
        fits.fits[at] = best;
    }
    errors
}

/// A group whose fit is being improved.
struct Group<'a> {
    scheme: &'a Scheme,
    weights: &'a [f32],
    /// The super scale.
    over: f32,
    /// The unit of errors.
    step: f32,
}

impl Group<'_> {
    fn best(&self, first: Fit<'static>, bound: f32) -> Fit<'static> {
        let (mut fit, mut best, mut beta) = (first, (first, f32::INFINITY), BETA);
        for _ in 0..TURNS {
            if self.step == 0.0 {
                break;
            }
            let (codes, decoded) = self.rounded(fit);
            let sum: f32 = self.weights.iter().zip(&decoded).map(|(w, r)| norm((w - r).abs() / self.step)).sum();
            if sum < best.1 && self.scheme.grid.error(self.weights, fit) <= bound {
                best = (fit, sum);
            }
            let Some(next) = self.turn(fit, &codes, &decoded, beta).filter(|next| *next != fit) else { break };
            (fit, beta) = (next, beta * KAPPA);
        }
        best.0
    }

    fn rounded(&self, fit: Fit<'_>) -> (Vec<u8>, Vec<f32>) {
        let (mut codes, mut decoded) = (vec![0; self.weights.len()], vec![0.0; self.weights.len()]);
        self.scheme.grid.encode(self.weights, fit, &mut codes);
        self.scheme.grid.decode(&codes, fit, &mut decoded);
        (codes, decoded)
    }

    /// Equations 3 and 4.
    fn turn(&self, fit: Fit<'static>, codes: &[u8], decoded: &[f32], beta: f32) -> Option<Fit<'static>> {
        let without: Vec<f32> =
            self.weights.iter().zip(decoded).map(|(w, r)| w - self.step * shrink((w - r) / self.step, beta)).collect();
        let zero = if self.scheme.is_symmetric() { fit.zero } else { self.zero(fit, codes, &without) };
        let mut levels = vec![0.0; codes.len()];
        self.scheme.grid.decode(codes, Fit { scale: 1.0, zero, ..fit }, &mut levels);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let (product, square) = (dot(&without, &levels), dot(&levels, &levels));
        let scale = if square > 0.0 { (product / square) as f32 } else { fit.scale };
        Some(Fit { scale: self.stored(scale)?, zero, ..fit })
    }

    fn zero(&self, fit: Fit<'_>, codes: &[u8], without: &[f32]) -> u8 {
        let sum: f32 = codes.iter().zip(without).map(|(code, w)| f32::from(*code) - w / fit.scale).sum();
        let top = f32::from(u8::MAX >> (8 - self.scheme.grid.bits()));
        (sum / codes.len() as f32).round_ties_even().clamp(0.0, top) as u8
    }

    fn stored(&self, scale: f32) -> Option<f32> {
        let format = self.scheme.scale;
        match format.plain() {
            Some(_) => format.round(scale).ok(),
            None => Some(format.scale(format.code(scale, self.over), self.over)),
        }
    }
}

/// `magnitude^p`, p = 3/4.
fn norm(magnitude: f32) -> f32 {
    (magnitude * magnitude.sqrt()).sqrt()
}

/// The proximal operator of the lp norm, approximately: equation 3.
fn shrink(x: f32, beta: f32) -> f32 {
    let magnitude = x.abs();
    if magnitude == 0.0 { 0.0 } else { (magnitude - 1.0 / (magnitude.sqrt().sqrt() * beta)).max(0.0).copysign(x) }
}
