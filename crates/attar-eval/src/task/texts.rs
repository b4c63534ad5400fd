//! How well a model predicts several texts, each by itself: the mean over the texts, and the one that suffers most.
//!
//! A model that was calibrated on one kind of text can be close to its base there and far from it elsewhere. The mean gives each text the same weight,
//! whatever its length.

use std::path::{Path, PathBuf};

use attar_model::{Config, dialogue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    kind::{Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, Sides, Task, parse, schema},
    perplexity::{
        Agreement, Perplexity, Scores,
        score::{self, certain},
    },
    record::{self, Record},
};
use crate::{
    Error, Estimate, Result, Window,
    runner::{Output, Progress},
};

pub(super) static TASK: Task = Task {
    name: "texts",
    about: "how well the next tokens of several texts are predicted: the mean over the texts, and the worst of them",
    output: Output::Logits,
    timed: false,
    metrics: METRICS,
    schema: schema::<Texts>,
    parse: parse::<Texts>,
    counted: "tokens scored",
    count: "/tokens",
    parts: Some("/texts"),
};

/// A metric of which less is better.
const fn metric(name: &'static str, about: &'static str, against: Against, at: &'static str, column: Option<Column>) -> Metric {
    Metric {
        name,
        about,
        unit: "",
        better: Better::Lower,
        against,
        at,
        base: None,
        loss: None,
        perfect: 1.0,
        random: None,
        column,
    }
}

const fn column(head: &'static str, digits: usize) -> Option<Column> {
    Some(Column { head, digits: Digits::Fixed(digits) })
}

static METRICS: &[Metric] = &[
    Metric {
        base: Some("/against_base/perplexity"),
        loss: Some(lost),
        random: Some(|vocabulary| vocabulary as f64),
        ..metric(
            "perplexity",
            "geometric mean of the texts' perplexities",
            Against::Nothing,
            "/perplexity",
            column("perplexity", 3),
        )
    },
    Metric {
        loss: Some(lost),
        random: Some(|vocabulary| vocabulary as f64),
        ..metric(
            "perplexity-ratio",
            "geometric mean of the texts' perplexities divided by the baseline's",
            Against::Base,
            "/against_base/perplexity_ratio",
            column("ratio", 4),
        )
    },
    Metric {
        random: Some(|vocabulary| vocabulary as f64),
        ..metric(
            "perplexity-ratio-worst",
            "the largest of the texts' perplexities divided by the baseline's",
            Against::Base,
            "/worst/perplexity_ratio",
            column("worst ratio", 4),
        )
    },
    Metric {
        unit: "nats",
        perfect: 0.0,
        random: Some(|vocabulary| (vocabulary as f64).ln()),
        ..metric(
            "kl",
            "mean over the texts of the mean KL divergence from the baseline per token",
            Against::Base,
            "/against_base/kl_mean",
            column("KL mean", 5),
        )
    },
    Metric {
        unit: "nats",
        perfect: 0.0,
        random: Some(|vocabulary| (vocabulary as f64).ln()),
        ..metric(
            "kl-worst",
            "the largest of the texts' mean KL divergences from the baseline per token",
            Against::Base,
            "/worst/kl_mean",
            column("worst KL", 5),
        )
    },
    Metric {
        better: Better::Higher,
        loss: Some(|m| {
            let same = m.estimate("/against_base/top1_agreement")?;
            Some(Estimate { value: 1.0 - same.value, ..same })
        }),
        random: Some(|vocabulary| 1.0 / vocabulary as f64),
        ..metric(
            "top1",
            "mean over the texts of the share of positions at which the most likely next token is the baseline's",
            Against::Base,
            "/against_base/top1_agreement",
            column("top-1", 4),
        )
    },
    Metric {
        perfect: 0.0,
        ..metric(
            "agreement-perplexity",
            "largest relative difference between the engine's perplexity of a text and the reference's on the same artifact",
            Against::Sibling,
            "/agreement/perplexity_gap",
            None,
        )
    },
    Metric {
        perfect: 0.0,
        ..metric(
            "agreement-logits",
            "largest difference between a logit of the engine and of the reference, relative to the largest logit",
            Against::Sibling,
            "/agreement/relative",
            Some(Column { head: "max logit difference", digits: Digits::Exponent }),
        )
    },
];

fn lost(measurements: &Measurements) -> Option<Estimate> {
    let ratio = measurements.estimate("/against_base/perplexity_ratio")?;
    Some(Estimate { value: ratio.value - 1.0, ..ratio })
}

