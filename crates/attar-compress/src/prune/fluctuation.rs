//! The score of FLAP (An et al. 2024): how much a unit varies around its mean. The original adds what the means made to a bias,
//! which most decoders have no room for; here the columns that stay are fitted instead.

use super::{Observed, Pruner};
use crate::Result;

/// Units stay whose columns, each times the standard deviation of its input, are longest.
pub(super) struct Fluctuation;

impl Pruner for Fluctuation {
    fn name(&self) -> &'static str {
        "fluctuation"
    }

    fn version(&self) -> u32 {
        1
    }

    fn memory(&self, [_, columns]: [usize; 2]) -> u64 {
        24 * columns as u64
    }

    fn scores(&self, seen: &Observed<'_>) -> Result<Vec<f64>> {
        let energies = seen.column_energies();
        let variance = |column: usize| (seen.moments.mean(column, column) - seen.means[column].powi(2)).max(0.0);
        Ok((0..seen.columns()).map(|column| energies[column] * variance(column)).collect())
    }
}
