//! Integers as an NPU computes with them: rounding values to codes, and products of codes.
//!
//! A value is `code - zero` times a scale; a weight is the same with a scale of its own for every group of inputs. So
//!
//! ```text
//! y[t, o] = sx[t] * sum over groups g, in order, of  sw[o, g] * A[t, o, g]
//! A[t, o, g] = sum over i in g of (x[t, i] - zx) * (w[o, i] - zw)        an integer
//! ```
//!
//! (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
//! section 2.2.) `A` is exact, as an accumulator that does not overflow has it: 32 bits are enough for 8-bit codes and
//! up to 32768 inputs per group. It is rounded to f32 once, multiplied by `sw`, and added; the sum is multiplied by `sx`.
//! Each of these is one IEEE operation, so that the result depends on neither threads nor instruction set.
//!
//! The dot products run as f32 products of matrices over so few inputs that no sum passes 2^24, below which f32 holds
//! every integer. Codes of more than 9 bits are taken apart into bytes.

use attar_tensor::{Fit, Levels, QuantizedTensor};
use rayon::prelude::*;

use crate::kernel::{max, wide};

/// The smallest range of a dynamic scale, so that a row of zeros has a scale too.
pub const SMALLEST_RANGE: f32 = 1e-30;

/// Adding and subtracting this rounds an f32 of magnitude below 2^22 to an integer, halves to even.
const ROUND: f32 = 12_582_912.0;

/// f32 holds every integer up to this.
const EXACT: f32 = 16_777_216.0;

/// Tokens and outputs per tile of a product.
const TILE: [usize; 2] = [128, 512];

/// Values per parallel task.
const PART: usize = 1 << 14;

/// How values become codes: signed integers of so many bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounding {
    bits: u32,
    /// One for the tensor, one per channel (the last dimension), or none: then every row gets one from its values.
    scale: Vec<f32>,
    /// The codes that mean zero, as many as scales; if there are none, it is 0.
    zero: Vec<f32>,
}

impl Rounding {
    /// A scale for each row of the last dimension, `max(largest magnitude, `[`SMALLEST_RANGE`]`) / (2^(bits - 1) - 1)`.
    pub fn dynamic(bits: u32) -> Rounding {
        Rounding { bits, scale: Vec::new(), zero: Vec::new() }
    }

    /// Static scales, one for the tensor or one per channel, and as many zeros or none.
    ///
    /// # Panics
    /// If there is no scale, or another number of zeros.
    pub fn fixed(bits: u32, scale: Vec<f32>, zero: Vec<f32>) -> Rounding {
        assert!(!scale.is_empty() && (zero.is_empty() || zero.len() == scale.len()), "one zero per scale");
        Rounding { bits, scale, zero }
    }

    /// The outermost codes: all of two's complement, but symmetric where the scale is dynamic.
    pub fn codes(&self) -> [f32; 2] {
        let half = (1i64 << (self.bits - 1)) as f32;
        [if self.scale.is_empty() { 1.0 - half } else { -half }, half - 1.0]
    }

    /// The largest distance of a code from its zero.
    pub fn largest(&self) -> f32 {
        let [low, high] = self.codes();
        self.zero.iter().fold(-low, |most, zero| most.max((low - zero).abs()).max((high - zero).abs()))
    }

    /// What the nearest codes of `x` `[rows, width]` mean; halves go to the even code.
    pub fn round(&self, x: &[f32], width: usize, out: &mut [f32]) {
        let rows = (PART / width.max(1)).max(1);
        let parts = x.par_chunks((rows * width).max(1)).zip(out.par_chunks_mut((rows * width).max(1)));
        parts.for_each(|(x, out)| self.round_rows(x, width, out));
    }

    fn round_rows(&self, x: &[f32], width: usize, out: &mut [f32]) {
        let zero = self.zero.first().copied().unwrap_or(0.0);
        let [low, high] = self.codes().map(|code| code - zero);
        match self.scale.as_slice() {
            [] => x.chunks(width.max(1)).zip(out.chunks_mut(width.max(1))).for_each(|(x, out)| {
                round_row(x, self.row_scale(x), low, high, out);
            }),
            [scale] => round_row(x, *scale, low, high, out),
            scales => x.chunks(width.max(1)).zip(out.chunks_mut(width.max(1))).for_each(|(x, out)| {
                self.round_channels(x, scales, out);
            }),
        }
    }

    fn round_channels(&self, x: &[f32], scales: &[f32], out: &mut [f32]) {
        let codes = self.codes();
        for (channel, ((x, scale), out)) in x.iter().zip(scales).zip(out).enumerate() {
            let zero = self.zero.get(channel).copied().unwrap_or(0.0);
            let [low, high] = codes.map(|code| code - zero);
            *out = code(*x, *scale, low, high) * scale;
        }
    }

    /// The scale of a row of values.
    pub fn row_scale(&self, row: &[f32]) -> f32 {
        match self.scale.as_slice() {
            [] => magnitude(row).max(SMALLEST_RANGE) / self.codes()[1],
            scales => scales[0],
        }
    }

