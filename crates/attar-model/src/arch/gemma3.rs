//! `Gemma3ForCausalLM`: Gemma 3 as a text model. Blocks normalize what attention and MLP read and what they return, with gains
//! stored less one; queries and keys are normalized head by head; the embedding is scaled by the root of its width. Most
//! blocks see a window and have their own base of rotary positions, the others see all.

use attar_graph::{
    Graph, Op, ValueId,
    op::{Attention, Rope, Scaling},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use crate::{
    Config, Error, Names, Result,
    builder::{Builder, Frame, Inputs, Mlp, Qkv, activation},
    config::check,
    decoder::{DecoderConfig, RopeParameters},
    gguf::{Header, set},
    names::{row, stored},
};

pub(super) static GEMMA3: Architecture =
    Architecture { names: &["Gemma3ForCausalLM", "gemma3", "gemma3_text"], weights: &NAMES, gguf: config_of_gguf, build };

/// GGUF files have one added to the gains already.
static NAMES: Names = Names {
    optional_prefix: "",
    rows: &[
        row("embedding", stored("model.embed_tokens"), stored("token_embd")),
        row("blocks.*.attention_norm", stored("model.layers.*.input_layernorm").less_one(), stored("blk.*.attn_norm")),
        row("blocks.*.attention.query", stored("model.layers.*.self_attn.q_proj"), stored("blk.*.attn_q")),
        row("blocks.*.attention.query_norm", stored("model.layers.*.self_attn.q_norm").less_one(), stored("blk.*.attn_q_norm")),
        row("blocks.*.attention.key", stored("model.layers.*.self_attn.k_proj"), stored("blk.*.attn_k")),
        row("blocks.*.attention.key_norm", stored("model.layers.*.self_attn.k_norm").less_one(), stored("blk.*.attn_k_norm")),
        row("blocks.*.attention.value", stored("model.layers.*.self_attn.v_proj"), stored("blk.*.attn_v")),
        row("blocks.*.attention.output", stored("model.layers.*.self_attn.o_proj"), stored("blk.*.attn_output")),
        row(
            "blocks.*.attention_out_norm",
            stored("model.layers.*.post_attention_layernorm").less_one(),
            stored("blk.*.post_attention_norm"),
        ),
        row("blocks.*.mlp_norm", stored("model.layers.*.pre_feedforward_layernorm").less_one(), stored("blk.*.ffn_norm")),
        row("blocks.*.mlp.gate", stored("model.layers.*.mlp.gate_proj"), stored("blk.*.ffn_gate")),
        row("blocks.*.mlp.up", stored("model.layers.*.mlp.up_proj"), stored("blk.*.ffn_up")),
        row("blocks.*.mlp.down", stored("model.layers.*.mlp.down_proj"), stored("blk.*.ffn_down")),
        row(
            "blocks.*.mlp_out_norm",
            stored("model.layers.*.post_feedforward_layernorm").less_one(),
            stored("blk.*.post_ffw_norm"),
        ),
        row("final_norm", stored("model.norm").less_one(), stored("output_norm")),
        row("lm_head", stored("lm_head"), stored("output")),
    ],
};

/// The settings that are Gemma's own.
#[derive(Deserialize)]
struct GemmaConfig {
    #[serde(default = "gelu_tanh")]
    hidden_activation: String,
    #[serde(default = "head")]
    head_dim: usize,
    #[serde(default = "head_as_number")]
    query_pre_attn_scalar: f64,
    #[serde(default = "window")]
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(default = "pattern")]
    sliding_window_pattern: usize,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    rope_parameters: Option<RopeOfLayers>,
    rope_scaling: Option<RopeParameters>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
}

/// As transformers 5 writes them.
#[derive(Deserialize, Clone)]
struct RopeOfLayers {
    full_attention: Option<RopeParameters>,
    sliding_attention: Option<RopeParameters>,
}

fn gelu_tanh() -> String {
    "gelu_pytorch_tanh".into()
}

fn head() -> usize {
    256
}

fn head_as_number() -> f64 {
    256.0
}

fn window() -> Option<usize> {
    Some(4096)
}

fn pattern() -> usize {
    6
}

fn yes() -> bool {
    true
}

/// How the blocks of one kind attend.
struct Layer {
    rope: Rope,
    op: Attention,
}

impl GemmaConfig {
    fn parse(config: &Config) -> Result<GemmaConfig> {
        let c: GemmaConfig = config.parse()?;
        let none = |n: &Option<f64>| n.map_or("null".into(), |n| n.to_string());
        // transformers reads this one and does not apply it.
        check("attn_logit_softcapping", &none(&c.attn_logit_softcapping), |cap| cap == "null", "`null`")?;
        let bidirectional = c.use_bidirectional_attention.unwrap_or(false);
        check("use_bidirectional_attention", &bidirectional, |both| !both, "`false`")?;
        check("query_pre_attn_scalar", &c.query_pre_attn_scalar, |n| *n > 0.0, "a positive number")?;
        check("sliding_window_pattern", &c.sliding_window_pattern, |n| *n > 0, "1 or more")?;
        check("final_logit_softcapping", &c.final_logit_softcapping.unwrap_or(1.0), |cap| *cap > 0.0, "a positive number")?;
        Ok(c)
    }

