//! Training data: a text file as windows of tokens, some of them kept aside.

use std::path::PathBuf;

use attar_model::{ChatTemplate, Config, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    calibrate::{check_plain, check_windows, default_length, shuffle, tokens_of},
    lines,
};

/// The text that a model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainingText {
    /// A UTF-8 text file, or with `field` or `messages` a file of JSON objects, one a line (JSONL).
    pub path: PathBuf,
    /// Which text of each JSON object to take. The texts follow each other with an empty line between.
    #[serde(default)]
    pub field: Option<String>,
    /// Which dialogue of each JSON object to take: a list of messages, each with its `role` and `content`. The model's own chat template makes
    /// texts of them, which follow each other.
    #[serde(default)]
    pub messages: Option<String>,
    /// Number of windows to train on, drawn from the text [default: all that it has].
    #[serde(default)]
    pub samples: Option<usize>,
    /// Tokens per window.
    #[serde(default = "default_length")]
    pub length: usize,
    /// Windows to keep aside, or their share of the others, such as `0.05`: what is learned is judged on them.
    #[serde(default)]
    pub held_out: HeldOut,
    /// Seed for drawing the windows, and for their order.
    #[serde(default)]
    pub seed: u64,
}

/// How much is kept aside.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum HeldOut {
    /// So many windows.
    Windows(usize),
    /// A share: of `samples`, or else of all windows of the text; at least one.
    Share(f64),
}

impl Default for HeldOut {
    fn default() -> HeldOut {
        HeldOut::Windows(4)
    }
}

impl HeldOut {
    /// Windows, besides or of so many others.
    fn of(self, windows: usize) -> usize {
        match self {
            HeldOut::Windows(windows) => windows,
            HeldOut::Share(share) => ((windows as f64 * share).round() as usize).max(1),
        }
    }
}

/// Windows of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingWindows {
    /// What a model is trained on, in the order of the training.
    pub train: Vec<Vec<u32>>,
    /// What it is judged on.
    pub held_out: Vec<Vec<u32>>,
}

impl TrainingText {
    /// Whether a model of that configuration can see the text so. The text is not read.
    pub fn check(&self, config: &Config) -> Result<()> {
        check_windows(self.samples.unwrap_or(1), self.length, config)?;
        if self.length < 2 {
            let wanted = "a window of 2 tokens and more: the last token of a window has no next one to learn";
            return Err(Error::Setting { key: "length", found: self.length, wanted: wanted.into() });
        }
        match (&self.field, &self.messages) {
            (Some(_), Some(messages)) => {
                let hint = "a line is one text or one dialogue: leave one of them out";
                return Err(Error::Contradiction { key: "field", other: format!("messages = \"{messages}\""), hint });
            }
            (None, None) => check_plain(&self.path, "training")?,
            _ => {}
        }
        match self.held_out {
            HeldOut::Share(found) if !(found > 0.0 && found < 1.0) => {
                Err(Error::Number { key: "held_out", found, wanted: "a number of windows, or a share between 0 and 1" })
            }
            HeldOut::Share(_) | HeldOut::Windows(0) => Ok(()),
            HeldOut::Windows(held_out) => check_windows(held_out, self.length, config).map_err(|error| match error {
                Error::Setting { key: "samples", found, wanted } => Error::Setting { key: "held_out", found, wanted },
                other => other,
            }),
        }
    }

    /// Windows to keep aside, likewise.
    pub fn most_held_out(&self) -> usize {
        self.held_out.of(self.most_windows())
    }

    /// Windows to train on, estimated from above by the bytes of the text where all are taken: those of a token are rarely fewer than two.
    pub fn most_windows(&self) -> usize {
        let bytes = || std::fs::metadata(&self.path).map_or(0, |file| usize::try_from(file.len()).unwrap_or(usize::MAX));
        self.samples.unwrap_or_else(|| bytes() / 2 / self.length.max(1))
    }

    /// Reads and tokenizes the text, cuts it into windows, and draws first those that are kept aside, then those to train on. `chat` is the
    /// model's template, for dialogues.
    pub fn windows(&self, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>, config: &Config) -> Result<TrainingWindows> {
        self.check(config)?;
        let tokens = match (&self.field, &self.messages) {
            (Some(field), _) => lines::tokens(&self.path, field, &lines::text_of, tokenizer)?,
            (None, Some(messages)) => {
                let chat = chat.ok_or(Error::NoChatTemplate)?;
                lines::tokens(&self.path, messages, &|value| lines::dialogue_of(value, chat), tokenizer)?
            }
            (None, None) => tokens_of(&self.path, tokenizer)?,
        };
        let windows: Vec<&[u32]> = tokens.chunks_exact(self.length).collect();
        let held_out = self.held_out.of(self.samples.unwrap_or(windows.len()));
        let least = held_out + self.samples.unwrap_or(1);
        if windows.len() < least {
            return Err(Error::TextTooShort {
                path: self.path.clone(),
                what: "training",
                tokens: tokens.len(),
                wanted: least.saturating_mul(self.length),
            });
        }
        let mut order: Vec<usize> = (0..windows.len()).collect();
        shuffle(&mut order, self.seed);
        order.truncate(held_out + self.samples.unwrap_or(windows.len()));
        let train = order.split_off(held_out);
        let windows = |order: Vec<usize>| order.into_iter().map(|at| windows[at].to_vec()).collect();
        Ok(TrainingWindows { held_out: windows(order), train: windows(train) })
    }
}
