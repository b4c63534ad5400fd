//! What GGUF metadata says about a model, as the `config.json` it would have had.
//!
//! Meanings are those of llama.cpp (`src/llama-model.cpp`, `src/llama-context.cpp`, `ggml_rope_ext`). Every key of the
//! architecture is applied, refused with its value, listed in [`HARMLESS_GGUF`], or named in an error.

use std::{cell::RefCell, collections::BTreeSet, path::Path};

use attar_tensor::{
    Source,
    gguf::{Metadata, Value},
    nearest,
};
use serde_json::json;

use crate::{Error, Pattern, Result, config::Pooling, config::check};

/// Keys of an architecture without influence on what is computed, without their `ARCH.`.
pub static HARMLESS_GGUF: &[&str] = &["vocab_size", "rope.scaling.finetuned", "tensor_data_layout"];

/// A text value.
pub(crate) fn text<'m>(metadata: &'m Metadata, key: &str) -> Result<&'m str> {
    match metadata.get(key) {
        Some(Value::Text(text)) => Ok(text),
        _ => Err(Error::Metadata { key: key.into() }),
    }
}

/// A number of any width, if the value is one.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Unsigned(n) => Some(*n as f64),
        Value::Signed(n) => Some(*n as f64),
        Value::Float(n) => Some(*n),
        _ => None,
    }
}

/// A whole number, if the key is there.
pub(crate) fn count(metadata: &Metadata, key: &str) -> Option<u64> {
    metadata.get(key).and_then(number).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64)
}

/// A value for messages.
fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => format!("{text:?}"),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(values) => format!("a list of {}", values.len()),
        other => number(other).map_or_else(String::new, |n| n.to_string()),
    }
}

