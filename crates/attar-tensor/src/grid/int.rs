//! Evenly spaced integers, 2 to 8 bits wide.
//!
//! Symmetric groups use the full range: the value of largest magnitude becomes `-2^(bits - 1)` exactly, whichever its
//! sign, and the scale takes the sign that makes it so. Against the narrow range `±(2^(bits - 1) - 1)` this is worth
//! half a bit of range at 3 bits.

use super::{Fit, Grid, Inverse};

/// Integers of `BITS` bits under a name.
pub(crate) struct Int<const BITS: u32>(pub(crate) &'static str);

/// Adding and subtracting this rounds an f32 of magnitude below 2^22 to an integer, halves to even.
const ROUND: f32 = 12_582_912.0;

/// Partial sums: as many as the widest vector has lanes, so that every machine adds in the same order.
const LANES: usize = 16;

impl<const BITS: u32> Int<BITS> {
    const TOP: f32 = ((1u32 << BITS) - 1) as f32;

    /// The code of a value that is already divided by the scale: an integer in `0..=TOP`, whatever the value. NaN becomes 0,
    /// because comparisons with it are false.
    #[inline(always)]
    fn code(scaled: f32, zero: f32) -> f32 {
        // Clamped before rounding: the magic number is exact only for small magnitudes.
        let code = scaled.clamp(-512.0, 512.0) + ROUND - ROUND + zero;
        let code = if code > 0.0 { code } else { 0.0 };
        if code < Self::TOP { code } else { Self::TOP }
    }

    #[inline(always)]
    fn encode_all(values: &[f32], fit: Fit<'_>, codes: &mut [u8]) {
        let (inverse, zero) = (Inverse::of(fit.scale), f32::from(fit.zero));
        for (code, value) in codes.iter_mut().zip(values) {
            // The low byte of `ROUND + n` is the integer `n`, for every `n` below 256.
            *code = (Self::code(inverse.times(*value), zero) + ROUND).to_bits() as u8;
        }
    }

    #[inline(always)]
    fn decode_all(codes: &[u8], fit: Fit<'_>, values: &mut [f32]) {
        let zero = i32::from(fit.zero);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = (i32::from(*code) - zero) as f32 * fit.scale;
        }
    }

    #[inline(always)]
    fn error_all(values: &[f32], fit: Fit<'_>) -> f32 {
        let (inverse, zero) = (Inverse::of(fit.scale), f32::from(fit.zero));
        let square = |value: f32| {
            let difference = value - (Self::code(inverse.times(value), zero) - zero) * fit.scale;
            difference * difference
        };
        let mut sums = [0.0f32; LANES];
        let mut chunks = values.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum += square(*value);
            }
        }
        for (sum, value) in sums.iter_mut().zip(chunks.remainder()) {
            *sum += square(*value);
        }
        sums.iter().sum()
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn encode_avx2(values: &[f32], fit: Fit<'_>, codes: &mut [u8]) {
        Self::encode_all(values, fit, codes);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn error_avx2(values: &[f32], fit: Fit<'_>) -> f32 {
        Self::error_all(values, fit)
    }
}

impl<const BITS: u32> Grid for Int<BITS> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn bits(&self) -> u32 {
        BITS
    }

    fn middle(&self) -> u8 {
        1 << (BITS - 1)
    }

    fn cover(&self, low: f32, high: f32, symmetric: bool) -> Fit<'static> {
        if symmetric {
            let extreme = if high > -low { high } else { low };
            return Fit { scale: -extreme / f32::from(self.middle()), zero: self.middle(), table: &[] };
        }
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = high / Self::TOP - low / Self::TOP;
        Fit { scale, zero: Inverse::of(scale).times(-low).round_ties_even().clamp(0.0, Self::TOP) as u8, table: &[] }
    }

    fn encode(&self, values: &[f32], fit: Fit<'_>, codes: &mut [u8]) {
        debug_assert_eq!(values.len(), codes.len());
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { Self::encode_avx2(values, fit, codes) };
        }
        Self::encode_all(values, fit, codes);
    }

    fn decode(&self, codes: &[u8], fit: Fit<'_>, values: &mut [f32]) {
        debug_assert_eq!(values.len(), codes.len());
        Self::decode_all(codes, fit, values);
    }

    fn error(&self, values: &[f32], fit: Fit<'_>) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { Self::error_avx2(values, fit) };
        }
        Self::error_all(values, fit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extreme_value_is_exact_whichever_its_sign() {
        let grid = Int::<3>("int3");
        for extreme in [1.6f32, -1.6] {
            let fit = grid.cover(extreme.min(0.4), extreme.max(0.4), true);
            let (mut code, mut value) = ([0], [0.0]);
            grid.encode(&[extreme], fit, &mut code);
            grid.decode(&code, fit, &mut value);
            assert_eq!((code[0], value[0]), (0, extreme));
        }
    }

    /// All signs, exponents and leading bits of an f32, NaN and infinities among them.
    #[test]
    fn every_value_has_a_code_of_the_grid() {
        fn check<const BITS: u32>() {
            for bits in 0..=u32::from(u16::MAX) {
                let value = f32::from_bits(bits << 16 | bits & 1);
                for zero in [0u8, 1, 1 << (BITS - 1), u8::MAX] {
                    let code = Int::<BITS>::code(value, f32::from(zero));
                    assert!(code.fract() == 0.0 && (0.0..=Int::<BITS>::TOP).contains(&code), "{value} {zero}: {code}");
                    let mut stored = [0];
                    Int::<BITS>("").encode(&[value], Fit { scale: 1.0, zero, table: &[] }, &mut stored);
                    assert_eq!(f32::from(stored[0]), code, "{value} {zero}");
                }
            }
        }
        check::<2>();
        check::<4>();
        check::<8>();
    }

    #[test]
    fn an_asymmetric_group_away_from_zero_still_holds_zero() {
        let fit = Int::<4>("int4").cover(2.0, 5.0, false);
        assert_eq!(fit.zero, 0);
        assert!((fit.scale - 5.0 / 15.0).abs() < 1e-7);
    }
}
