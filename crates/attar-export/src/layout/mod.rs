//! How low-bit numbers are packed in files, for all targets: pure functions from codes and scales to bytes.
//!
//! | file | packing | read by |
//! |---|---|---|
//! | [`attar_tensor::pack`] | codes of a row in ascending bits, the first code in the lowest bits | `MatMulNBits` (groups padded to whole blocks), `GatherBlockQuantized` |
//! | [`nibbles`] | two 4-bit codes per byte, the first one in the low half | ONNX `int4` and `uint4` tensors, in any order of elements |
//! | [`columns`] | codes of `[out, in]` weights as `[in, out]` | ONNX `DequantizeLinear` before a `MatMul` |
//! | [`scales`] | scales in their own number format, and zeros | all |

pub(crate) mod columns;
pub(crate) mod scales;

use attar_tensor::{Levels, Scheme};

/// Two 4-bit codes in a byte: the first one in the low half, as ONNX and LiteRT define it.
pub(crate) fn nibbles([low, high]: [u8; 2]) -> u8 {
    low | high << 4
}

/// Whether codes mean their distance from a zero.
pub(crate) fn is_even(scheme: &Scheme) -> bool {
    match scheme.grid.levels() {
        Levels::Even => true,
        Levels::Table(values) => values.iter().zip(0i16..).all(|(v, c)| *v == f32::from(c - i16::from(scheme.grid.middle()))),
        Levels::Learned => false,
    }
}
