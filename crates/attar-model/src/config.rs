//! `config.json`: what every model says about itself. The settings of a kind of model are parsed by its architecture:
//! those that change what is computed are applied or refused by name, absent ones have transformers' defaults.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Error, Result};

/// What a checkpoint says of its model.
#[derive(Clone, Debug)]
pub struct Config {
    /// `LlamaForCausalLM`, …
    pub architecture: String,
    /// Longest context, in tokens, that the model was trained for.
    pub context: Option<usize>,
    /// Begin-of-text token.
    pub bos: Option<u32>,
    /// End-of-text tokens.
    pub eos: Vec<u32>,
    /// The configuration as found, or as transformers would write it.
    pub json: Value,
    /// How an encoder makes one embedding of its hidden states.
    pub(crate) pooling: Pooling,
    path: PathBuf,
}

/// From the hidden states of all positions to one embedding.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pooling {
    /// The first position's, not the mean.
    pub(crate) first_token: bool,
    /// Scaled to length one.
    pub(crate) normalize: bool,
}

impl Config {
    /// From the JSON of a `config.json` at `path`.
    pub fn from_json(path: &Path, json: Value) -> Result<Config> {
        let common: Common = parse(path, &json)?;
        let architecture = common.architectures.into_iter().flatten().next().or(common.model_type);
        let architecture = architecture.ok_or_else(|| Error::Config {
            path: path.into(),
            source: serde::de::Error::custom("neither `architectures` nor `model_type` is given"),
        })?;
        let eos = match common.eos_token_id {
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
            None => Vec::new(),
        };
        let (context, bos) = (common.max_position_embeddings.or(common.n_positions), common.bos_token_id);
        Ok(Config { architecture, context, bos, eos, json, pooling: Pooling::default(), path: path.into() })
    }

    /// The settings of one kind of model.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        parse(&self.path, &self.json)
    }
}

#[derive(Deserialize)]
struct Common {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    max_position_embeddings: Option<usize>,
    /// What GPT-2 calls it.
    n_positions: Option<usize>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// Refuses a setting that we do not run, by name.
pub(crate) fn check<T: Display>(key: &str, found: &T, runs: impl Fn(&T) -> bool, wanted: &'static str) -> Result<()> {
    if runs(found) {
        return Ok(());
    }
    Err(Error::Unsupported { key: key.into(), found: found.to_string(), wanted })
}

/// Refuses counts and widths of nothing, and those whose products could overflow.
pub(crate) fn check_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    sizes.iter().try_for_each(|(key, n)| check(key, n, |n| (1..=LIMIT).contains(n), "1 to 16777216"))
}

/// Refuses a width that heads do not divide.
pub(crate) fn check_heads(width: (&str, usize), heads: (&str, usize)) -> Result<()> {
    if width.1.is_multiple_of(heads.1) {
        return Ok(());
    }
    Err(Error::Contradiction { first: format!("{} = {}", width.0, width.1), second: format!("{} = {}", heads.0, heads.1) })
}

/// Largest count or width a configuration may state: beyond it a product of two could overflow.
const LIMIT: usize = 1 << 24;

fn parse<T: DeserializeOwned>(path: &Path, json: &Value) -> Result<T> {
    serde_json::from_value(json.clone()).map_err(|source| Error::Config { path: path.into(), source })
}
