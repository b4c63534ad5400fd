//! `GPT2LMHeadModel`: pre-norm blocks with LayerNorm, learned positions and a plain MLP (Radford et al. 2019). Hugging Face
//! checkpoints store the linear layers transposed, `[in, out]`, and query, key and value as one.

use attar_graph::{Graph, ValueId, op::Attention};
use serde_json::{Value, json};

use super::{Architecture, TIED};
use crate::{
    Config, Error, Names, Result,
    builder::{Builder, Frame, Heads, Mlp, activation},
    config::{check_heads, check_unset},
    gguf::Header,
    names::{row, stored},
    settings::Settings,
    shape::{Keys, Shape},
};

pub(super) static GPT2: Architecture = Architecture {
    names: &["GPT2LMHeadModel", "gpt2"],
    weights: &NAMES,
    gguf: config_of_gguf,
    build,
    shape: |config| {
        let c = Gpt2Config::parse(config)?;
        let tied = Some(c.tie_word_embeddings);
        Ok(Shape::uniform(c.vocab_size, tied, c.n_layer, &c.heads(), c.inner(), |_| None))
    },
    keys: &Keys {
        blocks: &["n_layer", "num_hidden_layers"],
        hidden: &["n_embd", "hidden_size"],
        inner: &["n_inner"],
        heads: &["n_head", "num_attention_heads"],
        ..Keys::EQUAL_HEADS
    },
};

static NAMES: Names = Names {
    optional_prefix: "transformer.",
    larger_prefix: "",
    harmless: &[("**.attn.bias", "the causal mask"), ("**.attn.masked_bias", "what masked positions are set to"), TIED],
    rows: &[
        row("embedding", stored("transformer.wte"), stored("token_embd")),
        row("position_embedding", stored("transformer.wpe"), stored("position_embd")),
        row("blocks.*.attention_norm", stored("transformer.h.*.ln_1"), stored("blk.*.attn_norm")),
        row(
            "blocks.*.attention.query",
            stored("transformer.h.*.attn.c_attn").transposed().fused(),
            stored("blk.*.attn_qkv").fused(),
        ),
        row(
            "blocks.*.attention.key",
            stored("transformer.h.*.attn.c_attn").transposed().fused(),
            stored("blk.*.attn_qkv").fused(),
        ),
        row(
            "blocks.*.attention.value",
            stored("transformer.h.*.attn.c_attn").transposed().fused(),
            stored("blk.*.attn_qkv").fused(),
        ),
        row("blocks.*.attention.output", stored("transformer.h.*.attn.c_proj").transposed(), stored("blk.*.attn_output")),
        row("blocks.*.mlp_norm", stored("transformer.h.*.ln_2"), stored("blk.*.ffn_norm")),
        row("blocks.*.mlp.up", stored("transformer.h.*.mlp.c_fc").transposed(), stored("blk.*.ffn_up")),
        row("blocks.*.mlp.down", stored("transformer.h.*.mlp.c_proj").transposed(), stored("blk.*.ffn_down")),
        row("final_norm", stored("transformer.ln_f"), stored("output_norm")),
        row("lm_head", stored("lm_head"), stored("output")),
    ],
};

struct Gpt2Config {
    vocab_size: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_positions: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
}

impl Gpt2Config {
    fn parse(config: &Config) -> Result<Gpt2Config> {
        let c = config.settings()?;
        let (n_embd, n_head) = (size(&c, "n_embd", "hidden_size")?, size(&c, "n_head", "num_attention_heads")?);
        check_heads(("n_embd", n_embd), ("n_head", n_head))?;
        check_unset(&c, "add_cross_attention")?;
        let flag = |key: &str, default| c.truth(key).map(|set| set.unwrap_or(default));
        Ok(Gpt2Config {
            vocab_size: c.need_size("vocab_size")?,
            n_embd,
            n_layer: size(&c, "n_layer", "num_hidden_layers")?,
            n_head,
            n_positions: size(&c, "n_positions", "max_position_embeddings")?,
            n_inner: c.size("n_inner")?,
            activation_function: c.text("activation_function")?.unwrap_or("gelu_new").into(),
            layer_norm_epsilon: c.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
            scale_attn_weights: flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: flag("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: flag("tie_word_embeddings", true)?,
        })
    }

    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    fn frame(&self) -> Frame {
        let (vocabulary, hidden) = (self.vocab_size, self.n_embd);
        Frame { vocabulary, hidden, blocks: self.n_layer, tied: self.tie_word_embeddings, softcap: None }
    }

    fn heads(&self) -> Heads {
        Heads { hidden: self.n_embd, query: self.n_head, key: self.n_head, width: self.n_embd / self.n_head }
    }

    /// What query times key is multiplied by in a block.
    fn scale(&self, block: usize) -> f64 {
        let root = if self.scale_attn_weights { ((self.n_embd / self.n_head) as f64).sqrt() } else { 1.0 };
        let depth = if self.scale_attn_by_inverse_layer_idx { (block + 1) as f64 } else { 1.0 };
        1.0 / (root * depth)
    }
}

/// A size under either of its names, which do not contradict each other.
fn size(c: &Settings<'_>, key: &str, also: &str) -> Result<usize> {
    match (c.size(key)?, c.size(also)?) {
        (Some(n), Some(other)) if n != other => {
            Err(Error::Contradiction { first: format!("{key} = {n}"), second: format!("{also} = {other}") })
        }
        (n, other) => c.need(key, n.or(other), "a whole number of at least 1"),
    }
}

fn build(config: &Config, mut builder: Builder<'_>) -> Result<Graph> {
    let c = Gpt2Config::parse(config)?;
    let activation = activation("activation_function", &c.activation_function)?;
    let (frame, heads, mlp) = (c.frame(), c.heads(), Mlp { hidden: c.n_embd, inner: c.inner(), bias: true, activation });
    let norm = |b: &mut Builder<'_>, name: &str, weight: &str, x| b.layer_norm(name, weight, x, c.n_embd, c.layer_norm_epsilon);
    let attention = |b: &mut Builder<'_>, block, x: ValueId| {
        let qkv = b.project(&heads, x, true)?;
        b.attend(&heads, Attention::causal(c.scale(block)), qkv, true)
    };
    let logits = builder.decoder(
        &frame,
        |b, inputs| {
            let token = b.embedding("token", "embedding", inputs.tokens, [c.vocab_size, c.n_embd])?;
            let position = b.embedding("position", "position_embedding", inputs.positions, [c.n_positions, c.n_embd])?;
            b.add("x", token, position)
        },
        |b, block, _, x| b.pre_norm(x, norm, |b, x| attention(b, block, x), |b, x| b.plain_mlp(&mlp, x)),
        norm,
    )?;
    builder.output(logits);
    builder.finish()
}

fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    let mut config = json!({
        "architectures": [header.class],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": header.need_float("attention.layer_norm_epsilon")?,
        "n_embd": header.need("embedding_length")?,
        "n_head": header.need("attention.head_count")?,
        "n_inner": header.need("feed_forward_length")?,
        "n_layer": header.need("block_count")?,
        "n_positions": header.need("context_length")?,
        "tie_word_embeddings": !header.has("output.weight"),
        "vocab_size": header.vocabulary()?,
    });
    header.special_tokens(&mut config);
    header.check_causal(true)?;
    header.check_key_heads()?;
    Ok(config)
}
