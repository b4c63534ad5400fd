//! How numbers are stored, and how many bytes they take.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the numbers of a tensor are stored: `bits` bits for every run of `per` numbers along a row. int8 is 8 in 1, int4
/// with a scale of 8 bits for every 32 is 136 in 32. What moves as one, a tile, takes whole bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Element {
    /// For each run of `per`.
    pub bits: u32,
    /// At least 1.
    pub per: u32,
}

impl Element {
    /// One byte per number.
    pub const INT8: Element = Element { bits: 8, per: 1 };
    /// Half a byte per number.
    pub const INT4: Element = Element { bits: 4, per: 1 };
    /// Two bytes per number.
    pub const INT16: Element = Element { bits: 16, per: 1 };
    /// Four bytes per number: accumulators.
    pub const INT32: Element = Element { bits: 32, per: 1 };
    /// Eight bytes per number: accumulators of products with int16.
    pub const INT64: Element = Element { bits: 64, per: 1 };

    /// Bytes of a tile of `count` numbers.
    pub fn bytes(self, count: u64) -> u64 {
        count.saturating_mul(u64::from(self.bits)).div_ceil(8 * u64::from(self.per.max(1)))
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per {
            1 => write!(f, "{} bits", self.bits),
            per => write!(f, "{} bits for {per}", self.bits),
        }
    }
}
