//! Which values exist.
//!
//! A grid turns a group of values that share one scale into codes and back: `value = (code - zero) * scale`. Codes are
//! unsigned and `bits` wide; a symmetric group has its zero in the middle, at `2^(bits - 1)`, and stores none.
//!
//! Every method is plain IEEE arithmetic in a fixed order, so its result is the same on every machine.

mod int;

use crate::{Error, Result, error::nearest};
pub(crate) use int::Int;

/// What the values of one group share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Multiplies the code's distance from zero. A symmetric fit maps the value of largest magnitude, sign included,
    /// to the outermost code `-2^(bits - 1)`: the scale's sign is the opposite of that value's.
    pub scale: f32,
    /// The code that means zero.
    pub zero: u8,
}

/// A set of representable values, up to a scale.
pub trait Grid: Sync {
    /// Its name in recipes and in the IR.
    fn name(&self) -> &'static str;
    /// Width of a code, 1 to 8.
    fn bits(&self) -> u32;
    /// The code that means zero when the group stores none.
    fn middle(&self) -> u8;
    /// The scale and zero that cover values from `low` to `high`.
    fn cover(&self, low: f32, high: f32, symmetric: bool) -> Fit;
    /// The nearest code of each value; halves go to the even neighbour.
    fn encode(&self, values: &[f32], fit: Fit, codes: &mut [u8]);
    /// What the codes mean.
    fn decode(&self, codes: &[u8], fit: Fit, values: &mut [f32]);
    /// Sum of squared differences between `values` and what their nearest codes mean.
    fn error(&self, values: &[f32], fit: Fit) -> f32;
}

/// Every grid, in the order of the documentation.
pub static GRIDS: &[&dyn Grid] =
    &[&Int::<8>("int8"), &Int::<6>("int6"), &Int::<5>("int5"), &Int::<4>("int4"), &Int::<3>("int3"), &Int::<2>("int2")];

/// The grid of that name.
pub fn grid(name: &str) -> Result<&'static dyn Grid> {
    GRIDS.iter().copied().find(|g| g.name() == name).ok_or_else(|| Error::UnknownName {
        found: name.into(),
        what: "grid",
        nearest: nearest(name, GRIDS.iter().map(|g| g.name())).map(Into::into),
    })
}

#[cfg(test)]
mod suite {
    //! Runs over every grid, unasked.

    use super::*;

    fn samples(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn bounds(values: &[f32]) -> (f32, f32) {
        (values.iter().copied().fold(f32::MAX, f32::min), values.iter().copied().fold(f32::MIN, f32::max))
    }

    fn fits() -> impl Iterator<Item = (&'static dyn Grid, Vec<f32>, Fit)> {
        GRIDS.iter().flat_map(|grid| {
            (0..40).flat_map(move |seed| {
                let values = samples(seed, 1 + seed as usize * 3);
                let (low, high) = bounds(&values);
                [true, false].map(|symmetric| (*grid, values.clone(), grid.cover(low, high, symmetric)))
            })
        })
    }

    #[test]
    fn every_code_survives_decoding_and_encoding() {
        for grid in GRIDS {
            let codes: Vec<u8> = (0..(1u32 << grid.bits())).map(|c| c as u8).collect();
            for fit in
                [Fit { scale: 0.37, zero: grid.middle() }, Fit { scale: -0.25, zero: grid.middle() }, Fit { scale: 3.0, zero: 1 }]
            {
                let (mut values, mut again) = (vec![0.0; codes.len()], vec![0; codes.len()]);
                grid.decode(&codes, fit, &mut values);
                grid.encode(&values, fit, &mut again);
                assert_eq!(codes, again, "{} {fit:?}", grid.name());
            }
        }
    }

    #[test]
    fn the_code_is_the_nearest_by_brute_force() {
        for (grid, values, fit) in fits() {
            let all: Vec<u8> = (0..(1u32 << grid.bits())).map(|c| c as u8).collect();
            let mut points = vec![0.0; all.len()];
            grid.decode(&all, fit, &mut points);
            let (mut codes, mut got) = (vec![0; values.len()], vec![0.0; values.len()]);
            grid.encode(&values, fit, &mut codes);
            grid.decode(&codes, fit, &mut got);
            for (v, g) in values.iter().zip(&got) {
                let best = points.iter().map(|p| (p - v).abs()).fold(f32::MAX, f32::min);
                assert!((g - v).abs() <= best + 1e-6, "{}: {v} became {g}, {best} is possible", grid.name());
            }
        }
    }

    #[test]
    fn the_error_is_the_sum_of_squares_of_what_encoding_does() {
        for (grid, values, fit) in fits() {
            let (mut codes, mut got) = (vec![0; values.len()], vec![0.0; values.len()]);
            grid.encode(&values, fit, &mut codes);
            grid.decode(&codes, fit, &mut got);
            let want: f64 = values.iter().zip(&got).map(|(v, g)| f64::from(v - g).powi(2)).sum();
            assert!((f64::from(grid.error(&values, fit)) - want).abs() <= 1e-5 * want + 1e-9);
        }
    }

    #[test]
    fn a_group_of_zeros_stays_zero() {
        for grid in GRIDS {
            for symmetric in [true, false] {
                let fit = grid.cover(0.0, 0.0, symmetric);
                let (mut codes, mut got) = (vec![9; 5], vec![1.0; 5]);
                grid.encode(&[0.0; 5], fit, &mut codes);
                grid.decode(&codes, fit, &mut got);
                assert_eq!(got, [0.0; 5]);
            }
        }
    }
}
