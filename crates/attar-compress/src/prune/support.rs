//! The values of sparse weights: exact least squares on what stays, row by row.
//!
//! A row of the weight with support `S` solves `(C_SS + damping I) w_S = (b + damping w0)_S`, where `b` is the second moments of what the
//! row is to return with its input: `C w0` for its own output. Rows have supports of their own, so a factorization would serve a single
//! one; conjugate gradients (Hestenes & Stiefel 1952), with the diagonal as preconditioner, only need products with `C`, which many
//! rows share. They run in f32 on the remainder that f64 left, until that is small.

use rayon::prelude::*;

use crate::{Cross, Drift, Error, Hessian, Result};

/// The remainder of a row, relative to its right-hand side, that ends the work.
const EXACT: f64 = 1e-6;

/// By how much the remainder shrinks between two computations in f64.
const TURN: f32 = 1e-3;

/// Such computations, and steps between two of them, at most.
const TURNS: usize = 12;
const STEPS: usize = 400;

/// Rows that are solved together: products with one of them would read `C` for each.
const ROWS: usize = 32;

/// What the rows of a weight are fitted to.
#[derive(Clone, Copy)]
pub enum Wanted<'a> {
    /// What they return now, on the same inputs.
    Own,
    /// What they return now on the inputs of the float model, which have moved.
    Unmoved(&'a Drift),
    /// Outputs of which these are the second moments with the input.
    Outputs(&'a Cross),
}

/// Bytes that it takes for a layer `[rows, columns]`.
pub(super) fn memory([rows, columns]: [usize; 2]) -> u64 {
    (12 * columns * columns + 24 * rows * columns) as u64
}

/// The weight `[rows, columns]` that is `start` where it `stays` and solves
/// `min E|y - w x|^2 + damping |w - w0|^2` there, with zeros elsewhere.
///
/// # Errors
/// If the solution is not finite, or is not reached.
pub fn on_support(original: &[f32], start: &[f32], stays: &[bool], moments: &Hessian, wanted: Wanted<'_>) -> Result<Vec<f32>> {
    let n = moments.inputs();
    let problem = Problem::new(moments, wanted);
    let mut out = vec![0.0f32; original.len()];
    let parts = out.par_chunks_mut(ROWS * n).enumerate();
    parts.try_for_each(|(part, out)| {
        let range = part * ROWS * n..part * ROWS * n + out.len();
        problem.solve(part * ROWS, &original[range.clone()], &start[range.clone()], &stays[range], out)
    })?;
    Ok(out)
}

/// Damping towards the old weight, as a share of the mean of the diagonal. Rows that share no support have little to go by each.
const DAMPING: f64 = 0.1;

/// What all rows share.
struct Problem<'a> {
    n: usize,
    /// `C + damping I`, `[n, n]`.
    exact: Vec<f64>,
    /// The same in f32.
    rounded: Vec<f32>,
    damping: f64,
    wanted: Wanted<'a>,
    /// `C + damping I + D`, where inputs have moved by the drift `D`.
    unmoved: Vec<f64>,
}

