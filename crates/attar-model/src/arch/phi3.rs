//! `Phi3ForCausalLM`: Phi-3, Phi-3.5 and Phi-4-mini. Query, key and value are stored as one tensor, and so are gate and up.
//! Some models rotate only the first columns of a head, some have factors for each rotary pair, one list for texts up to the
//! context of the first training and one for longer texts ("long-rope", Ding et al. 2024).

use attar_graph::{Graph, op::Attention};
use serde_json::{Value, json};

use super::{Architecture, HARMLESS};
use crate::{
    Config, Names, Result,
    builder::Builder,
    config::check_unset,
    decoder::{self, DecoderConfig, Defaults},
    gguf::{Header, set},
    names::{row, stored},
    shape::Keys,
};

const DEFAULTS: Defaults =
    Defaults { epsilon: 1e-5, context: 4096, original: Some(4096), only_long_rope: true, ..Defaults::LLAMA };

pub(super) static PHI3: Architecture = Architecture {
    names: &["Phi3ForCausalLM", "phi3"],
    weights: &NAMES,
    gguf: config_of_gguf,
    build,
    shape: |config| {
        let c = DecoderConfig::parse(config, DEFAULTS)?;
        let window = c.window(None)?;
        Ok(c.shape(|_| window))
    },
    keys: &Keys::LLAMA,
};

static NAMES: Names = Names {
    optional_prefix: "model.",
    larger_prefix: "",
    harmless: HARMLESS,
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
    let c = DecoderConfig::parse(config, DEFAULTS)?;
    c.check_silu()?;
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        check_unset(&c.settings, key)?;
    }
    let (heads, width) = (c.heads(), c.rotary_width()?);
    let rope = c.rope(width)?;
    let op = Attention { window: c.window(None)?, ..Attention::causal(heads.scale()) };
    decoder::build(&c, builder, false, |b, inputs, x| {
        let qkv = b.project(&heads, x, false)?;
        let qkv = b.rotate_part(&rope, width, &heads, inputs.positions, qkv)?;
        b.attend(&heads, op.clone(), qkv, false)
    })
}

fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    let mut config = header.with_window(header.partly_rotary()?)?;
    let head = header.head()?;
    config["partial_rotary_factor"] = json!(header.rotary(head)? as f64 / head as f64);
    let original = header.count("rope.scaling.original_context_length")?;
    set(&mut config, "original_max_position_embeddings", original.or(header.count("context_length")?));
    let scaling = match (header.vector("rope_factors_short.weight")?, header.vector("rope_factors_long.weight")?) {
        (None, None) => header.rope_scaling()?,
        (short, long) => {
            header.need("rope.scaling.original_context_length")?;
            header.note("rope.scaling.type");
            let attention = header.float("rope.scaling.attn_factor")?;
            Some(json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention }))
        }
    };
    set(&mut config, "rope_scaling", scaling);
    Ok(config)
}
