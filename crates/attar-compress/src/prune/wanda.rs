//! The score of Wanda (Sun et al. 2023) for whole units, as FASP has it (Hu et al. 2025): activation times weight.

use super::{Observed, Pruner, Score};
use crate::Result;

/// Units stay whose columns, each times the root mean square of its input, are longest.
pub(super) struct Wanda;

impl Pruner for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn version(&self) -> u32 {
        1
    }

    fn memory(&self, [_, columns]: [usize; 2]) -> u64 {
        24 * columns as u64
    }

    fn of_weights(&self) -> Option<Score> {
        Some(Score::Input)
    }

    fn scores(&self, seen: &Observed<'_>) -> Result<Vec<f64>> {
        let energies = seen.column_energies();
        Ok((0..seen.columns()).map(|column| energies[column] * seen.moments.mean(column, column)).collect())
    }
}
