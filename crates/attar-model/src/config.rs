//! `config.json`: what a decoder of the Llama family says about itself, in the old spelling and the new one.

use std::path::Path;

use attar_graph::op::{Rope, Scaling};
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// What is known of a model beside its graph.
#[derive(Clone, Debug)]
pub struct Config {
    /// `LlamaForCausalLM`, …
    pub architecture: String,
    /// Tokens that the model was made for, in one context.
    pub context: Option<usize>,
    /// Begin-of-text token.
    pub bos: Option<u32>,
    /// End-of-text tokens.
    pub eos: Vec<u32>,
    /// The configuration as found, or as it would be written.
    pub json: Value,
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
        Ok(Config { architecture, context: common.max_position_embeddings, bos: common.bos_token_id, eos, json })
    }
}

#[derive(Deserialize)]
struct Common {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    max_position_embeddings: Option<usize>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// The settings that shape a decoder. Keys that are absent have transformers' defaults.
#[derive(Deserialize)]
pub(crate) struct DecoderConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: Option<usize>,
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: Option<usize>,
    #[serde(default = "default_epsilon")]
    pub(crate) rms_norm_eps: f64,
    #[serde(default = "silu")]
    pub(crate) hidden_act: String,
    #[serde(default)]
    pub(crate) tie_word_embeddings: bool,
    #[serde(default)]
    pub(crate) attention_bias: bool,
    #[serde(default)]
    pub(crate) mlp_bias: bool,
    pub(crate) sliding_window: Option<usize>,
    #[serde(default)]
    pub(crate) use_sliding_window: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
}

#[derive(Deserialize, Clone)]
struct RopeParameters {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

fn default_epsilon() -> f64 {
    1e-6
}

fn silu() -> String {
    "silu".into()
}

/// Largest count or width a configuration may state: beyond it a product of two could overflow.
const LIMIT: usize = 1 << 24;

impl DecoderConfig {
    pub(crate) fn parse(path: &Path, json: &Value) -> Result<DecoderConfig> {
        let config: DecoderConfig = parse(path, json)?;
        for (key, n) in [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.key_heads()),
            ("head_dim", config.head()),
        ] {
            if n == 0 || n > LIMIT {
                return Err(Error::Unsupported { key: key.into(), found: n.to_string(), wanted: "1 to 16777216" });
            }
        }
        if !config.num_attention_heads.is_multiple_of(config.key_heads()) {
            return Err(Error::Contradiction {
                first: format!("num_attention_heads = {}", config.num_attention_heads),
                second: format!("num_key_value_heads = {}", config.key_heads()),
            });
        }
        if config.hidden_act != "silu" {
            return Err(Error::Unsupported { key: "hidden_act".into(), found: config.hidden_act, wanted: "`silu`" });
        }
        Ok(config)
    }

    pub(crate) fn key_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(crate) fn head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    pub(crate) fn rope(&self) -> Result<Rope> {
        let parameters = self.rope_parameters.clone().or(self.rope_scaling.clone());
        let theta = self.rope_theta.or(parameters.as_ref().and_then(|p| p.rope_theta)).unwrap_or(10_000.0);
        let partial = self.partial_rotary_factor.or(parameters.as_ref().and_then(|p| p.partial_rotary_factor)).unwrap_or(1.0);
        if partial != 1.0 {
            return Err(Error::Unsupported { key: "partial_rotary_factor".into(), found: partial.to_string(), wanted: "1" });
        }
        let scaling = match parameters {
            Some(parameters) => self.scaling(&parameters)?,
            None => Scaling::Default,
        };
        Ok(Rope { theta, scaling })
    }

    fn scaling(&self, p: &RopeParameters) -> Result<Scaling> {
        let kind = p.rope_type.as_deref().unwrap_or("default");
        let need = |value: Option<f64>, key: &str| {
            let missing = || Error::Unsupported { key: format!("{kind} rope: {key}"), found: "none".into(), wanted: "a number" };
            value.ok_or_else(missing)
        };
        let original = p.original_max_position_embeddings.or(self.max_position_embeddings.map(|n| n as f64));
        Ok(match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: need(p.factor, "factor")? },
            "llama3" => Scaling::Llama3 {
                factor: need(p.factor, "factor")?,
                low: need(p.low_freq_factor, "low_freq_factor")?,
                high: need(p.high_freq_factor, "high_freq_factor")?,
                original: need(original, "original_max_position_embeddings")?,
            },
            "yarn" => {
                let factor = need(p.factor, "factor")?;
                Scaling::Yarn {
                    factor,
                    original: need(original, "original_max_position_embeddings")?,
                    fast: p.beta_fast.unwrap_or(32.0),
                    slow: p.beta_slow.unwrap_or(1.0),
                    attention: p.attention_factor.unwrap_or_else(|| yarn_attention(factor, p.mscale, p.mscale_all_dim)),
                }
            }
            other => {
                let wanted = "`default`, `linear`, `llama3` or `yarn`";
                return Err(Error::Unsupported { key: "rope_type".into(), found: other.into(), wanted });
            }
        })
    }
}

/// `0.1 m ln(factor) + 1`, or the quotient of two such where the configuration names both `m`.
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
        _ => magnitude(1.0),
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, json: &Value) -> Result<T> {
    serde_json::from_value(json.clone()).map_err(|source| Error::Config { path: path.into(), source })
}