impl<'a> Problem<'a> {
    fn new(moments: &Hessian, wanted: Wanted<'a>) -> Problem<'a> {
        let n = moments.inputs();
        let mean = (0..n).map(|j| moments.mean(j, j)).sum::<f64>() / n.max(1) as f64;
        // An input that is always zero says nothing about its column.
        let damping = DAMPING * if mean > 0.0 { mean } else { 1.0 };
        let entry = |at: usize| moments.mean(at / n, at % n) + if at / n == at % n { damping } else { 0.0 };
        let exact: Vec<f64> = (0..n * n).map(entry).collect();
        let rounded = exact.iter().map(|x| *x as f32).collect();
        let unmoved = match wanted {
            Wanted::Unmoved(drift) => exact.iter().enumerate().map(|(at, x)| x + drift.mean(at / n, at % n)).collect(),
            Wanted::Own | Wanted::Outputs(_) => Vec::new(),
        };
        Problem { n, exact, rounded, damping, wanted, unmoved }
    }

    /// Some rows, of which the first is row `first`.
    fn solve(&self, first: usize, original: &[f32], start: &[f32], stays: &[bool], out: &mut [f32]) -> Result<()> {
        let n = self.n;
        let original: Vec<f64> = original.iter().map(|w| f64::from(*w)).collect();
        // b + damping w0; and with `b = C w0`, that is `(C + damping I) w0`.
        let mut right = match self.wanted {
            Wanted::Own => self.times(&original),
            Wanted::Unmoved(_) => product(&original, &self.unmoved, n),
            Wanted::Outputs(cross) => {
                let outputs = original.iter().enumerate();
                outputs.map(|(at, w)| cross.mean(first + at / n, at % n) + self.damping * w).collect()
            }
        };
        right.iter_mut().zip(stays).filter(|(_, stays)| !**stays).for_each(|(b, _)| *b = 0.0);
        let sizes: Vec<f64> = right.chunks(n).map(size).collect();
        let masked = |(w, stays): (&f32, &bool)| if *stays { f64::from(*w) } else { 0.0 };
        let mut w: Vec<f64> = start.iter().zip(stays).map(masked).collect();
        let mut open: Vec<usize> = (0..sizes.len()).collect();
        for _ in 0..TURNS {
            let rows = |of: &[f64]| open.iter().flat_map(|row| of[row * n..(row + 1) * n].iter().copied()).collect::<Vec<f64>>();
            let (here, there) = (self.times(&rows(&w)), rows(&right));
            let left: Vec<f64> = there.iter().zip(here).map(|(b, c)| b - c).collect();
            let mut kept = Vec::new();
            let mut remainders = Vec::new();
            for (row, left) in open.iter().zip(left.chunks(n)) {
                let stays = &stays[row * n..(row + 1) * n];
                let left: Vec<f64> = left.iter().zip(stays).map(|(r, stays)| if *stays { *r } else { 0.0 }).collect();
                if size(&left) > EXACT * sizes[*row] {
                    kept.push(*row);
                    remainders.push(left);
                }
            }
            open = kept;
            if open.is_empty() {
                break;
            }
            let supports: Vec<&[bool]> = open.iter().map(|row| &stays[row * n..(row + 1) * n]).collect();
            let moves = self.descend(&remainders, &supports);
            for (row, change) in open.iter().zip(moves.chunks(n)) {
                w[row * n..(row + 1) * n].iter_mut().zip(change).for_each(|(w, change)| *w += change);
            }
        }
        out.iter_mut().zip(&w).for_each(|(out, w)| *out = *w as f32);
        match open.is_empty() && out.iter().all(|w| w.is_finite()) {
            true => Ok(()),
            false => Err(Error::NotPositiveDefinite { inputs: n, damping: DAMPING }),
        }
    }

    /// Conjugate gradients in f32 for right-hand sides of size 1, each on its support: what to add, to [`TURN`].
    fn descend(&self, remainders: &[Vec<f64>], supports: &[&[bool]]) -> Vec<f64> {
        let n = self.n;
        let mut states: Vec<State> =
            remainders.iter().zip(supports).enumerate().map(|(at, (left, stays))| State::new(at, left, stays, self)).collect();
        let mut found = vec![0.0; n * states.len()];
        for _ in 0..STEPS {
            let along: Vec<f32> = states.iter().flat_map(|state| state.along.iter().copied()).collect();
            let products = product(&along, &self.rounded, n);
            states.iter_mut().zip(products.chunks(n)).for_each(|(state, product)| state.step(product, self));
            states.retain(|state| {
                let done = state.is_done();
                if done {
                    state.write(&mut found[state.at * n..(state.at + 1) * n]);
                }
                !done
            });
            if states.is_empty() {
                break;
            }
        }
        states.iter().for_each(|state| state.write(&mut found[state.at * n..(state.at + 1) * n]));
        found
    }

    /// `x (C + damping I)` for rows `x`.
    fn times(&self, x: &[f64]) -> Vec<f64> {
        product(x, &self.exact, self.n)
    }
}

/// A row on its way.
struct State<'a> {
    /// Its number.
    at: usize,
    stays: &'a [bool],
    /// Size of its right-hand side.
    size: f64,
    x: Vec<f32>,
    left: Vec<f32>,
    along: Vec<f32>,
    /// `left . M^-1 left`, M the diagonal.
    energy: f64,
}

impl<'a> State<'a> {
    fn new(at: usize, left: &[f64], stays: &'a [bool], problem: &Problem<'_>) -> State<'a> {
        let size = size(left);
        let left: Vec<f32> = left.iter().map(|r| (r / size) as f32).collect();
        let along: Vec<f32> = problem.preconditioned(&left);
        let energy = dot(&left, &along);
        State { at, stays, size, x: vec![0.0; left.len()], left, along, energy }
    }

    /// One step, given the product with the direction.
    fn step(&mut self, product: &[f32], problem: &Problem<'_>) {
        let curvature = dot(&self.along, product);
        // Nothing is left that f32 could tell apart.
        if curvature <= 0.0 || curvature.is_nan() {
            return self.left.fill(0.0);
        }
        let length = (self.energy / curvature) as f32;
        for (at, stays) in self.stays.iter().enumerate() {
            self.x[at] += length * self.along[at];
            self.left[at] = if *stays { self.left[at] - length * product[at] } else { 0.0 };
        }
        let turned = problem.preconditioned(&self.left);
        let energy = dot(&self.left, &turned);
        let keep = (energy / self.energy) as f32;
        self.energy = energy;
        self.along.iter_mut().zip(turned).for_each(|(along, turned)| *along = turned + keep * *along);
    }

    fn is_done(&self) -> bool {
        let left = dot(&self.left, &self.left);
        left <= f64::from(TURN * TURN) || left.is_nan()
    }

    fn write(&self, out: &mut [f64]) {
        out.iter_mut().zip(&self.x).for_each(|(out, x)| *out = self.size * f64::from(*x));
    }
}

