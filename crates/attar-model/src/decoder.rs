//! The decoder of the Llama family: pre-norm blocks of grouped rotary attention and a gated MLP. Its settings are spelled as
//! transformers 5 writes them or as older checkpoints do.

use attar_graph::{
    Graph, Op, ValueId,
    op::{Attention, Rope, Scaling},
};
use serde::Deserialize;

use crate::{
    Config, Error, Result,
    builder::{Builder, Frame, Heads, Inputs, Mlp},
    config::{check, check_sizes},
    gguf,
};

/// Which linear layers add a bias.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Biases {
    /// Query, key and value.
    pub(crate) projections: bool,
    /// The output of attention.
    pub(crate) output: bool,
    /// All of the MLP.
    pub(crate) mlp: bool,
}

/// The settings that shape a decoder with rotary positions and gated MLPs.
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
    pub(crate) layer_types: Option<Vec<String>>,
    is_causal: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Rotary positions. `rope_scaling` is the older spelling of `rope_parameters`.
#[derive(Deserialize, Clone)]
pub(crate) struct RopeParameters {
    pub(crate) rope_theta: Option<f64>,
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
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
}

fn default_epsilon() -> f64 {
    1e-6
}

fn silu() -> String {
    "silu".into()
}

impl DecoderConfig {
    /// Those of `config`, whose numbers fit each other.
    pub(crate) fn parse(config: &Config) -> Result<DecoderConfig> {
        let config: DecoderConfig = config.parse()?;
        check_sizes(&[
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.key_heads()),
            ("head_dim", config.head()),
        ])?;
        if !config.num_attention_heads.is_multiple_of(config.key_heads()) {
            return Err(Error::Contradiction {
                first: format!("num_attention_heads = {}", config.num_attention_heads),
                second: format!("num_key_value_heads = {}", config.key_heads()),
            });
        }
        check("hidden_act", &config.hidden_act, |act| act == "silu", "`silu`")?;
        check("is_causal", &config.is_causal.unwrap_or(true), |causal| *causal, "`true`")?;
        check("rms_norm_eps", &config.rms_norm_eps, |epsilon| *epsilon > 0.0 && epsilon.is_finite(), "a positive number")?;
        Ok(config)
    }

    /// The same with heads of that width.
    pub(crate) fn with_head(self, width: usize) -> DecoderConfig {
        DecoderConfig { head_dim: Some(width), ..self }
    }

    /// What surrounds the blocks.
    pub(crate) fn frame(&self) -> Frame {
        let (vocabulary, hidden) = (self.vocab_size, self.hidden_size);
        Frame { vocabulary, hidden, blocks: self.num_hidden_layers, tied: self.tie_word_embeddings, softcap: None }
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads { hidden: self.hidden_size, query: self.num_attention_heads, key: self.key_heads(), width: self.head() }
    }

    pub(crate) fn mlp(&self, bias: bool) -> Mlp {
        Mlp { hidden: self.hidden_size, inner: self.intermediate_size, bias, activation: Op::Silu }
    }

    pub(crate) fn key_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(crate) fn head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Rotary positions for whole heads, by the configuration and by the factors in the checkpoint, if it has such.
    pub(crate) fn rope_of(&self, builder: &Builder<'_>) -> Result<Rope> {
        check("partial_rotary_factor", &self.rotary_share(), |factor| *factor == 1.0, "1")?;
        let rope = self.rope()?;
        Ok(match gguf::rope_factors(builder.source(), self.head())? {
            Some(factors) => Rope { scaling: Scaling::Factors(factors), ..rope },
            None => rope,
        })
    }

    /// Rotary positions by the configuration.
    pub(crate) fn rope(&self) -> Result<Rope> {
        let parameters = self.rope_parameters();
        let theta = self.rope_theta.or(parameters.and_then(|p| p.rope_theta)).unwrap_or(10_000.0);
        let scaling = parameters.map_or(Ok(Scaling::Default), |parameters| self.scaling(parameters))?;
        Ok(Rope { theta, scaling })
    }

    fn rope_parameters(&self) -> Option<&RopeParameters> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    /// The share of a head's columns that rotate.
    fn rotary_share(&self) -> f64 {
        self.partial_rotary_factor.or(self.rope_parameters().and_then(|p| p.partial_rotary_factor)).unwrap_or(1.0)
    }

    /// How many columns of a head rotate.
    pub(crate) fn rotary_width(&self) -> Result<usize> {
        let width = (self.head() as f64 * self.rotary_share()) as usize;
        let fits = |width: &usize| *width > 0 && width.is_multiple_of(2) && *width <= self.head();
        check("partial_rotary_factor", &width, fits, "an even number of columns, at most a whole head")?;
        Ok(width)
    }

    pub(crate) fn scaling(&self, p: &RopeParameters) -> Result<Scaling> {
        let kind = p.rope_type.as_deref().unwrap_or("default");
        let need = |value: Option<f64>, key: &str| {
            let missing = || Error::Unsupported { key: format!("{kind} rope: {key}"), found: "none".into(), wanted: "a number" };
            value.ok_or_else(missing)
        };
        let original = self.original_max_position_embeddings.or(p.original_max_position_embeddings);
        let original = original.or(self.max_position_embeddings.map(|n| n as f64));
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
            // Phi-3 was first published with the other names.
            "longrope" | "su" => self.long_rope(p, need(original, "original_max_position_embeddings")?)?,
            other => {
                let wanted = "`default`, `linear`, `llama3`, `yarn` or `longrope`";
                return Err(Error::Unsupported { key: "rope_type".into(), found: other.into(), wanted });
            }
        })
    }

    fn long_rope(&self, p: &RopeParameters, original: f64) -> Result<Scaling> {
        let need = |value: &Option<Vec<f32>>, key: &str| {
            let missing = || Error::Unsupported { key: key.into(), found: "none".into(), wanted: "one factor for each pair" };
            value.clone().ok_or_else(missing)
        };
        let ratio = || self.max_position_embeddings.map_or(1.0, |n| n as f64 / original);
        let factor = p.factor.unwrap_or_else(ratio);
        let attention = p.attention_factor.unwrap_or_else(|| long_rope_attention(factor, original));
        let (short, long) = (need(&p.short_factor, "short_factor")?, need(&p.long_factor, "long_factor")?);
        Ok(Scaling::LongRope { short, long, original: original as usize, attention })
    }
}

