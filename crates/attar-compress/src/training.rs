//! Training data: a text file as windows of tokens, some of them kept aside.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use attar_model::{Config, Encoder, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    calibrate::{check_windows, default_length, shuffle, tokens_of},
};

/// The text that a model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainingText {
    /// A UTF-8 text file, or with `field` a file of JSON objects, one a line (JSONL).
    pub path: PathBuf,
    /// Which text of each JSON object to take. The texts follow each other with an empty line between.
    #[serde(default)]
    pub field: Option<String>,
    /// Number of windows to train on, drawn from the text [default: all that it has].
    #[serde(default)]
    pub samples: Option<usize>,
    /// Tokens per window.
    #[serde(default = "default_length")]
    pub length: usize,
    /// Windows to keep aside: what is learned is judged on them.
    #[serde(default = "default_held_out")]
    pub held_out: usize,
    /// Seed for drawing the windows, and for their order.
    #[serde(default)]
    pub seed: u64,
}

fn default_held_out() -> usize {
    4
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
        match self.held_out {
            0 => Ok(()),
            held_out => check_windows(held_out, self.length, config).map_err(|error| match error {
                Error::Setting { key: "samples", found, wanted } => Error::Setting { key: "held_out", found, wanted },
                other => other,
            }),
        }
    }

    /// Windows to train on, estimated from above by the bytes of the text where all are taken: those of a token are rarely fewer than two.
    pub fn most_windows(&self) -> usize {
        let bytes = || std::fs::metadata(&self.path).map_or(0, |file| usize::try_from(file.len()).unwrap_or(usize::MAX));
        self.samples.unwrap_or_else(|| bytes() / 2 / self.length.max(1))
    }

    /// Reads and tokenizes the text, cuts it into windows, and draws first those that are kept aside, then those to train on.
    pub fn windows(&self, tokenizer: &Tokenizer, config: &Config) -> Result<TrainingWindows> {
        self.check(config)?;
        let tokens = match &self.field {
            Some(field) => self.tokens_of_lines(field, tokenizer)?,
            None => tokens_of(&self.path, tokenizer)?,
        };
        let windows: Vec<&[u32]> = tokens.chunks_exact(self.length).collect();
        let least = self.held_out + self.samples.unwrap_or(1);
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
        order.truncate(self.held_out + self.samples.unwrap_or(windows.len()));
        let train = order.split_off(self.held_out);
        let windows = |order: Vec<usize>| order.into_iter().map(|at| windows[at].to_vec()).collect();
        Ok(TrainingWindows { held_out: windows(order), train: windows(train) })
    }

    /// The tokens of a text of every line.
    fn tokens_of_lines(&self, field: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let unread = |source| attar_tensor::Error::Io { action: "read", path: self.path.clone(), source };
        let mut encoder = Encoder::of(tokenizer);
        for (at, line) in BufReader::new(File::open(&self.path).map_err(unread)?).lines().enumerate() {
            let line = line.map_err(unread)?;
            if line.trim().is_empty() {
                continue;
            }
            let refused = |problem: String| Error::Line { path: self.path.clone(), line: at + 1, problem };
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&line).map_err(|e| refused(format!("no JSON object: {e}")))?;
            let text = object.get(field).and_then(serde_json::Value::as_str).ok_or_else(|| {
                let known: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
                refused(format!("no text `{field}` among {}", known.join(", ")))
            })?;
            encoder.push(text)?;
            encoder.push("\n\n")?;
        }
        Ok(encoder.finish()?)
    }
}