/// How the texts that ship with attar are named in settings.
const SHIPPED: &str = "attar:";

/// Texts that ship with attar: none of them has thirteen words in a row with the calibration mixture.
const TEXTS: [(&str, &str); 5] = [
    ("attar:prose", include_str!("../../../../evals/domains/prose.txt")),
    ("attar:dialogue", include_str!("../../../../evals/domains/dialogue.txt")),
    ("attar:code", include_str!("../../../../evals/domains/code.txt")),
    ("attar:chat", include_str!("../../../../evals/domains/chat.jsonl")),
    ("attar:german", include_str!("../../../../evals/domains/german.txt")),
];

/// The texts that ship with attar and are plain text.
pub fn shipped_texts() -> impl Iterator<Item = &'static str> {
    TEXTS.iter().filter(|(name, _)| *name != "attar:chat").map(|(_, text)| *text)
}

/// Several texts, cut into windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Texts {
    /// The texts, each with a `name` and a `path`.
    pub(super) texts: Vec<Named>,
    /// Tokens per window, BOS included [default: 512, or the model's context where that is shorter].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<usize>,
    /// Use only this many tokens of each text, from its start; BOS is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    /// Start every window with the model's BOS token.
    #[serde(default)]
    bos: bool,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct Named {
    /// What tables and measurements call it.
    name: String,
    /// A UTF-8 text file; with `field` or `messages` a file of JSON objects, each of which is a document; or a text that ships with attar:
    /// `attar:prose`, `attar:dialogue`, `attar:code`, `attar:chat` or `attar:german`.
    path: PathBuf,
    /// Which text of each JSON object to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// Which dialogue of each JSON object to take; the model's own chat template makes texts of them, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages: Option<String>,
    /// The text that separates the documents of a text file. No window holds two documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<String>,
}

/// Tokens per window where settings do not say it.
const WINDOW: usize = 512;

impl Named {
    /// Its text, if it ships with attar.
    fn shipped(&self) -> Option<&'static str> {
        let path = self.path.to_str()?;
        TEXTS.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
    }

    fn check(&self) -> Result<()> {
        let refused = |found: String, wanted: &str| Err(Error::Text { name: self.name.clone(), found, wanted: wanted.into() });
        let path = self.path.display().to_string();
        if ships(&self.path) && self.shipped().is_none() {
            let known: Vec<&str> = TEXTS.iter().map(|(name, _)| *name).collect();
            return refused(format!("`{path}` does not ship with attar"), &format!("those that do are {}", known.join(", ")));
        }
        match (&self.field, &self.messages, &self.split) {
            (Some(_), Some(_), _) => {
                refused("it has `field` and `messages`".into(), "a line is one text or one dialogue: leave one of them out")
            }
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                refused("it has `split`".into(), "every JSON object is a document of its own: leave it out")
            }
            _ => Ok(()),
        }
    }

    /// The text of a record.
    fn text(&self, record: &Record, language: &Language<'_>) -> Result<String> {
        let key = self.field.as_ref().or(self.messages.as_ref()).expect("only asked for then");
        let value = record.fields.get(key).ok_or_else(|| record.place.wrong(format!("there is no `{key}`")))?;
        match (&self.field, language.chat) {
            (Some(_), _) => value.as_str().map(Into::into).ok_or_else(|| record.place.wrong(format!("`{key}` is no text"))),
            (None, Some(chat)) => {
                let refused = |reason| record.place.wrong(format!("the model's chat template refuses it: {reason}"));
                chat.render(value).map_err(refused)
            }
            (None, None) => dialogue(value).ok_or_else(|| {
                record.place.wrong(format!("`{key}` is a list of messages, each with a `role` and a text as `content`"))
            }),
        }
    }

    fn windows(&self, cut: &Perplexity, language: &Language<'_>) -> Result<Vec<Window>> {
        let cut = Perplexity { data: self.path.clone(), split: self.split.clone(), ..cut.clone() };
        let (tokenizer, config) = (language.tokenizer, language.config);
        if self.field.is_none() && self.messages.is_none() {
            return match self.shipped() {
                Some(text) => cut.windows_of_pieces([Ok(text.to_owned())], tokenizer, config),
                None => cut.windows_of(tokenizer, config),
            };
        }
        let records = match self.shipped() {
            Some(text) => record::records_of(&self.path, text)?,
            None => record::records(&self.path)?,
        };
        let documents = records.iter().map(|record| Ok(tokenizer.encode(&self.text(record, language)?)?));
        cut.windows_of_documents(documents.collect::<Result<Vec<_>>>()?, config)
    }
}

