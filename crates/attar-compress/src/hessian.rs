//! Second moments of what linear layers read: the Hessian of the layer-wise error, the factor of its inverse, and how far
//! quantized layers upstream have moved the inputs.
//!
//! The error of a layer with weights `W` and codes `Q` is `sum over rows of (W - Q) H (W - Q)^T` with `H = E[x x^T]`
//! (up to a factor of two). Algorithms that spread the error of one weight over the others (GPTQ, SparseGPT) need the Cholesky
//! factor of `H^-1`; it is computed once per Hessian and shared by all weights with the same inputs.

use std::sync::{Arc, OnceLock};

use attar_graph::kernel::with_f32;
use candle_core::Tensor;
use faer::{Mat, Side, linalg::solvers::DenseSolveCore};
use rayon::prelude::*;

use crate::{Error, Result};

/// Damping of the Hessian, as a share of the mean of its diagonal.
const DAMPING: f64 = 0.01;

/// How often damping may grow tenfold until the matrix is positive definite.
const ATTEMPTS: i32 = 6;

/// Second moments of the inputs of a linear layer: `sum of x x^T` over tokens.
#[derive(Clone)]
pub struct Hessian {
    /// `[inputs, inputs]`; the tiles above the diagonal are not filled.
    sum: Vec<f64>,
    inputs: usize,
    tokens: u64,
    /// Of its inverse; one for all weights with these inputs.
    factor: OnceLock<Arc<Factor>>,
}

/// Inputs along an edge of a tile. Tiles are computed in parallel; a Hessian's above the diagonal are skipped.
const TILE: usize = 192;

impl Hessian {
    /// Of no tokens yet.
    pub fn new(inputs: usize) -> Hessian {
        Hessian { sum: vec![0.0; inputs * inputs], inputs, tokens: 0, factor: OnceLock::new() }
    }

    /// Bytes of memory for one, including its tiles in f32.
    pub fn bytes(inputs: usize) -> u64 {
        12 * (inputs * inputs) as u64
    }

