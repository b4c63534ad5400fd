//! The integer arithmetic of a device: what every plan computes, to the bit, whatever its tiles.
//!
//! - A product accumulates in i32; a weight group's partial sum is multiplied by the integer scale of the group. Sums wrap,
//!   so that their order cannot matter; [`crate::Program::check`] refuses products whose sum could.
//! - Rescaling is `(x * multiplier + 2^(shift - 1)) >> shift` with a multiplier of 31 bits (Jacob et al. 2018, section 2.2,
//!   with one rounding), then saturation.
//! - Softmax works in base 2 with 8 fractional bits, keeps the running maximum as a whole exponent, and walks over keys in
//!   canonical runs of [`RUN`] in ascending order (Milakov & Gimelshein 2018). What a run adds, and where the sums are
//!   shifted down, is fixed by the run, not by the tile: a tile holds whole runs.
//! - A norm's root is the integer square root of the exact sum of squares.

use serde::{Deserialize, Serialize};

/// Keys per run of an attention step: tiles of keys are multiples of it.
pub const RUN: u64 = 32;

/// Fractional bits of logits in base 2.
const LOGIT_BITS: u32 = 8;

/// Fractional bits of the cosines and sines of rotary tables.
pub const ROTARY_BITS: u32 = 14;

/// `round(x * multiplier / 2^shift)`, halves up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rescale {
    /// Signed, of at most 31 bits.
    pub multiplier: i32,
    /// From 1 to 62.
    pub shift: u8,
}

impl Rescale {
    /// The nearest rescaling to a factor. Factors below 2^-32 in magnitude become 0; `None` if a factor is 2^29 or more, or NaN.
    pub fn new(factor: f64) -> Option<Rescale> {
        if !factor.is_finite() || factor.abs() >= f64::from(1 << 29) {
            return None;
        }
        let mut shift = 62u8;
        while shift > 1 && (factor * (1u64 << shift) as f64).round().abs() >= f64::from(1u32 << 31) - 1.0 {
            shift -= 1;
        }
        Some(Rescale { multiplier: (factor * (1u64 << shift) as f64).round() as i32, shift })
    }

    /// Of a number of 32 bits.
    pub fn apply(self, x: i32) -> i64 {
        (i64::from(x) * i64::from(self.multiplier) + (1 << (self.shift - 1))) >> self.shift
    }
}

/// The nearest of `bits` bits, two's complement.
pub fn saturate(x: i64, bits: u32) -> i32 {
    let top = (1i64 << (bits - 1)) - 1;
    x.clamp(-top - 1, top) as i32
}

/// `2^-(i / 256)` in 15 fractional bits.
pub struct Exponential([u16; 256]);

impl Default for Exponential {
    fn default() -> Exponential {
        // 2^(-1/256) in 63 fractional bits; powers by integer products, so that every machine has the same table.
        const STEP: u128 = 9_198_432_556_164_277_331;
        let mut power = 1u128 << 63;
        Exponential(std::array::from_fn(|_| {
            let entry = ((power + (1 << 47)) >> 48) as u16;
            power = (power * STEP) >> 63;
            entry
        }))
    }
}

impl Exponential {
    /// `2^(-distance / 256)` in `bits` fractional bits.
    fn weight(&self, distance: u32, bits: u8) -> i32 {
        let (whole, part) = (distance >> LOGIT_BITS, distance & 0xff);
        let (bits, entry) = (u32::from(bits), i32::from(self.0[part as usize]));
        match whole + 15 - bits {
            _ if whole >= bits + 2 => 0,
            0 => entry,
            shift => (entry + (1 << (shift - 1))) >> shift,
        }
    }
}

/// Fractional bits of the weights of a softmax over so many keys: as many as keep sums of weights times int8 in 32 bits, 15 at most.
pub fn weight_bits(keys: u64) -> u8 {
    23u32.saturating_sub(keys.max(1).next_power_of_two().ilog2()).min(15) as u8
}

