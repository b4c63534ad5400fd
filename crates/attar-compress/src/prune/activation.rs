//! The score of Minitron (Muralidharan et al. 2024): the size of a unit's activations.

use super::{Observed, Pool, Pruner};
use crate::Result;

/// Units with the largest activations stay, by their root mean square over the calibration text.
pub(super) struct Activation;

impl Pruner for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn version(&self) -> u32 {
        1
    }

    fn memory(&self, [_, columns]: [usize; 2]) -> u64 {
        16 * columns as u64
    }

    fn keep(&self, seen: &Observed<'_>, pools: &[Pool]) -> Result<Vec<usize>> {
        Ok(seen.best(pools, |column| seen.moments.mean(column, column)))
    }
}
