//! What of a graph can be changed together without changing what it computes, found by who reads what.
//!
//! No name of a weight is looked at: an embedding starts the residual stream, `add` continues it, `rms_norm` reads it;
//! `attention` says what values are, `swiglu` what is gated. A graph that does something else with one of these is
//! refused by the name of the node that does it.

use attar_graph::{Expr, Graph, Node, Op, Origin, ValueId};

use crate::{Error, Result};

/// A linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// `[out, in]`.
    pub weight: ValueId,
    /// `[out]`.
    pub bias: Option<ValueId>,
    /// What it reads.
    pub input: ValueId,
    /// What it makes.
    pub output: ValueId,
}

/// A norm and all that reads it.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Its gain, `[width]`.
    pub gain: ValueId,
    /// In running order.
    pub readers: Vec<Layer>,
}

/// The residual stream: tables and layers write to it, norms read it.
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

/// Values and what reads their mixture.
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

/// A gated MLP from `up` on.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// What is gated.
    pub up: Layer,
    /// What reads the result.
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
                    found.width = graph.fact(node.output).width().unwrap_or(0);
                    stream.push(node.output);
                }
                (Op::Add, [a, b]) if stream.contains(a) != stream.contains(b) => {
                    let added = if stream.contains(a) { *b } else { *a };
                    sole_reader(graph, added)?;
                    found.writers.push(Layer::making(graph, added)?);
                    stream.push(node.output);
                }
                (Op::RmsNorm { .. }, [x, gain]) if stream.contains(x) => {
                    found.norms.push(Norm { gain: *gain, readers: readers(graph, node)? });
                }
                (_, inputs) if inputs.iter().any(|id| stream.contains(id)) => {
                    return refuse(graph, node.output, "reads the residual stream without a norm");
                }
                _ => {}
            }
        }
        match graph.outputs().iter().find(|id| stream.contains(id)) {
            Some(id) => refuse(graph, *id, "returns the residual stream"),
            None => Ok(found),
        }
    }
}

fn readers(graph: &Graph, norm: &Node) -> Result<Vec<Layer>> {
    let readers = reading(graph, norm.output);
    if readers.is_empty() || graph.outputs().contains(&norm.output) {
        return refuse(graph, norm.output, "is not read by linear layers alone");
    }
    readers.into_iter().map(|node| Layer::of(graph, node)).collect()
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
        let Op::SplitHeads { heads: key_heads } = split.op else { return refuse(graph, values, "is not a linear layer's heads") };
        let merged = sole_reader(graph, attention.output)?;
        let head = graph.fact(attention.output).width().unwrap_or(0);
        let output = Layer::of(graph, sole_reader(graph, merged.output)?)?;
        if merged.op != Op::MergeHeads {
            return refuse(graph, merged.output, "reads mixed values head by head");
        }
        sole_reader(graph, split.inputs[0])?;
        let heads = graph.fact(output.input).width().unwrap_or(0) / head.max(1);
        Ok(Values { value: Layer::making(graph, split.inputs[0])?, output, heads, key_heads, head })
    }
}

impl Gated {
    /// Every gated MLP of `graph`, in running order.
    pub fn of(graph: &Graph) -> Result<Vec<Gated>> {
        let gated = graph.nodes().iter().filter(|node| node.op == Op::Swiglu);
        let one = |node: &Node| {
            sole_reader(graph, node.inputs[1])?;
            let up = Layer::making(graph, node.inputs[1])?;
            Ok(Gated { up, down: Layer::of(graph, sole_reader(graph, node.output)?)? })
        };
        gated.map(one).collect()
    }
}

impl Layer {
    /// The layer that `node` is.
    fn of(graph: &Graph, node: &Node) -> Result<Layer> {
        let (Op::Linear, [input, weight, bias @ ..]) = (&node.op, node.inputs.as_slice()) else {
            return refuse(graph, node.output, "is no linear layer");
        };
        for id in node.inputs[1..].iter() {
            if !matches!(graph.get(*id).origin, Origin::Weight(_)) || reading(graph, *id).len() != 1 {
                return refuse(graph, node.output, "has weights that are not its own");
            }
        }
        Ok(Layer { weight: *weight, bias: bias.first().copied(), input: *input, output: node.output })
    }

    /// The layer that makes `id`.
    fn making(graph: &Graph, id: ValueId) -> Result<Layer> {
        Layer::of(graph, maker(graph, id)?)
    }

    /// What its weight is.
    pub fn expr<'g>(&self, graph: &'g Graph) -> &'g Expr {
        match &graph.get(self.weight).origin {
            Origin::Weight(expr) => expr,
            _ => unreachable!("a layer's weight is a constant: checked when it was found"),
        }
    }
}

fn reading(graph: &Graph, id: ValueId) -> Vec<&Node> {
    graph.nodes().iter().filter(|node| node.inputs.contains(&id)).collect()
}

/// The one node that reads `id`.
fn sole_reader(graph: &Graph, id: ValueId) -> Result<&Node> {
    match reading(graph, id).as_slice() {
        [only] if !graph.outputs().contains(&id) => Ok(only),
        _ => refuse(graph, id, "is read in more than one place"),
    }
}

/// The node that makes `id`.
fn maker(graph: &Graph, id: ValueId) -> Result<&Node> {
    match graph.get(id).origin {
        Origin::Node(_) => Ok(graph.nodes().iter().find(|node| node.output == id).expect("a node made it")),
        _ => refuse(graph, id, "is not made by the model"),
    }
}

fn refuse<T>(graph: &Graph, id: ValueId, problem: &'static str) -> Result<T> {
    Err(Error::Structure { value: graph.get(id).name.clone(), problem })
}