/// An entry of a table of a gate, between two neighbours: `code` has [`GATE_FRACTION`] bits below the index.
pub fn looked_up(table: &[i16], code: i32) -> i32 {
    let place = code + (1 << 15);
    let (index, part) = ((place >> GATE_FRACTION) as usize, place & ((1 << GATE_FRACTION) - 1));
    let [from, to] = [table[index], table[index + 1]].map(i32::from);
    from + (((to - from) * part + (1 << (GATE_FRACTION - 1))) >> GATE_FRACTION)
}

/// Bits of a gate code between two entries of its table.
pub const GATE_FRACTION: u32 = 6;

/// Entries of a gate's table: one at each index that a code of 16 bits has, and one behind the last.
pub const GATE_ENTRIES: usize = (1 << (16 - GATE_FRACTION)) + 1;

/// A logit in base 2, from the product of query and key.
pub fn logit(product: i32, rescale: Rescale) -> i32 {
    rescale.apply(product).clamp(-(1 << 22), 1 << 22) as i32
}

/// The online softmax of one query row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftmaxRow {
    /// The running maximum, a whole exponent; meaningless while `sum` is 0.
    pub exponent: i32,
    /// Of the weights, in as many fractional bits as they have.
    pub sum: i32,
}

impl SoftmaxRow {
    /// No key seen.
    pub const EMPTY: SoftmaxRow = SoftmaxRow { exponent: i32::MIN, sum: 0 };

    /// Takes one run of logits (base 2, 8 fractional bits; `None` for a key that is not attended to), writes their weights
    /// and moves `accumulators` down where the maximum rises.
    pub fn take(
        &mut self,
        (exponential, bits): (&Exponential, u8),
        logits: &[Option<i32>],
        weights: &mut [i32],
        accumulators: impl Iterator<Item = i32>,
    ) -> Vec<i32> {
        let Some(highest) = logits.iter().flatten().max() else {
            weights.fill(0);
            return accumulators.collect();
        };
        // The least whole exponent that is not below it.
        let wanted = (highest + (1 << LOGIT_BITS) - 1) >> LOGIT_BITS;
        let shift = if self.exponent == i32::MIN { 0 } else { (wanted - self.exponent).clamp(0, 31) as u32 };
        self.exponent = self.exponent.max(wanted);
        self.sum = shift_down(self.sum, shift);
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = logit.map_or(0, |logit| exponential.weight(((self.exponent << LOGIT_BITS) - logit) as u32, bits));
            self.sum += *weight;
        }
        accumulators.map(|x| shift_down(x, shift)).collect()
    }

    /// What an accumulator comes to: `accumulator / sum`, rescaled.
    pub fn finish(self, accumulator: i32, rescale: Rescale) -> i64 {
        let scaled = i128::from(accumulator) * i128::from(rescale.multiplier);
        let divisor = i128::from(self.sum.max(1)) << rescale.shift;
        (2 * scaled + divisor).div_euclid(2 * divisor) as i64
    }
}

/// A sum of 64 bits in 32: shifted down by `narrow`, halves up. Sums of 32 bits are not shifted, and wrap.
pub fn narrowed(sum: i64, narrow: u8) -> i32 {
    match narrow {
        0 => sum as i32,
        _ => saturate((sum + (1 << (narrow - 1))) >> narrow, 32),
    }
}

/// `x / 2^shift`, halves up.
pub(crate) fn shift_down(x: i32, shift: u32) -> i32 {
    match shift {
        0 => x,
        _ => ((i64::from(x) + (1 << (shift - 1))) >> shift) as i32,
    }
}

/// `1 / sqrt(x)` as a multiplier of at most 31 bits and a shift: `multiplier / 2^shift`. Of 0 as of 1.
pub fn inverse_root(x: u64) -> (u32, u32) {
    let x = u128::from(x.max(1));
    // 2^(2 shift) / x has 60 or 61 bits, its root 30 or 31.
    let shift = (60 + (128 - x.leading_zeros())).div_ceil(2);
    (((1u128 << (2 * shift)) / x).isqrt() as u32, shift)
}

