//! Calibration data: a text file as windows of tokens.

use std::path::{Path, PathBuf};

use attar_model::{Config, Encoder, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, SplitMix64};

/// The text whose activations are observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// A UTF-8 text file.
    pub path: PathBuf,
    /// Number of windows to draw from the text.
    #[serde(default = "default_samples")]
    pub samples: usize,
    /// Tokens per window.
    #[serde(default = "default_length")]
    pub length: usize,
    /// Seed for drawing the windows.
    #[serde(default)]
    pub seed: u64,
}

/// Tokens of the longest window, and windows, that a machine could take.
const LONGEST: usize = 1 << 20;
const MOST: usize = 1 << 24;

fn default_samples() -> usize {
    128
}

pub(crate) fn default_length() -> usize {
    512
}

impl Calibration {
    /// Whether a model of that configuration can see the text so. The text is not read.
    pub fn check(&self, config: &Config) -> Result<()> {
        check_plain(&self.path, "calibration")?;
        check_windows(self.samples, self.length, config)
    }

    /// Reads and tokenizes the text, cuts it into windows and takes as many as asked for, in the order of the text.
    pub fn windows(&self, tokenizer: &Tokenizer, config: &Config) -> Result<Vec<Vec<u32>>> {
        self.check(config)?;
        let tokens = tokens_of(&self.path, tokenizer)?;
        let windows: Vec<&[u32]> = tokens.chunks_exact(self.length).collect();
        if windows.len() < self.samples {
            return Err(Error::TextTooShort {
                path: self.path.clone(),
                what: "calibration",
                tokens: tokens.len(),
                wanted: self.samples.saturating_mul(self.length),
            });
        }
        let mut order: Vec<usize> = (0..windows.len()).collect();
        shuffle(&mut order, self.seed);
        order.truncate(self.samples);
        order.sort_unstable();
        Ok(order.into_iter().map(|at| windows[at].to_vec()).collect())
    }
}

/// A file of JSON lines is no text by itself.
pub(crate) fn check_plain(path: &Path, what: &'static str) -> Result<()> {
    let lines =
        path.extension().is_some_and(|extension| ["jsonl", "ndjson"].iter().any(|known| extension.eq_ignore_ascii_case(known)));
    if lines { Err(Error::JsonLines { path: path.into(), what }) } else { Ok(()) }
}

/// Whether there can be so many windows of so many tokens for a model of that configuration.
pub(crate) fn check_windows(samples: usize, length: usize, config: &Config) -> Result<()> {
    let setting = |key, found: usize, wanted: String| Err(Error::Setting { key, found, wanted });
    let longest = config.context.unwrap_or(LONGEST).min(LONGEST);
    match (samples, length) {
        (0, _) => setting("samples", 0, "1 or more windows are taken".into()),
        (samples, _) if samples > MOST => setting("samples", samples, format!("at most {MOST} windows are taken")),
        (_, 0) => setting("length", 0, "a window has 1 or more tokens".into()),
        (_, length) if length > longest => setting("length", length, format!("the model's context is {longest} tokens")),
        _ => Ok(()),
    }
}

/// The tokens of a text.
pub(crate) fn tokens_of(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let unread = |source| attar_tensor::Error::Io { action: "read", path: path.into(), source };
    let mut encoder = Encoder::of(tokenizer);
    for piece in attar_tensor::text_pieces(path).map_err(unread)? {
        encoder.push(&piece.map_err(unread)?)?;
    }
    Ok(encoder.finish()?)
}

/// Fisher-Yates by SplitMix64.
pub(crate) fn shuffle(order: &mut [usize], seed: u64) {
    let mut random = SplitMix64::new(seed);
    for i in (1..order.len()).rev() {
        order.swap(i, ((u128::from(random.bits()) * (i as u128 + 1)) >> 64) as usize);
    }
}
