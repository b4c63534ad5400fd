//! Grids: the representable values of a number format, up to a scale.
//!
//! A grid turns a group of values that share one scale into codes and back. Evenly spaced ones mean
//! `value = (code - zero) * scale`: codes are unsigned and `bits` wide; a symmetric group has its zero in the middle, at
//! `2^(bits - 1)`, and stores none. All others mean `value = table[code] * scale`.
//!
//! Every method is plain IEEE arithmetic in a fixed order, so its result is the same on every machine.

mod float;
mod gauss;
mod int;
mod lut;
mod nf4;
mod table;
mod ternary;

use crate::{Error, Result, ScaleFormat, error::nearest, pack::Packing};
pub(crate) use int::Int;

/// Scale, zero and table of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit<'t> {
    /// Multiplies the code's distance from zero. A symmetric fit maps the value of largest magnitude, sign included,
    /// to the outermost code `-2^(bits - 1)`: the scale's sign is the opposite of that value's.
    pub scale: f32,
    /// The code that means zero.
    pub zero: u8,
    /// What each code means at scale 1, ascending, for a grid that learns its table; empty for all others.
    pub table: &'t [f32],
}

/// The values of codes at scale 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// Their distance from the zero.
    Even,
    /// The same for all tensors, by code; NaN where a code means no number.
    Table(&'static [f32]),
    /// Every group, row or tensor has its own table, of `2^bits` values.
    Learned,
}

/// What a grid asks of the rest of a scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requires {
    /// Groups of so many values and no others.
    pub group: Option<usize>,
    /// Which formats of scales are possible; of a learned table, of its entries.
    pub scale: Scales,
    /// Whether it has no zero points.
    pub symmetric: bool,
}

impl Requires {
    /// No requirements.
    pub const NOTHING: Requires = Requires { group: None, scale: Scales::Any, symmetric: false };
}

/// Admissible formats of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// All.
    Any,
    /// Plain formats only.
    Plain,
    /// One.
    Exactly(ScaleFormat),
}

