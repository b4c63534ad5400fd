//! How near texts are to others: BLEU, chrF and ROUGE, with the numbers of sacrebleu 2 and rouge-score 0.1.

mod bleu;
mod chrf;
mod rouge;

use std::{collections::HashMap, hash::Hash};

pub(super) use bleu::{Bleu, SIGNATURE as BLEU};
pub(super) use chrf::{Chrf, SIGNATURE as CHRF};
pub(super) use rouge::Rouge;

/// How often each run of `n` items occurs.
fn ngrams<T: Hash + Eq>(items: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    items.windows(n).for_each(|run| *counts.entry(run).or_default() += 1);
    counts
}

/// Runs that two counts have in common, each as often as both have it.
fn matches<T: Hash + Eq>(a: &HashMap<&[T], usize>, b: &HashMap<&[T], usize>) -> usize {
    a.iter().map(|(run, count)| *count.min(b.get(run).unwrap_or(&0))).sum()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Corpus {
        name: String,
        hypotheses: Vec<String>,
        /// By reference, then by text.
        references: Vec<Vec<String>>,
        bleu: f64,
        chrf: f64,
        rouge: Option<[f64; 3]>,
    }

    /// `testdata/oracle/words.py` asked sacrebleu and rouge-score.
    #[test]
    fn scores_are_those_of_sacrebleu_and_rouge_score() {
        let text = include_str!("../../../../../testdata/oracle/words.json");
        let corpora: Vec<Corpus> = serde_json::from_str(text).expect("the script wrote it");
        assert!(corpora.len() > 10);
        for corpus in &corpora {
            let references = |at: usize| corpus.references.iter().map(|all| all[at].as_str()).collect::<Vec<&str>>();
            let pairs = || corpus.hypotheses.iter().enumerate().map(|(at, text)| (text.as_str(), references(at)));
            let bleu: Bleu = pairs().map(|(text, references)| Bleu::of(text, &references)).sum();
            let chrf: Chrf = pairs().map(|(text, references)| Chrf::of(text, &references)).sum();
            assert!(
                (bleu.score() - corpus.bleu).abs() < 1e-9,
                "{}: BLEU {}, expected {}",
                corpus.name,
                bleu.score(),
                corpus.bleu
            );
            assert!(
                (chrf.score() - corpus.chrf).abs() < 1e-9,
                "{}: chrF {}, expected {}",
                corpus.name,
                chrf.score(),
                corpus.chrf
            );
            let Some(expected) = corpus.rouge else { continue };
            let all: Vec<Rouge> = pairs().map(|(text, references)| Rouge::of(text, &references)).collect();
            let mean = |of: fn(&Rouge) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            for (found, expected) in [mean(|r| r.one), mean(|r| r.two), mean(|r| r.longest)].iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9, "{}: ROUGE {found}, expected {expected}", corpus.name);
            }
        }
    }
}
