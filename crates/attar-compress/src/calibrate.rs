//! What activations say about weights: text to windows of tokens, and statistics of what linear layers read.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use attar_graph::kernel::with_f32;
use attar_model::{Config, Tokenizer};
use candle_core::Tensor;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, quantize::Factor};

/// The text that activations are seen on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// A UTF-8 text file.
    pub path: PathBuf,
    /// Number of windows to draw from the text.
    #[serde(default = "default_samples")]
    pub samples: usize,
    /// Tokens per window.
    #[serde(default = "default_length")]
    pub length: usize,
    /// Seed for drawing the windows.
    #[serde(default)]
    pub seed: u64,
}

fn default_samples() -> usize {
    128
}

fn default_length() -> usize {
    512
}

impl Calibration {
    /// Reads and tokenizes the text, cuts it into windows and takes as many as asked for, in the order of the text.
    pub fn windows(&self, tokenizer: &Tokenizer, config: &Config) -> Result<Vec<Vec<u32>>> {
        let setting = |key, found: usize, wanted: String| Err(Error::Setting { key, found, wanted });
        if self.samples == 0 {
            return setting("samples", 0, "1 or more windows are taken".into());
        }
        let longest = config.context.unwrap_or(usize::MAX);
        if self.length == 0 || self.length > longest {
            return setting("length", self.length, format!("the model's context is {longest} tokens"));
        }
        let text = std::fs::read_to_string(&self.path).map_err(|source| attar_tensor::Error::Io {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let tokens = tokenizer.encode(&text)?;
        let windows: Vec<&[u32]> = tokens.chunks_exact(self.length).collect();
        if windows.len() < self.samples {
            return Err(Error::TextTooShort {
                path: self.path.clone(),
                tokens: tokens.len(),
                wanted: self.samples.saturating_mul(self.length),
            });
        }
        let mut order: Vec<usize> = (0..windows.len()).collect();
        shuffle(&mut order, self.seed);
        order.truncate(self.samples);
        order.sort_unstable();
        Ok(order.into_iter().map(|at| windows[at].to_vec()).collect())
    }
}

/// Fisher-Yates by SplitMix64.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for i in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(i, ((u128::from(z ^ (z >> 31)) * (i as u128 + 1)) >> 64) as usize);
    }
}

/// The second moments of what a linear layer reads: `sum of x x^T` over tokens.
#[derive(Clone)]
pub struct Hessian {
    /// `[inputs, inputs]`; the tiles above the diagonal are not filled.
    sum: Vec<f64>,
    inputs: usize,
    tokens: u64,
    /// What GPTQ makes of it, once for all weights that see the same inputs.
    factor: OnceLock<Arc<Factor>>,
}

/// Inputs along an edge of a tile. Tiles are computed apart, those above the diagonal never.
const TILE: usize = 192;

impl Hessian {
    /// Of nothing yet.
    pub fn new(inputs: usize) -> Hessian {
        Hessian { sum: vec![0.0; inputs * inputs], inputs, tokens: 0, factor: OnceLock::new() }
    }

    /// Bytes that one takes, its f32 tiles included.
    pub fn bytes(inputs: usize) -> u64 {
        12 * (inputs * inputs) as u64
    }

