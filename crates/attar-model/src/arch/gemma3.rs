//! `Gemma3ForCausalLM`: Gemma 3 as a text model. Blocks normalize what attention and MLP read and what they return, with gains
//! stored less one; queries and keys are normalized head by head; the embedding is scaled by the root of its width. Most
//! blocks see a window and have their own base of rotary positions, the others see all.

use attar_graph::{
    Graph, Op, ValueId,
    op::{Attention, Rope, Scaling},
};
use serde_json::{Value, json};

use super::{Architecture, HARMLESS};
use crate::{
    Config, Error, Names, Result,
    builder::{Builder, Frame, Inputs, Mlp, Qkv, activation},
    config::{check, check_unset},
    decoder::{DecoderConfig, Defaults},
    gguf::{Header, set},
    names::{row, stored},
    settings::Settings,
    shape::Keys,
};

pub(super) static GEMMA3: Architecture = Architecture {
    names: &["Gemma3ForCausalLM", "gemma3", "gemma3_text"],
    weights: &NAMES,
    gguf: config_of_gguf,
    build,
    shape: |config| {
        let g = GemmaConfig::parse(config)?;
        let local = g.local(g.decoder.frame().blocks)?;
        Ok(g.decoder.shape(|block| g.window.filter(|_| local[block])))
    },
    keys: &Keys::LLAMA,
};

/// GGUF files have one added to the gains already.
static NAMES: Names = Names {
    optional_prefix: "model.",
    larger_prefix: "",
    harmless: HARMLESS,
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

const DEFAULTS: Defaults = Defaults { context: 131_072, key_heads: Some(4), head: Some(256), tied: true, ..Defaults::LLAMA };

/// What transformers assumes without the key.
const WINDOW: usize = 4096;

/// The settings that are Gemma's own.
struct GemmaConfig<'a> {
    decoder: DecoderConfig<'a>,
    activation: Op,
    bias: bool,
    query_pre_attn_scalar: f64,
    window: Option<usize>,
    softcap: Option<f64>,
}

/// How the blocks of one kind attend.
struct Layer {
    rope: Rope,
    op: Attention,
}

