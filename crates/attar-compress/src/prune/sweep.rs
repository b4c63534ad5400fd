//! The mask of SparseGPT (Frantar & Alistarh 2023): columns are visited in their order, the cheapest weights of each block of
//! columns leave, and the columns after them take over.
//!
//! With `U` the upper Cholesky factor of the inverse damped second moments, `H^-1 = U^T U`, a weight costs `w^2 / U_jj^2`. Once
//! column `j` is decided, `w[j+1..] -= w_j / U_jj * U[j, j+1..]` in every row that loses `w_j`. Under a share, all rows of a block of
//! 128 columns are compared; under a pattern, the weights of a group in a row, when the sweep reaches the group.

use faer::{Mat, Side, linalg::solvers::DenseSolveCore};
use rayon::prelude::*;

use super::sparsity::{Sparse, Sparsity, leave};
use crate::{Hessian, Result, hessian::damped};

/// Damping of the second moments, as a share of the mean of their diagonal.
const DAMPING: f64 = 0.01;

/// Columns whose weights are compared, under a share.
const BLOCK: usize = 128;

/// Bytes that it takes for a layer `[rows, columns]`: the damped moments, their inverse and two factors; weights in f64.
pub(super) fn memory([rows, columns]: [usize; 2]) -> u64 {
    (32 * columns * columns + 12 * rows * columns) as u64
}

/// What stays, and the weights as the sweep left them.
pub(super) fn swept(weight: &[f32], moments: &Hessian, sparsity: Sparsity) -> Result<Sparse> {
    let n = moments.inputs();
    let factor = Upper::of(moments)?;
    let mut w: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
    let mut stays = vec![true; w.len()];
    let size = match sparsity {
        Sparsity::Share(_) => BLOCK,
        Sparsity::Pattern { of, .. } => of,
    };
    // Weights that are zero already leave first, whatever the sweep made of them.
    let cost = |w: &[f64], at: usize| if weight[at] == 0.0 { -1.0 } else { (w[at] / factor.diagonal[at % n]).powi(2) };
    for from in (0..n).step_by(size.max(1)) {
        let to = (from + size).min(n);
        match sparsity {
            Sparsity::Share(_) => {
                let width = to - from;
                let mut block = vec![true; w.len() / n * width];
                leave(&mut block, |at| cost(&w, at / width * n + from + at % width), sparsity);
                let rows = stays.chunks_mut(n).zip(block.chunks(width));
                rows.for_each(|(stays, block)| stays[from..to].copy_from_slice(block));
            }
            Sparsity::Pattern { .. } => {
                let rows = stays.par_chunks_mut(n).enumerate();
                rows.for_each(|(row, stays)| leave(&mut stays[from..to], |at| cost(&w, row * n + from + at), sparsity));
            }
        }
        stays.iter_mut().zip(weight).for_each(|(stays, w)| *stays &= *w != 0.0);
        let rows = w.par_chunks_mut(n).zip(stays.par_chunks(n));
        rows.for_each(|(w, stays)| (from..to).filter(|j| !stays[*j]).for_each(|j| factor.take_over(w, j)));
    }
    Ok(Sparse { stays, weight: w.into_iter().map(|w| w as f32).collect() })
}

/// The upper Cholesky factor `U` of the inverse damped second moments.
struct Upper {
    /// `U_jj`.
    diagonal: Vec<f64>,
    /// `[n, n]`, row `j` divided by its diagonal.
    rows: Vec<f64>,
    n: usize,
}

impl Upper {
    fn of(moments: &Hessian) -> Result<Upper> {
        let n = moments.inputs();
        let (lower, _) = damped(moments, DAMPING, |damping| {
            let damped = Mat::from_fn(n, n, |i, j| moments.mean(i, j) + if i == j { damping } else { 0.0 });
            let inverse = damped.llt(Side::Lower).ok()?.inverse();
            inverse.llt(Side::Lower).ok().map(|cholesky| cholesky.L().to_owned())
        })?;
        let diagonal: Vec<f64> = (0..n).map(|j| lower[(j, j)]).collect();
        let mut rows = vec![0.0; n * n];
        for (j, row) in rows.chunks_mut(n.max(1)).enumerate() {
            (j..n).for_each(|i| row[i] = lower[(i, j)] / diagonal[j]);
        }
        Ok(Upper { diagonal, rows, n })
    }

    /// `w[j+1..] -= w_j / U_jj * U[j, j+1..]`, and `w_j` is gone.
    fn take_over(&self, w: &mut [f64], j: usize) {
        let (gone, update) = (w[j], &self.rows[j * self.n..][j..self.n]);
        w[j..].iter_mut().zip(update).for_each(|(w, u)| *w -= gone * u);
        w[j] = 0.0;
    }
}
