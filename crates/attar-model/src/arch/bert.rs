//! `BertModel`: an encoder (Devlin et al. 2019) that returns one embedding for each text, as sentence-transformers uses it:
//! the last hidden states are pooled and, if the folder's `modules.json` says so, normalized to length one. A folder without
//! `modules.json` has mean pooling alone, as sentence-transformers gives it.
//!
//! Every query sees every key, and the mean is over all positions: the graph has no mask, because all texts that run
//! together have the same number of tokens. A text of another length runs in a batch of its own, never padded.

use attar_graph::{Graph, Op, ValueId, op::Attention};
use serde_json::{Value, json};

use super::Architecture;
use crate::{
    Config, Names, Result,
    builder::{Builder, Heads, Mlp, activation},
    config::{Pooling, check, check_heads, check_unset},
    gguf::Header,
    names::{row, stored},
    shape::{Keys, Shape},
};

pub(super) static BERT: Architecture = Architecture {
    names: &["BertModel", "bert"],
    weights: &NAMES,
    gguf: config_of_gguf,
    build,
    shape: |config| {
        let c = BertConfig::parse(config)?;
        Ok(Shape::uniform(c.vocab_size, None, c.num_hidden_layers, &c.heads(), c.intermediate_size, |_| None))
    },
    keys: &Keys::EQUAL_HEADS,
};

static NAMES: Names = Names {
    optional_prefix: "",
    larger_prefix: "bert.",
    harmless: &[
        ("**.position_ids", "numbers from 0"),
        ("**.token_type_ids", "zeros"),
        ("**.pooler.dense.*", "of a head for other tasks: embeddings are made of the last hidden states"),
        ("pooler.dense.*", "of a head for other tasks: embeddings are made of the last hidden states"),
        ("cls.**", "of the heads of pre-training: embeddings are made of the last hidden states"),
    ],
    rows: &[
        row("embedding", stored("embeddings.word_embeddings"), stored("token_embd")),
        row("position_embedding", stored("embeddings.position_embeddings"), stored("position_embd")),
        row("token_type_embedding", stored("embeddings.token_type_embeddings"), stored("token_types")),
        row("embedding_norm", stored("embeddings.LayerNorm"), stored("token_embd_norm")),
        row("blocks.*.attention.query", stored("encoder.layer.*.attention.self.query"), stored("blk.*.attn_q")),
        row("blocks.*.attention.key", stored("encoder.layer.*.attention.self.key"), stored("blk.*.attn_k")),
        row("blocks.*.attention.value", stored("encoder.layer.*.attention.self.value"), stored("blk.*.attn_v")),
        row("blocks.*.attention.output", stored("encoder.layer.*.attention.output.dense"), stored("blk.*.attn_output")),
        row("blocks.*.attention_norm", stored("encoder.layer.*.attention.output.LayerNorm"), stored("blk.*.attn_output_norm")),
        row("blocks.*.mlp.up", stored("encoder.layer.*.intermediate.dense"), stored("blk.*.ffn_up")),
        row("blocks.*.mlp.down", stored("encoder.layer.*.output.dense"), stored("blk.*.ffn_down")),
        row("blocks.*.mlp_norm", stored("encoder.layer.*.output.LayerNorm"), stored("blk.*.layer_output_norm")),
    ],
};

/// Keeps a vector of zeros from becoming infinite: as `torch.nn.functional.normalize` has it.
const NORMALIZE_EPSILON: f64 = 1e-12;