    /// The scales that a product of `x` `[rows, width]` needs; none, if every channel has a scale of its own: they
    /// cannot leave the sum.
    pub fn row_scales(&self, x: &[f32], width: usize) -> Option<RowScales> {
        let scales = match self.scale.as_slice() {
            [] => x.par_chunks(width.max(1)).map(|row| self.row_scale(row)).collect(),
            [scale] => vec![*scale],
            _ => return None,
        };
        Some(RowScales { scales, largest: self.largest() })
    }
}

/// Scales of rounded values, so that a product finds their codes again.
#[derive(Clone, Debug, PartialEq)]
pub struct RowScales {
    /// One for the tensor, or one per row of the last dimension.
    pub scales: Vec<f32>,
    /// The largest distance of a code from its zero.
    pub largest: f32,
}

impl RowScales {
    fn of(&self, row: usize) -> f32 {
        if self.scales.len() == 1 { self.scales[0] } else { self.scales[row] }
    }
}

/// The nearest code of one value, as its distance from the zero.
#[inline(always)]
fn code(x: f32, scale: f32, low: f32, high: f32) -> f32 {
    // Clamped before rounding: the magic number is exact only for small magnitudes.
    (x / scale).clamp(low, high) + ROUND - ROUND
}

wide! {
    fn round_row(x: &[f32], scale: f32, low: f32, high: f32, out: &mut [f32]) {
        for (x, out) in x.iter().zip(out) {
            *out = code(*x, scale, low, high) * scale;
        }
    }
}

wide! {
    /// The nearest integers of `x / scale`, of magnitude below 2^22; halves go to the even one.
    ///
    /// Of values that were rounded they are the codes: a value is `code * scale` to within one rounding and the quotient
    /// to within another, so it is off by less than 2^-5 for a code of 17 bits.
    pub(crate) fn nearest_integers(x: &[f32], scale: f32, out: &mut [f32]) {
        for (x, out) in x.iter().zip(out) {
            *out = x / scale + ROUND - ROUND;
        }
    }
}

fn magnitude(row: &[f32]) -> f32 {
    let mut all = [0.0f32; 256];
    row.chunks(256).fold(0.0, |most, part| {
        all.iter_mut().zip(part).for_each(|(a, x)| *a = x.abs());
        max(&all[..part.len()]).max(most)
    })
}

/// A weight in integers: distances of codes from their zeros, and the scales of groups.
pub struct IntegerMatrix {
    rows: usize,
    columns: usize,
    /// Columns that share a scale; the last group may be shorter.
    group: usize,
    /// `[rows, columns]`.
    codes: Vec<f32>,
    /// `[groups, rows]`.
    scales: Vec<f32>,
    largest: f32,
}

