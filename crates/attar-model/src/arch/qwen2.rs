//! `Qwen2ForCausalLM`: Qwen 2 and 2.5. Llama's graph with biases on query, key and value.

use super::{Architecture, HARMLESS};
use crate::{
    Names,
    decoder::{self, Biases, DecoderConfig, Defaults},
    names::{row, stored},
    shape::Keys,
};

const DEFAULTS: Defaults = Defaults { context: 32_768, key_heads: Some(32), ..Defaults::LLAMA };

pub(super) static QWEN2: Architecture = Architecture {
    names: &["Qwen2ForCausalLM", "qwen2"],
    weights: &NAMES,
    gguf: |header| header.decoder(),
    build: |config, builder| {
        let c = DecoderConfig::parse(config, DEFAULTS)?;
        c.check_silu()?;
        c.check_no_window()?;
        decoder::build_rotary(&c, builder, Biases { projections: true, ..Biases::default() }, None)
    },
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
        row("blocks.*.attention.key", stored("model.layers.*.self_attn.k_proj"), stored("blk.*.attn_k")),
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
