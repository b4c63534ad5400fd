//! `config.json`: what every model says about itself. The settings of a kind of model are parsed by its architecture:
//! those that change what is computed are applied or refused by name, absent ones have transformers' defaults.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    Error, Result,
    settings::{Asked, Settings},
};

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
    asked: Asked,
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
        let asked = Asked::default();
        let settings = Settings::new(path, &json, &asked)?;
        let (class, kind) = (settings.texts("architectures")?, settings.text("model_type")?);
        let architecture = class.and_then(|classes| classes.first().copied()).or(kind);
        let architecture =
            settings.need("architectures", architecture, "a list with the model's class, or `model_type`")?.to_owned();
        let (context, positions) = (settings.size("max_position_embeddings")?, settings.size("n_positions")?);
        let (bos, eos) = (settings.token("bos_token_id")?, settings.tokens("eos_token_id")?.unwrap_or_default());
        let context = context.or(positions);
        Ok(Config { architecture, context, bos, eos, json, pooling: Pooling::default(), path: path.into(), asked })
    }

    /// The end-of-text tokens of a `generation_config.json` at `path`, which has precedence.
    pub(crate) fn generate_by(&mut self, path: &Path, json: &Value) -> Result<()> {
        let unread = Asked::default();
        if let Some(eos) = Settings::new(path, json, &unread)?.tokens("eos_token_id")?
            && eos != self.eos
        {
            self.json["eos_token_id"] = if let [one] = eos[..] { json!(one) } else { json!(eos) };
            self.eos = eos;
        }
        Ok(())
    }

    /// The settings by key.
    pub(crate) fn settings(&self) -> Result<Settings<'_>> {
        Settings::new(&self.path, &self.json, &self.asked)
    }

    /// The keys that someone asked for.
    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Every key as `config.KEY`, with those of inner objects.
    pub(crate) fn keys(&self) -> Vec<String> {
        fn collect(at: &str, value: &Value, keys: &mut Vec<String>) {
            for (name, value) in value.as_object().into_iter().flatten() {
                keys.push(format!("{at}.{name}"));
                collect(&format!("{at}.{name}"), value, keys);
            }
        }
        let mut keys = Vec::new();
        collect("config", &self.json, &mut keys);
        keys
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Refuses a setting that we do not run, by name.
pub(crate) fn check<T: Display>(key: &str, found: &T, runs: impl Fn(&T) -> bool, wanted: &'static str) -> Result<()> {
    if runs(found) {
        return Ok(());
    }
    Err(Error::Unsupported { key: key.into(), found: found.to_string(), wanted })
}

/// Refuses a truth value that is set.
pub(crate) fn check_unset(settings: &Settings<'_>, key: &str) -> Result<()> {
    check(&settings.full(key), &settings.truth(key)?.unwrap_or(false), |set| !set, "`false`")
}

/// Refuses a width that heads do not divide.
pub(crate) fn check_heads(width: (&str, usize), heads: (&str, usize)) -> Result<()> {
    if width.1.is_multiple_of(heads.1) {
        return Ok(());
    }
    Err(Error::Contradiction { first: format!("{} = {}", width.0, width.1), second: format!("{} = {}", heads.0, heads.1) })
}
