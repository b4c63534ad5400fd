//! Plain number formats, and the block formats of GGUF.

use std::{fmt, str::FromStr};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::{Error, error::nearest};

/// A number format in which every element stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    BF16,
    /// Two's complement, 64 bits.
    I64,
    /// Two's complement, 32 bits.
    I32,
    /// Two's complement, 16 bits.
    I16,
    /// Two's complement, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
}

impl Dtype {
    /// All of them.
    pub const ALL: &'static [Dtype] =
        &[Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::I32, Dtype::I16, Dtype::I8, Dtype::U8];

    /// Its name in the IR, in recipes and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            Dtype::I64 => "i64",
            Dtype::I32 => "i32",
            Dtype::I16 => "i16",
            Dtype::I8 => "i8",
            Dtype::U8 => "u8",
        }
    }

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 => 1,
        }
    }

    /// Whether it holds real numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// `value` rounded to this format and back. Integer formats round half to even and saturate.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Dtype::F64 | Dtype::F32 => value,
            Dtype::F16 => f16::from_f32(value).to_f32(),
            Dtype::BF16 => bf16::from_f32(value).to_f32(),
            Dtype::I64 => value.round_ties_even(),
            Dtype::I32 => value.round_ties_even() as i32 as f32,
            Dtype::I16 => value.round_ties_even() as i16 as f32,
            Dtype::I8 => value.round_ties_even() as i8 as f32,
            Dtype::U8 => value.round_ties_even() as u8 as f32,
        }
    }

    /// Little-endian `bytes` as f32. `bytes` holds exactly `out.len()` elements.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() * self.bytes());
        macro_rules! each {
            ($n:literal, $from:expr) => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact($n)) {
                    *o = $from(b.try_into().expect("chunks are of this size"));
                }
            };
        }
        match self {
            Dtype::F64 => each!(8, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => each!(4, f32::from_le_bytes),
            Dtype::F16 => decode_f16(bytes, out),
            Dtype::BF16 => each!(2, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Dtype::I64 => each!(8, |b| i64::from_le_bytes(b) as f32),
            Dtype::I32 => each!(4, |b| i32::from_le_bytes(b) as f32),
            Dtype::I16 => each!(2, |b| f32::from(i16::from_le_bytes(b))),
            Dtype::I8 => each!(1, |[b]: [u8; 1]| f32::from(b as i8)),
            Dtype::U8 => each!(1, |[b]: [u8; 1]| f32::from(b)),
        }
    }

    /// `values` as little-endian bytes of this format, appended to `out`. Integer formats round and saturate.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        out.reserve(values.len() * self.bytes());
        macro_rules! each {
            ($to:expr) => {
                for v in values {
                    out.extend_from_slice(&$to(*v).to_le_bytes());
                }
            };
        }
        match self {
            Dtype::F64 => each!(f64::from),
            Dtype::F32 => each!(|v| v),
            Dtype::F16 => each!(f16::from_f32),
            Dtype::BF16 => each!(bf16::from_f32),
            Dtype::I64 => each!(|v: f32| v.round_ties_even() as i64),
            Dtype::I32 => each!(|v: f32| v.round_ties_even() as i32),
            Dtype::I16 => each!(|v: f32| v.round_ties_even() as i16),
            Dtype::I8 => each!(|v: f32| v.round_ties_even() as i8),
            Dtype::U8 => each!(|v: f32| v.round_ties_even() as u8),
        }
    }
}

fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    let mut chunk = [f16::ZERO; 256];
    for (o, b) in out.chunks_mut(256).zip(bytes.chunks(512)) {
        let halves = &mut chunk[..o.len()];
        for (h, b) in halves.iter_mut().zip(b.chunks_exact(2)) {
            *h = f16::from_le_bytes([b[0], b[1]]);
        }
        halves.convert_to_f32_slice(o);
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Dtype, Error> {
        Dtype::ALL.iter().copied().find(|d| d.name() == text).ok_or_else(|| Error::UnknownName {
            found: text.into(),
            what: "dtype",
            nearest: nearest(text, Dtype::ALL.iter().map(|d| d.name())).map(Into::into),
        })
    }
}

/// A block format of GGUF: a fixed number of values and their scales, interleaved. Read, never written.
///
/// The formats are those of the ggml library; [`crate::gguf`] holds their layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the format's own")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: &'static [BlockFormat] = &[
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q2K,
        BlockFormat::Q3K,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    /// Its name in the IR and in reports.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::Q4_0 => "q4_0",
            BlockFormat::Q4_1 => "q4_1",
            BlockFormat::Q5_0 => "q5_0",
            BlockFormat::Q5_1 => "q5_1",
            BlockFormat::Q8_0 => "q8_0",
            BlockFormat::Q2K => "q2_k",
            BlockFormat::Q3K => "q3_k",
            BlockFormat::Q4K => "q4_k",
            BlockFormat::Q5K => "q5_k",
            BlockFormat::Q6K => "q6_k",
        }
    }

    /// Values per block.
    pub fn values(self) -> usize {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q8_0 => 32,
            _ => 256,
        }
    }

    /// Bytes per block.
    pub fn bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q5_0 => 22,
            BlockFormat::Q5_1 => 24,
            BlockFormat::Q8_0 => 34,
            BlockFormat::Q2K => 84,
            BlockFormat::Q3K => 110,
            BlockFormat::Q4K => 144,
            BlockFormat::Q5K => 176,
            BlockFormat::Q6K => 210,
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