impl<'a> GemmaConfig<'a> {
    fn parse(config: &'a Config) -> Result<GemmaConfig<'a>> {
        let decoder = DecoderConfig::parse(config, DEFAULTS)?;
        let c = &decoder.settings;
        check_unset(c, "use_bidirectional_attention")?;
        // transformers reads this one and does not apply it.
        let none = |n: Option<f64>| n.map_or("null".into(), |n| n.to_string());
        check("attn_logit_softcapping", &none(c.number("attn_logit_softcapping")?), |cap| cap == "null", "`null`")?;
        Ok(GemmaConfig {
            activation: activation("hidden_activation", c.text("hidden_activation")?.unwrap_or("gelu_pytorch_tanh"))?,
            bias: c.truth("attention_bias")?.unwrap_or(false),
            query_pre_attn_scalar: c.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
            window: decoder.window(Some(WINDOW))?,
            softcap: c.positive("final_logit_softcapping")?,
            decoder,
        })
    }

    /// Whether each block sees a window only.
    fn local(&self, blocks: usize) -> Result<Vec<bool>> {
        let settings = &self.decoder.settings;
        let pattern = settings.size("sliding_window_pattern")?.unwrap_or(6);
        let Some(types) = settings.texts("layer_types")? else {
            return Ok((1..=blocks).map(|number| !number.is_multiple_of(pattern)).collect());
        };
        if types.len() != blocks {
            return Err(self.decoder.layer_count(types.len()));
        }
        let local = |kind: &str| match kind {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(Error::Unsupported {
                key: "layer_types".into(),
                found: other.into(),
                wanted: "`sliding_attention` or `full_attention`",
            }),
        };
        types.into_iter().map(local).collect()
    }

    /// Blocks that see all, and blocks that see a window.
    fn layers(&self) -> Result<[Layer; 2]> {
        let settings = &self.decoder.settings;
        let scale = 1.0 / self.query_pre_attn_scalar.sqrt();
        let (new, old) = (settings.inner("rope_parameters")?, settings.inner("rope_scaling")?);
        let (global, local) = match (new, old) {
            (Some(_), Some(_)) => {
                return Err(Error::Contradiction {
                    first: "rope_scaling".into(),
                    second: "rope_parameters is there, too".into(),
                });
            }
            (Some(layers), None) => (layers.inner("full_attention")?, layers.inner("sliding_attention")?),
            (None, old) => (old, None),
        };
        let all = Layer { rope: self.rope(global, "rope_theta", 1e6)?, op: Attention::causal(scale) };
        let op = Attention { window: self.window, ..Attention::causal(scale) };
        Ok([all, Layer { rope: self.rope(local, "rope_local_base_freq", 1e4)?, op }])
    }

    /// The rotary positions of one kind of block; `old` is where older configurations have their base.
    fn rope(&self, parameters: Option<Settings<'_>>, old: &str, default: f64) -> Result<Rope> {
        let inner = parameters.as_ref().map(|p| p.positive("rope_theta")).transpose()?.flatten();
        let theta = inner.or(self.decoder.settings.positive(old)?).unwrap_or(default);
        let head = self.decoder.heads().width;
        let scaling = parameters.map_or(Ok(Scaling::Default), |p| {
            // transformers looks for the key one level higher, where none can be.
            check(&p.full("truncate"), &p.truth("truncate")?.unwrap_or(true), |cut| *cut, "`true`")?;
            self.decoder.scaling(&p, head, theta)
        })?;
        Ok(Rope { theta, scaling })
    }
}

fn build(config: &Config, mut builder: Builder<'_>) -> Result<Graph> {
    let g = GemmaConfig::parse(config)?;
    let c = &g.decoder;
    let frame = Frame { softcap: g.softcap, ..c.frame() };
    let mlp = Mlp { activation: g.activation.clone(), ..c.mlp(false) };
    let (layers, local) = (g.layers()?, g.local(frame.blocks)?);
    let norm = |b: &mut Builder<'_>, name: &str, weight: &str, x| b.rms_norm(name, weight, x, frame.hidden, c.rms_norm_eps);
    let logits = builder.decoder(
        &frame,
        |b, inputs| {
            let row = b.embedding("token", "embedding", inputs.tokens, [frame.vocabulary, frame.hidden])?;
            b.node("x", Op::Scale { by: (frame.hidden as f64).sqrt() }, &[row])
        },
        |b, block, inputs, x| {
            let attention = |b: &mut Builder<'_>, x| {
                let out = attend(b, &g, &layers[usize::from(local[block])], inputs, x)?;
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
    builder.finish()
}

fn attend(b: &mut Builder<'_>, g: &GemmaConfig<'_>, layer: &Layer, inputs: Inputs, x: ValueId) -> Result<ValueId> {
    let (c, heads) = (&g.decoder, g.decoder.heads());
    let qkv = b.project(&heads, x, g.bias)?;
    let qkv = Qkv {
        query: b.rms_norm("query_normed", "attention.query_norm", qkv.query, heads.width, c.rms_norm_eps)?,
        key: b.rms_norm("key_normed", "attention.key_norm", qkv.key, heads.width, c.rms_norm_eps)?,
        value: qkv.value,
    };
    let qkv = b.rotate(&layer.rope, inputs.positions, qkv)?;
    b.attend(&heads, layer.op.clone(), qkv, g.bias)
}

/// What older files do not say is as llama.cpp has it: every sixth block sees all, and only the 27B model, of 62 blocks, has
/// another attention scale than that of its heads.
fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    let mut config = header.windowed()?;
    let (head, blocks) = (header.need("attention.key_length")?, header.need("block_count")?);
    let scalar = if blocks == 62 { header.need("embedding_length")? / header.need("attention.head_count")? } else { head };
    config.as_object_mut().and_then(|config| config.remove("hidden_act"));
    config["hidden_activation"] = json!("gelu_pytorch_tanh");
    config["query_pre_attn_scalar"] = json!(scalar);
    config["rope_theta"] = json!(header.float("rope.freq_base")?.unwrap_or(1e6));
    set(&mut config, "sliding_window_pattern", header.count("attention.sliding_window_pattern")?);
    set(&mut config, "rope_local_base_freq", header.float("rope.freq_base_swa")?);
    set(&mut config, "final_logit_softcapping", header.float("final_logit_softcapping")?);
    set(&mut config, "attn_logit_softcapping", header.float("attn_logit_softcapping")?);
    Ok(config)
}
