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
    names::{Prefix, Slot, Stored, numbered},
};

/// A graph in the making, and the checkpoint that it is made for.
pub(crate) struct Builder<'a> {
    names: &'static Names,
    naming: Naming,
    source: &'a dyn Source,
    prefix: Prefix,
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
    /// Bounds logits: `cap * tanh(logit / cap)`.
    pub(crate) softcap: Option<f64>,
}

impl Heads {
    /// One over the root of a head's width: what query times key is usually multiplied by.
    pub(crate) fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// Rows of query, key and value, which follow each other in a tensor that they share.
    fn slots(&self) -> [Slot; 3] {
        let (query, key) = (self.query * self.width, self.key * self.width);
        let of = query + 2 * key;
        [(0, query, self.query), (query, key, self.key), (query + key, key, 1)].map(|(start, rows, heads)| Slot {
            heads,
            rows: start..start + rows,
            of,
        })
    }
}

/// Sizes and activation of an MLP.
#[derive(Clone, Debug)]
pub(crate) struct Mlp {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) bias: bool,
    pub(crate) activation: Op,
}

/// The activation that `found`, the value of `key`, names.
pub(crate) fn activation(key: &str, found: &str) -> Result<Op> {
    match found {
        "silu" | "swish" => Ok(Op::Silu),
        "gelu" => Ok(Op::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Op::GeluTanh),
        _ => Err(Error::Unsupported {
            key: key.into(),
            found: found.into(),
            wanted: "`silu`, `gelu`, `gelu_new` or `gelu_pytorch_tanh`",
        }),
    }
}

