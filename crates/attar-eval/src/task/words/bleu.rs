//! BLEU (Papineni et al. 2002) of a corpus, as sacrebleu defines it by default (Post 2018).

use std::{collections::HashMap, iter::Sum, sync::LazyLock};

use regex::Regex;

use super::{matches, ngrams};

/// What sacrebleu calls these settings.
pub(in crate::task) const SIGNATURE: &str = "case:mixed|eff:no|tok:13a|smooth:exp";

/// Longest runs of words.
const ORDER: usize = 4;

/// What BLEU counts; of a corpus, the sum.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::task) struct Bleu {
    right: [usize; ORDER],
    all: [usize; ORDER],
    length: usize,
    /// Of the reference that is nearest in length.
    reference: usize,
}

impl Bleu {
    /// Of a text and its references.
    pub(in crate::task) fn of(text: &str, references: &[&str]) -> Bleu {
        let text = words(text);
        let references: Vec<Vec<String>> = references.iter().map(|reference| words(reference)).collect();
        let mut bleu = Bleu { length: text.len(), ..Bleu::default() };
        let away = |length: &usize| (length.abs_diff(text.len()), *length);
        bleu.reference = references.iter().map(Vec::len).min_by_key(away).unwrap_or(0);
        for order in 1..=ORDER {
            let own = ngrams(&text, order);
            let mut most: HashMap<&[String], usize> = HashMap::new();
            for (run, count) in references.iter().flat_map(|reference| ngrams(reference, order)) {
                let known = most.entry(run).or_default();
                *known = count.max(*known);
            }
            bleu.right[order - 1] = matches(&own, &most);
            bleu.all[order - 1] = own.values().sum();
        }
        bleu
    }

    /// From 0 to 100.
    pub(in crate::task) fn score(&self) -> f64 {
        if self.right == [0; ORDER] || self.all.contains(&0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let logarithms = self.right.iter().zip(&self.all).map(|(right, all)| match right {
            0 => {
                smoothing *= 2.0;
                (1.0 / (smoothing * *all as f64)).ln()
            }
            right => (*right as f64 / *all as f64).ln(),
        });
        let mean = logarithms.sum::<f64>() / ORDER as f64;
        let brevity = (1.0 - self.reference as f64 / self.length as f64).min(0.0);
        100.0 * (mean + brevity).exp()
    }
}

impl Sum for Bleu {
    fn sum<I: Iterator<Item = Bleu>>(all: I) -> Bleu {
        all.fold(Bleu::default(), |a, b| Bleu {
            right: std::array::from_fn(|n| a.right[n] + b.right[n]),
            all: std::array::from_fn(|n| a.all[n] + b.all[n]),
            length: a.length + b.length,
            reference: a.reference + b.reference,
        })
    }
}

/// The words of a text by the rules of mteval-v13a: punctuation stands alone, but not within numbers.
fn words(text: &str) -> Vec<String> {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let rule = |pattern| Regex::new(pattern).expect("a constant that the tests use");
        [
            (rule(r"([\{-~\[-` -&\(-\+:-@/])"), " $1 "),
            (rule(r"([^0-9])([\.,])"), "$1 $2 "),
            (rule(r"([\.,])([^0-9])"), " $1 $2"),
            (rule(r"([0-9])(-)"), "$1 $2 "),
        ]
    });
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, character);
    }
    let text = RULES.iter().fold(format!(" {text} "), |text, (rule, to)| rule.replace_all(&text, *to).into_owned());
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_stands_alone_but_not_within_numbers() {
        let expected = ["It", "'s", "1,234.5", ",", "a", "&", "b", "(", "3", "-", "4", ")", "."];
        assert_eq!(words("It 's 1,234.5, a &amp; b (3-4)."), expected);
    }
}
