//! Rounding for a device that codes its weight stream: what a code costs in bits is weighed against what it loses.
//!
//! An entropy coder takes about `-log2 p` bits for a code that a share `p` of the weights has, so a coarse step with all its range is
//! better than a grid of few levels, and a weight whose loss is small becomes zero (rate-distortion optimized quantization, Sullivan &
//! Wiegand 1998; Frantar & Alistarh 2022 choose a mask by the same loss). The step of [`Rate`] is the same for all rows of a tensor:
//! where the slope of the loss over the bits is the same everywhere, so is the step (reverse water-filling).

use attar_tensor::{Fit, GRIDS, Granularity, Scheme};

use crate::{Factor, RowFits};

/// How coarse a tensor is rounded, and how much a bit of its coded stream is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Distance between two codes, as a share of the root mean square of the tensor's weights. Where a row's largest weight would lie
    /// beyond the last code, the row has the smallest step that holds it.
    pub step: f32,
    /// What a bit is worth, as a share of what it saves where codes are fine: a bit more halves the step.
    pub price: f32,
}

/// The largest magnitude of a code.
const LAST: f32 = 127.0;

/// `-d(s^2 / 12) / d(bits)`, as a share of `s^2`, where a bit more halves the step `s`.
const SLOPE: f32 = std::f32::consts::LN_2 / 6.0;

/// What is tried for every tensor, each step the root of two times the one before: from 7 bits of Gaussian weights to 1.6.
pub(super) fn rates() -> impl Iterator<Item = Rate> {
    let step = |at: i32| 2f32.powi(at.div_euclid(2)) * [1.0, std::f32::consts::SQRT_2][at.rem_euclid(2) as usize];
    (-10..=2).map(move |at| Rate { step: step(at), price: 1.0 })
}

/// The scheme of codes under a rate.
pub(super) fn scheme() -> Scheme {
    let int8 = GRIDS.iter().find(|grid| grid.name() == "int8").expect("a grid that the tests parse");
    Scheme { granularity: Granularity::Row, positive: true, ..Scheme::of(*int8) }
}

/// A coder of the codes of one tensor, and what its bits are worth.
pub(super) struct Coder {
    rate: Rate,
    /// Root mean square of the weights.
    rms: f32,
    /// Bits of a code, by its magnitude.
    bits: Vec<f32>,
    /// What a bit is worth, where an error of one step in a column is worth the column's variance.
    bit: f32,
}

impl Coder {
    /// For `weights`, `[.., columns]`: its bits are those of codes that are rounded to the nearest.
    pub(super) fn new(rate: Rate, weights: &[f32], columns: usize, factor: &Factor) -> Coder {
        let energy: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
        let rms = (energy / weights.len().max(1) as f64).sqrt() as f32;
        let mut coder = Coder { rate, rms, bits: Vec::new(), bit: 0.0 };
        let mut counts = [0.5f64; LAST as usize + 1];
        for row in weights.chunks(columns.max(1)) {
            let step = coder.step(row);
            row.iter().for_each(|w| counts[magnitude(*w, step)] += 1.0);
        }
        let all: f64 = counts.iter().sum();
        let sign = |at: usize| if at == 0 { 0.0 } else { 1.0 };
        coder.bits = counts.iter().enumerate().map(|(at, count)| (sign(at) + (all / count).log2()) as f32).collect();
        let variance = (0..columns).map(|j| f64::from(factor.variance(j))).sum::<f64>() / columns.max(1) as f64;
        coder.bit = rate.price * SLOPE * variance as f32;
        coder
    }

    fn step(&self, row: &[f32]) -> f32 {
        let largest = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
        (self.rate.step * self.rms).max(largest / LAST)
    }

    /// The scales of a row.
    pub(super) fn fits(&self, scheme: &Scheme, row: &[f32]) -> attar_tensor::Result<RowFits> {
        let scale = scheme.scale.round(self.step(row))?;
        let fit = Fit { scale, zero: scheme.grid.middle(), table: &[] };
        Ok(RowFits { super_scale: 1.0, fits: vec![fit; row.len().div_ceil(scheme.group(row.len()).max(1))], tables: Vec::new() })
    }

    /// The multiple of `step` that costs least for a weight: its error times the `variance` of its input, and its bits.
    pub(super) fn round(&self, w: f32, step: f32, variance: f32) -> f32 {
        let nearest = magnitude(w, step);
        let cost = |at: usize| (w.abs() / step - at as f32).powi(2) * variance + self.bit * self.bits[at];
        let options = [nearest, nearest.saturating_sub(1), 0];
        let best = options.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(nearest);
        (best as f32 * step).copysign(w)
    }
}

fn magnitude(w: f32, step: f32) -> usize {
    if step > 0.0 { (w.abs() / step).round().min(LAST) as usize } else { 0 }
}
