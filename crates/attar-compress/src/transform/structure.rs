//! Weights that must change together so that the function stays the same, found by data flow.
//!
//! No name of a weight matters: an embedding starts the residual stream, `add` continues it, `rms_norm` reads it; `attention`
//! tells which layer makes values; `swiglu`, or the product with an activation function's output, which layer is gated. Where a
//! graph does something else with one of these, [`Error::Structure`] names the node.

use attar_graph::{Expr, Graph, Node, Op, Origin, ValueId};

use crate::{Error, Result};

/// A linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// `[out, in]`.
    pub weight: ValueId,
    /// `[out]`.
    pub bias: Option<ValueId>,
    /// Its input.
    pub input: ValueId,
    /// Its output.
    pub output: ValueId,
}

/// A norm that only linear layers read.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Its gain, `[width]`.
    pub gain: ValueId,
    /// Its bias, `[width]`, of a LayerNorm that has one.
    pub bias: Option<ValueId>,
    /// In running order.
    pub readers: Vec<Layer>,
}

/// The residual stream: embedding tables and layers write to it, RMSNorms read it.
#[derive(Clone, Debug, Default)]
pub struct Residual {
    /// Its width.
    pub width: usize,
    /// Tables of embeddings, `[vocabulary, width]`.
    pub tables: Vec<ValueId>,
    /// Layers whose outputs are added to it.
    pub writers: Vec<Layer>,
    /// In running order.
    pub norms: Vec<Norm>,
}

/// The layer that makes the values of an attention, and the layer that reads the attention's output.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    /// `[key_heads * head, ..]`.
    pub value: Layer,
    /// `[.., heads * head]`.
    pub output: Layer,
    /// Query heads.
    pub heads: usize,
    /// Value heads; divides `heads`.
    pub key_heads: usize,
    /// Width of a head.
    pub head: usize,
}

/// A gated MLP without its gate.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// The layer whose output is multiplied by the gate.
    pub up: Layer,
    /// The layer that reads the product.
    pub down: Layer,
}

impl Residual {
    /// The residual stream of `graph`.
    pub fn of(graph: &Graph) -> Result<Residual> {
        let mut found = Residual::default();
        let mut stream: Vec<ValueId> = Vec::new();
        for node in graph.nodes() {
            match (&node.op, node.inputs.as_slice()) {
                (Op::Embedding, [_, table]) => {
                    found.tables.push(*table);
                    found.width = graph.fact(node.output()).width().unwrap_or(0);
                    stream.push(node.output());
                }
                (Op::Add, [a, b]) if stream.contains(a) != stream.contains(b) => {
                    let added = if stream.contains(a) { *b } else { *a };
                    found.writers.push(writer(graph, added)?);
                    stream.push(node.output());
                }
                (Op::Add, [a, b]) if stream.contains(a) && stream.contains(b) => stream.push(node.output()),
                (Op::Scale { .. }, [x]) if stream.contains(x) => stream.push(node.output()),
                (Op::RmsNorm { .. }, [x, ..]) if stream.contains(x) => found.norms.push(Norm::of_node(graph, node)?),
                (Op::LayerNorm { .. }, [x, ..]) if stream.contains(x) => {
                    return refuse(graph, node.output(), "is a LayerNorm, which takes the mean of all channels off each");
                }
                (_, inputs) if inputs.iter().any(|id| stream.contains(id)) => {
                    return refuse(graph, node.outputs[0], "reads the residual stream, and is neither a norm nor an addition");
                }
                _ => {}
            }
        }
        match graph.outputs().iter().find(|id| stream.contains(id)) {
            Some(id) => refuse(graph, *id, "is the residual stream itself, and an output of the model"),
            None => Ok(found),
        }
    }
}

/// The layer that makes what is added to the residual stream.
fn writer(graph: &Graph, added: ValueId) -> Result<Layer> {
    sole_reader(graph, added)?;
    match maker(graph, added)?.op {
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
            refuse(graph, added, "is normalized before it is added to the residual stream")
        }
        _ => Layer::making(graph, added),
    }
}

impl Norm {
    /// Every norm of `graph` that only linear layers read, in running order. Norms with other readers (an addition after
    /// the norm, the rotary embedding of a query) are left out.
    pub fn of(graph: &Graph) -> Vec<Norm> {
        let norms = graph.nodes().iter().filter(|node| matches!(node.op, Op::RmsNorm { .. } | Op::LayerNorm { .. }));
        norms.filter_map(|node| Norm::of_node(graph, node).ok()).collect()
    }

    fn of_node(graph: &Graph, norm: &Node) -> Result<Norm> {
        let readers = reading(graph, norm.output());
        if readers.is_empty() || graph.outputs().contains(&norm.output()) {
            return refuse(graph, norm.output(), "is not read by linear layers alone");
        }
        let readers = readers.into_iter().map(|node| Layer::of(graph, node)).collect::<Result<_>>()?;
        if let Some(shared) = norm.inputs[1..].iter().find(|id| !is_own_weight(graph, **id)) {
            return refuse(graph, *shared, "is read in more than one place");
        }
        Ok(Norm { gain: norm.inputs[1], bias: norm.inputs.get(2).copied(), readers })
    }
}

impl Values {
    /// Of every attention of `graph`, in running order.
    pub fn of(graph: &Graph) -> Result<Vec<Values>> {
        graph.nodes().iter().filter(|node| matches!(node.op, Op::Attention(_))).map(|node| Values::of_one(graph, node)).collect()
    }