/// A norm of rows: `x / sqrt(mean(x^2) + epsilon) * gain`, where `epsilon` is `width * epsilon / scale^2` of the row's scale and a gain
/// is `gain * sqrt(width) / out_scale` in `gain_shift` fractional bits. A channel is worth `2^exponent` as much as its code; its exponent
/// is stored with its gain ([`stored_gain`]). With biases, `x` is what it differs from the row's mean by, and a bias in
/// [`BIAS_BITS`] fractional bits is added.
#[derive(Clone, Copy, Debug)]
pub struct NormRow<'a> {
    /// Added to the sum of squares.
    pub epsilon: u64,
    /// Fractional bits of the gains.
    pub gain_shift: u32,
    /// Of each channel.
    pub gains: &'a [i32],
    /// Of each channel.
    pub biases: Option<&'a [i32]>,
}

impl<'a> NormRow<'a> {
    /// The norm whose constants lie behind each other, rows of `width` numbers: gains, then biases if it is `centered`.
    pub fn of([epsilon, gain_shift]: [u64; 2], constants: &'a [i32], width: usize, centered: bool) -> NormRow<'a> {
        let (gains, rest) = constants.split_at(width);
        NormRow { epsilon, gain_shift: gain_shift as u32, gains, biases: centered.then(|| &rest[..width]) }
    }

    /// A row in the output's steps, before saturation.
    pub fn apply(self, x: &[i32]) -> impl Iterator<Item = i64> {
        let NormRow { epsilon, gain_shift, gains, biases } = self;
        let mut wide: Vec<i64> = x.iter().zip(gains).map(|(x, gain)| i64::from(*x) << exponent(*gain)).collect();
        if biases.is_some() {
            let mean = mean(&wide);
            wide.iter_mut().for_each(|x| *x -= mean);
        }
        let squares = wide.iter().fold(epsilon, |sum, x| sum.saturating_add(x.pow(2) as u64));
        let (inverse, shift) = inverse_root(squares);
        let shift = shift + gain_shift - biases.map_or(0, |_| BIAS_BITS);
        wide.into_iter().zip(gains).enumerate().map(move |(at, (x, gain))| {
            let product = i128::from(x) * i128::from(gain >> EXPONENT_BITS) * i128::from(inverse);
            let rounded = ((product + (1 << (shift - 1))) >> shift) as i64;
            biases.map_or(rounded, |biases| (rounded + i64::from(biases[at]) + (1 << (BIAS_BITS - 1))) >> BIAS_BITS)
        })
    }
}

/// The nearest integer to the mean of numbers, halves up.
fn mean(x: &[i64]) -> i64 {
    let count = x.len().max(1) as i64;
    (2 * x.iter().sum::<i64>() + count).div_euclid(2 * count)
}

/// Fractional bits of the biases of a norm.
pub const BIAS_BITS: u32 = 8;

/// Low bits of a stored gain that are its channel's exponent.
const EXPONENT_BITS: u32 = 4;

/// The largest exponent of a channel: squares of 2^13 channels fit 63 bits.
pub const MOST_EXPONENT: u32 = 10;

/// The largest gain, less 1.
pub const LARGEST_GAIN: f64 = ((1u32 << (31 - EXPONENT_BITS)) - 1) as f64;

/// A gain as it is stored: above the exponent of its channel.
pub fn stored_gain(gain: f64, exponent: u8) -> i32 {
    (gain.round().clamp(-LARGEST_GAIN, LARGEST_GAIN) as i32) << EXPONENT_BITS | i32::from(exponent)
}

fn exponent(gain: i32) -> u32 {
    (gain as u32 & ((1 << EXPONENT_BITS) - 1)).min(MOST_EXPONENT)
}

/// A rotary pair: rotated by an angle whose cosine and sine have [`ROTARY_BITS`] fractional bits.
pub fn rotate(first: i32, second: i32, cosine: i32, sine: i32) -> (i32, i32) {
    let half = 1i64 << (ROTARY_BITS - 1);
    let (a, b, c, s) = (i64::from(first), i64::from(second), i64::from(cosine), i64::from(sine));
    (((a * c - b * s + half) >> ROTARY_BITS) as i32, ((b * c + a * s + half) >> ROTARY_BITS) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescaling_is_the_nearest_integer() {
        for factor in [0.0, 1.0, -1.0, 0.3, 1e-5, -7.25e-8, 123.456, 5e8] {
            let rescale = Rescale::new(factor).unwrap();
            for x in [-2_000_000_000, -12345, -1, 0, 1, 77, 1 << 20, 2_000_000_000] {
                let exact = f64::from(x) * factor;
                let error = (rescale.apply(x) as f64 - exact).abs();
                assert!(error <= 0.5 + exact.abs() * 1e-9 + f64::from(x).abs() / (1u64 << 32) as f64, "{x} * {factor}: {error}");
            }
        }
        assert_eq!(Rescale::new(1e9), None);
        assert_eq!(Rescale::new(f64::NAN), None);
    }

    #[test]
    fn exponentials_are_the_nearest() {
        let table = Exponential::default();
        for i in 0..256 {
            assert_eq!(table.0[i], (32768.0 * 2f64.powf(-(i as f64) / 256.0)).round() as u16, "{i}");
        }
    }

    #[test]
    fn an_inverse_root_has_30_bits() {
        for x in [1, 2, 3, 10, 999, 1 << 20, (1 << 40) + 7, u64::MAX / 3] {
            let (multiplier, shift) = inverse_root(x);
            let exact = 1.0 / (x as f64).sqrt();
            assert!((f64::from(multiplier) / 2f64.powi(shift as i32) / exact - 1.0).abs() < 1e-8, "{x}");
        }
    }

    /// From int16 to int16, as of the heads of queries and keys.
    #[test]
    fn a_normed_row_comes_near_the_real_one() {
        let (row, step, out_step, epsilon) = ([3000, -120, 0, 31, -9000, 4, 77, -1], 1e-3, 1e-4, 1e-6);
        let gain = |at: usize| 0.2 + 0.3 * at as f64;
        let width = row.len() as f64;
        let unit = width.sqrt() / out_step * 64.0;
        let gains: Vec<i32> = (0..row.len()).map(|at| stored_gain(gain(at) * unit, 0)).collect();
        let stored = (width * epsilon / (step * step)).round() as u64;
        let norm = NormRow { epsilon: stored, gain_shift: 6, gains: &gains, biases: None };
        let found: Vec<i32> = norm.apply(&row).map(|x| saturate(x, 16)).collect();
        let mean = row.iter().map(|x| (f64::from(*x) * step).powi(2)).sum::<f64>() / width;
        for (at, (x, found)) in row.iter().zip(found).enumerate() {
            let real = f64::from(*x) * step / (mean + epsilon).sqrt() * gain(at) / out_step;
            let wanted = real.clamp(-32768.0, 32767.0);
            assert!((f64::from(found) - wanted).abs() <= 0.51 + wanted.abs() * 1e-6, "{at}: {found} is not {wanted}");
        }
    }

    /// What a row differs from its mean by, with biases, from steps that differ by channel.
    #[test]
    fn a_centered_row_comes_near_the_real_one() {
        let (row, step, out_step, epsilon) = ([3000, -120, 700, 31, -9000, 4, 77, -2000], 1e-3, 0.01, 1e-6);
        let exponents = [0, 1, 2, 0, 0, 3, 0, 1];
        let (gain, bias) = (|at: usize| 0.2 + 0.3 * at as f64, |at: usize| 0.4 - 0.15 * at as f64);
        let width = row.len() as f64;
        let unit = width.sqrt() / out_step * 1024.0;
        let mut constants: Vec<i32> = (0..row.len()).map(|at| stored_gain(gain(at) * unit, exponents[at])).collect();
        constants.extend((0..row.len()).map(|at| (bias(at) / out_step * 256.0).round() as i32));
        let stored = (width * epsilon / (step * step)).round() as u64;
        let found: Vec<i64> = NormRow::of([stored, 10], &constants, row.len(), true).apply(&row).collect();
        let values: Vec<f64> = row.iter().zip(exponents).map(|(x, e)| f64::from(*x) * step * f64::from(1 << e)).collect();
        let mean = values.iter().sum::<f64>() / width;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
        for (at, (x, found)) in values.iter().zip(found).enumerate() {
            let wanted = ((x - mean) / (variance + epsilon).sqrt() * gain(at) + bias(at)) / out_step;
            assert!((found as f64 - wanted).abs() <= 0.51 + wanted.abs() * 1e-3, "{at}: {found} is not {wanted}");
        }
    }

    /// Halves are rounded up, also of negative sums.
    #[test]
    fn a_mean_is_the_nearest_integer() {
        for (x, wanted) in [(&[1, 2][..], 2), (&[-1, -2], -1), (&[-3, 0, 0], -1), (&[7], 7), (&[-5, -6, -6], -6)] {
            assert_eq!(mean(x), wanted, "{x:?}");
        }
    }

    /// The largest numbers, gains and exponents there are, and rows of nothing.
    #[test]
    fn a_norm_saturates_and_never_wraps() {
        for (x, exponent, shift) in [(-32768, 0, 0), (32767, 0, 40), (-32768, 10, 0), (0, 10, 40), (1, 0, 61)] {
            for gain in [-LARGEST_GAIN, LARGEST_GAIN] {
                let gains = vec![stored_gain(gain, exponent); 1 << 13];
                let rows = vec![x; 1 << 13];
                let root = (8192f64).sqrt();
                let wanted = f64::from(x).signum() * f64::from(i32::from(x != 0)) * gain / root / 2f64.powi(shift);
                let norm = NormRow { epsilon: 0, gain_shift: shift as u32, gains: &gains, biases: None };
                for found in norm.apply(&rows).map(|x| saturate(x, 16)) {
                    let wanted = wanted.clamp(-32768.0, 32767.0);
                    assert!((f64::from(found) - wanted).abs() <= 0.51, "{x} {exponent} {shift}: {found} is not {wanted}");
                }
            }
        }
    }

    /// A key that holds most of the attention leaves the others theirs: a third of all, 7 nats below it each, at any length.
    #[test]
    fn a_sink_takes_no_more_than_its_share() {
        let exponential = Exponential::default();
        for keys in [128u64, 2048, 8192] {
            let bits = weight_bits(keys);
            // The others together weigh as much as the sink, or what is left of that below 7 nats.
            let below = ((keys - 1) as f64).ln().min(7.0);
            let other = -(below * std::f64::consts::LOG2_E * 256.0).round() as i32;
            let (mut row, mut sum) = (SoftmaxRow::EMPTY, 0);
            for run in 0..keys / RUN {
                let logits: Vec<_> = (0..RUN).map(|at| Some(if run + at == 0 { 0 } else { other })).collect();
                let mut weights = vec![0; RUN as usize];
                sum = row.take((&exponential, bits), &logits, &mut weights, [sum].into_iter())[0];
                // The sink's value is 0, that of the others 100.
                sum += weights.iter().enumerate().filter(|(at, _)| run as usize + at > 0).map(|(_, w)| 100 * w).sum::<i32>();
            }
            let weight = (keys - 1) as f64 * (f64::from(other) / 256.0).exp2();
            let wanted = 100.0 * weight / (1.0 + weight);
            let found = row.finish(sum, Rescale::new(1.0).unwrap()) as f64;
            assert!((found - wanted).abs() < 0.04 * wanted + 0.5, "{keys} keys: {found} is not {wanted:.1}");
        }
    }

    #[test]
    fn softmax_comes_near_the_real_one() {
        let exponential = Exponential::default();
        let logits: Vec<i32> = (0..128).map(|i| (i * 7919) % 1500 - 300).collect();
        let values: Vec<i32> = (0..128).map(|i| (i * 31) % 255 - 127).collect();
        let mut row = SoftmaxRow::EMPTY;
        let mut accumulator = 0;
        for (logits, values) in logits.chunks(RUN as usize).zip(values.chunks(RUN as usize)) {
            let mut weights = vec![0; logits.len()];
            let logits: Vec<_> = logits.iter().copied().map(Some).collect();
            accumulator = row.take((&exponential, 15), &logits, &mut weights, [accumulator].into_iter())[0];
            accumulator += weights.iter().zip(values).map(|(w, v)| w * v).sum::<i32>();
        }
        let real: Vec<f64> = logits.iter().map(|l| 2f64.powf(f64::from(*l) / 256.0)).collect();
        let mean = real.iter().zip(&values).map(|(w, v)| w * f64::from(*v)).sum::<f64>() / real.iter().sum::<f64>();
        let found = row.finish(accumulator, Rescale::new(1.0).unwrap());
        assert!((found as f64 - mean).abs() < 1.5, "{found} is not {mean}");
    }
}
