//! The oldest score: the size of the weights.

use super::{Observed, Pruner, Score};
use crate::Result;

/// Units with the longest columns stay, whatever they are multiplied with.
pub(super) struct Magnitude;

impl Pruner for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn version(&self) -> u32 {
        1
    }

    fn memory(&self, [_, columns]: [usize; 2]) -> u64 {
        24 * columns as u64
    }

    fn of_weights(&self) -> Option<Score> {
        Some(Score::Size)
    }

    fn scores(&self, seen: &Observed<'_>) -> Result<Vec<f64>> {
        Ok(seen.column_energies())
    }
}