    /// Adds tokens `[.., inputs]`. Sums are f32 within a call and f64 across calls, so calls must come in a fixed order.
    pub fn add(&mut self, x: &Tensor) -> candle_core::Result<()> {
        let n = self.inputs;
        let edges = n.div_ceil(TILE);
        let tiles: Vec<(usize, usize)> = (0..edges).flat_map(|i| (0..=i).map(move |j| (i, j))).collect();
        let sums: Vec<Vec<f32>> =
            with_f32(x, |x| tiles.par_iter().map(|(i, j)| product([x, x], [n, n], i * TILE, j * TILE)).collect())?;
        for ((i, j), tile) in tiles.into_iter().zip(sums) {
            let width = TILE.min(n - j * TILE);
            for (row, tile) in tile.chunks(width).enumerate() {
                let at = (i * TILE + row) * n + j * TILE;
                self.sum[at..at + width].iter_mut().zip(tile).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        self.tokens += (x.elem_count() / n) as u64;
        self.factor = OnceLock::new();
        Ok(())
    }

    /// The factor of its inverse; computed on first use.
    pub(crate) fn factor(&self) -> Result<Arc<Factor>> {
        if let Some(factor) = self.factor.get() {
            return Ok(factor.clone());
        }
        let factor = Arc::new(Factor::of(self)?);
        Ok(self.factor.get_or_init(|| factor).clone())
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Tokens that were added.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Mean of `x_i x_j`.
    pub fn mean(&self, i: usize, j: usize) -> f64 {
        self.sum[i.max(j) * self.inputs + i.min(j)] / self.tokens.max(1) as f64
    }

    /// Number of inputs that were zero for every token.
    pub fn dead(&self) -> usize {
        (0..self.inputs).filter(|j| self.mean(*j, *j) == 0.0).count()
    }

    /// The damping of its factor, as a share of the mean of its diagonal, if more than usual was needed. Known once the factor
    /// is computed.
    pub fn raised_damping(&self) -> Option<f64> {
        self.factor.get().and_then(|factor| factor.raised)
    }

    /// Of some of the inputs, in their order.
    pub fn restricted(&self, inputs: &[usize]) -> Hessian {
        let count = inputs.len();
        let mut part = Hessian { tokens: self.tokens, ..Hessian::new(count) };
        for (i, from) in inputs.iter().enumerate() {
            for (j, other) in inputs[..=i].iter().enumerate() {
                part.sum[i * count + j] = self.sum[from.max(other) * self.inputs + from.min(other)];
            }
        }
        part
    }

    #[cfg(test)]
    pub(crate) fn of_moments(inputs: usize, sum: Vec<f64>) -> Hessian {
        Hessian { sum, tokens: 1, ..Hessian::new(inputs) }
    }

    /// Whether every entry is finite.
    pub fn is_finite(&self) -> bool {
        self.sum.iter().all(|x| x.is_finite())
    }
}

/// The upper Cholesky factor `U` of the inverse Hessian, `H^-1 = U^T U`, in the order in which columns are rounded.
pub(crate) struct Factor {
    order: Vec<usize>,
    /// `[columns, columns]`, row `j` divided by its diagonal.
    rows: Vec<f32>,
    /// `1 / U_jj^2`.
    variances: Vec<f32>,
    columns: usize,
    /// The damping, as a share of the mean of the diagonal, if more than [`DAMPING`] was needed.
    raised: Option<f64>,
}

impl Factor {
    /// Of a Hessian, its columns ordered by falling second moment (activation ordering).
    fn of(hessian: &Hessian) -> Result<Factor> {
        let n = hessian.inputs();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| hessian.mean(*b, *b).total_cmp(&hessian.mean(*a, *a)));
        let (lower, damping) = damped(hessian, DAMPING, |damping| {
            let damped = Mat::from_fn(n, n, |i, j| hessian.mean(order[i], order[j]) + if i == j { damping } else { 0.0 });
            let inverse = damped.llt(Side::Lower).ok()?.inverse();
            inverse.llt(Side::Lower).ok().map(|cholesky| cholesky.L().to_owned())
        })?;
        let variances = (0..n).map(|j| lower[(j, j)].powi(-2) as f32).collect();
        let rows = (0..n).flat_map(|j| (0..n).map(move |i| (i, j)));
        let rows = rows.map(|(i, j)| if i < j { 0.0 } else { (lower[(i, j)] / lower[(j, j)]) as f32 }).collect();
        Ok(Factor { rows, variances, order, columns: n, raised: (damping > DAMPING).then_some(damping) })
    }

    /// The columns in the order in which they are rounded.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// `1 / U_jj^2` for the `j`-th column of the order: the variance of its input given those of the columns after it, and so what an error of
    /// 1 in it loses once they make up for it.
    pub(crate) fn variance(&self, j: usize) -> f32 {
        self.variances[j]
    }

    /// `U[j, j+1..] / U_jj` for the `j`-th column of the order: how its error moves the columns after it.
    pub(crate) fn update(&self, j: usize) -> &[f32] {
        &self.rows[j * self.columns + j + 1..(j + 1) * self.columns]
    }
}

/// The first result of `make` over rising dampings: `share` of the mean second moment, then ten times that, and so on.
/// Returned with its share.
pub(crate) fn damped<T>(hessian: &Hessian, share: f64, mut make: impl FnMut(f64) -> Option<T>) -> Result<(T, f64)> {
    let n = hessian.inputs();
    let mean = (0..n).map(|j| hessian.mean(j, j)).sum::<f64>() / n as f64;
    // An input that is always zero says nothing about its column.
    let scale = if mean > 0.0 { mean } else { 1.0 };
    let mut shares = (0..ATTEMPTS).map(|attempt| share * 10f64.powi(attempt));
    let found = shares.find_map(|share| make(share * scale).map(|made| (made, share)));
    found.ok_or(Error::NotPositiveDefinite { inputs: n, damping: share * 10f64.powi(ATTEMPTS - 1) })
}

/// Second moments of two values of the same tokens: `sum of y x^T`.
pub struct Cross {
    /// `[of y, of x]`.
    sum: Vec<f64>,
    dims: [usize; 2],
    tokens: u64,
}

impl Cross {
    /// Of no tokens yet, for `y` `[.., rows]` and `x` `[.., columns]`.
    pub fn new(rows: usize, columns: usize) -> Cross {
        Cross { sum: vec![0.0; rows * columns], dims: [rows, columns], tokens: 0 }
    }

    /// Bytes of memory for one, including its tiles in f32.
    pub fn bytes(rows: usize, columns: usize) -> u64 {
        12 * (rows * columns) as u64
    }

    /// Adds tokens. Sums are f32 within a call and f64 across calls, so calls must come in a fixed order.
    pub fn add(&mut self, y: &Tensor, x: &Tensor) -> candle_core::Result<()> {
        let [m, n] = self.dims;
        let tiles: Vec<(usize, usize)> = (0..m.div_ceil(TILE)).flat_map(|i| (0..n.div_ceil(TILE)).map(move |j| (i, j))).collect();
        let sums: Vec<Vec<f32>> = with_f32(y, |y| {
            with_f32(x, |x| tiles.par_iter().map(|(i, j)| product([y, x], [m, n], i * TILE, j * TILE)).collect())
        })??;
        for ((i, j), tile) in tiles.into_iter().zip(sums) {
            let width = TILE.min(n - j * TILE);
            for (row, tile) in tile.chunks(width).enumerate() {
                let at = (i * TILE + row) * n + j * TILE;
                self.sum[at..at + width].iter_mut().zip(tile).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        self.tokens += (x.elem_count() / n.max(1)) as u64;
        Ok(())
    }

    /// Mean of `y_i x_j`.
    pub fn mean(&self, i: usize, j: usize) -> f64 {
        self.sum[i * self.dims[1] + j] / self.tokens.max(1) as f64
    }

    /// Whether every entry is finite.
    pub fn is_finite(&self) -> bool {
        self.sum.iter().all(|x| x.is_finite())
    }
}

/// How far quantization upstream has moved the inputs of a linear layer: `sum of (x' - x) x^T` over tokens, where `x` is the
/// input in the quantized model and `x'` the input in the float model.
pub struct Drift(Cross);

impl Drift {
    /// Of no tokens yet.
    pub fn new(inputs: usize) -> Drift {
        Drift(Cross::new(inputs, inputs))
    }

    /// Adds tokens `[.., inputs]`, once from the float model and once from the quantized one, as [`Cross::add`] does.
    pub fn add(&mut self, float: &Tensor, x: &Tensor) -> candle_core::Result<()> {
        self.0.add(&(float - x)?, x)
    }

    /// Mean of `(x'_i - x_i) x_j`.
    pub fn mean(&self, i: usize, j: usize) -> f64 {
        self.0.mean(i, j)
    }
}

/// The tile of `left^T right` at `row`, `column`, where the two are `[tokens, widths]`. Single-threaded.
fn product([left, right]: [&[f32]; 2], widths: [usize; 2], row: usize, column: usize) -> Vec<f32> {
    let [m, n] = widths;
    let tokens = left.len() / m;
    assert_eq!(tokens, right.len() / n, "the same tokens");
    let (rows, columns) = (TILE.min(m - row), TILE.min(n - column));
    let mut tile = vec![0.0f32; rows * columns];
    if tokens == 0 {
        return tile;
    }
    debug_assert!((tokens - 1) * m + row + rows <= left.len() && (tokens - 1) * n + column + columns <= right.len());
    // SAFETY: `tile` is `[rows, columns]`, and the operands hold `tokens` rows of `m` and of `n` numbers, of which they read `rows` and
    // `columns` that lie within a row.
    unsafe {
        let (left, right) = (left.as_ptr().add(row), right.as_ptr().add(column));
        let (out, across) = (tile.as_mut_ptr(), columns as isize);
        let none = gemm::Parallelism::None;
        gemm::gemm(
            rows, columns, tokens, out, 1, across, false, left, m as isize, 1, right, 1, n as isize, 0.0, 1.0, false, false,
            false, none,
        );
    }
    tile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_moments_are_those_of_the_definition() {
        let (tokens, inputs) = (37, 2 * TILE + 5);
        let x: Vec<f32> = (0..tokens * inputs).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
        let mut hessian = Hessian::new(inputs);
        hessian.add(&Tensor::from_slice(&x, (tokens, inputs), &candle_core::Device::Cpu).unwrap()).unwrap();
        for (i, j) in [(0, 0), (5, 200), (200, 5), (TILE, TILE - 1), (inputs - 1, 3), (inputs - 1, inputs - 1)] {
            let want: f64 = (0..tokens).map(|t| f64::from(x[t * inputs + i]) * f64::from(x[t * inputs + j])).sum();
            assert!((hessian.mean(i, j) - want / tokens as f64).abs() < 1e-4, "{i}, {j}");
        }
    }

    /// `[[a, b], [b, a]]` has the eigenvalues `a + b` and `a - b`.
    #[test]
    fn damping_grows_until_second_moments_are_positive_definite() {
        let raised = |b: f64| {
            let hessian = Hessian::of_moments(2, vec![1.0, 0.0, b, 1.0]);
            hessian.factor().map(|_| hessian.raised_damping())
        };
        assert_eq!(raised(0.5).ok(), Some(None));
        assert_eq!(raised(1.05).ok(), Some(Some(DAMPING * 10.0)));
        assert_eq!(raised(1.5).ok(), Some(Some(DAMPING * 100.0)));
        assert!(matches!(raised(1e6), Err(Error::NotPositiveDefinite { inputs: 2, .. })));
    }
}
