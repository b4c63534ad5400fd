//! How well a model predicts a text (Jelinek et al. 1977), and how far its predictions are from those of its base.

mod documents;
pub(super) mod score;
mod windows;

use std::path::PathBuf;

use attar_model::Config;

use super::kind::{
    Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, Sides, Task, parse, schema,
};
use crate::{
    Estimate, Result, Window,
    runner::{Output, Progress},
};

pub use score::{AgainstBase, Agreement, Scores, alone, compare};
pub use windows::Perplexity;

/// Where measurements hold the mean divergence from the base, for those who compare predictions with it.
pub const DIVERGENCE: &str = "/against_base/kl_mean";

pub(super) static TASK: Task = Task {
    name: "perplexity",
    about: "how well the next token of a text is predicted, and how far the predictions are from those of the base",
    output: Output::Logits,
    timed: false,
    metrics: METRICS,
    schema: schema::<Perplexity>,
    parse: parse::<Perplexity>,
    counted: "tokens scored",
    count: "/tokens",
    parts: None,
};

static METRICS: &[Metric] = &[
    Metric {
        name: "perplexity",
        about: "exponential of the mean negative log-likelihood per token",
        unit: "",
        better: Better::Lower,
        against: Against::Nothing,
        at: "/perplexity",
        base: Some("/against_base/perplexity"),
        loss: Some(lost),
        perfect: 1.0,
        random: Some(|vocabulary| vocabulary as f64),
        column: Some(Column { head: "perplexity", digits: Digits::Fixed(3) }),
    },
    Metric {
        name: "perplexity-ratio",
        about: "perplexity divided by the baseline's",
        unit: "",
        better: Better::Lower,
        against: Against::Base,
        at: "/against_base/perplexity_ratio",
        base: None,
        loss: Some(lost),
        perfect: 1.0,
        random: Some(|vocabulary| vocabulary as f64),
        column: Some(Column { head: "ratio", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "kl",
        about: "mean KL divergence from the baseline per token, over the whole vocabulary",
        unit: "nats",
        better: Better::Lower,
        against: Against::Base,
        at: DIVERGENCE,
        base: None,
        loss: None,
        perfect: 0.0,
        random: Some(|vocabulary| (vocabulary as f64).ln()),
        column: Some(Column { head: "KL mean", digits: Digits::Fixed(5) }),
    },
    Metric {
        name: "kl-p99",
        about: "99th percentile of the KL divergence over tokens",
        unit: "nats",
        better: Better::Lower,
        against: Against::Base,
        at: "/against_base/kl_p99",
        base: None,
        loss: None,
        perfect: 0.0,
        random: Some(|vocabulary| (vocabulary as f64).ln()),
        column: Some(Column { head: "KL p99", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "top1",
        about: "share of positions at which the most likely next token is the baseline's",
        unit: "",
        better: Better::Higher,
        against: Against::Base,
        at: "/against_base/top1_agreement",
        base: None,
        loss: Some(|m| {
            let same = m.estimate("/against_base/top1_agreement")?;
            Some(Estimate { value: 1.0 - same.value, ..same })
        }),
        perfect: 1.0,
        random: Some(|vocabulary| 1.0 / vocabulary as f64),
        column: Some(Column { head: "top-1", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "agreement-perplexity",
        about: "relative difference between the engine's perplexity and the reference's on the same artifact",
        unit: "",
        better: Better::Lower,
        against: Against::Sibling,
        at: "/agreement/perplexity_gap",
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column: None,
    },
    Metric {
        name: "agreement-logits",
        about: "largest difference between a logit of the engine and of the reference, relative to the largest logit",
        unit: "",
        better: Better::Lower,
        against: Against::Sibling,
        at: "/agreement/relative",
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column: Some(Column { head: "max logit difference", digits: Digits::Exponent }),
    },
];

fn lost(measurements: &Measurements) -> Option<Estimate> {
    let ratio = measurements.estimate("/against_base/perplexity_ratio")?;
    Some(Estimate { value: ratio.value - 1.0, ..ratio })
}

impl ReadsFiles for Perplexity {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.data.clone()]
    }

    fn check(&self, config: &Config) -> Result<()> {
        Perplexity::check(self, config)
    }

    fn longest(&self) -> Option<usize> {
        Some(self.window)
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(Text(self.windows_of(language.tokenizer, language.config)?)))
    }
}

/// A text that is cut.
#[derive(Debug)]
struct Text(Vec<Window>);

impl Prepared for Text {
    fn windows(&self) -> &[Window] {
        &self.0
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        Ok(Measurements::of(&score::measure(sides, &self.0, 0..self.0.len(), progress)?))
    }

    fn perfect(&self, window: usize, position: usize, width: usize) -> Vec<f32> {
        score::certain(&self.0[window], position, width)
    }
}
