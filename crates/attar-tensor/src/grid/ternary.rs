//! -1, 0 and 1, five to a byte. The scale is always the one of least squared error, not the mean magnitude.

use super::{Fit, Grid, Levels, Requires, table::Table};
use crate::pack::Packing;

static VALUES: [f32; 3] = [-1.0, 0.0, 1.0];

/// -1, 0 and 1.
pub(super) struct Ternary;

static TABLE: Table = Table::new("ternary", 2, &VALUES);

impl Grid for Ternary {
    fn name(&self) -> &'static str {
        TABLE.name()
    }

    fn bits(&self) -> u32 {
        TABLE.bits()
    }

    fn packing(&self) -> Packing {
        Packing::Trits
    }

    fn middle(&self) -> u8 {
        TABLE.middle()
    }

    fn levels(&self) -> Levels {
        TABLE.levels()
    }

    fn requires(&self) -> Requires {
        TABLE.requires()
    }

    fn cover(&self, low: f32, high: f32, symmetric: bool) -> Fit<'static> {
        TABLE.cover(low, high, symmetric)
    }

    /// With the `k` largest magnitudes `m` as ones, the best scale is their mean, and wins `(sum h m)^2 / sum h`.
    fn best_scale(&self, magnitudes: &mut dyn Iterator<Item = (f64, f64)>) -> Option<f32> {
        let (mut moment, mut mass, mut best) = (0.0, 0.0, (0.0, 0.0));
        for (magnitude, importance) in magnitudes {
            moment += importance * magnitude;
            mass += importance;
            let won = if mass > 0.0 { moment * moment / mass } else { 0.0 };
            if won > best.0 {
                best = (won, moment / mass);
            }
        }
        Some(best.1 as f32)
    }

    fn encode(&self, values: &[f32], fit: Fit<'_>, codes: &mut [u8]) {
        TABLE.encode(values, fit, codes);
    }

    fn decode(&self, codes: &[u8], fit: Fit<'_>, values: &mut [f32]) {
        TABLE.decode(codes, fit, values);
    }

    fn error(&self, values: &[f32], fit: Fit<'_>) -> f32 {
        TABLE.error(values, fit)
    }
}
