//! chrF (Popović 2015) of a corpus, as sacrebleu defines it by default: runs of up to six characters, recall counts double.

use std::iter::Sum;

use super::{matches, ngrams};

/// What sacrebleu calls these settings.
pub(in crate::task) const SIGNATURE: &str = "case:mixed|eff:yes|nc:6|nw:0|space:no";

/// Longest runs of characters.
const ORDER: usize = 6;

/// How much more recall counts than precision, squared.
const BETA: f64 = 4.0;

/// What chrF counts; of a corpus, the sum.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::task) struct Chrf {
    /// Of each order: runs of the text, of the reference, and of both.
    counts: [[usize; 3]; ORDER],
}

impl Chrf {
    /// Of a text and that of its references which is nearest.
    pub(in crate::task) fn of(text: &str, references: &[&str]) -> Chrf {
        let characters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
        let text = characters(text);
        let against = |reference: &&str| {
            let reference = characters(reference);
            let count = |order: usize| {
                let (own, other) = (ngrams(&text, order), ngrams(&reference, order));
                let all = if other.is_empty() { 0 } else { own.values().sum() };
                [all, other.values().sum(), matches(&own, &other)]
            };
            Chrf { counts: std::array::from_fn(|n| count(n + 1)) }
        };
        // Of equals the first.
        let nearer = |a: Chrf, b: Chrf| if b.score() > a.score() { b } else { a };
        references.iter().map(against).reduce(nearer).unwrap_or_default()
    }

    /// From 0 to 100.
    pub(in crate::task) fn score(&self) -> f64 {
        let orders: Vec<[f64; 3]> = self.counts.iter().filter(|c| c[0] > 0 && c[1] > 0).map(|c| c.map(|n| n as f64)).collect();
        let mean = |at: usize| orders.iter().map(|c| c[2] / c[at]).sum::<f64>() / orders.len().max(1) as f64;
        let (precision, recall) = (mean(0), mean(1));
        if precision + recall == 0.0 { 0.0 } else { 100.0 * (1.0 + BETA) * precision * recall / (BETA * precision + recall) }
    }
}

impl Sum for Chrf {
    fn sum<I: Iterator<Item = Chrf>>(all: I) -> Chrf {
        all.fold(Chrf::default(), |a, b| Chrf {
            counts: std::array::from_fn(|n| std::array::from_fn(|i| a.counts[n][i] + b.counts[n][i])),
        })
    }
}
