//! The parts that architectures are built of: embeddings, norms, linear layers, attention, gated MLPs, and the frame that
//! joins blocks to a decoder. A part takes values and returns the value it makes; none knows which architecture it is for.
//!
//! Canonical names are the same for every architecture, so that a recipe that selects `blocks.*.mlp.*` fits them all.

use attar_graph::{
    Dim, Expr, Fact, Graph, Op, ValueId,
    op::{Attention, Rope},
};
use attar_tensor::{Dtype, Encoding, Source};

use crate::{
    Error, Names, Naming, Result,
    names::{Stored, numbered},
};

/// A graph in the making, and the checkpoint that it is made for.
pub(crate) struct Builder<'a> {
    names: &'static Names,
    naming: Naming,
    source: &'a dyn Source,
    graph: Graph,
    block: Option<usize>,
}

/// What the caller gives.
#[derive(Clone, Copy)]
pub(crate) struct Inputs {
    pub(crate) tokens: ValueId,
    pub(crate) positions: ValueId,
}

/// How the width of attention is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Of the residual stream.
    pub(crate) hidden: usize,
    /// Query heads.
    pub(crate) query: usize,
    /// Key and value heads; divides `query`.
    pub(crate) key: usize,
    /// Width of one head.
    pub(crate) width: usize,
}

/// Query, key and value.
pub(crate) struct Qkv<T> {
    pub(crate) query: T,
    pub(crate) key: T,
    pub(crate) value: T,
}

/// Sizes of what surrounds the blocks of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) blocks: usize,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
}

/// Sizes of a gated MLP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mlp {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) bias: bool,
}