impl<'a> Builder<'a> {
    /// Nothing yet. `name` is the graph's.
    pub(crate) fn new(name: &str, names: &'static Names, naming: Naming, source: &'a dyn Source) -> Builder<'a> {
        let prefix = names.prefix(naming, source);
        Builder { names, naming, source, prefix, graph: Graph::new(name), block: None }
    }

    /// The graph, if it verifies.
    pub(crate) fn finish(self) -> Result<Graph> {
        self.graph.verify()?;
        Ok(self.graph)
    }

    /// The checkpoint.
    pub(crate) fn source(&self) -> &dyn Source {
        self.source
    }

    /// Adds tokens and positions, `[batch, seq]` each.
    pub(crate) fn inputs(&mut self) -> Result<Inputs> {
        Ok(Inputs { tokens: self.input("tokens")?, positions: self.input("positions")? })
    }

    /// Adds integers `[batch, seq]`.
    pub(crate) fn input(&mut self, name: &str) -> Result<ValueId> {
        let dims = vec![Dim::symbol("batch"), Dim::symbol("seq")];
        Ok(self.graph.input(name, Fact { dims, encoding: Encoding::Plain(Dtype::I64) })?)
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
        let table = self.matrix(weight, weight, dims, &Slot::whole(dims[0]))?;
        self.node(name, Op::Embedding, &[ids, table])
    }

    /// `x / sqrt(mean(x^2) + epsilon) * gain`.
    pub(crate) fn rms_norm(&mut self, name: &str, weight: &str, x: ValueId, width: usize, epsilon: f64) -> Result<ValueId> {
        let gain = self.gain(weight, width)?;
        self.node(name, Op::RmsNorm { epsilon }, &[x, gain])
    }

    /// `(x - mean(x)) / sqrt(variance(x) + epsilon) * gain + bias`.
    pub(crate) fn layer_norm(&mut self, name: &str, weight: &str, x: ValueId, width: usize, epsilon: f64) -> Result<ValueId> {
        let (gain, bias) = (self.gain(weight, width)?, self.bias(weight, &Slot::whole(width))?);
        self.node(name, Op::LayerNorm { epsilon }, &[x, gain, bias])
    }

    /// `x weight^T`, `+ bias` if it has one. `dims`: out, in.
    pub(crate) fn linear(&mut self, name: &str, weight: &str, x: ValueId, dims: [usize; 2], bias: bool) -> Result<ValueId> {
        self.linear_in(&Slot::whole(dims[0]), name, weight, x, dims[1], bias)
    }

    /// A linear layer whose weight may share a stored tensor.
    fn linear_in(&mut self, slot: &Slot, name: &str, weight: &str, x: ValueId, columns: usize, bias: bool) -> Result<ValueId> {
        let mut operands = vec![x, self.matrix(weight, weight, [slot.rows.len(), columns], slot)?];
        if bias {
            operands.push(self.bias(weight, slot)?);
        }
        self.node(name, Op::Linear, &operands)
    }

    /// Query, key and value of `x`, split into heads.
    pub(crate) fn project(&mut self, heads: &Heads, x: ValueId, bias: bool) -> Result<Qkv<ValueId>> {
        let [queries, keys, values] = heads.slots();
        let query = self.linear_in(&queries, "query", "attention.query", x, heads.hidden, bias)?;
        let key = self.linear_in(&keys, "key", "attention.key", x, heads.hidden, bias)?;
        let value = self.linear_in(&values, "value", "attention.value", x, heads.hidden, bias)?;
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

    /// Rotary positions for the first `width` columns of every head of query and key.
    pub(crate) fn rotate_part(
        &mut self,
        rope: &Rope,
        width: usize,
        heads: &Heads,
        positions: ValueId,
        qkv: Qkv<ValueId>,
    ) -> Result<Qkv<ValueId>> {
        if width == heads.width {
            return self.rotate(rope, positions, qkv);
        }
        let part = |b: &mut Self, name: &str, x| {
            let rotary = b.node(&format!("{name}_rotary"), Op::Slice { start: 0, length: width }, &[x])?;
            let kept = b.node(&format!("{name}_kept"), Op::Slice { start: width, length: heads.width - width }, &[x])?;
            let rotated = b.node(&format!("{name}_rotated"), Op::Rope(rope.clone()), &[rotary, positions])?;
            b.node(&format!("{name}_turned"), Op::Concat, &[rotated, kept])
        };
        Ok(Qkv { query: part(self, "query", qkv.query)?, key: part(self, "key", qkv.key)?, value: qkv.value })
    }

    /// Attention to all keys so far, its heads merged and projected back.
    pub(crate) fn attend(&mut self, heads: &Heads, op: Attention, qkv: Qkv<ValueId>, bias: bool) -> Result<ValueId> {
        let keys = self.cache("keys", "attention.key", qkv.key)?;
        let values = self.cache("values", "attention.value", qkv.value)?;
        self.attend_without_cache(heads, op, Qkv { query: qkv.query, key: keys, value: values }, bias)
    }

    /// Attention to the keys given, its heads merged and projected back.
    pub(crate) fn attend_without_cache(
        &mut self,
        heads: &Heads,
        op: Attention,
        qkv: Qkv<ValueId>,
        bias: bool,
    ) -> Result<ValueId> {
        let mixed = self.node("mixed", Op::Attention(op), &[qkv.query, qkv.key, qkv.value])?;
        let merged = self.node("merged", Op::MergeHeads, &[mixed])?;
        self.linear("attention_out", "attention.output", merged, [heads.hidden, heads.query * heads.width], bias)
    }

    fn cache(&mut self, name: &str, state: &str, x: ValueId) -> Result<ValueId> {
        let name_of_state = self.canonical(state);
        self.node(name, Op::Cache { name: name_of_state }, &[x])
    }

    /// `down(activation(gate x) * up x)`.
    pub(crate) fn gated_mlp(&mut self, mlp: &Mlp, x: ValueId) -> Result<ValueId> {
        let slot = |start| Slot { heads: 1, rows: start..start + mlp.inner, of: 2 * mlp.inner };
        let gate = self.linear_in(&slot(0), "gate", "mlp.gate", x, mlp.hidden, mlp.bias)?;
        let up = self.linear_in(&slot(mlp.inner), "up", "mlp.up", x, mlp.hidden, mlp.bias)?;
        let gated = match &mlp.activation {
            Op::Silu => self.node("gated", Op::Swiglu, &[gate, up])?,
            other => {
                let activated = self.node("activated", other.clone(), &[gate])?;
                self.node("gated", Op::Mul, &[activated, up])?
            }
        };
        self.linear("mlp_out", "mlp.down", gated, [mlp.hidden, mlp.inner], mlp.bias)
    }

    /// `down(activation(up x))`.
    pub(crate) fn plain_mlp(&mut self, mlp: &Mlp, x: ValueId) -> Result<ValueId> {
        let up = self.linear("up", "mlp.up", x, [mlp.inner, mlp.hidden], mlp.bias)?;
        let activated = self.node("activated", mlp.activation.clone(), &[up])?;
        self.linear("mlp_out", "mlp.down", activated, [mlp.hidden, mlp.inner], mlp.bias)
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

    /// A block that normalizes the residual stream: `y = norm(x + attention(x))`, then `norm(y + mlp(y))`.
    pub(crate) fn post_norm(
        &mut self,
        x: ValueId,
        norm: impl Fn(&mut Self, &str, &str, ValueId) -> Result<ValueId>,
        attention: impl FnOnce(&mut Self, ValueId) -> Result<ValueId>,
        mlp: impl FnOnce(&mut Self, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let out = attention(self, x)?;
        let attended = self.add("attended", x, out)?;
        let normed = norm(self, "mlp_in", "attention_norm", attended)?;
        let out = mlp(self, normed)?;
        let sum = self.add("sum", normed, out)?;
        norm(self, "x", "mlp_norm", sum)
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
        let stored = self.head(frame.tied)?;
        let dims = [frame.vocabulary, frame.hidden];
        let head = self.matrix("lm_head", stored, dims, &Slot::whole(frame.vocabulary))?;
        match frame.softcap {
            None => self.node("logits", Op::Linear, &[normed, head]),
            Some(cap) => {
                let uncapped = self.node("uncapped", Op::Linear, &[normed, head])?;
                self.node("logits", Op::Softcap { cap }, &[uncapped])
            }
        }
    }

    /// The weight that the head is. A head beside the embedding that it is said to be tied to is one of its own unless the
    /// two are equal, as transformers has it.
    fn head(&self, tied: bool) -> Result<&'static str> {
        let tensor = |name| self.tensor(self.stored(name), "weight");
        let (head, embedding) = (tensor("lm_head"), tensor("embedding"));
        let is_there = self.source.tensors().contains_key(&head);
        if !tied && !is_there && self.source.tensors().contains_key(&embedding) {
            return Err(Error::NoHead { tensor: head });
        }
        let other = is_there && (!tied || self.source.digest(&head)? != self.source.digest(&embedding)?);
        Ok(if other { "lm_head" } else { "embedding" })
    }

    /// The weight of that name: in block 3, `mlp.up` is `blocks.3.mlp.up`. It is stored as the one called `stored`.
    fn matrix(&mut self, name: &str, stored: &str, dims: [usize; 2], slot: &Slot) -> Result<ValueId> {
        let form = self.stored(stored);
        let expr = form.matrix(self.tensor(form, "weight"), slot, self.source)?;
        self.constant(&self.canonical(name), &dims, expr)
    }

    fn gain(&mut self, name: &str, width: usize) -> Result<ValueId> {
        let form = self.stored(name);
        let expr = form.gain(self.tensor(form, "weight"), width);
        self.constant(&self.canonical(name), &[width], expr)
    }

    fn bias(&mut self, name: &str, slot: &Slot) -> Result<ValueId> {
        let form = self.stored(name);
        let expr = form.bias(self.tensor(form, "bias"), slot, self.source)?;
        self.constant(&format!("{}.bias", self.canonical(name)), &[slot.rows.len()], expr)
    }

    fn tensor(&self, stored: &Stored, part: &str) -> String {
        let module = numbered(stored.module, self.block);
        format!("{}.{part}", self.prefix.of(&module))
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
