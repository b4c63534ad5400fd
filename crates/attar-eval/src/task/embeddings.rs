//! Embeddings, by all that a user of them sees: how pairs are ranked, how far vectors are from the base's, and whether neighbours stay.

use std::path::PathBuf;

use attar_model::Config;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    embedding::{self, AGREEMENT, Agreement, Embedded},
    embedding_drift::{DRIFT, DRIFT_P99, distances},
    kind::{
        Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, Sides, Task, parse, read, schema,
    },
    sts::{self, SPEARMAN},
};
use crate::{
    Error, Estimate, Result, Window,
    runner::{Output, Progress},
};

pub(super) static TASK: Task = Task {
    name: "embedding",
    about: "sentence embeddings: how they rank pairs, how far they are from the base's, and whether neighbours stay",
    output: Output::Embedding,
    timed: false,
    metrics: METRICS,
    schema: schema::<Embeddings>,
    parse: parse::<Embeddings>,
    counted: "texts embedded",
    count: "/texts",
    parts: None,
};

static METRICS: &[Metric] = &[
    Metric {
        about: "Spearman rank correlation between cosine similarities and human scores, where the data has those",
        ..SPEARMAN
    },
    // Vectors of pairs that are perfect lie in a plane, and random ones are not at right angles to those.
    Metric { random: None, ..DRIFT },
    Metric { about: "99th percentile over texts of the cosine distance between an embedding and the baseline's", ..DRIFT_P99 },
    Metric {
        name: "recall",
        about: "share of a text's `neighbours` nearest texts by the baseline that are nearest by the model, too",
        unit: "",
        better: Better::Higher,
        against: Against::Base,
        at: "/against_base/recall",
        base: None,
        loss: None,
        perfect: 1.0,
        random: None,
        column: Some(Column { head: "recall", digits: Digits::Fixed(4) }),
    },
    AGREEMENT,
];

/// Texts to embed: lines, or pairs of sentences with a score each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Embeddings {
    /// Pairs of sentences as lines of score, sentence and sentence, separated by tabs (`.tsv`) or commas (`.csv`); or a text, of which each line
    /// is embedded.
    pub data: PathBuf,
    /// Use only this many pairs or lines, from the start of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Tokens of a text at most, special ones included; longer texts are cut. Without it, what the tokenizer's file says, or the model's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Nearest texts that `recall` looks at.
    #[serde(default = "neighbours")]
    pub neighbours: usize,
}

const fn neighbours() -> usize {
    10
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scores {
    texts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spearman: Option<Estimate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against_base: Option<AgainstBase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct AgainstBase {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spearman: Option<Estimate>,
    cosine_mean: Estimate,
    drift_mean: Estimate,
    drift_p99: Estimate,
    recall: Estimate,
}

impl ReadsFiles for Embeddings {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.data.clone()]
    }

    fn check(&self, config: &Config) -> Result<()> {
        if let Some(found @ 0..2) = self.lines {
            return Err(Error::Setting { key: "lines", found, wanted: "expected 2 or more, to have neighbours".into() });
        }
        if self.neighbours == 0 {
            return Err(Error::Setting { key: "neighbours", found: 0, wanted: "expected 1 or more".into() });
        }
        embedding::check(self.window, config)
    }

    fn longest(&self) -> Option<usize> {
        self.window
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        ReadsFiles::check(self, language.config)?;
        let pairs = self.data.extension().is_some_and(|extension| extension == "tsv" || extension == "csv");
        let (texts, judged): (Vec<String>, Vec<f64>) = match pairs {
            true => {
                let pairs = sts::pairs(&self.data, self.lines)?;
                let judged = pairs.iter().map(|(score, _)| *score).collect();
                (pairs.into_iter().flat_map(|(_, pair)| pair).collect(), judged)
            }
            false => {
                let text = read(&self.data)?;
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                (lines.take(self.lines.unwrap_or(usize::MAX)).map(str::to_owned).collect(), Vec::new())
            }
        };
        if texts.len() < 2 {
            return Err(Error::FewRecords { path: self.data.clone(), found: texts.len(), wanted: 2 });
        }
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let windows = embedding::windows(language, &texts, self.window)?;
        Ok(Box::new(Texts { windows, judged, neighbours: self.neighbours.min(texts.len() - 1) }))
    }
}

/// Of pairs, windows `2 i` and `2 i + 1` are the sentences of pair `i`.
#[derive(Debug)]
struct Texts {
    windows: Vec<Window>,
    /// Of pairs; empty for lines.
    judged: Vec<f64>,
    neighbours: usize,
}

impl Prepared for Texts {
    fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn key(&self) -> Vec<u8> {
        let judged = self.judged.iter().flat_map(|score| score.to_le_bytes());
        judged.chain((self.neighbours as u64).to_le_bytes()).collect()
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        let Embedded { model, base, agreement } = Embedded::of(sides, self.windows.len(), progress)?;
        base.iter().try_for_each(|base| embedding::same_width(&model, base))?;
        let spearman = |of: &[Vec<f32>]| (!self.judged.is_empty()).then(|| sts::ranked(&self.judged, of));
        let against_base = base.map(|base| {
            let [drift_mean, drift_p99] = distances(&model, &base);
            AgainstBase {
                spearman: spearman(&base),
                cosine_mean: Estimate { value: 1.0 - drift_mean.value, ..drift_mean },
                drift_mean,
                drift_p99,
                recall: recall(&model, &base, self.neighbours),
            }
        });
        Ok(Measurements::of(&Scores { texts: self.windows.len() as u64, spearman: spearman(&model), against_base, agreement }))
    }

    fn perfect(&self, window: usize, _: usize, width: usize) -> Vec<f32> {
        match self.judged.is_empty() {
            true => (0..width).map(|at| (window + at) as f32 + 1.0).collect(),
            false => sts::perfect(&self.judged, window, width),
        }
    }
}

/// The mean share of the nearest texts that are the same.
fn recall(model: &[Vec<f32>], base: &[Vec<f32>], neighbours: usize) -> Estimate {
    let shares = (0..model.len()).into_par_iter().map(|at| {
        let (own, other) = (nearest(model, at, neighbours), nearest(base, at, neighbours));
        vec![own.iter().filter(|text| other.contains(text)).count() as f64 / neighbours as f64]
    });
    Estimate::mean(&shares.collect::<Vec<_>>())
}

/// The texts that are nearest to one, of equals the first.
fn nearest(embeddings: &[Vec<f32>], at: usize, count: usize) -> Vec<usize> {
    let others = (0..embeddings.len()).filter(|other| *other != at);
    let mut all: Vec<(f64, usize)> =
        others.map(|other| (embedding::cosine(&embeddings[at], &embeddings[other]), other)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    all.into_iter().take(count).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_stay_are_counted() {
        let at = |angle: f32| vec![angle.cos(), angle.sin()];
        let base: Vec<Vec<f32>> = [0.0, 0.1, 0.5, 0.7].map(at).to_vec();
        let moved: Vec<Vec<f32>> = [0.0, 0.4, 0.5, 0.7].map(at).to_vec();
        assert_eq!(nearest(&base, 0, 2), [1, 2]);
        assert_eq!(recall(&base, &base, 1).value, 1.0);
        // Of the second, the nearest was the first and is now the third.
        assert_eq!(recall(&moved, &base, 1).value, 0.5);
    }
}