impl Problem<'_> {
    fn preconditioned(&self, left: &[f32]) -> Vec<f32> {
        left.iter().enumerate().map(|(at, r)| r / self.rounded[at * self.n + at]).collect()
    }
}

/// Length of a vector.
fn size(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// In lanes, so that the compiler can use vectors.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + f64::from(rest)
}

/// `x c` for rows `x` `[.., n]` and a matrix `c` `[n, n]`. Single-threaded.
fn product<T: Copy + Default + From<u8> + 'static>(x: &[T], c: &[T], n: usize) -> Vec<T> {
    let mut out = vec![T::default(); x.len()];
    let (rows, across) = (x.len() / n.max(1), n as isize);
    assert!(out.len() == rows * n && c.len() == n * n, "whole rows");
    if out.is_empty() {
        return out;
    }
    // SAFETY: `x` and `out` hold `rows` rows of `n` numbers, and `c` holds `n` of them.
    unsafe {
        let (none, to) = (gemm::Parallelism::None, out.as_mut_ptr());
        gemm::gemm(
            rows,
            n,
            n,
            to,
            1,
            across,
            false,
            x.as_ptr(),
            1,
            across,
            c.as_ptr(),
            1,
            across,
            T::default(),
            T::from(1),
            false,
            false,
            false,
            none,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use faer::{Mat, Side, linalg::solvers::Solve};

    use super::*;

    const N: usize = 40;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// A dense Cholesky factorization of the support of each row, in f64.
    #[test]
    fn the_solution_is_that_of_a_dense_factorization() {
        let (mut moments, mut drift, mut cross) = (Hessian::new(N), Drift::new(N), Cross::new(70, N));
        let tokens = |seed: usize| {
            let mixed = noise(300 * N, seed).into_iter().enumerate().map(|(i, x)| x * (1.0 + (i % N) as f32)).collect();
            Tensor::from_vec(mixed, (300, N), &Device::Cpu).unwrap()
        };
        moments.add(&tokens(1)).unwrap();
        drift.add(&(tokens(1) + (tokens(5) * 0.1).unwrap()).unwrap(), &tokens(1)).unwrap();
        cross.add(&Tensor::from_vec(noise(300 * 70, 3), (300, 70), &Device::Cpu).unwrap(), &tokens(1)).unwrap();
        let weight = noise(70 * N, 2);
        let stays: Vec<bool> = (0..70 * N).map(|at| (at * at + at / N) % 7 < 4).collect();
        let mean = (0..N).map(|j| moments.mean(j, j)).sum::<f64>() / N as f64;
        for given in [Wanted::Own, Wanted::Unmoved(&drift), Wanted::Outputs(&cross)] {
            let found = on_support(&weight, &weight, &stays, &moments, given).unwrap();
            for row in 0..70 {
                let support: Vec<usize> = (0..N).filter(|j| stays[row * N + j]).collect();
                let old = |j: usize| f64::from(weight[row * N + j]);
                let damping = DAMPING * mean;
                let c = Mat::from_fn(support.len(), support.len(), |i, j| {
                    moments.mean(support[i], support[j]) + if i == j { damping } else { 0.0 }
                });
                let b = Mat::from_fn(support.len(), 1, |i, _| {
                    let own: f64 = (0..N).map(|j| moments.mean(j, support[i]) * old(j)).sum();
                    let wanted = match given {
                        Wanted::Own => own,
                        Wanted::Unmoved(drift) => own + (0..N).map(|j| drift.mean(j, support[i]) * old(j)).sum::<f64>(),
                        Wanted::Outputs(cross) => cross.mean(row, support[i]),
                    };
                    wanted + damping * old(support[i])
                });
                let exact = c.llt(Side::Lower).unwrap().solve(&b);
                let size = (0..support.len()).map(|i| exact[(i, 0)].abs()).fold(0.0, f64::max);
                for (at, j) in support.iter().enumerate() {
                    let off = (f64::from(found[row * N + j]) - exact[(at, 0)]).abs();
                    assert!(off < 1e-4 * size, "row {row}, column {j}: {off} of {size}");
                }
                assert!((0..N).filter(|j| !support.contains(j)).all(|j| found[row * N + j] == 0.0));
            }
        }
    }

    #[test]
    fn a_row_without_weights_stays_empty() {
        let mut moments = Hessian::new(4);
        moments.add(&Tensor::from_vec(noise(40, 1), (10, 4), &Device::Cpu).unwrap()).unwrap();
        let found = on_support(&[1.0; 4], &[1.0; 4], &[false; 4], &moments, Wanted::Own).unwrap();
        assert_eq!(found, [0.0; 4]);
    }
}