/// `sqrt(1 + ln(factor) / ln(original))`, by which cosines and sines grow with the context.
fn long_rope_attention(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
}

/// `0.1 m ln(factor) + 1`, or the quotient of two such where the configuration names both `m`.
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
        _ => magnitude(1.0),
    }
}

/// Blocks of `attention` and the gated MLP of `config`, between the embedding and the head.
pub(crate) fn build(
    config: &DecoderConfig,
    mut builder: Builder<'_>,
    mlp_bias: bool,
    attention: impl Fn(&mut Builder<'_>, Inputs, ValueId) -> Result<ValueId>,
) -> Result<Graph> {
    let (frame, mlp) = (config.frame(), config.mlp(mlp_bias));
    let norm = |b: &mut Builder<'_>, name: &str, weight: &str, x| b.rms_norm(name, weight, x, frame.hidden, config.rms_norm_eps);
    let logits = builder.decoder(
        &frame,
        |b, inputs| b.embedding("x", "embedding", inputs.tokens, [frame.vocabulary, frame.hidden]),
        |b, _, inputs, x| b.pre_norm(x, norm, |b, x| attention(b, inputs, x), |b, x| b.gated_mlp(&mlp, x)),
        norm,
    )?;
    builder.output(logits);
    builder.finish(frame.blocks)
}

/// [`build`] with plain rotary attention, in which a query sees the last `window` positions, or all.
pub(crate) fn build_rotary(config: &DecoderConfig, builder: Builder<'_>, biases: Biases, window: Option<usize>) -> Result<Graph> {
    let (heads, rope) = (config.heads(), config.rope_of(&builder)?);
    let op = Attention { window, ..Attention::causal(heads.scale()) };
    build(config, builder, biases.mlp, |b, inputs, x| {
        let qkv = b.project(&heads, x, biases.projections)?;
        let qkv = b.rotate(&rope, inputs.positions, qkv)?;
        b.attend(&heads, op.clone(), qkv, biases.output)
    })
}