    /// Adds tokens `[.., inputs]`. In f32 within a call, in f64 between calls: calls are made in a fixed order.
    pub fn add(&mut self, x: &Tensor) -> candle_core::Result<()> {
        let n = self.inputs;
        let edges = n.div_ceil(TILE);
        let tiles: Vec<(usize, usize)> = (0..edges).flat_map(|i| (0..=i).map(move |j| (i, j))).collect();
        let sums: Vec<Vec<f32>> =
            with_f32(x, |x| tiles.par_iter().map(|(i, j)| product([x, x], n, i * TILE, j * TILE)).collect())?;
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

    /// The factor of its inverse, from `make` the first time.
    pub(crate) fn factor(&self, make: impl FnOnce(&Hessian) -> Result<Factor>) -> Result<Arc<Factor>> {
        if let Some(factor) = self.factor.get() {
            return Ok(factor.clone());
        }
        let factor = Arc::new(make(self)?);
        Ok(self.factor.get_or_init(|| factor).clone())
    }

    /// How many inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Mean of `x_i x_j`.
    pub fn mean(&self, i: usize, j: usize) -> f64 {
        self.sum[i.max(j) * self.inputs + i.min(j)] / self.tokens.max(1) as f64
    }

    /// How many inputs were zero whenever they were seen.
    pub fn dead(&self) -> usize {
        (0..self.inputs).filter(|j| self.mean(*j, *j) == 0.0).count()
    }

    /// The damping that its factor took, as a share of the mean of its diagonal, where the usual was not enough.
    pub fn raised_damping(&self) -> Option<f64> {
        self.factor.get().and_then(|factor| factor.raised)
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

/// How what a linear layer reads has moved: `sum of (x' - x) x^T` over tokens, where `x` is what the quantized layers
/// before make and `x'` what the float ones make.
pub struct Drift {
    /// `[inputs, inputs]`.
    sum: Vec<f64>,
    inputs: usize,
    tokens: u64,
}

impl Drift {
    /// Of nothing yet.
    pub fn new(inputs: usize) -> Drift {
        Drift { sum: vec![0.0; inputs * inputs], inputs, tokens: 0 }
    }

    /// Adds tokens `[.., inputs]` as the float layers and as the quantized layers make them. In f32 within a call, in f64
    /// between calls: calls are made in a fixed order.
    pub fn add(&mut self, float: &Tensor, x: &Tensor) -> candle_core::Result<()> {
        let n = self.inputs;
        let moved = (float - x)?;
        let edges = n.div_ceil(TILE);
        let tiles: Vec<(usize, usize)> = (0..edges * edges).map(|at| (at / edges, at % edges)).collect();
        let sums: Vec<Vec<f32>> = with_f32(&moved, |moved| {
            with_f32(x, |x| tiles.par_iter().map(|(i, j)| product([moved, x], n, i * TILE, j * TILE)).collect())
        })??;
        for ((i, j), tile) in tiles.into_iter().zip(sums) {
            let width = TILE.min(n - j * TILE);
            for (row, tile) in tile.chunks(width).enumerate() {
                let at = (i * TILE + row) * n + j * TILE;
                self.sum[at..at + width].iter_mut().zip(tile).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        self.tokens += (x.elem_count() / n) as u64;
        Ok(())
    }

    /// Mean of `(x'_i - x_i) x_j`.
    pub fn mean(&self, i: usize, j: usize) -> f64 {
        self.sum[i * self.inputs + j] / self.tokens.max(1) as f64
    }
}

/// The tile of `left^T right` at `row`, `column`, where both are `[tokens, inputs]`. On this thread.
fn product([left, right]: [&[f32]; 2], inputs: usize, row: usize, column: usize) -> Vec<f32> {
    assert_eq!(left.len(), right.len(), "the same tokens");
    let (tokens, rows, columns) = (left.len() / inputs, TILE.min(inputs - row), TILE.min(inputs - column));
    let mut tile = vec![0.0f32; rows * columns];
    if tokens == 0 {
        return tile;
    }
    let stride = inputs as isize;
    // SAFETY: `tile` is `[rows, columns]`, and both operands hold `tokens` rows of `inputs`, of which they read `rows` and
    // `columns` that lie within a row.
    unsafe {
        let (left, right) = (left.as_ptr().add(row), right.as_ptr().add(column));
        let (out, across) = (tile.as_mut_ptr(), columns as isize);
        let none = gemm::Parallelism::None;
        gemm::gemm(
            rows, columns, tokens, out, 1, across, false, left, stride, 1, right, 1, stride, 0.0, 1.0, false, false, false, none,
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
}
