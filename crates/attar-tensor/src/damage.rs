//! What quantization lost, as a squared error and the energy of what was there.
//!
//! ```
//! use attar_tensor::Damage;
//! let lost = Damage::between(&[3.0, -4.0], &[3.0, 0.0]);
//! assert_eq!((lost.squared_error, lost.energy), (16.0, 25.0));
//! ```

use std::ops::AddAssign;

use crate::{Fit, Grid};

/// Squares of magnitudes within these bounds, and of their rounding errors, are normal numbers in f32.
const EXACT: std::ops::Range<f32> = 1e-12..1e12;

/// The error of quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Damage {
    /// Sum of squared differences between weights and decoded codes.
    pub squared_error: f64,
    /// Sum of the squared weights.
    pub energy: f64,
}

impl Damage {
    /// Signal-to-noise ratio in decibels; infinite if the error is zero.
    pub fn snr_db(&self) -> f64 {
        if self.squared_error == 0.0 { f64::INFINITY } else { 10.0 * (self.energy / self.squared_error).log10() }
    }

    /// Of weights that became `decoded`. Squares are f64, in which no square of an f32 underflows or overflows.
    pub fn between(weights: &[f32], decoded: &[f32]) -> Damage {
        let mut damage = Damage::default();
        for (w, q) in weights.iter().zip(decoded) {
            damage.squared_error += f64::from(w - q).powi(2);
            damage.energy += f64::from(*w).powi(2);
        }
        damage
    }

    /// Of weights that become their nearest codes under `fit`. Sums are f32 where their squares fit in it.
    pub fn of_nearest(grid: &dyn Grid, weights: &[f32], fit: Fit<'_>) -> Damage {
        let largest = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        if largest == 0.0 || EXACT.contains(&largest) {
            return Damage { squared_error: grid.error(weights, fit).into(), energy: squares(weights).into() };
        }
        let (mut codes, mut decoded) = (vec![0; weights.len()], vec![0.0; weights.len()]);
        grid.encode(weights, fit, &mut codes);
        grid.decode(&codes, fit, &mut decoded);
        Damage::between(weights, &decoded)
    }
}

impl AddAssign for Damage {
    fn add_assign(&mut self, other: Damage) {
        self.squared_error += other.squared_error;
        self.energy += other.energy;
    }
}

fn squares(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    sums.iter().sum::<f32>() + chunks.remainder().iter().map(|x| x * x).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid;

    #[test]
    fn weights_whose_squares_underflow_are_damaged_all_the_same() {
        for grid in [grid("int4").unwrap(), grid("fp8_e4m3").unwrap(), grid("ternary").unwrap()] {
            for magnitude in [1e-44f32, 1e-30, 1.0, 1e30] {
                let weights = [magnitude, -magnitude, magnitude / 2.0, 0.0];
                let lost = Damage::of_nearest(grid, &weights, Fit { scale: 0.0, zero: grid.middle(), table: &[] });
                assert!(lost.energy > 0.0 && (lost.squared_error / lost.energy - 1.0).abs() < 1e-6, "{magnitude}: {lost:?}");
            }
        }
    }

    #[test]
    fn damage_is_the_same_at_every_magnitude() {
        let grid = grid("int4").unwrap();
        let snr = |factor: f32| {
            let weights: Vec<f32> = (-20..20).map(|n| factor * (n as f32 + 0.3)).collect();
            Damage::of_nearest(grid, &weights, grid.cover(weights[0], weights[39], true)).snr_db()
        };
        for factor in [1e-33, 1e-20, 1e20, 1e34] {
            assert!((snr(factor) - snr(1.0)).abs() < 1e-3, "{factor}: {} {}", snr(factor), snr(1.0));
        }
    }
}
