//! The oldest score: the size of the weights.

use super::{Observed, Pool, Pruner, Score};
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

    fn score(&self) -> Option<Score> {
        Some(Score::Size)
    }

    fn keep(&self, seen: &Observed<'_>, pools: &[Pool]) -> Result<Vec<usize>> {
        let energies = seen.column_energies();
        Ok(seen.best(pools, |column| energies[column]))
    }
}
