//! `Qwen3ForCausalLM`: grouped rotary attention whose queries and keys are normalized head by head, and a gated MLP. The
//! width of a head is its own setting.

use attar_graph::{Graph, op::Attention};

use super::{Architecture, HARMLESS};
use crate::{
    Config, Names, Result,
    builder::{Builder, Qkv},
    decoder::{self, DecoderConfig, Defaults},
    names::{row, stored},
    shape::Keys,
};

const DEFAULTS: Defaults = Defaults { context: 32_768, key_heads: Some(32), head: Some(128), ..Defaults::LLAMA };

pub(super) static QWEN3: Architecture = Architecture {
    names: &["Qwen3ForCausalLM", "qwen3"],
    weights: &NAMES,
    gguf: |header| header.decoder(),
    build,
    shape: |config| Ok(DecoderConfig::parse(config, DEFAULTS)?.shape(|_| None)),
    keys: &Keys::LLAMA,
};

static NAMES: Names = Names {
    optional_prefix: "model.",
    larger_prefix: "",
    harmless: HARMLESS,
    rows: &[
        row("embedding", stored("model.embed_tokens"), stored("token_embd")),
        row("blocks.*.attention_norm", stored("model.layers.*.input_layernorm"), stored("blk.*.attn_norm")),
        row("blocks.*.attention.query", stored("model.layers.*.self_attn.q_proj"), stored("blk.*.attn_q")),
        row("blocks.*.attention.query_norm", stored("model.layers.*.self_attn.q_norm"), stored("blk.*.attn_q_norm")),
        row("blocks.*.attention.key", stored("model.layers.*.self_attn.k_proj"), stored("blk.*.attn_k")),
        row("blocks.*.attention.key_norm", stored("model.layers.*.self_attn.k_norm"), stored("blk.*.attn_k_norm")),
        row("blocks.*.attention.value", stored("model.layers.*.self_attn.v_proj"), stored("blk.*.attn_v")),
        row("blocks.*.attention.output", stored("model.layers.*.self_attn.o_proj"), stored("blk.*.attn_output")),
        row("blocks.*.mlp_norm", stored("model.layers.*.post_attention_layernorm"), stored("blk.*.ffn_norm")),
        row("blocks.*.mlp.gate", stored("model.layers.*.mlp.gate_proj"), stored("blk.*.ffn_gate")),
        row("blocks.*.mlp.up", stored("model.layers.*.mlp.up_proj"), stored("blk.*.ffn_up")),
        row("blocks.*.mlp.down", stored("model.layers.*.mlp.down_proj"), stored("blk.*.ffn_down")),
        row("final_norm", stored("model.norm"), stored("output_norm")),
        row("lm_head", stored("lm_head"), stored("output")),
    ],
};

fn build(config: &Config, builder: Builder<'_>) -> Result<Graph> {
    let c = DecoderConfig::parse(config, DEFAULTS)?;
    c.check_silu()?;
    c.check_no_window()?;
    let bias = c.settings.truth("attention_bias")?.unwrap_or(false);
    let (heads, rope, epsilon) = (c.heads(), c.rope_of(&builder)?, c.rms_norm_eps);
    decoder::build(&c, builder, false, |b, inputs, x| {
        let qkv = b.project(&heads, x, bias)?;
        let qkv = Qkv {
            query: b.rms_norm("query_normed", "attention.query_norm", qkv.query, heads.width, epsilon)?,
            key: b.rms_norm("key_normed", "attention.key_norm", qkv.key, heads.width, epsilon)?,
            value: qkv.value,
        };
        let qkv = b.rotate(&rope, inputs.positions, qkv)?;
        b.attend(&heads, Attention::causal(heads.scale()), qkv, bias)
    })
}
