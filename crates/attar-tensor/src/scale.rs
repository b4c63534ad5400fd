//! How the scales of groups are stored: each on its own, or as small codes under a coarser *super scale*.
//!
//! A scale that is stored as a code is `f32(super) * value(code)`, rounded to f32 once; formats without a super scale have
//! 1 in its place. So a scale says which code it is, and only scales and super scales are kept in memory.

use std::{fmt, str::FromStr};

use crate::{Dtype, Error, Granularity, Result, error::nearest, minifloat::Minifloat, pack};

/// The format of the scales of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScaleFormat {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// Signed integers of 8 bits times an f16 per row.
    Int8,
    /// Signed integers of 6 bits times an f16 per row.
    Int6,
    /// Signed integers of 4 bits times an f16 per row.
    Int4,
    /// Powers of two, 8 bits of exponent without a sign: E8M0 of the OCP Microscaling Formats specification 1.0.
    E8m0,
    /// E4M3 times an f32 for the whole tensor, as in NVFP4.
    E4m3,
}

use ScaleFormat::{Bf16, E4m3, E8m0, F16, F32, Int4, Int6, Int8};

impl ScaleFormat {
    /// All of them, in the order of the documentation.
    pub const ALL: &'static [ScaleFormat] = &[F16, Bf16, F32, Int8, Int6, Int4, E8m0, E4m3];

