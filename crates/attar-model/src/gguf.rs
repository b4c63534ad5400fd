//! What GGUF metadata says about a decoder, as the `config.json` it would have had.

use attar_tensor::{
    Source,
    gguf::{Metadata, Value},
};
use serde_json::json;

use crate::{Error, Result, config::Pooling};

/// A text value.
pub(crate) fn text<'m>(metadata: &'m Metadata, key: &str) -> Result<&'m str> {
    match metadata.get(key) {
        Some(Value::Text(text)) => Ok(text),
        _ => Err(Error::Metadata { key: key.into() }),
    }
}

/// A number of any width, if the key is there.
pub(crate) fn number(metadata: &Metadata, key: &str) -> Option<f64> {
    match metadata.get(key)? {
        Value::Unsigned(n) => Some(*n as f64),
        Value::Signed(n) => Some(*n as f64),
        Value::Float(n) => Some(*n),
        _ => None,
    }
}

/// A whole number, if the key is there.
pub(crate) fn count(metadata: &Metadata, key: &str) -> Option<u64> {
    number(metadata, key).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64)
}

/// The header of a GGUF file of a known architecture.
pub(crate) struct Header<'a> {
    /// The class that transformers has for it.
    pub(crate) class: &'static str,
    /// The file's `general.architecture`, with which the architecture's own keys begin.
    pub(crate) prefix: &'a str,
    /// Keys and values.
    pub(crate) metadata: &'a Metadata,
    /// Its tensors.
    pub(crate) source: &'a dyn Source,
}

impl Header<'_> {
    /// A whole number of the architecture, which must be there.
    pub(crate) fn need(&self, name: &str) -> Result<u64> {
        self.count(name).ok_or_else(|| Error::Metadata { key: self.key(name) })
    }

    /// A whole number of the architecture.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        count(self.metadata, &self.key(name))
    }

    /// A number of the architecture, which was written as f32: the shortest decimal that gives it, which most likely is
    /// what the original configuration said.
    pub(crate) fn float(&self, name: &str) -> Option<f64> {
        number(self.metadata, &self.key(name)).map(shortest)
    }

    /// A number of the architecture, which must be there.
    pub(crate) fn need_float(&self, name: &str) -> Result<f64> {
        self.float(name).ok_or_else(|| Error::Metadata { key: self.key(name) })
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

    /// The `config.json` of a decoder with rotary positions and gated MLPs.
    pub(crate) fn decoder(&self) -> Result<serde_json::Value> {
        let epsilon = self.need_float("attention.layer_norm_rms_epsilon")?;
        let heads = self.need("attention.head_count")?;
        let mut config = json!({
            "architectures": [self.class],
            "vocab_size": self.vocabulary()?,
            "hidden_size": self.need("embedding_length")?,
            "intermediate_size": self.need("feed_forward_length")?,
            "num_hidden_layers": self.need("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv").unwrap_or(heads),
            "rms_norm_eps": epsilon,
            "rope_theta": self.float("rope.freq_base").unwrap_or(10_000.0),
            "hidden_act": "silu",
            "tie_word_embeddings": !self.has("output.weight"),
            "attention_bias": false,
        });
        set(&mut config, "head_dim", self.count("attention.key_length"));
        set(&mut config, "max_position_embeddings", self.count("context_length"));
        set(&mut config, "sliding_window", self.count("attention.sliding_window"));
        self.special_tokens(&mut config);
        set(&mut config, "rope_scaling", self.rope_scaling());
        Ok(config)
    }

    /// How an encoder pools, if the file says so. Its embeddings are of length one, as llama.cpp returns them.
    pub(crate) fn pooling(&self) -> Result<Option<Pooling>> {
        let first_token = match self.count("pooling_type") {
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

    fn rope_scaling(&self) -> Option<serde_json::Value> {
        let Some(Value::Text(kind)) = self.metadata.get(&self.key("rope.scaling.type")) else { return None };
        let factor = self.float("rope.scaling.factor");
        let original = self.count("rope.scaling.original_context_length");
        let scaling = json!({ "rope_type": kind, "factor": factor, "original_max_position_embeddings": original });
        (kind != "none").then_some(scaling)
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