/// A set of representable values, up to a scale.
pub trait Grid: Sync {
    /// Its name in recipes and in the IR.
    fn name(&self) -> &'static str;
    /// Width of a code, 1 to 8.
    fn bits(&self) -> u32;
    /// How codes are packed.
    fn packing(&self) -> Packing {
        Packing::Bits(self.bits())
    }
    /// The values of codes at scale 1.
    fn levels(&self) -> Levels {
        Levels::Even
    }
    /// Whether a code means exactly zero, whatever scale and zero point are. No entry of a learned table need do.
    fn has_zero(&self) -> bool {
        match self.levels() {
            Levels::Even => true,
            Levels::Table(values) => values.contains(&0.0),
            Levels::Learned => false,
        }
    }
    /// What it asks of the rest of a scheme.
    fn requires(&self) -> Requires {
        Requires::NOTHING
    }
    /// The code that means zero when the group stores none.
    fn middle(&self) -> u8;
    /// The scale and zero that cover values from `low` to `high`.
    fn cover(&self, low: f32, high: f32, symmetric: bool) -> Fit<'static>;
    /// Signs of the covering scale that give different values: a search looks at each.
    fn signs(&self) -> &'static [f32] {
        &[1.0]
    }
    /// The scale of least error for values of these magnitudes, which fall, each with its importance; `None` where it takes
    /// a search.
    fn best_scale(&self, _magnitudes: &mut dyn Iterator<Item = (f64, f64)>) -> Option<f32> {
        None
    }
    /// The nearest code of each value; halves go to the even neighbour.
    fn encode(&self, values: &[f32], fit: Fit<'_>, codes: &mut [u8]);
    /// Decodes codes.
    fn decode(&self, codes: &[u8], fit: Fit<'_>, values: &mut [f32]);
    /// Sum of squared differences between `values` and what their nearest codes mean.
    fn error(&self, values: &[f32], fit: Fit<'_>) -> f32;
}

/// What takes the place of a division by a scale: a product with finite factors, so that zero stays zero and no number becomes
/// NaN. A product with zero scales everything to zero.
#[derive(Clone, Copy)]
struct Inverse {
    /// 1, or a power of two where the inverse of the scale itself is too large for an f32.
    lift: f32,
    inverse: f32,
}

impl Inverse {
    fn of(scale: f32) -> Inverse {
        /// Below 2^-128 a scale has no finite inverse; 2^64 times the smallest f32, 2^-149, has.
        const LIFT: f32 = (1u128 << 64) as f32;
        match 1.0 / scale {
            _ if scale == 0.0 => Inverse { lift: 1.0, inverse: 0.0 },
            inverse if inverse.is_finite() => Inverse { lift: 1.0, inverse },
            _ => Inverse { lift: LIFT, inverse: 1.0 / (scale * LIFT) },
        }
    }

    #[inline(always)]
    fn times(self, value: f32) -> f32 {
        value * self.lift * self.inverse
    }
}

/// Every grid, in the order of the documentation.
pub static GRIDS: &[&dyn Grid] = &[
    &Int::<8>("int8"),
    &Int::<6>("int6"),
    &Int::<5>("int5"),
    &Int::<4>("int4"),
    &Int::<3>("int3"),
    &Int::<2>("int2"),
    &ternary::Ternary,
    &nf4::NF4,
    &gauss::GAUSS4,
    &gauss::GAUSS3,
    &float::MXFP4,
    &float::NVFP4,
    &float::FP8_E4M3,
    &float::FP8_E5M2,
    &lut::LUT4,
    &lut::LUT3,
    &lut::LUT2,
    &lut::LUT1,
];

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
    //! Runs over every registered grid.

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

    fn fits() -> impl Iterator<Item = (&'static dyn Grid, Vec<f32>, Fit<'static>)> {
        GRIDS.iter().flat_map(|grid| {
            (0..40).flat_map(move |seed| {
                let values = samples(seed, 1 + seed as usize * 3);
                let (low, high) = bounds(&values);
                [true, false].map(|symmetric| (*grid, values.clone(), grid.cover(low, high, symmetric)))
            })
        })
    }

    /// Every code that there is and that means a number.
    fn codes(grid: &dyn Grid) -> Vec<u8> {
        let known = |code: &u8| match grid.levels() {
            Levels::Table(values) => values.get(usize::from(*code)).is_some_and(|value| value.is_finite()),
            Levels::Even | Levels::Learned => true,
        };
        (0..1u32 << grid.bits()).map(|c| c as u8).filter(known).collect()
    }

    /// Down to the smallest f32: where a scale has no finite inverse, its codes are those of a larger one.
    #[test]
    fn codes_do_not_depend_on_the_magnitude_of_values_and_scale() {
        for grid in GRIDS {
            let (mut large, mut small) = (vec![0u8; 9], vec![0u8; 9]);
            let values: Vec<f32> = (-4..=4).map(|n| n as f32).collect();
            let table: Vec<f32> = (0..1 << grid.bits()).map(|n| n as f32 - 1.0).collect();
            let table = if grid.levels() == Levels::Learned { &table[..] } else { &[] };
            grid.encode(&values, Fit { scale: 1.0, zero: grid.middle(), table }, &mut large);
            for exponent in [-149, -140, -128, -127, -126, 100] {
                let factor = 2f64.powi(exponent) as f32;
                let scaled: Vec<f32> = values.iter().map(|value| value * factor).collect();
                let fit = Fit { scale: factor, zero: grid.middle(), table };
                grid.encode(&scaled, fit, &mut small);
                assert_eq!(large, small, "{} 2^{exponent}", grid.name());
                assert!(!grid.error(&scaled, fit).is_nan());
            }
        }
    }

    #[test]
    fn every_value_survives_encoding_and_decoding() {
        for grid in GRIDS {
            let (codes, table) = (codes(*grid), grid.cover(-1.0, 1.0, true).table);
            for (scale, zero) in [(0.37, grid.middle()), (-0.25, grid.middle()), (3.0, 1)] {
                let fit = Fit { scale, zero, table };
                let (mut values, mut again, mut once_more) =
                    (vec![0.0; codes.len()], vec![0; codes.len()], vec![0.0; codes.len()]);
                grid.decode(&codes, fit, &mut values);
                grid.encode(&values, fit, &mut again);
                grid.decode(&again, fit, &mut once_more);
                assert_eq!(values, once_more, "{} {fit:?}", grid.name());
                let distinct = (1..values.len()).all(|i| !values[..i].contains(&values[i]));
                assert!(!distinct || codes == again, "{} {fit:?}: {codes:?} became {again:?}", grid.name());
            }
        }
    }

    #[test]
    fn zero_stays_zero_in_every_grid_that_has_it() {
        let without: Vec<&str> = GRIDS.iter().filter(|grid| !grid.has_zero()).map(|grid| grid.name()).collect();
        assert_eq!(without, ["gauss4", "gauss3", "lut4", "lut3", "lut2", "lut1"]);
        for (grid, values, fit) in fits().filter(|(grid, ..)| grid.has_zero()) {
            for fit in [fit, Fit { scale: -fit.scale, ..fit }] {
                let (mut code, mut decoded) = ([0], [1.0]);
                grid.encode(&[0.0], fit, &mut code);
                grid.decode(&code, fit, &mut decoded);
                assert_eq!(decoded, [0.0], "{} {fit:?} of {values:?}", grid.name());
            }
        }
    }

    #[test]
    fn packed_codes_come_back() {
        for grid in GRIDS {
            let (codes, packing) = (codes(*grid), grid.packing());
            for columns in 0..70 {
                let row: Vec<u8> = codes.iter().copied().cycle().skip(columns).take(columns).collect();
                let (mut packed, mut again) = (Vec::new(), vec![0; columns]);
                packing.pack(&row, &mut packed);
                assert_eq!(packed.len(), packing.row_bytes(columns));
                packing.unpack(&packed, &mut again);
                assert_eq!(row, again, "{}, {columns} columns", grid.name());
            }
        }
    }

    #[test]
    fn the_code_is_the_nearest_by_brute_force() {
        for (grid, values, fit) in fits() {
            let all = codes(grid);
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