struct BertConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl BertConfig {
    fn parse(config: &Config) -> Result<BertConfig> {
        let c = config.settings()?;
        let (hidden_size, heads) = (c.need_size("hidden_size")?, c.need_size("num_attention_heads")?);
        check_heads(("hidden_size", hidden_size), ("num_attention_heads", heads))?;
        let position = c.text("position_embedding_type")?.unwrap_or("absolute");
        check("position_embedding_type", &position, |kind| *kind == "absolute", "`absolute`")?;
        check_unset(&c, "is_decoder")?;
        check_unset(&c, "add_cross_attention")?;
        // There is no head that could be tied.
        c.get("tie_word_embeddings");
        Ok(BertConfig {
            vocab_size: c.need_size("vocab_size")?,
            hidden_size,
            num_hidden_layers: c.need_size("num_hidden_layers")?,
            num_attention_heads: heads,
            intermediate_size: c.need_size("intermediate_size")?,
            max_position_embeddings: c.need_size("max_position_embeddings")?,
            type_vocab_size: c.size("type_vocab_size")?.unwrap_or(2),
            hidden_act: c.text("hidden_act")?.unwrap_or("gelu").into(),
            layer_norm_eps: c.positive("layer_norm_eps")?.unwrap_or(1e-12),
        })
    }

    fn heads(&self) -> Heads {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        Heads { hidden, query: heads, key: heads, width: hidden / heads }
    }

    fn mlp(&self) -> Result<Mlp> {
        let activation = activation("hidden_act", &self.hidden_act)?;
        Ok(Mlp { hidden: self.hidden_size, inner: self.intermediate_size, bias: true, activation })
    }
}

fn build(config: &Config, mut builder: Builder<'_>) -> Result<Graph> {
    let c = BertConfig::parse(config)?;
    let (heads, mlp) = (c.heads(), c.mlp()?);
    let norm = |b: &mut Builder<'_>, name: &str, weight: &str, x| b.layer_norm(name, weight, x, c.hidden_size, c.layer_norm_eps);
    let embedded = embed(&mut builder, &c)?;
    let mut x = norm(&mut builder, "x", "embedding_norm", embedded)?;
    for block in 0..c.num_hidden_layers {
        builder.block(block);
        x = builder.post_norm(
            x,
            norm,
            |b, x| {
                let qkv = b.project(&heads, x, true)?;
                b.attend_without_cache(&heads, Attention::full(heads.scale()), qkv, true)
            },
            |b, x| b.plain_mlp(&mlp, x),
        )?;
    }
    let embedding = pool(&mut builder, &config.pooling, x)?;
    builder.output(embedding);
    builder.finish()
}

/// The sum of three embeddings.
fn embed(builder: &mut Builder<'_>, c: &BertConfig) -> Result<ValueId> {
    let inputs = builder.inputs()?;
    let segments = builder.input("token_types")?;
    builder.part("input");
    let token = builder.embedding("token", "embedding", inputs.tokens, [c.vocab_size, c.hidden_size])?;
    let dims = [c.max_position_embeddings, c.hidden_size];
    let position = builder.embedding("position", "position_embedding", inputs.positions, dims)?;
    let segment = builder.embedding("segment", "token_type_embedding", segments, [c.type_vocab_size, c.hidden_size])?;
    let placed = builder.add("placed", token, position)?;
    builder.add("embedded", placed, segment)
}

/// One embedding of all positions.
fn pool(builder: &mut Builder<'_>, pooling: &Pooling, x: ValueId) -> Result<ValueId> {
    builder.part("head");
    let op = if pooling.first_token { Op::FirstPool } else { Op::MeanPool };
    match pooling.normalize {
        true => {
            let pooled = builder.node("pooled", op, &[x])?;
            builder.node("sentence_embedding", Op::Normalize { epsilon: NORMALIZE_EPSILON }, &[pooled])
        }
        false => builder.node("sentence_embedding", op, &[x]),
    }
}

fn config_of_gguf(header: &Header<'_>) -> Result<Value> {
    header.check_causal(false)?;
    header.check_key_heads()?;
    Ok(json!({
        "architectures": [header.class],
        "hidden_act": "gelu",
        "hidden_size": header.need("embedding_length")?,
        "intermediate_size": header.need("feed_forward_length")?,
        "layer_norm_eps": header.need_float("attention.layer_norm_epsilon")?,
        "max_position_embeddings": header.need("context_length")?,
        "num_attention_heads": header.need("attention.head_count")?,
        "num_hidden_layers": header.need("block_count")?,
        "type_vocab_size": header.rows("token_types.weight")?,
        "vocab_size": header.vocabulary()?,
    }))
}
