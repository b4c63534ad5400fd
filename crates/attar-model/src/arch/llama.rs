//! `LlamaForCausalLM`: Llama 1 to 3, SmolLM, TinyLlama, and many others under the same name.

use attar_graph::Graph;

use super::{Architecture, HARMLESS};
use crate::{
    Config, Names, Result,
    builder::Builder,
    decoder::{self, Biases, DecoderConfig, Defaults},
    names::{row, stored},
    shape::Keys,
};

pub(super) static LLAMA: Architecture = Architecture {
    names: &["LlamaForCausalLM", "llama"],
    weights: &NAMES,
    gguf: |header| header.decoder(),
    build,
    shape: |config| Ok(DecoderConfig::parse(config, Defaults::LLAMA)?.shape(|_| None)),
    keys: &Keys::LLAMA,
};

/// GGUF files keep the rows of query and key in the order of the original Llama.
pub(super) static NAMES: Names = Names {
    optional_prefix: "model.",
    larger_prefix: "",
    harmless: HARMLESS,
    rows: &[
        row("embedding", stored("model.embed_tokens"), stored("token_embd")),
        row("blocks.*.attention_norm", stored("model.layers.*.input_layernorm"), stored("blk.*.attn_norm")),
        row("blocks.*.attention.query", stored("model.layers.*.self_attn.q_proj"), stored("blk.*.attn_q").interleaved()),
        row("blocks.*.attention.key", stored("model.layers.*.self_attn.k_proj"), stored("blk.*.attn_k").interleaved()),
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
    let c = DecoderConfig::parse(config, Defaults::LLAMA)?;
    c.check_silu()?;
    c.check_layers("full_attention")?;
    let set = |key| c.settings.truth(key).map(Option::unwrap_or_default);
    let attention = set("attention_bias")?;
    if attention {
        // Older checkpoints that were turned into Llamas say the same twice.
        let _ = c.settings.get("bias");
    }
    decoder::build_rotary(&c, builder, Biases { projections: attention, output: attention, mlp: set("mlp_bias")? }, None)
}