impl Texts {
    /// How each is cut.
    fn cut(&self, config: &Config) -> Perplexity {
        let window = self.window.unwrap_or_else(|| WINDOW.min(config.context.unwrap_or(WINDOW)));
        Perplexity { window, tokens: self.tokens, bos: self.bos, ..Perplexity::of("") }
    }
}

impl ReadsFiles for Texts {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        self.texts.iter().map(|text| text.path.clone()).filter(|path| !ships(path)).collect()
    }

    fn check(&self, config: &Config) -> Result<()> {
        let wanted = |found: String, wanted: &str| Err(Error::Text { name: "texts".into(), found, wanted: wanted.into() });
        if self.texts.is_empty() {
            return wanted("there is none".into(), "list one or more, each with a `name` and a `path`");
        }
        for (at, text) in self.texts.iter().enumerate() {
            if text.name.trim().is_empty() {
                return wanted("a name is empty".into(), "every text has a name of its own");
            }
            if self.texts[..at].iter().any(|other| other.name == text.name) {
                return wanted(format!("`{}` is there twice", text.name), "every text has a name of its own");
            }
            text.check()?;
        }
        self.cut(config).check(config)
    }

    fn longest(&self) -> Option<usize> {
        Some(self.window.unwrap_or(WINDOW))
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        let cut = self.cut(language.config);
        let (mut windows, mut parts) = (Vec::new(), Vec::new());
        for text in &self.texts {
            let own = text.windows(&cut, language)?;
            parts.push((text.name.clone(), own.len()));
            windows.extend(own);
        }
        Ok(Box::new(Parted { windows, parts }))
    }
}

/// Whether a path of settings names a text that ships with attar.
fn ships(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(SHIPPED))
}

/// The windows of all texts, and how many of them are whose.
#[derive(Debug)]
struct Parted {
    windows: Vec<Window>,
    parts: Vec<(String, usize)>,
}

/// What was measured on several texts.
#[derive(Debug, Serialize, Deserialize)]
struct Together {
    /// Scored tokens of all texts.
    tokens: u64,
    /// Geometric mean of the texts'.
    perplexity: Estimate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against_base: Option<Means>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    worst: Option<Worst>,
    /// The largest of the texts'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
    texts: Vec<Part>,
}

/// Means over the texts, each of the same weight.
#[derive(Debug, Serialize, Deserialize)]
struct Means {
    /// Geometric mean of the base's perplexities.
    perplexity: Estimate,
    /// Geometric mean of the ratios.
    perplexity_ratio: Estimate,
    kl_mean: Estimate,
    top1_agreement: Estimate,
}

/// The texts that suffer most.
#[derive(Debug, Serialize, Deserialize)]
struct Worst {
    kl_mean: Estimate,
    /// Name of the text with that divergence.
    kl_mean_of: String,
    perplexity_ratio: Estimate,
    /// Name of the text with that ratio.
    perplexity_ratio_of: String,
}

/// One text.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    name: String,
    #[serde(flatten)]
    scores: Scores,
}

impl Prepared for Parted {
    fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn key(&self) -> Vec<u8> {
        let names = self.parts.iter().flat_map(|(name, windows)| [name.clone(), windows.to_string()]);
        names.collect::<Vec<_>>().join("\n").into_bytes()
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        let (mut first, mut texts) = (0, Vec::new());
        for (name, windows) in &self.parts {
            let scores = score::measure(sides, &self.windows, first..first + windows, progress)?;
            texts.push(Part { name: name.clone(), scores });
            first += windows;
        }
        Ok(Measurements::of(&together(texts)))
    }

    fn perfect(&self, window: usize, position: usize, width: usize) -> Vec<f32> {
        certain(&self.windows[window], position, width)
    }
}

