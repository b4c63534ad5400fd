//! Which single weights stay: by SparseGPT's sweep, Wanda's score, or their size.

use super::{
    sparsity::{Sparse, Sparsity, leave},
    sweep::swept,
};
use crate::{Hessian, Result};

/// How single weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// SparseGPT (Frantar & Alistarh 2023): by what their absence costs when all weights after them adapt.
    Sweep,
    /// Wanda (Sun et al. 2023): `|w|` times the root mean square of its input, compared within a row.
    Input,
    /// `|w|`, compared within the matrix.
    Size,
}

/// The weights of `weight` `[rows, columns]` that stay. Those that are zero already leave first, and none of them stays.
///
/// # Errors
/// If no damping makes the second moments positive definite.
pub fn sparse(score: Score, weight: &[f32], moments: &Hessian, sparsity: Sparsity) -> Result<Sparse> {
    let columns = moments.inputs();
    let scored = |of: &dyn Fn(usize) -> f64, together: usize| {
        let score = |at: usize| f64::from(weight[at].abs()) * of(at % columns);
        let mut stays = vec![true; weight.len()];
        let mut from = 0;
        for part in stays.chunks_mut(together.max(1)) {
            leave(part, |at| score(from + at), sparsity);
            from += part.len();
        }
        stays.iter_mut().zip(weight).for_each(|(stays, w)| *stays &= *w != 0.0);
        let weight = weight.iter().zip(&stays).map(|(w, stays)| if *stays { *w } else { 0.0 }).collect();
        Ok(Sparse { stays, weight })
    };
    match score {
        Score::Sweep => swept(weight, moments, sparsity),
        Score::Input => scored(&|column| moments.mean(column, column).sqrt(), columns),
        Score::Size => scored(&|_| 1.0, weight.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_keeps_its_largest_and_zeros_leave_first() {
        let weight = [0.9f32, 0.1, -0.4, 0.3, 0.2, 0.2, -0.7, 0.0];
        let moments = Hessian::of_moments(8, (0..64).map(|at| if at % 9 == 0 { 1.0 } else { 0.0 }).collect());
        let pattern = Sparsity::Pattern { keep: 2, of: 4 };
        let found = sparse(Score::Size, &weight, &moments, pattern).unwrap();
        assert_eq!(found.stays, [true, false, true, false, false, true, true, false]);
        let found = sparse(Score::Size, &weight, &moments, Sparsity::Share(0.25)).unwrap();
        assert_eq!(found.stays, [true, false, true, true, true, true, true, false]);
    }
}
