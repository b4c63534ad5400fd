//! Floats of 4 and 8 bits: FP8, and the elements of MXFP4 and NVFP4. Codes are the formats' own.

use super::table::Table;
use crate::{Minifloat, ScaleFormat};

/// What every code means.
const fn values<const N: usize>(float: Minifloat) -> [f32; N] {
    let (mut all, mut code) = ([0.0; N], 0);
    while code < N {
        all[code] = float.value(code as u8);
        code += 1;
    }
    all
}

static E2M1: [f32; 16] = values(Minifloat::E2M1);
static E4M3: [f32; 256] = values(Minifloat::E4M3);
static E5M2: [f32; 256] = values(Minifloat::E5M2);

/// 32 floats E2M1 under a power of two: OCP Microscaling Formats specification 1.0.
pub(super) static MXFP4: Table = Table::of_groups("mxfp4", 4, &E2M1, 32, ScaleFormat::E8m0);

/// 16 floats E2M1 under an E4M3, and an f32 for the tensor.
pub(super) static NVFP4: Table = Table::of_groups("nvfp4", 4, &E2M1, 16, ScaleFormat::E4m3);

/// Floats with 4 bits of exponent and 3 of mantissa.
pub(super) static FP8_E4M3: Table = Table::of_floats("fp8_e4m3", &E4M3, Minifloat::E4M3, 448.0);

/// Floats with 5 bits of exponent and 2 of mantissa. The extreme of a group becomes 448: the binades above would only make
/// scales small, and what is small has 2^-16 below it.
pub(super) static FP8_E5M2: Table = Table::of_floats("fp8_e5m2", &E5M2, Minifloat::E5M2, 448.0);
