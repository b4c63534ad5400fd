//! What runs a model: the reference, or a real engine on a written artifact.

use std::ops::Range;

use crate::{Result, Window};

/// Called as work goes on: so much is done, of so much.
pub type Progress<'p> = &'p dyn Fn(u64, u64);

/// Something that can run one model.
pub trait Runner {
    /// As gates name it.
    fn name(&self) -> &str;

    /// Makes ready to give the logits of windows. Work is done here or when rows are asked for; `progress` hears of it.
    fn start<'r>(&'r self, windows: &'r [Window], progress: Progress<'r>) -> Result<Box<dyn Logits + 'r>>;

    /// The likeliest continuation of `prompt`, token by token, until one of `stop` or `limit` tokens. Each token, the
    /// one that stops included, is given to `each` as soon as it is known, and returned.
    fn generate(&self, prompt: &[u32], limit: usize, stop: &[u32], each: &mut dyn FnMut(u32)) -> Result<Vec<u32>>;
}

/// The logits of windows, a few rows at a time.
pub trait Logits {
    /// Makes `out` the logits `[positions, vocabulary]` of a window and returns the vocabulary. Cheapest when windows
    /// are asked for in order.
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize>;
}

/// The index of the largest logit, the first of equals.
pub(crate) fn likeliest(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as u32
}
