//! What can be measured, by the names that gates and reports use.

use attar_tensor::nearest;

use crate::{Error, Measurements, Result};

/// A way to measure a model.
pub struct Task {
    /// As `kind` in a recipe.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The metrics that it measures.
    pub metrics: &'static [Metric],
}

/// One number of [`Measurements`].
pub struct Metric {
    /// As gates name it.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Its unit; empty for plain numbers.
    pub unit: &'static str,
    /// Which direction is better.
    pub better: Better,
    /// The measured value, if there is one.
    pub value: fn(&Measurements) -> Option<f64>,
    /// Relative loss against the baseline, for metrics that have one.
    pub loss: Option<fn(&Measurements) -> Option<f64>>,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The smaller.
    Lower,
    /// The larger.
    Higher,
}

/// Every task, in the order of the documentation.
pub static TASKS: &[&Task] = &[&PERPLEXITY];

static PERPLEXITY: Task =
    Task { name: "perplexity", about: "perplexity of a text, and how far predictions are from the baseline's", metrics: METRICS };

/// Every metric, in the order of the documentation.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "perplexity",
        about: "exponential of the mean negative log-likelihood per token",
        unit: "",
        better: Better::Lower,
        value: |m| Some(m.perplexity.value),
        loss: Some(perplexity_loss),
    },
    Metric {
        name: "perplexity-ratio",
        about: "perplexity divided by the baseline's",
        unit: "",
        better: Better::Lower,
        value: |m| m.against_base.as_ref().map(|b| b.perplexity_ratio.value),
        loss: Some(perplexity_loss),
    },
    Metric {
        name: "kl",
        about: "mean KL divergence from the baseline per token, over the whole vocabulary",
        unit: "nats",
        better: Better::Lower,
        value: |m| m.against_base.as_ref().map(|b| b.kl_mean.value),
        loss: None,
    },
    Metric {
        name: "kl-p99",
        about: "99th percentile of the KL divergence over tokens",
        unit: "nats",
        better: Better::Lower,
        value: |m| m.against_base.as_ref().map(|b| b.kl_p99.value),
        loss: None,
    },
    Metric {
        name: "top1",
        about: "share of positions at which the most likely next token is the baseline's",
        unit: "",
        better: Better::Higher,
        value: |m| m.against_base.as_ref().map(|b| b.top1_agreement.value),
        loss: Some(|m| m.against_base.as_ref().map(|b| 1.0 - b.top1_agreement.value)),
    },
    Metric {
        name: "agreement-perplexity",
        about: "relative difference between the engine's perplexity and the reference's on the same artifact",
        unit: "",
        better: Better::Lower,
        value: |m| m.agreement.as_ref().map(|a| a.perplexity_gap),
        loss: None,
    },
    Metric {
        name: "agreement-logits",
        about: "largest difference between a logit of the engine and of the reference, relative to the largest logit",
        unit: "",
        better: Better::Lower,
        value: |m| m.agreement.as_ref().map(|a| a.relative),
        loss: None,
    },
];

fn perplexity_loss(measurements: &Measurements) -> Option<f64> {
    measurements.against_base.as_ref().map(|b| b.perplexity_ratio.value - 1.0)
}

/// The metric of that name.
pub fn metric(name: &str) -> Result<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name).ok_or_else(|| Error::UnknownMetric {
        found: name.into(),
        nearest: nearest(name, METRICS.iter().map(|metric| metric.name)).map(Into::into),
        known: METRICS.iter().map(|metric| metric.name).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_kebab_case() {
        let names: std::collections::BTreeSet<&str> = METRICS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METRICS.len());
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')));
    }

    #[test]
    fn an_unknown_metric_is_answered_with_the_nearest_one() {
        let error = metric("perplexty").err().unwrap();
        assert!(error.hint().unwrap().starts_with("did you mean `perplexity`?"));
    }
}