    fn of_one(graph: &Graph, attention: &Node) -> Result<Values> {
        let mut values = attention.inputs[2];
        while let Op::Cache { .. } = maker(graph, values)?.op {
            values = maker(graph, values)?.inputs[0];
        }
        let split = maker(graph, values)?;
        let Op::SplitHeads { heads: key_heads } = split.op else {
            return refuse(graph, values, "is no linear layer's output, split into heads");
        };
        let merged = sole_reader(graph, attention.output())?;
        let head = graph.fact(attention.output()).width().unwrap_or(0);
        let output = Layer::of(graph, sole_reader(graph, merged.output())?)?;
        if merged.op != Op::MergeHeads {
            return refuse(graph, merged.output(), "reads the heads of an attention before they are merged");
        }
        sole_reader(graph, split.inputs[0])?;
        let heads = graph.fact(output.input).width().unwrap_or(0) / head.max(1);
        Ok(Values { value: Layer::making(graph, split.inputs[0])?, output, heads, key_heads, head })
    }
}

impl Gated {
    /// Every gated MLP of `graph`, in running order.
    pub fn of(graph: &Graph) -> Result<Vec<Gated>> {
        let one = |(node, up): (&Node, ValueId)| {
            sole_reader(graph, up)?;
            let up = Layer::making(graph, up)?;
            Ok(Gated { up, down: Layer::of(graph, sole_reader(graph, node.output())?)? })
        };
        graph.nodes().iter().filter_map(|node| Some((node, gated(graph, node)?))).map(one).collect()
    }
}

/// What `node` multiplies by a gate, if it does: the output of an activation function.
fn gated(graph: &Graph, node: &Node) -> Option<ValueId> {
    match (&node.op, node.inputs.as_slice()) {
        (Op::Swiglu, [_, up]) => Some(*up),
        (Op::Mul, [a, b]) => match (maker_activates(graph, *a), maker_activates(graph, *b)) {
            (true, false) => Some(*b),
            (false, true) => Some(*a),
            _ => None,
        },
        _ => None,
    }
}

/// Whether `node` is an activation function of an MLP.
pub(crate) fn activates(node: &Node) -> bool {
    matches!(node.op, Op::Silu | Op::Gelu | Op::GeluTanh)
}

/// Whether an activation function of an MLP makes `id`.
fn maker_activates(graph: &Graph, id: ValueId) -> bool {
    graph.maker(id).is_some_and(activates)
}

/// The last layer of every MLP of `graph`, gated or not, in running order: those that read a gated product or the output of an
/// activation function.
pub(crate) fn downs(graph: &Graph) -> Result<Vec<Layer>> {
    let is_inner = |node: &&Node| {
        let multiplied = || sole_reader(graph, node.output()).is_ok_and(|reader| gated(graph, reader).is_some());
        gated(graph, node).is_some() || activates(node) && !multiplied()
    };
    let down = |node: &Node| Layer::of(graph, sole_reader(graph, node.output())?);
    graph.nodes().iter().filter(is_inner).map(down).collect()
}

impl Layer {
    /// The layer that `node` is.
    pub(crate) fn of(graph: &Graph, node: &Node) -> Result<Layer> {
        let (Op::Linear, [input, weight, bias @ ..]) = (&node.op, node.inputs.as_slice()) else {
            return refuse(graph, node.outputs[0], "is not the output of a linear layer");
        };
        if node.inputs[1..].iter().any(|id| !is_own_weight(graph, *id)) {
            return refuse(graph, node.output(), "shares its weights with another node");
        }
        Ok(Layer { weight: *weight, bias: bias.first().copied(), input: *input, output: node.output() })
    }

    /// The layer that makes `id`.
    pub(crate) fn making(graph: &Graph, id: ValueId) -> Result<Layer> {
        Layer::of(graph, maker(graph, id)?)
    }

    /// The expression of its weight.
    pub fn expr<'g>(&self, graph: &'g Graph) -> &'g Expr {
        match &graph.get(self.weight).origin {
            Origin::Weight(expr) => expr,
            _ => unreachable!("a layer's weight is a constant: checked when it was found"),
        }
    }
}

fn is_own_weight(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.get(id).origin, Origin::Weight(_)) && reading(graph, id).len() == 1
}

fn reading(graph: &Graph, id: ValueId) -> Vec<&Node> {
    graph.nodes().iter().filter(|node| node.inputs.contains(&id)).collect()
}

/// The one node that reads `id`.
pub(crate) fn sole_reader(graph: &Graph, id: ValueId) -> Result<&Node> {
    match reading(graph, id).as_slice() {
        [only] if !graph.outputs().contains(&id) => Ok(only),
        _ => refuse(graph, id, "is read in more than one place"),
    }
}

/// The node that makes `id`.
pub(crate) fn maker(graph: &Graph, id: ValueId) -> Result<&Node> {
    match graph.get(id).origin {
        Origin::Node(_) => Ok(graph.maker(id).expect("a node made it")),
        _ => refuse(graph, id, "is an input or a weight of the model"),
    }
}

pub(crate) fn refuse<T>(graph: &Graph, id: ValueId, problem: &'static str) -> Result<T> {
    Err(Error::Structure { value: graph.get(id).name.clone(), problem })
}