    /// Its name in recipes and in schemes.
    pub fn name(self) -> &'static str {
        match self {
            F16 => "f16",
            Bf16 => "bf16",
            F32 => "f32",
            Int8 => "int8",
            Int6 => "int6",
            Int4 => "int4",
            E8m0 => "e8m0",
            E4m3 => "e4m3",
        }
    }

    /// The number format of scales that stand alone.
    pub fn plain(self) -> Option<Dtype> {
        match self {
            F16 => Some(Dtype::F16),
            Bf16 => Some(Dtype::BF16),
            F32 => Some(Dtype::F32),
            Int8 | Int6 | Int4 | E8m0 | E4m3 => None,
        }
    }

    /// The number format of super scales and what shares one, if there are any.
    pub fn supers(self) -> Option<(Dtype, Granularity)> {
        match self {
            Int8 | Int6 | Int4 => Some((Dtype::F16, Granularity::Row)),
            E4m3 => Some((Dtype::F32, Granularity::Tensor)),
            _ => None,
        }
    }

    /// Super scales of a tensor of so many rows.
    pub fn super_count(self, rows: usize) -> usize {
        match self.supers() {
            None => 0,
            Some((_, Granularity::Tensor)) => 1,
            Some(_) => rows,
        }
    }

    /// Bits per scale.
    pub fn bits(self) -> u32 {
        match self {
            F16 | Bf16 => 16,
            F32 => 32,
            Int8 | E8m0 | E4m3 => 8,
            Int6 => 6,
            Int4 => 4,
        }
    }

    /// Whether a scale can be negative.
    pub fn is_signed(self) -> bool {
        self != E8m0
    }

    /// Bits of all super scales of a tensor of so many rows.
    pub fn super_bits(self, rows: usize) -> u64 {
        self.supers().map_or(0, |(dtype, _)| self.super_count(rows) as u64 * 8 * dtype.bytes() as u64)
    }

    /// Bytes of a row of `groups` scales.
    pub fn row_bytes(self, groups: usize) -> usize {
        pack::row_bytes(groups, self.bits())
    }

    /// `scale` as it is stored on its own; scales that are codes are chosen one by one instead, and stay as they are.
    pub fn round(self, scale: f32) -> Result<f32> {
        self.finite(scale, self.plain().map_or(scale, |dtype| dtype.round(scale)))
    }

    /// Whether a scale that is stored on its own, or a super scale, has fewer than three significant bits: it is that close
    /// to the smallest number of its format. Not zero.
    pub fn is_coarse(self, stored: f32) -> bool {
        let steps = |dtype: Dtype| match dtype {
            Dtype::F16 => 2f64.powi(-24),
            Dtype::BF16 => 2f64.powi(-133),
            _ => 2f64.powi(-149),
        };
        let dtype = self.plain().or(self.supers().map(|(dtype, _)| dtype));
        stored != 0.0 && dtype.is_some_and(|dtype| f64::from(stored.abs()) < 4.0 * steps(dtype))
    }

    fn finite(self, scale: f32, rounded: f32) -> Result<f32> {
        if rounded.is_finite() { Ok(rounded) } else { Err(Error::ScaleOutOfRange { scale, format: self }) }
    }

    /// The super scale under which `extreme`, the scale of largest magnitude, is the outermost code; 1 where there are no
    /// super scales.
    pub fn super_scale(self, extreme: f32) -> Result<f32> {
        match self.supers() {
            None => Ok(1.0),
            // The outermost code is negative: see `grid::Int`.
            Some((dtype, Granularity::Row)) => self.finite(extreme, dtype.round(-extreme / self.middle() as f32)),
            Some(_) => self.finite(extreme, extreme.abs() / Minifloat::E4M3.largest()),
        }
    }

    /// The integer 0 among codes.
    fn middle(self) -> u8 {
        1 << (self.bits() - 1)
    }

    /// What a scale's code means under a super scale of 1. Integers are stored with their sign bit turned over.
    pub fn value(self, code: u8) -> f32 {
        match self {
            // 2^-127 is subnormal.
            E8m0 if code == 0 => f32::from_bits(1 << 22),
            E8m0 => f32::from_bits(u32::from(code) << 23),
            E4m3 => Minifloat::E4M3.value(code),
            _ => f32::from(i16::from(code) - i16::from(self.middle())),
        }
    }

    /// The code nearest to `scale` under a super scale of 1.
    pub fn nearest(self, scale: f32) -> u8 {
        match self {
            // Halves go up; 255 means no number.
            E8m0 => {
                let bits = scale.max(0.0).to_bits();
                // Below 2^-126 numbers are subnormal: 2^-127 is half of that, and 1.5 of it the middle.
                let up = if bits >> 23 == 0 { u32::from(bits >= 3 << 21) } else { bits >> 22 & 1 };
                ((bits >> 23) + up).min(254) as u8
            }
            E4m3 => Minifloat::E4M3.nearest(scale),
            _ => {
                let middle = f32::from(self.middle());
                ((scale.clamp(-middle, middle).round_ties_even() + middle).min(2.0 * middle - 1.0)) as u8
            }
        }
    }

    /// The code whose scale under `over` is nearest to `scale`.
    pub fn code(self, scale: f32, over: f32) -> u8 {
        self.nearest(if over == 0.0 { 0.0 } else { scale / over })
    }

    /// What a code means under the super scale `over`.
    pub fn scale(self, code: u8, over: f32) -> f32 {
        over * self.value(code)
    }

    /// A code and those beside it, itself first; a float does not change its sign.
    pub fn neighbours(self, code: u8) -> impl Iterator<Item = u8> {
        let (sign, top) = match self {
            E8m0 => (0, 254),
            E4m3 => (code & 0x80, 0x7e),
            _ => (0, u8::MAX >> (8 - self.bits())),
        };
        let at = code ^ sign;
        [Some(at), at.checked_sub(1), at.checked_add(1)]
            .into_iter()
            .flatten()
            .filter(move |at| *at <= top)
            .map(move |at| at ^ sign)
    }

    /// A row of scales under the super scale `over`, appended in [`ScaleFormat::row_bytes`] bytes.
    pub fn encode(self, scales: &[f32], over: f32, out: &mut Vec<u8>) {
        match self.plain() {
            Some(dtype) => dtype.encode(scales, out),
            None => {
                let codes: Vec<u8> = scales.iter().map(|scale| self.code(*scale, over)).collect();
                pack::pack_row(&codes, self.bits(), out);
            }
        }
    }

    /// The inverse of [`ScaleFormat::encode`].
    pub fn decode(self, bytes: &[u8], over: f32, scales: &mut [f32]) {
        match self.plain() {
            Some(dtype) => dtype.decode(bytes, scales),
            None => {
                let mut codes = vec![0; scales.len()];
                pack::unpack_row(bytes, self.bits(), &mut codes);
                scales.iter_mut().zip(codes).for_each(|(scale, code)| *scale = self.scale(code, over));
            }
        }
    }
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ScaleFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<ScaleFormat> {
        let unknown = || Error::UnknownName {
            found: text.into(),
            what: "format of scales",
            nearest: nearest(text, ScaleFormat::ALL.iter().map(|f| f.name())).map(Into::into),
        };
        ScaleFormat::ALL.iter().copied().find(|f| f.name() == text).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code that means a number.
    fn codes(format: ScaleFormat) -> Vec<u8> {
        (0..1u32 << format.bits()).map(|c| c as u8).filter(|c| format.value(*c).is_finite()).collect()
    }

    #[test]
    fn scales_under_any_super_scale_survive_a_round_trip() {
        for format in ScaleFormat::ALL.iter().copied().filter(|f| f.plain().is_none()) {
            for over in [1.0, -3.1e-4, 6.1e-5, 65504.0] {
                let over = if format.supers().is_some() { Dtype::F16.round(over) } else { 1.0 };
                let scales: Vec<f32> = codes(format).iter().map(|code| format.scale(*code, over)).collect();
                let (mut bytes, mut again) = (Vec::new(), vec![0.0; scales.len()]);
                format.encode(&scales, over, &mut bytes);
                assert_eq!(bytes.len(), format.row_bytes(scales.len()));
                format.decode(&bytes, over, &mut again);
                assert_eq!(scales, again, "{format} {over}");
            }
        }
    }

    #[test]
    fn the_extreme_scale_is_the_outermost_code_whichever_its_sign() {
        for format in [Int8, Int6, Int4] {
            for extreme in [0.5, -0.5] {
                let over = format.super_scale(extreme).unwrap();
                assert_eq!((format.code(extreme, over), format.scale(0, over)), (0, extreme));
            }
        }
        assert_eq!(E4m3.super_scale(-448.0).unwrap(), 1.0);
    }

    #[test]
    fn a_scale_or_super_scale_that_does_not_fit_is_an_error() {
        assert!(F16.round(1e6).is_err() && Bf16.round(1e6).is_ok() && Int4.super_scale(1e6).is_err());
    }

    #[test]
    fn scales_of_one_or_two_bits_are_coarse() {
        assert!(F16.is_coarse(6e-8) && F16.is_coarse(-1.8e-7) && !F16.is_coarse(2.4e-7) && !F16.is_coarse(0.0));
        assert!(Int6.is_coarse(6e-8) && !Bf16.is_coarse(6e-8) && !F32.is_coarse(1e-40) && F32.is_coarse(1e-45));
        assert!(!E8m0.is_coarse(1e-45), "a power of two has no other precision");
    }

    #[test]
    fn neighbours_stay_in_range_and_keep_the_sign() {
        for format in ScaleFormat::ALL.iter().copied().filter(|f| f.plain().is_none()) {
            for code in codes(format) {
                let around: Vec<u8> = format.neighbours(code).collect();
                assert!(around[0] == code && around.len() >= 2 && around.iter().all(|c| format.value(*c).is_finite()));
                let one_sign = around
                    .iter()
                    .map(|c| format.value(*c).is_sign_negative())
                    .all(|s| s == format.value(code).is_sign_negative());
                assert!(format != E4m3 || one_sign);
            }
        }
    }
}
