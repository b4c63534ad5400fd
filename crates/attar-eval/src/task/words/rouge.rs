//! ROUGE (Lin 2004): F-measures of words, pairs of words and the longest common sequence, as rouge-score defines them without stemming.

use super::{matches, ngrams};

/// F-measures of a text, from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::task) struct Rouge {
    pub(in crate::task) one: f64,
    pub(in crate::task) two: f64,
    pub(in crate::task) longest: f64,
}

impl Rouge {
    /// Of a text and its references: the largest of each.
    pub(in crate::task) fn of(text: &str, references: &[&str]) -> Rouge {
        let text = words(text);
        let against = |reference: &&str| {
            let reference = words(reference);
            let runs = |n: usize| {
                let (own, other) = (ngrams(&text, n), ngrams(&reference, n));
                measure(matches(&own, &other), own.values().sum(), other.values().sum())
            };
            let longest = measure(common(&text, &reference), text.len(), reference.len());
            Rouge { one: runs(1), two: runs(2), longest }
        };
        let larger =
            |a: Rouge, b: Rouge| Rouge { one: a.one.max(b.one), two: a.two.max(b.two), longest: a.longest.max(b.longest) };
        references.iter().map(against).reduce(larger).unwrap_or_default()
    }
}

fn measure(both: usize, own: usize, other: usize) -> f64 {
    if both == 0 { 0.0 } else { 2.0 * both as f64 / (own + other) as f64 }
}

/// Letters a to z and digits; all else separates words.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The length of the longest common subsequence.
fn common(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
