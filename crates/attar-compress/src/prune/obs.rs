//! Optimal Brain Surgeon for groups of columns (Hassibi & Stork 1993; ZipLM, Kurtic et al. 2023): a unit costs what its absence
//! adds to the layer's squared error when all columns that stay may adapt.
//!
//! With `P = (E[x x^T] + damping)^-1`, removing the columns `G` of `W` costs `tr(W_G (P_GG)^-1 W_G^T)`, and then `W` and `P` are
//! those of the smaller problem: `W -= W_G (P_GG)^-1 P_G*`, `P -= P_*G (P_GG)^-1 P_G*`. The cheapest units leave, a few at a time.

use faer::{Mat, Side, linalg::solvers::DenseSolveCore};
use rayon::prelude::*;

use super::{Observed, Pool, Pruner, Score};
use crate::{Result, hessian::damped};

/// Units leave whose absence the others make up for best.
pub(super) struct Obs;

/// Damping of the second moments, as a share of the mean of their diagonal.
const DAMPING: f64 = 0.01;

/// So many units for each that leaves before costs are computed again.
const UNITS_A_STEP: usize = 192;

impl Pruner for Obs {
    fn name(&self) -> &'static str {
        "obs"
    }

    fn version(&self) -> u32 {
        3
    }

    fn memory(&self, [rows, columns]: [usize; 2]) -> u64 {
        // The moments, their factor, its inverse and a copy; the weight.
        (32 * columns * columns + 8 * rows * columns) as u64
    }

    fn of_weights(&self) -> Option<Score> {
        Some(Score::Sweep)
    }

    fn scores(&self, seen: &Observed<'_>) -> Result<Vec<f64>> {
        let problem = Problem::new(seen)?;
        Ok((0..seen.columns()).map(|column| problem.cost_of_column(column)).collect())
    }

    fn keep(&self, seen: &Observed<'_>, pools: &[Pool]) -> Result<Vec<usize>> {
        let mut problem = Problem::new(seen)?;
        let mut pools: Vec<Pool> = pools.to_vec();
        let together = (pools.iter().map(|pool| pool.units.len()).sum::<usize>() / UNITS_A_STEP).max(1);
        loop {
            let open = pools.iter().enumerate().filter(|(_, pool)| pool.units.len() > pool.keep);
            let mut costs: Vec<(f64, usize, usize)> = open
                .flat_map(|(at, pool)| pool.units.iter().map(move |unit| (at, *unit)))
                .map(|(at, unit)| (problem.cost(&[unit]), unit, at))
                .collect();
            if costs.is_empty() {
                break;
            }
            costs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let mut leaving = Vec::new();
            for (_, unit, at) in costs {
                let pool = &mut pools[at];
                if leaving.len() < together && pool.units.len() > pool.keep {
                    pool.units.retain(|other| *other != unit);
                    leaving.push(unit);
                }
            }
            problem.remove(&leaving)?;
        }
        let mut kept: Vec<usize> = pools.into_iter().flat_map(|pool| pool.units).collect();
        kept.sort_unstable();
        Ok(kept)
    }
}

/// A layer without the units that left so far.
struct Problem {
    /// `[rows, columns]`.
    weight: Vec<f64>,
    /// The inverse of the damped second moments, `[columns, columns]`.
    inverse: Vec<f64>,
    columns: usize,
    width: usize,
}

impl Problem {
    fn new(seen: &Observed<'_>) -> Result<Problem> {
        let n = seen.columns();
        let (inverse, _) = damped(seen.moments, DAMPING, |damping| {
            let moments = Mat::from_fn(n, n, |i, j| seen.moments.mean(i, j) + if i == j { damping } else { 0.0 });
            Some(moments.llt(Side::Lower).ok()?.inverse())
        })?;
        let inverse = (0..n * n).map(|at| inverse[(at / n, at % n)]).collect();
        Ok(Problem { weight: seen.weight.iter().map(|w| f64::from(*w)).collect(), inverse, columns: n, width: seen.width })
    }

    fn columns_of(&self, units: &[usize]) -> Vec<usize> {
        units.iter().flat_map(|unit| unit * self.width..(unit + 1) * self.width).collect()
    }

    /// `(P_GG)^-1` of some columns.
    fn core(&self, columns: &[usize]) -> Option<Mat<f64>> {
        let (n, count) = (self.columns, columns.len());
        let part = Mat::from_fn(count, count, |i, j| self.inverse[columns[i] * n + columns[j]]);
        Some(part.llt(Side::Lower).ok()?.inverse())
    }

    /// What the absence of units adds to the squared error. Those that cannot be told from the others cost nothing.
    fn cost(&self, units: &[usize]) -> f64 {
        let columns = self.columns_of(units);
        if let [column] = columns[..] {
            return self.cost_of_column(column);
        }
        let Some(core) = self.core(&columns) else { return 0.0 };
        let of_row = |row: &[f64]| {
            let part: Vec<f64> = columns.iter().map(|column| row[*column]).collect();
            let product = |i: usize| part.iter().enumerate().map(|(j, w)| core[(i, j)] * w).sum::<f64>();
            (0..part.len()).map(|i| part[i] * product(i)).sum::<f64>()
        };
        self.weight.chunks(self.columns).map(of_row).sum()
    }

    fn cost_of_column(&self, column: usize) -> f64 {
        let energy: f64 = self.weight.chunks(self.columns).map(|row| row[column] * row[column]).sum();
        energy / self.inverse[column * self.columns + column].max(f64::MIN_POSITIVE)
    }

    /// Removes units; the others adapt.
    fn remove(&mut self, units: &[usize]) -> Result<()> {
        let (n, columns) = (self.columns, self.columns_of(units));
        let core = self.core(&columns).ok_or(crate::Error::NotPositiveDefinite { inputs: n, damping: DAMPING })?;
        let rows: Vec<f64> = columns.iter().flat_map(|column| self.inverse[column * n..(column + 1) * n].to_vec()).collect();
        // (P_GG)^-1 P_G*, by rows.
        let mut update = vec![0.0; columns.len() * n];
        update.par_chunks_mut(n).enumerate().for_each(|(i, out)| {
            for (j, row) in rows.chunks(n).enumerate() {
                let factor = core[(i, j)];
                out.iter_mut().zip(row).for_each(|(out, p)| *out += factor * p);
            }
        });
        let subtract = |row: &mut [f64]| {
            let factors: Vec<f64> = columns.iter().map(|column| row[*column]).collect();
            for (factor, update) in factors.into_iter().zip(update.chunks(n)) {
                row.iter_mut().zip(update).for_each(|(x, u)| *x -= factor * u);
            }
            columns.iter().for_each(|column| row[*column] = 0.0);
        };
        self.weight.par_chunks_mut(n).for_each(subtract);
        self.inverse.par_chunks_mut(n).for_each(subtract);
        for column in &columns {
            self.inverse[column * n..(column + 1) * n].fill(0.0);
        }
        Ok(())
    }
}
