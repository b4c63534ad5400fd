//! The decoder that the Llama family shares: pre-norm blocks of grouped rotary attention and a gated MLP.

use attar_graph::{
    Dim, Expr, Fact, Graph, Op, ValueId,
    op::{Attention, Rope},
};
use attar_tensor::{Dtype, Encoding, Source};

use crate::{Error, Result};

/// The numbers that make one decoder different from another.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Name of the graph.
    pub name: &'static str,
    /// Tokens it knows.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// How many blocks.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub key_heads: usize,
    /// Width of a head.
    pub head: usize,
    /// Of every norm.
    pub epsilon: f64,
    /// Positions.
    pub rope: Rope,
    /// How far back a query sees, by block number; all, if `None`.
    pub window: Option<usize>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the attention output has one.
    pub output_bias: bool,
    /// Whether the MLP has them.
    pub mlp_bias: bool,
}

/// What a checkpoint format calls the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// `blk.0.attn_q.weight`.
    Gguf {
        /// Rotary pairs of query and key rows are interleaved.
        interleaved: bool,
    },
}

/// Canonical name in a block, Hugging Face's, GGUF's.
const BLOCK_NAMES: &[(&str, &str, &str)] = &[
    ("attention_norm", "input_layernorm", "attn_norm"),
    ("attention.query", "self_attn.q_proj", "attn_q"),
    ("attention.key", "self_attn.k_proj", "attn_k"),
    ("attention.value", "self_attn.v_proj", "attn_v"),
    ("attention.output", "self_attn.o_proj", "attn_output"),
    ("mlp_norm", "post_attention_layernorm", "ffn_norm"),
    ("mlp.gate", "mlp.gate_proj", "ffn_gate"),
    ("mlp.up", "mlp.up_proj", "ffn_up"),
    ("mlp.down", "mlp.down_proj", "ffn_down"),
];

/// The module of a Hugging Face model whose weight has that canonical name: `model.layers.0.self_attn.q_proj` for
/// `blocks.0.attention.query`.
pub fn hugging_face_module(canonical: &str) -> Option<String> {
    if canonical == "lm_head" {
        return Some(canonical.into());
    }
    let (block, name) = canonical.strip_prefix("blocks.")?.split_once('.')?;
    let (_, module, _) = BLOCK_NAMES.iter().find(|(known, ..)| *known == name)?;
    Some(format!("model.layers.{block}.{module}"))
}

impl Naming {
    fn global(self, canonical: &str) -> Expr {
        Expr::tensor(match (self, canonical) {
            (Naming::HuggingFace, "embedding") => "model.embed_tokens.weight",
            (Naming::HuggingFace, "final_norm") => "model.norm.weight",
            (Naming::HuggingFace, _) => "lm_head.weight",
            (Naming::Gguf { .. }, "embedding") => "token_embd.weight",
            (Naming::Gguf { .. }, "final_norm") => "output_norm.weight",
            (Naming::Gguf { .. }, _) => "output.weight",
        })
    }

    fn in_block(self, block: usize, canonical: &str, part: &str) -> Expr {
        let (_, hugging_face, gguf) =
            BLOCK_NAMES.iter().find(|(name, ..)| *name == canonical).expect("the decoder uses only names of the table");
        Expr::tensor(match self {
            Naming::HuggingFace => format!("model.layers.{block}.{hugging_face}.{part}"),
            Naming::Gguf { .. } => format!("blk.{block}.{gguf}.{part}"),
        })
    }

    /// The block that a stored tensor belongs to, if it belongs to one.
    fn block(self, stored: &str) -> Option<usize> {
        let prefix = match self {
            Naming::HuggingFace => "model.layers.",
            Naming::Gguf { .. } => "blk.",
        };
        stored.strip_prefix(prefix)?.split('.').next()?.parse().ok()
    }
}

impl Decoder {
    /// Its graph over the names of a checkpoint. Encodings are the checkpoint's; shapes are the configuration's.
    pub fn graph(&self, naming: Naming, source: &dyn Source) -> Result<Graph> {
        let mut builder = Builder { decoder: self, naming, source, graph: Graph::new(self.name), positions: None };
        builder.build()?;
        builder.graph.verify()?;
        match source.tensors().keys().find(|stored| naming.block(stored).is_some_and(|block| block >= self.blocks)) {
            Some(tensor) => Err(Error::SurplusBlock { tensor: tensor.clone(), blocks: self.blocks }),
            None => Ok(builder.graph),
        }
    }
}

struct Builder<'a> {
    decoder: &'a Decoder,
    naming: Naming,
    source: &'a dyn Source,
    graph: Graph,
    positions: Option<ValueId>,
}

