//! Choosing the scale of a group by what it does to the weights alone.

use attar_tensor::{Fit, Result, Scheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the scale of a group is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleSearch {
    /// The smallest that reaches every weight.
    #[default]
    Absmax,
    /// The one of 24 between that and half of it that has the least squared error.
    Mse,
}

/// How many scales [`ScaleSearch::Mse`] tries, and how far they are apart, as a share of the largest.
const CANDIDATES: usize = 24;
const STEP: f32 = 0.02;

impl ScaleSearch {
    /// How many scales are tried.
    pub(crate) fn candidates(self) -> usize {
        match self {
            ScaleSearch::Absmax => 1,
            ScaleSearch::Mse => CANDIDATES,
        }
    }

    /// The candidate of that number for values from `low` to `high`, with its scale as it will be stored.
    pub(crate) fn candidate(self, number: usize, scheme: &Scheme, low: f32, high: f32) -> Result<Fit> {
        let share = 1.0 - number as f32 * STEP;
        let fit = scheme.grid.cover(low * share, high * share, scheme.is_symmetric());
        Ok(Fit { scale: scheme.round_scale(fit.scale)?, ..fit })
    }

    /// The scale and zero of one group.
    pub(crate) fn fit(self, scheme: &Scheme, values: &[f32]) -> Result<Fit> {
        let (low, high) = range(values);
        let mut best = self.candidate(0, scheme, low, high)?;
        if self == ScaleSearch::Mse {
            let mut least = scheme.grid.error(values, best);
            for number in 1..CANDIDATES {
                let fit = self.candidate(number, scheme, low, high)?;
                let error = scheme.grid.error(values, fit);
                if error < least {
                    (best, least) = (fit, error);
                }
            }
        }
        Ok(best)
    }

    /// The scale and zero of one group where the error of each weight counts as much as its `importance`.
    pub(crate) fn weighted_fit(self, scheme: &Scheme, values: &[f32], importance: &[f32]) -> Result<Fit> {
        let (low, high) = range(values);
        let mut best = self.candidate(0, scheme, low, high)?;
        let mut least = f64::INFINITY;
        let (mut codes, mut decoded) = (vec![0; values.len()], vec![0.0; values.len()]);
        for number in (0..self.candidates()).take_while(|_| self != ScaleSearch::Absmax) {
            let fit = self.candidate(number, scheme, low, high)?;
            scheme.grid.encode(values, fit, &mut codes);
            scheme.grid.decode(&codes, fit, &mut decoded);
            let errors = values.iter().zip(&decoded).zip(importance);
            let error: f64 = errors.map(|((w, q), h)| f64::from((w - q) * (w - q) * h)).sum();
            if error < least {
                (best, least) = (fit, error);
            }
        }
        Ok(best)
    }
}

/// Least and greatest value, in lanes so that the compiler can use vectors.
pub(crate) fn range(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            low[i] = if chunk[i] < low[i] { chunk[i] } else { low[i] };
            high[i] = if chunk[i] > high[i] { chunk[i] } else { high[i] };
        }
    }
    let rest = chunks.remainder();
    let least = low.iter().chain(rest).copied().fold(f32::INFINITY, f32::min);
    let greatest = high.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if values.is_empty() { (0.0, 0.0) } else { (least, greatest) }
}