/// The header of a GGUF file of a known architecture.
pub(crate) struct Header<'a> {
    /// The class that transformers has for it.
    pub(crate) class: &'static str,
    /// The file's `general.architecture`, with which the architecture's own keys begin.
    pub(crate) prefix: &'a str,
    /// Keys and values.
    metadata: &'a Metadata,
    /// Its tensors.
    source: &'a dyn Source,
    /// The keys that were asked for.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Header<'a> {
    /// Of a file with these metadata and tensors.
    pub(crate) fn new(class: &'static str, prefix: &'a str, metadata: &'a Metadata, source: &'a dyn Source) -> Header<'a> {
        Header { class, prefix, metadata, source, asked: RefCell::default() }
    }

    /// A whole number of the architecture, which must be there.
    pub(crate) fn need(&self, name: &str) -> Result<u64> {
        self.count(name)?.ok_or_else(|| Error::Metadata { key: self.key(name) })
    }

    /// A whole number of the architecture. A list has one for each block, which must be equal.
    pub(crate) fn count(&self, name: &str) -> Result<Option<u64>> {
        let whole = |value: &Value| number(value).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64);
        self.typed(name, "a whole number, the same for every block", |value| match value {
            Value::Array(values) => {
                let first = values.first()?;
                values.iter().all(|other| other == first).then(|| whole(first)).flatten()
            }
            one => whole(one),
        })
    }

    /// A number of the architecture, which was written as f32: the shortest decimal that gives it, which most likely is
    /// what the original configuration said.
    pub(crate) fn float(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a finite number", |value| number(value).filter(|n| n.is_finite()).map(shortest))
    }

    /// A number of the architecture, which must be there.
    pub(crate) fn need_float(&self, name: &str) -> Result<f64> {
        self.float(name)?.ok_or_else(|| Error::Metadata { key: self.key(name) })
    }

    fn typed<T>(&self, name: &str, wanted: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let wrong = |value: &Value| Error::Unsupported { key: self.key(name), found: shown(value), wanted };
        self.value(name).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    /// Notes a key whose value says nothing more than others do.
    pub(crate) fn note(&self, name: &str) {
        let _ = self.value(name);
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(self.key(name));
        self.metadata.get(&self.key(name))
    }

    /// Rows of the embedding.
    pub(crate) fn vocabulary(&self) -> Result<usize> {
        self.rows("token_embd.weight")
    }

    /// Rows of a tensor.
    pub(crate) fn rows(&self, tensor: &str) -> Result<usize> {
        Ok(self.source.info(tensor)?.matrix()[0])
    }

    /// All of a tensor, if the file has it.
    pub(crate) fn vector(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        vector(self.source, tensor)
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// Whether the file has a tensor.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.source.tensors().contains_key(tensor)
    }

    /// The `config.json` of a decoder with rotary positions for whole heads and gated MLPs.
    pub(crate) fn decoder(&self) -> Result<serde_json::Value> {
        let (mut config, head) = (self.partly_rotary()?, self.head()?);
        check(&self.key("rope.dimension_count"), &self.rotary(head)?, |width| *width == head, "the width of a head")?;
        set(&mut config, "rope_scaling", self.rope_scaling()?);
        Ok(config)
    }

    /// The same with a window, if the file says so.
    pub(crate) fn windowed(&self) -> Result<serde_json::Value> {
        self.with_window(self.decoder()?)
    }

    /// `config` with the window that the file has, or none.
    pub(crate) fn with_window(&self, mut config: serde_json::Value) -> Result<serde_json::Value> {
        config["sliding_window"] = json!(self.count("attention.sliding_window")?.filter(|window| *window > 0));
        Ok(config)
    }

    /// The `config.json` of a decoder with gated MLPs, without how it rotates.
    pub(crate) fn partly_rotary(&self) -> Result<serde_json::Value> {
        let heads = self.need("attention.head_count")?;
        let mut config = json!({
            "architectures": [self.class],
            "vocab_size": self.vocabulary()?,
            "hidden_size": self.need("embedding_length")?,
            "intermediate_size": self.need("feed_forward_length")?,
            "num_hidden_layers": self.need("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "rms_norm_eps": self.need_float("attention.layer_norm_rms_epsilon")?,
            "rope_theta": self.float("rope.freq_base")?.unwrap_or(10_000.0),
            "hidden_act": "silu",
            "tie_word_embeddings": !self.has("output.weight"),
            "attention_bias": false,
        });
        let (key, head) = (self.key("attention.value_length"), self.head()?);
        check(&key, &self.count("attention.value_length")?.unwrap_or(head), |width| *width == head, "the width of keys")?;
        self.check_causal(true)?;
        set(&mut config, "head_dim", self.count("attention.key_length")?);
        set(&mut config, "max_position_embeddings", self.count("context_length")?);
        self.special_tokens(&mut config);
        Ok(config)
    }

    /// How many columns of a head rotate.
    pub(crate) fn rotary(&self, head: u64) -> Result<u64> {
        Ok(self.count("rope.dimension_count")?.unwrap_or(head))
    }

    /// The width of a head.
    pub(crate) fn head(&self) -> Result<u64> {
        let heads = self.need("attention.head_count")?.max(1);
        Ok(self.count("attention.key_length")?.unwrap_or(self.need("embedding_length")? / heads))
    }

    /// Whether a position sees those after it, which is the architecture's own choice.
    pub(crate) fn check_causal(&self, causal: bool) -> Result<()> {
        let (name, wanted) = ("attention.causal", if causal { "`true`" } else { "`false`" });
        let found =
            self.typed(name, "`true` or `false`", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })?;
        check(&self.key(name), &found.unwrap_or(causal), |found| *found == causal, wanted)
    }

    /// There are as many key heads as query heads.
    pub(crate) fn check_key_heads(&self) -> Result<()> {
        let (name, heads) = ("attention.head_count_kv", self.need("attention.head_count")?);
        check(&self.key(name), &self.count(name)?.unwrap_or(heads), |found| *found == heads, "as many as there are query heads")
    }

    /// How an encoder pools, if the file says so. Its embeddings are of length one, as llama.cpp returns them.
    pub(crate) fn pooling(&self) -> Result<Option<Pooling>> {
        let first_token = match self.count("pooling_type")? {
            None => return Ok(None),
            Some(1) => false,
            Some(2) => true,
            Some(other) => {
                let (key, wanted) = (self.key("pooling_type"), "1 (the mean) or 2 (the first token)");
                return Err(Error::Unsupported { key, found: other.to_string(), wanted });
            }
        };
        Ok(Some(Pooling { first_token, normalize: true }))
    }

    /// The tokens at which text begins and ends.
    pub(crate) fn special_tokens(&self, config: &mut serde_json::Value) {
        set(config, "bos_token_id", count(self.metadata, "tokenizer.ggml.bos_token_id"));
        set(config, "eos_token_id", count(self.metadata, "tokenizer.ggml.eos_token_id"));
    }

    /// A factor without a type stretches all frequencies alike; so does the older `rope.scale_linear`. What YaRN multiplies
    /// sines and cosines by is `attn_factor (1 + 0.1 ln factor)`.
    pub(crate) fn rope_scaling(&self) -> Result<Option<serde_json::Value>> {
        let kind =
            self.typed(
                "rope.scaling.type",
                "a text",
                |value| if let Value::Text(kind) = value { Some(kind.clone()) } else { None },
            )?;
        let old = self.float("rope.scale_linear")?;
        let factor = self.float("rope.scaling.factor")?.filter(|factor| *factor != 0.0).or(old).filter(|factor| *factor != 0.0);
        let original = self.count("rope.scaling.original_context_length")?;
        let magnitude = self.float("rope.scaling.attn_factor")?;
        let kind = kind.unwrap_or_else(|| if factor.is_some() { "linear".into() } else { "none".into() });
        match kind.as_str() {
            "yarn" => self.yarn(factor.unwrap_or(1.0), original, magnitude).map(Some),
            // Its factors are tensors, which the architecture reads.
            "longrope" => Ok(Some(json!({ "rope_type": "longrope" }))),
            kind => {
                let key = self.key("rope.scaling.attn_factor");
                check(&key, &magnitude.unwrap_or(1.0), |magnitude| *magnitude == 1.0, "1")?;
                let scales = kind != "none" && factor.is_some_and(|factor| factor != 1.0);
                Ok(scales.then(|| json!({ "rope_type": kind, "factor": factor })))
            }
        }
    }

    fn yarn(&self, factor: f64, original: Option<u64>, magnitude: Option<f64>) -> Result<serde_json::Value> {
        // -1 stands for the default, which is 1.
        let extrapolated = self.float("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0);
        check(&self.key("rope.scaling.yarn_ext_factor"), &extrapolated, |mix| *mix == 1.0 || *mix < 0.0, "1")?;
        let more = self.float("rope.scaling.yarn_attn_factor")?.filter(|factor| *factor >= 0.0).unwrap_or(1.0);
        let temperature = if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
        let attention = magnitude.unwrap_or(1.0) * more * temperature;
        let beta = |name: &str| self.float(name).map(|beta| beta.filter(|beta| *beta >= 0.0));
        Ok(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": attention,
            "beta_fast": beta("rope.scaling.yarn_beta_fast")?,
            "beta_slow": beta("rope.scaling.yarn_beta_slow")?,
        }))
    }

    /// Refuses the keys of the architecture that nobody asked for and that say more than zero or no.
    pub(crate) fn check_keys(&self, path: &Path, ignore: &[Pattern]) -> Result<()> {
        let asked = self.asked.borrow();
        let harmless = |key: &str| HARMLESS_GGUF.iter().any(|name| self.key(name) == key);
        let says_no = |value: &Value| *value == Value::Bool(false) || number(value) == Some(0.0);
        let own = self.metadata.iter().filter(|(key, _)| key.strip_prefix(self.prefix).is_some_and(|rest| rest.starts_with('.')));
        let unknown: Vec<(String, String)> = own
            .filter(|(key, value)| !asked.contains(*key) && !harmless(key) && !says_no(value))
            .filter(|(key, _)| !ignore.iter().any(|pattern| pattern.matches(key)))
            .map(|(key, value)| (key.clone(), shown(value)))
            .collect();
        let Some((first, _)) = unknown.first() else { return Ok(()) };
        Err(Error::UnknownKeys {
            path: path.into(),
            architecture: self.prefix.into(),
            nearest: nearest(first, asked.iter().map(String::as_str)).map(Into::into),
            keys: unknown,
        })
    }
}

/// Adds a setting that there is.
pub(crate) fn set(config: &mut serde_json::Value, key: &str, value: Option<impl Into<serde_json::Value>>) {
    if let Some(value) = value {
        config[key] = value.into();
    }
}

/// The shortest decimal that gives the same f32.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// The factor of each rotary pair, where the file has a tensor of them.
pub(crate) fn rope_factors(source: &dyn Source, head: usize) -> Result<Option<Vec<f32>>> {
    const FACTORS: &str = "rope_freqs.weight";
    match vector(source, FACTORS)? {
        Some(factors) if factors.len() != head / 2 => Err(Error::Contradiction {
            first: format!("{FACTORS} holds {} factors", factors.len()),
            second: format!("a head is {head} wide"),
        }),
        factors => Ok(factors),
    }
}

fn vector(source: &dyn Source, tensor: &str) -> Result<Option<Vec<f32>>> {
    let Some(info) = source.tensors().get(tensor) else { return Ok(None) };
    let mut numbers = vec![0.0; info.elements()];
    source.read(tensor, 0..info.matrix()[0], &mut numbers)?;
    Ok(Some(numbers))
}