impl IntegerMatrix {
    /// Of codes that are evenly spaced; of a grid whose values are no integers there is none.
    pub fn new(tensor: &QuantizedTensor) -> Option<IntegerMatrix> {
        let ([rows, columns], scheme) = (tensor.dims, tensor.scheme);
        if !is_integer(tensor) {
            return None;
        }
        let (group, groups) = (scheme.group(columns).max(1), scheme.groups(columns));
        let (mut codes, mut scales) = (vec![0.0; rows * columns], vec![0.0; groups * rows]);
        let mut bytes = vec![0; columns];
        for (row, codes) in codes.chunks_mut(columns.max(1)).enumerate() {
            tensor.codes_of(row, &mut bytes);
            for (at, (bytes, codes)) in bytes.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
                let fit = tensor.fit(row, at);
                scales[at * rows + row] = fit.scale;
                scheme.grid.decode(bytes, Fit { scale: 1.0, ..fit }, codes);
            }
        }
        let largest = codes.iter().fold(1.0f32, |most, code| most.max(code.abs()));
        Some(IntegerMatrix { rows, columns, group, codes, scales, largest })
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of::<f32>() * (self.codes.len() + self.scales.len())
    }

    /// Outputs and inputs.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// `y = x weight^T` as the module says; `x` `[tokens, inputs]` are rounded values, `y` is `[tokens, outputs]`.
    pub fn product(&self, x: &[f32], scales: &RowScales) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.columns.max(1) * self.rows];
        let parts = y.par_chunks_mut((TILE[0] * self.rows).max(1)).zip(x.par_chunks((TILE[0] * self.columns).max(1)));
        parts.enumerate().for_each(|(tile, (y, x))| self.tile(x, scales, tile * TILE[0], y));
        y
    }

    /// The product of some tokens, the first of which has the number `first`.
    fn tile(&self, x: &[f32], scales: &RowScales, first: usize, y: &mut [f32]) {
        let mut codes = vec![0.0; x.len()];
        for (token, (x, codes)) in x.chunks(self.columns).zip(codes.chunks_mut(self.columns)).enumerate() {
            nearest_integers(x, scales.of(first + token), codes);
        }
        let planes = planes(codes, scales.largest);
        for start in (0..self.rows).step_by(TILE[1]) {
            self.outputs(&planes, start, TILE[1].min(self.rows - start), y);
        }
        y.chunks_mut(self.rows).enumerate().for_each(|(token, y)| scale_row(y, scales.of(first + token)));
    }

    /// `count` outputs from `start` on, without the scales of the tokens.
    fn outputs(&self, planes: &[Plane], start: usize, count: usize, y: &mut [f32]) {
        let tokens = y.len() / self.rows;
        let mut part = vec![0.0; tokens * count];
        for group in 0..self.columns.div_ceil(self.group) {
            let inputs = group * self.group..self.columns.min((group + 1) * self.group);
            let scales = &self.scales[group * self.rows + start..][..count];
            self.dots(planes, inputs, start, count, &mut part);
            for (part, y) in part.chunks(count).zip(y.chunks_mut(self.rows)) {
                add_scaled(part, scales, &mut y[start..start + count]);
            }
        }
    }

    /// `A`, rounded to f32. `out` is `[tokens, count]`.
    fn dots(&self, planes: &[Plane], inputs: std::ops::Range<usize>, start: usize, count: usize, out: &mut [f32]) {
        let pieces = |plane: &Plane| {
            let longest = ((EXACT / (plane.largest * self.largest)) as usize).max(1);
            inputs.clone().step_by(longest).map(move |at| (at, longest))
        };
        if let [plane] = planes
            && pieces(plane).len() == 1
        {
            return self.exact_dots(plane, inputs, start, count, out);
        }
        let mut sums = vec![0.0f64; out.len()];
        for plane in planes {
            for (at, longest) in pieces(plane) {
                self.exact_dots(plane, at..inputs.end.min(at + longest), start, count, out);
                // f64 holds every integer below 2^53.
                sums.iter_mut().zip(&*out).for_each(|(sum, part)| *sum += plane.factor * f64::from(*part));
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    }

    /// Sums that stay below 2^24, on this thread.
    fn exact_dots(&self, plane: &Plane, inputs: std::ops::Range<usize>, start: usize, count: usize, out: &mut [f32]) {
        let stride = self.columns as isize;
        let (tokens, length) = (plane.codes.len() / self.columns, inputs.len());
        assert!(out.len() == tokens * count && inputs.end <= self.columns && start + count <= self.rows);
        if out.is_empty() {
            return;
        }
        let sizes = [[tokens, length], [count, length]];
        let operands = [&plane.codes[inputs.start..], &self.codes[start * self.columns + inputs.start..]];
        debug_assert!(operands.iter().zip(sizes).all(|(operand, size)| crate::kernel::holds(operand, size, [stride, 1])));
        // SAFETY: `out` is `[tokens, count]`; both operands have rows of `columns` numbers, `inputs` within them;
        // the right one reads rows `start` to `start + count` of `rows`: asserted above.
        unsafe {
            let (left, right) = (operands[0].as_ptr(), operands[1].as_ptr());
            let none = gemm::Parallelism::None;
            let out = out.as_mut_ptr();
            gemm::gemm(
                tokens,
                count,
                length,
                out,
                1,
                count as isize,
                false,
                left,
                1,
                stride,
                right,
                stride,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                none,
            );
        }
    }
}

/// Codes, or one byte of each.
struct Plane {
    codes: Vec<f32>,
    largest: f32,
    /// What its sums count.
    factor: f64,
}

/// Codes whose products with bytes can be summed: as they are, or high and low bytes apart.
fn planes(codes: Vec<f32>, largest: f32) -> Vec<Plane> {
    const BYTE: f32 = 256.0;
    if largest <= 2.0 * BYTE {
        return vec![Plane { codes, largest, factor: 1.0 }];
    }
    let high: Vec<f32> = codes.iter().map(|code| (code / BYTE).floor()).collect();
    let low = codes.iter().zip(&high).map(|(code, high)| code - high * BYTE).collect();
    vec![
        Plane { codes: high, largest: (largest / BYTE).ceil(), factor: BYTE.into() },
        Plane { codes: low, largest: BYTE - 1.0, factor: 1.0 },
    ]
}

wide! {
    fn add_scaled(part: &[f32], scales: &[f32], y: &mut [f32]) {
        for ((y, part), scale) in y.iter_mut().zip(part).zip(scales) {
            *y += part * scale;
        }
    }
}

wide! {
    fn scale_row(y: &mut [f32], scale: f32) {
        for y in y {
            *y *= scale;
        }
    }
}

/// Whether every code of the grid is an integer at scale 1.
fn is_integer(tensor: &QuantizedTensor) -> bool {
    let grid = tensor.scheme.grid;
    if matches!(grid.levels(), Levels::Learned) {
        return false;
    }
    let codes: Vec<u8> = (0..1u32 << grid.bits()).map(|code| code as u8).collect();
    let mut values = vec![0.0; codes.len()];
    grid.decode(&codes, Fit { scale: 1.0, zero: grid.middle(), table: &[] }, &mut values);
    values.iter().all(|value| value.fract() == 0.0)
}
