//! `tanh`, `erf` and the activations made of them, element by element.
//!
//! Polynomials in f32 without fused multiply-adds: libm's results differ between machines, these do not.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{PART, exp, wide, with_f32};

/// Below this `tanh` is a polynomial, from it on a quotient of exponentials.
const TANH_SMALL: f32 = 0.625;

/// Below this `erf` is an odd polynomial, from it on one minus an exponential.
const ERF_SMALL: f32 = 0.927_734_4;

/// `sqrt(2 / pi)`.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// `tanh(x)` to about 2 units in the last place: the two ranges and the polynomial of Cephes' `tanhf`.
#[inline(always)]
fn tanh_of(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let large = 1.0 - 2.0 / (exp(2.0 * t) + 1.0);
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p * s + c;
    }
    let small = p * s * t + t;
    (if t < TANH_SMALL { small } else { large }).copysign(x)
}

/// `erf(x)` to about 2 units in the last place: the two minimax polynomials of N. Juffa's `erff` (2 ranges, below 1 unit
/// with fused multiply-adds).
#[inline(always)]
fn erf_of(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let mut p = -5.967_617e-4;
    for c in [4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1] {
        p = p * s + c;
    }
    let small = p * t + t;
    let mut q = -1.728_534_7e-5;
    for c in [3.831_97e-4, -3.883_964_4e-3, 2.425_462_2e-2, -1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
        q = q * t + c;
    }
    let large = 1.0 - exp(q * t - t);
    (if t < ERF_SMALL { small } else { large }).copysign(x)
}

#[inline(always)]
fn gelu_of(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_of(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh_of(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh_of(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

/// A function of rows, and the same of tensors.
macro_rules! pointwise {
    ($(#[$doc:meta])* $name:ident, $row:ident, $of:ident) => {
        wide! {
            fn $row(x: &[f32], out: &mut [f32]) {
                for (x, o) in x.iter().zip(out) {
                    *o = $of(*x);
                }
            }
        }

        $(#[$doc])*
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            map(x, $row)
        }
    };
}

pointwise! {
    /// `tanh(x)`.
    tanh, tanh_row, tanh_of
}

pointwise! {
    /// `erf(x)`: the error function.
    erf, erf_row, erf_of
}

pointwise! {
    /// `x * (1 + erf(x / sqrt(2))) / 2`.
    gelu, gelu_row, gelu_of
}

pointwise! {
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    gelu_tanh, gelu_tanh_row, gelu_tanh_of
}

wide! {
    /// Replaces every `x` of a row by `cap * tanh(x / cap)`.
    pub(super) fn softcap_row(row: &mut [f32], cap: f32) {
        for x in row {
            *x = cap * tanh_of(*x / cap);
        }
    }
}

wide! {
    /// Multiplies gradients by values `y = cap * tanh(x / cap)` by those by `x`: times `1 - (y / cap)^2`.
    pub(super) fn softcap_row_back(y: &[f32], gradient: &mut [f32], cap: f32) {
        for (y, g) in y.iter().zip(gradient) {
            *g *= 1.0 - (y / cap) * (y / cap);
        }
    }
}

/// `cap * tanh(x / cap)`.
pub fn softcap(x: &Tensor, cap: f32) -> Result<Tensor> {
    let mut out = with_f32(x, <[f32]>::to_vec)?;
    out.par_chunks_mut(PART).for_each(|part| softcap_row(part, cap));
    Tensor::from_vec(out, x.shape(), x.device())
}

fn map(x: &Tensor, row: fn(&[f32], &mut [f32])) -> Result<Tensor> {
    let out = with_f32(x, |x| {
        let mut out = vec![0.0; x.len()];
        x.par_chunks(PART).zip(out.par_chunks_mut(PART)).for_each(|(x, out)| row(x, out));
        out
    })?;
    Tensor::from_vec(out, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two to four units in the last place: the polynomials are good for one, their roundings for the rest.
    const RELATIVE: f64 = 2.4e-7;

    /// By a series without cancellation: `2 / sqrt(pi) * e^(-x^2) * sum of 2^n x^(2n + 1) / (2n + 1)!!`.
    fn erf_by_series(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-20 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
    }

    fn assert_close(name: &str, f: impl Fn(f32) -> f32, wanted: impl Fn(f64) -> f64) {
        for i in -60_000..=60_000 {
            let x = i as f32 * 1.1e-4;
            let (got, want) = (f64::from(f(x)), wanted(f64::from(x)));
            assert!((got - want).abs() <= RELATIVE * want.abs(), "{name}({x}): {got}, {want}");
        }
    }

    #[test]
    fn tanh_and_erf_are_exact_to_the_last_places() {
        assert_close("tanh", tanh_of, f64::tanh);
        assert_close("erf", erf_of, erf_by_series);
    }

    #[test]
    fn what_is_too_large_saturates_and_signs_stay() {
        for x in [20.0, 1e10, f32::INFINITY] {
            assert_eq!([tanh_of(x), tanh_of(-x), erf_of(x), erf_of(-x)], [1.0, -1.0, 1.0, -1.0], "{x}");
        }
        assert_eq!([tanh_of(-0.0), erf_of(-0.0)].map(f32::to_bits), [(-0.0f32).to_bits(); 2]);
        assert_eq!([gelu_of(30.0), gelu_of(-30.0), gelu_tanh_of(30.0), gelu_tanh_of(-30.0)], [30.0, 0.0, 30.0, 0.0]);
    }
}
