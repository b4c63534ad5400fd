//! `Phi3ForCausalLM`: Phi-3, Phi-3.5 and Phi-4-mini. Query, key and value are stored as one tensor, and so are gate and up.
//! Some models rotate only the first columns of a head, some have factors for each rotary pair, one list for texts up to the
//! context of the first training and one for longer texts ("long-rope", Ding et al. 2024).

use attar_graph::{Graph, op::Attention};
use serde_json::{Value, json};

use super::Architecture;
use crate::{
    Config, Names, Result,
    builder::Builder,
    config::check,
    decoder::{self, DecoderConfig},
    gguf::Header,
    names::{row, stored},
};

pub(super) static PHI3: Architecture =
    Architecture { names: &["Phi3ForCausalLM", "phi3"], weights: &NAMES, gguf: config_of_gguf, build };

static NAMES: Names = Names {
    optional_prefix: "",
    rows: &[
        row("embedding", stored("model.embed_tokens"), stored("token_embd")),
        row("blocks.*.attention_norm", stored("model.layers.*.input_layernorm"), stored("blk.*.attn_norm")),
        row("blocks.*.attention.query", stored("model.layers.*.self_attn.qkv_proj").fused(), stored("blk.*.attn_qkv").fused()),
        row("blocks.*.attention.key", stored("model.layers.*.self_attn.qkv_proj").fused(), stored("blk.*.attn_qkv").fused()),
        row("blocks.*.attention.value", stored("model.layers.*.self_attn.qkv_proj").fused(), stored("blk.*.attn_qkv").fused()),
        row("blocks.*.attention.output", stored("model.layers.*.self_attn.o_proj"), stored("blk.*.attn_output")),
        row("blocks.*.mlp_norm", stored("model.layers.*.post_attention_layernorm"), stored("blk.*.ffn_norm")),
        row("blocks.*.mlp.gate", stored("model.layers.*.mlp.gate_up_proj").fused(), stored("blk.*.ffn_up").fused()),
        row("blocks.*.mlp.up", stored("model.layers.*.mlp.gate_up_proj").fused(), stored("blk.*.ffn_up").fused()),
        row("blocks.*.mlp.down", stored("model.layers.*.mlp.down_proj"), stored("blk.*.ffn_down")),
        row("final_norm", stored("model.norm"), stored("output_norm")),
        row("lm_head", stored("lm_head"), stored("output")),
    ],
};

fn build(config: &Config, builder: Builder<'_>) -> Result<Graph> {
    let c = DecoderConfig::parse(config)?;
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        let biased = config.json.get(key).and_then(Value::as_bool).unwrap_or(false);
        check(key, &biased, |biased| !biased, "`false`")?;
    }
    let (heads, width, rope) = (c.heads(), c.rotary_width()?, c.rope()?);
    let op = Attention { window: c.sliding_window, ..Attention::causal(heads.scale()) };
    decoder::build(&c, builder, false, |b, inputs, x| {
        let qkv = b.project(&heads, x, false)?;
        let qkv = b.rotate_part(&rope, width, &heads, inputs.positions, qkv)?;
        b.attend(&heads, op.clone(), qkv, false)
    })
}

fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    let mut config = header.decoder()?;
    let head = header.need("embedding_length")? / header.need("attention.head_count")?;
    let rotary = header.count("rope.dimension_count").unwrap_or(head);
    config["partial_rotary_factor"] = json!(rotary as f64 / head as f64);
    if let (Some(short), Some(long)) = (header.vector("rope_factors_short.weight")?, header.vector("rope_factors_long.weight")?) {
        let original = header.need("rope.scaling.original_context_length")?;
        config["rope_scaling"] = json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
            "attention_factor": header.float("rope.scaling.attn_factor"),
        });
    }
    Ok(config)
}
