//! The range with the least squared error between values and what their codes mean, of those that shrink what was seen
//! towards zero by equal ratios.

use super::{Codes, Distribution, Observer};

/// Ranges tried, and each as a share of the one before: down to a tenth.
const CANDIDATES: i32 = 64;
const RATIO: f32 = 0.965;

pub(super) struct Mse;

impl Observer for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn version(&self) -> u32 {
        1
    }

    fn range(&self, seen: &Distribution, codes: Codes, _: f64) -> [f32; 2] {
        let bounds = seen.bounds();
        let (mut best, mut least) = (bounds, f64::INFINITY);
        let mut rounded = vec![0.0; seen.values().len()];
        for candidate in 0..CANDIDATES {
            let range = bounds.map(|bound| bound * RATIO.powi(candidate));
            codes.rounding(range).round(seen.values(), rounded.len(), &mut rounded);
            let pairs = seen.values().iter().zip(&rounded).zip(seen.counts());
            let error: f64 = pairs.map(|((x, q), count)| f64::from(x - q).powi(2) * *count as f64).sum();
            if error < least {
                (best, least) = (range, error);
            }
        }
        best
    }

    fn default_number(&self) -> Option<f64> {
        None
    }
}