    /// Whether each block sees a window only.
    fn local(&self, blocks: usize) -> Result<Vec<bool>> {
        let Some(types) = &self.layer_types else {
            return Ok((1..=blocks).map(|number| !number.is_multiple_of(self.sliding_window_pattern)).collect());
        };
        if types.len() != blocks {
            return Err(Error::Contradiction {
                first: format!("num_hidden_layers = {blocks}"),
                second: format!("{} layer_types", types.len()),
            });
        }
        let local = |kind: &String| match kind.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(Error::Unsupported {
                key: "layer_types".into(),
                found: other.into(),
                wanted: "`sliding_attention` or `full_attention`",
            }),
        };
        types.iter().map(local).collect()
    }

    /// Blocks that see all, and blocks that see a window.
    fn layers(&self, config: &DecoderConfig) -> Result<[Layer; 2]> {
        let scale = 1.0 / self.query_pre_attn_scalar.sqrt();
        let (global, local) = match self.rope_parameters.clone() {
            Some(layers) => (layers.full_attention, layers.sliding_attention),
            None => (self.rope_scaling.clone(), None),
        };
        let rope = |parameters: Option<RopeParameters>, old: Option<f64>, default: f64| {
            let theta = parameters.as_ref().and_then(|p| p.rope_theta).or(old).unwrap_or(default);
            let scaling = parameters.map_or(Ok(Scaling::Default), |parameters| config.scaling(&parameters));
            scaling.map(|scaling| Rope { theta, scaling })
        };
        let all = Layer { rope: rope(global, self.rope_theta, 1e6)?, op: Attention::causal(scale) };
        let op = Attention { window: self.sliding_window, ..Attention::causal(scale) };
        Ok([all, Layer { rope: rope(local, self.rope_local_base_freq, 1e4)?, op }])
    }
}

fn build(config: &Config, mut builder: Builder<'_>) -> Result<Graph> {
    let g = GemmaConfig::parse(config)?;
    let c = DecoderConfig::parse(config)?.with_head(g.head_dim);
    let frame = Frame { tied: g.tie_word_embeddings, softcap: g.final_logit_softcapping, ..c.frame() };
    let mlp = Mlp { activation: activation("hidden_activation", &g.hidden_activation)?, ..c.mlp(false) };
    let (layers, local) = (g.layers(&c)?, g.local(frame.blocks)?);
    let norm = |b: &mut Builder<'_>, name: &str, weight: &str, x| b.rms_norm(name, weight, x, frame.hidden, c.rms_norm_eps);
    let logits = builder.decoder(
        &frame,
        |b, inputs| {
            let row = b.embedding("token", "embedding", inputs.tokens, [frame.vocabulary, frame.hidden])?;
            b.node("x", Op::Scale { by: (frame.hidden as f64).sqrt() }, &[row])
        },
        |b, block, inputs, x| {
            let attention = |b: &mut Builder<'_>, x| {
                let out = attend(b, &c, &layers[usize::from(local[block])], inputs, x)?;
                norm(b, "attention_out_normed", "attention_out_norm", out)
            };
            let mlp = |b: &mut Builder<'_>, x| {
                let out = b.gated_mlp(&mlp, x)?;
                norm(b, "mlp_out_normed", "mlp_out_norm", out)
            };
            b.pre_norm(x, norm, attention, mlp)
        },
        norm,
    )?;
    builder.output(logits);
    builder.finish(frame.blocks)
}

fn attend(b: &mut Builder<'_>, c: &DecoderConfig, layer: &Layer, inputs: Inputs, x: ValueId) -> Result<ValueId> {
    let heads = c.heads();
    let qkv = b.project(&heads, x, c.attention_bias)?;
    let qkv = Qkv {
        query: b.rms_norm("query_normed", "attention.query_norm", qkv.query, heads.width, c.rms_norm_eps)?,
        key: b.rms_norm("key_normed", "attention.key_norm", qkv.key, heads.width, c.rms_norm_eps)?,
        value: qkv.value,
    };
    let qkv = b.rotate(&layer.rope, inputs.positions, qkv)?;
    b.attend(&heads, layer.op.clone(), qkv, c.attention_bias)
}

/// What older files do not say is as llama.cpp has it: every sixth block sees all, and only the 27B model, of 62 blocks, has
/// another attention scale than that of its heads.
fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    let mut config = header.decoder()?;
    let (head, blocks) = (header.need("attention.key_length")?, header.need("block_count")?);
    let scalar = if blocks == 62 { header.need("embedding_length")? / header.need("attention.head_count")? } else { head };
    config["hidden_activation"] = json!("gelu_pytorch_tanh");
    config["query_pre_attn_scalar"] = json!(scalar);
    config["rope_theta"] = json!(header.float("rope.freq_base").unwrap_or(1e6));
    set(&mut config, "sliding_window_pattern", header.count("attention.sliding_window_pattern"));
    set(&mut config, "rope_local_base_freq", header.float("rope.freq_base_swa"));
    set(&mut config, "final_logit_softcapping", header.float("final_logit_softcapping"));
    set(&mut config, "attn_logit_softcapping", header.float("attn_logit_softcapping"));
    Ok(config)
}