fn together(texts: Vec<Part>) -> Together {
    let all = |of: &dyn Fn(&Scores) -> Option<Estimate>| texts.iter().map(|text| of(&text.scores)).collect::<Option<Vec<_>>>();
    let against = |of: fn(&score::AgainstBase) -> Estimate| all(&|scores| scores.against_base.as_ref().map(of));
    let worst = |of: fn(&score::AgainstBase) -> Estimate| {
        let of_text = |text: &Part| Some((text.scores.against_base.as_ref().map(of)?, text.name.clone()));
        texts.iter().filter_map(of_text).max_by(|a, b| a.0.value.total_cmp(&b.0.value))
    };
    let means = || {
        Some(Means {
            perplexity: Estimate::geometric_mean(&against(|base| base.perplexity)?),
            perplexity_ratio: Estimate::geometric_mean(&against(|base| base.perplexity_ratio)?),
            kl_mean: Estimate::mean_of(&against(|base| base.kl_mean)?),
            top1_agreement: Estimate::mean_of(&against(|base| base.top1_agreement)?),
        })
    };
    let most = || {
        let (kl_mean, kl_mean_of) = worst(|base| base.kl_mean)?;
        let (perplexity_ratio, perplexity_ratio_of) = worst(|base| base.perplexity_ratio)?;
        Some(Worst { kl_mean, kl_mean_of, perplexity_ratio, perplexity_ratio_of })
    };
    let agreements: Vec<&Agreement> = texts.iter().filter_map(|text| text.scores.agreement.as_ref()).collect();
    let largest = |of: fn(&Agreement) -> f64| agreements.iter().map(|agreement| of(agreement)).fold(0.0, f64::max);
    Together {
        tokens: texts.iter().map(|text| text.scores.tokens).sum(),
        perplexity: Estimate::geometric_mean(&all(&|scores| Some(scores.perplexity)).expect("every text has one")),
        against_base: means(),
        worst: most(),
        agreement: (!agreements.is_empty()).then(|| Agreement {
            perplexity_gap: largest(|agreement| agreement.perplexity_gap),
            max_logit_difference: largest(|agreement| agreement.max_logit_difference),
            relative: largest(|agreement| agreement.relative),
        }),
        texts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, kl: f64, ratio: f64, perplexity: f64) -> Part {
        let one = |value| Estimate { value, standard_error: Some(0.1 * value) };
        let against_base = score::AgainstBase {
            perplexity: one(perplexity / ratio),
            perplexity_ratio: one(ratio),
            kl_mean: one(kl),
            kl_p99: one(kl),
            top1_agreement: one(0.5),
        };
        let scores =
            Scores { tokens: 10, windows: 1, perplexity: one(perplexity), against_base: Some(against_base), agreement: None };
        Part { name: name.into(), scores }
    }

    #[test]
    fn every_text_has_the_same_weight_and_the_worst_is_named() {
        let scores = together(vec![part("a", 0.1, 1.25, 8.0), part("b", 0.3, 1.0, 2.0)]);
        assert_eq!(scores.tokens, 20);
        assert!((scores.perplexity.value - 4.0).abs() < 1e-12);
        let means = scores.against_base.unwrap();
        assert!((means.kl_mean.value - 0.2).abs() < 1e-12);
        // Errors of .01 and .03, of the mean of two.
        assert!((means.kl_mean.standard_error.unwrap() - (1e-4f64 + 9e-4).sqrt() / 2.0).abs() < 1e-12);
        assert!((means.perplexity_ratio.value - 1.25f64.sqrt()).abs() < 1e-12);
        let worst = scores.worst.unwrap();
        assert_eq!((worst.kl_mean_of.as_str(), worst.perplexity_ratio_of.as_str()), ("b", "a"));
        assert_eq!((worst.kl_mean.value, worst.perplexity_ratio.value), (0.3, 1.25));
    }

    #[test]
    fn settings_that_say_two_things_or_name_no_text_are_refused() {
        let refused = |text: &str| {
            let texts: Texts = toml::from_str(text).expect("it is of the form");
            ReadsFiles::check(&texts, &crate::task::tests::config()).expect_err("it is wrong").to_string()
        };
        assert!(refused("texts = []").contains("there is none"));
        assert!(refused("texts = [{ name = \"a\", path = \"x\" }, { name = \"a\", path = \"y\" }]").contains("twice"));
        assert!(refused("texts = [{ name = \"a\", path = \"attar:poem\" }]").contains("does not ship"));
        assert!(refused("texts = [{ name = \"a\", path = \"x\", field = \"f\", messages = \"m\" }]").contains("`messages`"));
        assert!(refused("texts = [{ name = \"a\", path = \"x\", field = \"f\", split = \"m\" }]").contains("`split`"));
    }
}