impl<'a> Builder<'a> {
    /// Nothing yet. `name` is the graph's.
    pub(crate) fn new(name: &str, names: &'static Names, naming: Naming, source: &'a dyn Source) -> Builder<'a> {
        Builder { names, naming, source, graph: Graph::new(name), block: None }
    }

    /// The graph, if it verifies and leaves out no block of the checkpoint.
    pub(crate) fn finish(self, blocks: usize) -> Result<Graph> {
        self.graph.verify()?;
        let surplus = |tensor: &&String| self.names.block(self.naming, tensor).is_some_and(|block| block >= blocks);
        match self.source.tensors().keys().find(surplus) {
            Some(tensor) => Err(Error::SurplusBlock { tensor: tensor.clone(), blocks }),
            None => Ok(self.graph),
        }
    }

    /// The checkpoint.
    pub(crate) fn source(&self) -> &dyn Source {
        self.source
    }

    /// Adds tokens and positions, `[batch, seq]` each.
    pub(crate) fn inputs(&mut self) -> Result<Inputs> {
        let integers = || Fact { dims: vec![Dim::symbol("batch"), Dim::symbol("seq")], encoding: Encoding::Plain(Dtype::I64) };
        Ok(Inputs { tokens: self.graph.input("tokens", integers())?, positions: self.graph.input("positions", integers())? })
    }

    /// Starts a part of the graph that is no block of the model.
    pub(crate) fn part(&mut self, name: &str) {
        self.block = None;
        self.graph.block(name);
    }

    /// Starts block `number` of the model.
    pub(crate) fn block(&mut self, number: usize) {
        self.block = Some(number);
        self.graph.block(format!("blocks.{number}"));
    }

    /// Names what the graph returns.
    pub(crate) fn output(&mut self, value: ValueId) {
        self.graph.output(value);
    }

    /// Adds a node. In block 3, `x` is called `b3.x`.
    pub(crate) fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId> {
        let name = self.block.map_or_else(|| name.into(), |block| format!("b{block}.{name}"));
        Ok(self.graph.node(&name, op, inputs)?)
    }

    /// `a + b`.
    pub(crate) fn add(&mut self, name: &str, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(name, Op::Add, &[a, b])
    }

    /// Rows of a table.
    pub(crate) fn embedding(&mut self, name: &str, weight: &str, ids: ValueId, dims: [usize; 2]) -> Result<ValueId> {
        let table = self.weight(weight, &dims, 1)?;
        self.node(name, Op::Embedding, &[ids, table])
    }

    /// `x / sqrt(mean(x^2) + epsilon) * gain`.
    pub(crate) fn rms_norm(&mut self, name: &str, weight: &str, x: ValueId, width: usize, epsilon: f64) -> Result<ValueId> {
        let gain = self.weight(weight, &[width], 1)?;
        self.node(name, Op::RmsNorm { epsilon }, &[x, gain])
    }

    /// `x weight^T`, `+ bias` if it has one. `dims`: out, in.
    pub(crate) fn linear(&mut self, name: &str, weight: &str, x: ValueId, dims: [usize; 2], bias: bool) -> Result<ValueId> {
        self.linear_of_heads(name, weight, x, dims, bias, 1)
    }

    fn linear_of_heads(
        &mut self,
        name: &str,
        weight: &str,
        x: ValueId,
        dims: [usize; 2],
        bias: bool,
        heads: usize,
    ) -> Result<ValueId> {
        let mut operands = vec![x, self.weight(weight, &dims, heads)?];
        if bias {
            operands.push(self.bias(weight, dims[0])?);
        }
        self.node(name, Op::Linear, &operands)
    }

    /// Query, key and value of `x`, split into heads.
    pub(crate) fn project(&mut self, heads: &Heads, x: ValueId, bias: bool) -> Result<Qkv<ValueId>> {
        let (queries, keys) = ([heads.query * heads.width, heads.hidden], [heads.key * heads.width, heads.hidden]);
        let query = self.linear_of_heads("query", "attention.query", x, queries, bias, heads.query)?;
        let key = self.linear_of_heads("key", "attention.key", x, keys, bias, heads.key)?;
        let value = self.linear_of_heads("value", "attention.value", x, keys, bias, heads.key)?;
        Ok(Qkv {
            query: self.node("query_heads", Op::SplitHeads { heads: heads.query }, &[query])?,
            key: self.node("key_heads", Op::SplitHeads { heads: heads.key }, &[key])?,
            value: self.node("value_heads", Op::SplitHeads { heads: heads.key }, &[value])?,
        })
    }

    /// Rotary positions for query and key.
    pub(crate) fn rotate(&mut self, rope: &Rope, positions: ValueId, heads: Qkv<ValueId>) -> Result<Qkv<ValueId>> {
        Ok(Qkv {
            query: self.node("query_turned", Op::Rope(rope.clone()), &[heads.query, positions])?,
            key: self.node("key_turned", Op::Rope(rope.clone()), &[heads.key, positions])?,
            value: heads.value,
        })
    }

    /// Causal attention with a cache, its heads merged and projected back. Queries see `window` keys back, or all.
    pub(crate) fn attend(&mut self, heads: &Heads, op: Attention, qkv: Qkv<ValueId>, bias: bool) -> Result<ValueId> {
        let keys = self.cache("keys", "attention.key", qkv.key)?;
        let values = self.cache("values", "attention.value", qkv.value)?;
        let mixed = self.node("mixed", Op::Attention(op), &[qkv.query, keys, values])?;
        let merged = self.node("merged", Op::MergeHeads, &[mixed])?;
        self.linear("attention_out", "attention.output", merged, [heads.hidden, heads.query * heads.width], bias)
    }

    fn cache(&mut self, name: &str, state: &str, x: ValueId) -> Result<ValueId> {
        let name_of_state = self.canonical(state);
        self.node(name, Op::Cache { name: name_of_state }, &[x])
    }

    /// `down(silu(gate x) * up x)`.
    pub(crate) fn gated_mlp(&mut self, mlp: &Mlp, x: ValueId) -> Result<ValueId> {
        let gate = self.linear("gate", "mlp.gate", x, [mlp.inner, mlp.hidden], mlp.bias)?;
        let up = self.linear("up", "mlp.up", x, [mlp.inner, mlp.hidden], mlp.bias)?;
        let gated = self.node("gated", Op::Swiglu, &[gate, up])?;
        self.linear("mlp_out", "mlp.down", gated, [mlp.hidden, mlp.inner], mlp.bias)
    }

    /// A block that normalizes what attention and MLP read: `y = x + attention(norm(x))`, then `y + mlp(norm(y))`.
    pub(crate) fn pre_norm(
        &mut self,
        x: ValueId,
        norm: impl Fn(&mut Self, &str, &str, ValueId) -> Result<ValueId>,
        attention: impl FnOnce(&mut Self, ValueId) -> Result<ValueId>,
        mlp: impl FnOnce(&mut Self, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let normed = norm(self, "attention_in", "attention_norm", x)?;
        let out = attention(self, normed)?;
        let attended = self.add("attended", x, out)?;
        let normed = norm(self, "mlp_in", "mlp_norm", attended)?;
        let out = mlp(self, normed)?;
        self.add("x", attended, out)
    }

    /// From tokens to logits: `embed`, every block, `norm`, and the head.
    pub(crate) fn decoder(
        &mut self,
        frame: &Frame,
        embed: impl FnOnce(&mut Self, Inputs) -> Result<ValueId>,
        mut block: impl FnMut(&mut Self, usize, Inputs, ValueId) -> Result<ValueId>,
        norm: impl FnOnce(&mut Self, &str, &str, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let inputs = self.inputs()?;
        self.part("input");
        let mut x = embed(self, inputs)?;
        for number in 0..frame.blocks {
            self.block(number);
            x = block(self, number, inputs, x)?;
        }
        self.part("head");
        let normed = norm(self, "normed", "final_norm", x)?;
        let stored = if frame.tied { "embedding" } else { "lm_head" };
        let head = self.weight_of("lm_head", stored, &[frame.vocabulary, frame.hidden], 1)?;
        self.node("logits", Op::Linear, &[normed, head])
    }

    /// The weight of that name: in block 3, `mlp.up` is `blocks.3.mlp.up`. Its rows fall into `heads` heads.
    fn weight(&mut self, name: &str, dims: &[usize], heads: usize) -> Result<ValueId> {
        self.weight_of(name, name, dims, heads)
    }

    fn weight_of(&mut self, name: &str, stored: &str, dims: &[usize], heads: usize) -> Result<ValueId> {
        let expr = self.stored(stored).weight(self.block, heads);
        self.constant(&self.canonical(name), dims, expr)
    }

    fn bias(&mut self, name: &str, width: usize) -> Result<ValueId> {
        let expr = self.stored(name).bias(self.block);
        self.constant(&format!("{}.bias", self.canonical(name)), &[width], expr)
    }

    fn stored(&self, name: &str) -> &'static Stored {
        let row = if self.block.is_some() { format!("blocks.*.{name}") } else { name.into() };
        self.names.stored(self.naming, &row)
    }

    fn canonical(&self, name: &str) -> String {
        if self.block.is_some() { numbered(&format!("blocks.*.{name}"), self.block) } else { name.into() }
    }

    fn constant(&mut self, canonical: &str, dims: &[usize], expr: Expr) -> Result<ValueId> {
        let encoding = expr.encoding(self.source)?;
        if matches!(encoding, Encoding::Plain(dtype) if !dtype.is_float()) {
            let (name, encoding) = (expr.tensor_name().to_owned(), encoding.to_string());
            return Err(attar_tensor::Error::WrongEncoding { name, encoding, wanted: "a floating-point format" }.into());
        }
        let fact = Fact { dims: dims.iter().map(|n| Dim::Constant(*n)).collect(), encoding };
        Ok(self.graph.weight(canonical, fact, expr)?)
    }
}
