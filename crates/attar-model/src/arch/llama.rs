//! `LlamaForCausalLM`: Llama 1 to 3, SmolLM, TinyLlama, and many others under the same name.

use attar_graph::Graph;
use serde_json::Value;

use super::Architecture;
use crate::{
    Config, Error, Names, Result,
    builder::Builder,
    decoder::{self, Biases, DecoderConfig},
    gguf::Header,
    names::{row, stored},
};

pub(super) static LLAMA: Architecture =
    Architecture { names: &["LlamaForCausalLM", "llama"], weights: &NAMES, gguf: config_of_gguf, build };

/// GGUF files keep the rows of query and key in the order of the original Llama.
pub(super) static NAMES: Names = Names {
    optional_prefix: "",
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
    let c = DecoderConfig::parse(config)?;
    let biases = Biases { projections: c.attention_bias, output: c.attention_bias, mlp: c.mlp_bias };
    decoder::build_rotary(&c, builder, biases, None)
}

fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    const BIAS: &str = "blk.0.attn_q.bias";
    match header.has(BIAS) {
        true => Err(Error::Unsupported { key: BIAS.into(), found: "present".into(), wanted: "a Llama without biases" }),
        false => header.decoder(),
    }
}