impl Builder<'_> {
    fn build(&mut self) -> Result<()> {
        let d = self.decoder;
        let integers = || Fact { dims: vec![Dim::symbol("batch"), Dim::symbol("seq")], encoding: Encoding::Plain(Dtype::I64) };
        let tokens = self.graph.input("tokens", integers())?;
        self.positions = Some(self.graph.input("positions", integers())?);
        self.graph.block("input");
        let table = self.weight("embedding", &[d.vocabulary, d.hidden], self.naming.global("embedding"))?;
        let mut x = self.graph.node("x", Op::Embedding, &[tokens, table])?;
        for block in 0..d.blocks {
            self.graph.block(format!("blocks.{block}"));
            x = self.attention(block, x)?;
            x = self.mlp(block, x)?;
        }
        self.graph.block("head");
        let gain = self.weight("final_norm", &[d.hidden], self.naming.global("final_norm"))?;
        let normed = self.graph.node("normed", Op::RmsNorm { epsilon: d.epsilon }, &[x, gain])?;
        let head = self.naming.global(if d.tied { "embedding" } else { "lm_head" });
        let head = self.weight("lm_head", &[d.vocabulary, d.hidden], head)?;
        let logits = self.graph.node("logits", Op::Linear, &[normed, head])?;
        self.graph.output(logits);
        Ok(())
    }

    fn attention(&mut self, block: usize, x: ValueId) -> Result<ValueId> {
        let d = self.decoder;
        let v = |name: &str| format!("b{block}.{name}");
        let normed = self.norm(block, "attention_norm", &v("attention_in"), x)?;
        let query = self.linear(block, "attention.query", &v("query"), normed, [d.heads * d.head, d.hidden], d.qkv_bias)?;
        let key = self.linear(block, "attention.key", &v("key"), normed, [d.key_heads * d.head, d.hidden], d.qkv_bias)?;
        let value = self.linear(block, "attention.value", &v("value"), normed, [d.key_heads * d.head, d.hidden], d.qkv_bias)?;
        let query = self.graph.node(&v("query_heads"), Op::SplitHeads { heads: d.heads }, &[query])?;
        let key = self.graph.node(&v("key_heads"), Op::SplitHeads { heads: d.key_heads }, &[key])?;
        let value = self.graph.node(&v("value_heads"), Op::SplitHeads { heads: d.key_heads }, &[value])?;
        let positions = self.positions.expect("inputs come first");
        let query = self.graph.node(&v("query_turned"), Op::Rope(d.rope.clone()), &[query, positions])?;
        let key = self.graph.node(&v("key_turned"), Op::Rope(d.rope.clone()), &[key, positions])?;
        let state = |name: &str| Op::Cache { name: format!("blocks.{block}.attention.{name}") };
        let keys = self.graph.node(&v("keys"), state("key"), &[key])?;
        let values = self.graph.node(&v("values"), state("value"), &[value])?;
        let op = Op::Attention(Attention { window: d.window, ..Attention::causal(1.0 / (d.head as f64).sqrt()) });
        let mixed = self.graph.node(&v("mixed"), op, &[query, keys, values])?;
        let merged = self.graph.node(&v("merged"), Op::MergeHeads, &[mixed])?;
        let out =
            self.linear(block, "attention.output", &v("attention_out"), merged, [d.hidden, d.heads * d.head], d.output_bias)?;
        Ok(self.graph.node(&v("attended"), Op::Add, &[x, out])?)
    }

    fn mlp(&mut self, block: usize, x: ValueId) -> Result<ValueId> {
        let d = self.decoder;
        let v = |name: &str| format!("b{block}.{name}");
        let normed = self.norm(block, "mlp_norm", &v("mlp_in"), x)?;
        let gate = self.linear(block, "mlp.gate", &v("gate"), normed, [d.intermediate, d.hidden], d.mlp_bias)?;
        let up = self.linear(block, "mlp.up", &v("up"), normed, [d.intermediate, d.hidden], d.mlp_bias)?;
        let gated = self.graph.node(&v("gated"), Op::Swiglu, &[gate, up])?;
        let down = self.linear(block, "mlp.down", &v("mlp_out"), gated, [d.hidden, d.intermediate], d.mlp_bias)?;
        Ok(self.graph.node(&v("x"), Op::Add, &[x, down])?)
    }

    fn norm(&mut self, block: usize, weight: &str, name: &str, x: ValueId) -> Result<ValueId> {
        let expr = self.naming.in_block(block, weight, "weight");
        let gain = self.weight(&format!("blocks.{block}.{weight}"), &[self.decoder.hidden], expr)?;
        Ok(self.graph.node(name, Op::RmsNorm { epsilon: self.decoder.epsilon }, &[x, gain])?)
    }

    fn linear(&mut self, block: usize, weight: &str, name: &str, x: ValueId, dims: [usize; 2], bias: bool) -> Result<ValueId> {
        let canonical = format!("blocks.{block}.{weight}");
        let mut expr = self.naming.in_block(block, weight, "weight");
        if self.naming == (Naming::Gguf { interleaved: true }) {
            expr = match weight {
                "attention.query" => Expr::Halves(Box::new(expr), self.decoder.heads),
                "attention.key" => Expr::Halves(Box::new(expr), self.decoder.key_heads),
                _ => expr,
            };
        }
        let mut operands = vec![x, self.weight(&canonical, &dims, expr)?];
        if bias {
            let expr = self.naming.in_block(block, weight, "bias");
            operands.push(self.weight(&format!("{canonical}.bias"), &dims[..1], expr)?);
        }
        Ok(self.graph.node(name, Op::Linear, &operands)?)
    }

    fn weight(&mut self, canonical: &str, dims: &[usize], expr: Expr) -> Result<ValueId> {
        let encoding = expr.encoding(self.source)?;
        if matches!(encoding, Encoding::Plain(dtype) if !dtype.is_float()) {
            let (name, encoding) = (expr.tensor_name().to_owned(), encoding.to_string());
            return Err(attar_tensor::Error::WrongEncoding { name, encoding, wanted: "a floating-point format" }.into());
        }
        let fact = Fact { dims: dims.iter().map(|n| Dim::Constant(*n)).collect(), encoding };
        Ok(self.graph.weight(canonical, fact, expr)?)
    }
}
