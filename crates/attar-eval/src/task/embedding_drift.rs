//! How far the embeddings of a model are from those of its base: one minus their cosine, over the lines of a text.

use std::path::PathBuf;

use attar_model::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    embedding::{self, AGREEMENT, Agreement, Embedded},
    kind::{
        Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, Sides, Task, parse, read, schema,
    },
};
use crate::{
    Error, Estimate, Result, Window,
    runner::{Output, Progress},
};

pub(super) static TASK: Task = Task {
    name: "embedding-drift",
    about: "how far embeddings are from those of the base: one minus their cosine",
    output: Output::Embedding,
    timed: false,
    metrics: METRICS,
    schema: schema::<EmbeddingDrift>,
    parse: parse::<EmbeddingDrift>,
    counted: "lines embedded",
    count: "/lines",
    parts: None,
};

/// The mean distance, where the scores hold it as `against_base/drift_mean`.
pub(super) const DRIFT: Metric = Metric {
    name: "drift",
    about: "mean cosine distance between an embedding and the baseline's",
    unit: "",
    better: Better::Lower,
    against: Against::Base,
    at: "/against_base/drift_mean",
    base: None,
    loss: None,
    perfect: 0.0,
    random: Some(|_| 1.0),
    column: Some(Column { head: "drift mean", digits: Digits::Fixed(5) }),
};

/// Its 99th percentile, as `against_base/drift_p99`.
pub(super) const DRIFT_P99: Metric = Metric {
    name: "drift-p99",
    about: "99th percentile over lines of the cosine distance between an embedding and the baseline's",
    unit: "",
    better: Better::Lower,
    against: Against::Base,
    at: "/against_base/drift_p99",
    base: None,
    loss: None,
    perfect: 0.0,
    random: None,
    column: Some(Column { head: "drift p99", digits: Digits::Fixed(5) }),
};

static METRICS: &[Metric] = &[DRIFT, DRIFT_P99, AGREEMENT];

/// A text, of which each line is embedded. Scores need the model that the measured one was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbeddingDrift {
    /// The text, in UTF-8. Empty lines are left out.
    pub data: PathBuf,
    /// Use only this many lines, from the start of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Tokens of a line at most, special ones included; longer lines are cut. Without it, what the tokenizer's
    /// file says, or the model's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scores {
    lines: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against_base: Option<AgainstBase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct AgainstBase {
    drift_mean: Estimate,
    drift_p99: Estimate,
}

impl ReadsFiles for EmbeddingDrift {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.data.clone()]
    }

    fn check(&self, config: &Config) -> Result<()> {
        if self.lines == Some(0) {
            return Err(Error::Setting { key: "lines", found: 0, wanted: "expected 1 or more".into() });
        }
        embedding::check(self.window, config)
    }

    fn longest(&self) -> Option<usize> {
        self.window
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        self.check(language.config)?;
        let text = read(&self.data)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(self.lines.unwrap_or(usize::MAX));
        let lines: Vec<&str> = lines.collect();
        if lines.is_empty() {
            return Err(Error::NoText { path: self.data.clone() });
        }
        Ok(Box::new(Lines(embedding::windows(language, &lines, self.window)?)))
    }
}

/// A window per line.
#[derive(Debug)]
struct Lines(Vec<Window>);

impl Prepared for Lines {
    fn windows(&self) -> &[Window] {
        &self.0
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        let Embedded { model, base, agreement } = Embedded::of(sides, self.0.len(), progress)?;
        base.iter().try_for_each(|base| embedding::same_width(&model, base))?;
        Ok(Measurements::of(&Scores {
            lines: self.0.len() as u64,
            against_base: base.map(|base| against(&model, &base)),
            agreement,
        }))
    }

    /// Any vector will do, as long as the base gives the same.
    fn perfect(&self, window: usize, _: usize, width: usize) -> Vec<f32> {
        (0..width).map(|at| (window + at) as f32 + 1.0).collect()
    }
}

/// The mean and the 99th percentile of the distances of embeddings.
pub(super) fn distances(model: &[Vec<f32>], base: &[Vec<f32>]) -> [Estimate; 2] {
    let AgainstBase { drift_mean, drift_p99 } = against(model, base);
    [drift_mean, drift_p99]
}

fn against(model: &[Vec<f32>], base: &[Vec<f32>]) -> AgainstBase {
    // Lines are independent of each other, so each is a cluster of its own. Rounding may take a distance below zero.
    let distance = |(model, base): (&Vec<f32>, &Vec<f32>)| vec![1.0 - embedding::cosine(model, base).min(1.0)];
    let drifts: Vec<Vec<f64>> = model.iter().zip(base).map(distance).collect();
    AgainstBase { drift_mean: Estimate::mean(&drifts), drift_p99: Estimate::percentile(&drifts, 0.99) }
}
