//! SmoothQuant (Xiao et al. 2022): `s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)` (equation 4).

use super::{Choice, Seeing, Smooth, Smoother};
use crate::{Error, Result};

/// SmoothQuant.
pub(super) struct SmoothQuant;

/// The share of the difficulty that moves to the weights: the paper's.
const ALPHA: f64 = 0.5;

impl Smoother for SmoothQuant {
    fn name(&self) -> &'static str {
        "smoothquant"
    }

    fn version(&self) -> u32 {
        1
    }

    fn check(&self, settings: &Smooth) -> Result<()> {
        settings.has_no("grid", settings.grid.is_some())?;
        let alpha = settings.alpha.unwrap_or(ALPHA);
        if (0.0..=1.0).contains(&alpha) { Ok(()) } else { Err(Error::Share { key: "alpha", found: alpha }) }
    }

    fn memory(&self, layers: &[[usize; 2]]) -> u64 {
        layers.iter().map(|[rows, columns]| 4 * (rows * columns) as u64).sum()
    }

    fn scales(&self, settings: &Smooth, weights: &[(usize, Vec<f32>)], seen: &Seeing, channel: &[usize]) -> Result<Choice> {
        let alpha = settings.alpha.unwrap_or(ALPHA);
        let channels = channel.iter().max().map_or(0, |last| last + 1);
        let (mut x, mut w) = (vec![0.0f32; channels], vec![0.0f32; channels]);
        for (column, channel) in channel.iter().enumerate() {
            x[*channel] = x[*channel].max(seen.max_abs(column));
        }
        for row in weights.iter().flat_map(|(_, values)| values.chunks_exact(channel.len())) {
            row.iter().zip(channel).for_each(|(value, channel)| w[*channel] = w[*channel].max(value.abs()));
        }
        let scale = |(x, w): (&f32, &f32)| match f64::from(*x).powf(alpha) / f64::from(*w).powf(1.0 - alpha) {
            // What is always zero needs no scale.
            s if s.is_normal() && *x > 0.0 && *w > 0.0 => s as f32,
            _ => 1.0,
        };
        Ok(Choice { scales: x.iter().zip(&w).map(scale).collect(), alpha, error: 1.0 })
    }
}
