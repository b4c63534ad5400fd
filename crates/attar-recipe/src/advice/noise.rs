//! The noise of a variant, by its parts.

use std::collections::BTreeMap;

use attar_compress::kind;
use attar_tensor::{GRIDS, Grid};

use crate::VariantReport;

/// Weights of one kind, such as `blocks.*.mlp.down`.
#[derive(Clone)]
pub(super) struct Kind {
    /// A pattern that all of them match.
    pub(super) pattern: String,
    /// One of them.
    pub(super) example: String,
    pub(super) weights: f64,
    /// The grid of most of them.
    pub(super) grid: &'static dyn Grid,
    /// What they lose.
    pub(super) noise: f64,
}

/// What a variant loses by rounding. Only the proportions of its parts mean something.
pub(super) struct Noise {
    pub(super) kinds: Vec<Kind>,
    /// Of activations in 8 bits.
    pub(super) activations: f64,
    /// Of caches of keys and values.
    pub(super) cache: f64,
    /// Of weights that are not looked at.
    pub(super) others: f64,
}

impl Noise {
    /// What the report of a variant knows: what a budget predicted, or else the error of each weight as a share of its energy, and of each activation likewise.
    pub(super) fn of(variant: &VariantReport) -> Noise {
        let predicted: BTreeMap<&str, f64> = variant
            .findings
            .allocations
            .iter()
            .flat_map(|allocation| &allocation.choices)
            .map(|choice| (choice.name.as_str(), choice.predicted))
            .collect();
        let share = |snr_db: f64| 10f64.powf(-snr_db / 10.0);
        let mut kinds: BTreeMap<(String, &'static str), Kind> = BTreeMap::new();
        for tensor in &variant.tensors {
            let name = tensor.encoding.split('/').next().unwrap_or_default();
            let Some(grid) = GRIDS.iter().copied().find(|grid| grid.name() == name) else { continue };
            let noise = predicted.get(tensor.name.as_str()).copied().or(tensor.snr_db.map(share)).unwrap_or(0.0);
            let (pattern, weights) = (kind(&tensor.name), tensor.dims.iter().product::<usize>() as f64);
            let entry = kinds.entry((pattern.clone(), grid.name()));
            let found = entry.or_insert_with(|| Kind { pattern, example: tensor.name.clone(), weights: 0.0, grid, noise: 0.0 });
            found.weights += weights;
            found.noise += noise;
        }
        // A budget's predictions are in another unit than shares of energy.
        let comparable = predicted.is_empty();
        let (mut activations, mut cache) = (0.0, 0.0);
        for activation in variant.findings.activations.iter().filter(|_| comparable) {
            let noise = activation.snr_db.map_or(0.0, |snr| share(snr) * activation.feeds.len() as f64);
            match activation.feeds.iter().any(|feed| feed.starts_with("cache of")) {
                true => cache += noise,
                false if activation.encoding.starts_with("int8") => activations += noise,
                false => {}
            }
        }
        Noise { kinds: kinds.into_values().collect(), activations, cache, others: 0.0 }
    }

    /// Looks at some kinds of weights only; what the others lose stays.
    pub(super) fn restrict(&mut self, own: &dyn Fn(&Kind) -> bool) {
        let (kept, others): (Vec<Kind>, Vec<Kind>) = std::mem::take(&mut self.kinds).into_iter().partition(own);
        self.kinds = kept;
        self.others += others.iter().map(|kind| kind.noise).sum::<f64>();
    }

    pub(super) fn total(&self) -> f64 {
        self.kinds.iter().map(|kind| kind.noise).sum::<f64>() + self.others + self.activations + self.cache
    }

    /// The share that weights have.
    pub(super) fn of_weights(&self) -> f64 {
        1.0 - (self.others + self.activations + self.cache) / self.total()
    }
}

/// The integers with the fewest bits that are more than those of a grid.
pub(super) fn finer(grid: &dyn Grid) -> Option<&'static dyn Grid> {
    let integers = GRIDS.iter().copied().filter(|other| other.name().starts_with("int") && other.bits() > grid.bits());
    integers.min_by_key(|other| other.bits())
}

/// What is left of the noise of weights in a finer grid: every bit halves the step.
pub(super) fn refined(from: &dyn Grid, to: &dyn Grid) -> f64 {
    0.25f64.powi(to.bits() as i32 - from.bits() as i32)
}

/// What is left of the noise of weights whose groups become smaller: a scale follows the largest of its group, whose square grows by about as much
/// with every doubling of normal numbers.
pub(super) fn regrouped(from: usize, to: usize) -> f64 {
    let largest = |group: usize| 4.3 + 1.24 * ((group as f64).log2() - 4.0);
    largest(to) / largest(from)
}
