//! The score of Minitron (Muralidharan et al. 2024): the size of a unit's activations.

use super::{Observed, Pruner};
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

    fn scores(&self, seen: &Observed<'_>) -> Result<Vec<f64>> {
        Ok((0..seen.columns()).map(|column| seen.moments.mean(column, column)).collect())
    }
}
