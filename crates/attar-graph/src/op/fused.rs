//! Several nodes that a device computes as one. The body stays a graph, so that meaning, cost and the way back are the
//! body's, and need no second definition.
//!
//! The inputs of the body are those of the node, weights too: they remain weights of the graph around it, read when a node
//! of the body asks for them. The last node of the body bears the name of the fused node, and all its nodes have names
//! that nothing else in the graph around has: taken out again, they are what they were.

use std::{collections::HashMap, str::FromStr, sync::Arc};

use attar_tensor::nearest;
use candle_core::Tensor;

use super::{Context, Op, OpDef, Operand};
use crate::{Dim, Fact, Graph, Result, ValueId, error::Problem, integer::RowScales};

/// What a fused node is, for a device that has a kernel for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A norm with the sum before it or the rounding behind it.
    Norm,
    /// Query, key and value of one input, turned by their positions, behind each other along the last dimension:
    /// `[batch, seq, (heads + 2 * key heads) * head]`.
    Qkv,
    /// Causal attention with its caches and the moves around it; the scores need never be whole.
    Attention,
    /// `silu(gate(x)) * up(x)`.
    Gated,
    /// A linear layer and the activation behind it.
    LinearAct,
    /// A linear layer and the sum that takes its value.
    LinearAdd,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Kind; 6] = [Kind::Norm, Kind::Qkv, Kind::Attention, Kind::Gated, Kind::LinearAct, Kind::LinearAdd];

    /// Its name in text form.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Norm => "norm",
            Kind::Qkv => "qkv",
            Kind::Attention => "attention",
            Kind::Gated => "gated",
            Kind::LinearAct => "linear_act",
            Kind::LinearAdd => "linear_add",
        }
    }
}

impl FromStr for Kind {
    type Err = Problem;

    fn from_str(name: &str) -> std::result::Result<Kind, Problem> {
        let names = || Kind::ALL.iter().map(|kind| kind.name());
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| Problem::UnknownKind { name: name.into(), nearest: nearest(name, names()).map(Into::into) })
    }
}

/// A kind and its body.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused {
    kind: Kind,
    body: Arc<Graph>,
}

impl Fused {
    /// Of a body without weights and without fused nodes, in one block, that returns what its last node makes.
    pub fn new(kind: Kind, body: Graph) -> Result<Fused> {
        body.verify()?;
        let refuse = |found| Err(crate::Error::Invalid(Problem::Body { kind: kind.name(), found }));
        if body.weights().next().is_some() {
            return refuse("a weight of its own");
        }
        if body.nodes().iter().any(|node| matches!(node.op, Op::Fused(_))) {
            return refuse("a fused node");
        }
        if body.block_count() != 1 || body.nodes().last().map(|node| node.output) != body.outputs().first().copied() {
            return refuse("another value than the last to return, or several blocks");
        }
        if body.outputs().len() > 1 {
            return refuse("several values to return");
        }
        Ok(Fused { kind, body: Arc::new(body) })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it does.
    pub fn body(&self) -> &Graph {
        &self.body
    }

    /// The name of its last node, and that of the fused node.
    pub(crate) fn name(&self) -> &str {
        &self.body.get(self.body.outputs()[0]).name
    }

    /// The names of its nodes but the last: no other node has them.
    pub(crate) fn inner_names(&self) -> impl Iterator<Item = &str> {
        let nodes = self.body.nodes();
        nodes[..nodes.len() - 1].iter().map(|node| self.body.get(node.output).name.as_str())
    }

    /// An operand is stored in another way now.
    pub(crate) fn replace_encoding(&mut self, operand: usize, encoding: attar_tensor::Encoding) {
        Arc::make_mut(&mut self.body).replace_input(operand, encoding);
    }
}

pub(super) static DEF: OpDef = OpDef {
    name: "fused",
    wants: "the inputs of its body",
    parse: |_| Err(Problem::Syntax { found: "`fused`".into(), wanted: "a body" }),
    attributes: |_| Vec::new(),
    infer: |op, facts| {
        let body = fused_of(op).body();
        let same = facts.len() == body.inputs().len() && facts.iter().zip(body.inputs()).all(|(f, id)| *f == body.fact(*id));
        same.then(|| body.fact(body.outputs()[0]).clone())
    },
    evaluate,
    decompose: Some(|graph, _, op, inputs| {
        let body = fused_of(op).body();
        let mut ids: HashMap<ValueId, ValueId> = body.inputs().iter().copied().zip(inputs.iter().copied()).collect();
        for node in body.nodes() {
            let inputs: Vec<ValueId> = node.inputs.iter().map(|id| ids[id]).collect();
            ids.insert(node.output, graph.node(&body.get(node.output).name, node.op.clone(), &inputs)?);
        }
        Ok(ids[&body.outputs()[0]])
    }),
    macs: |op, dims| macs(fused_of(op).body(), dims).unwrap_or(0),
};

fn fused_of(op: &Op) -> &Fused {
    match op {
        Op::Fused(fused) => fused,
        _ => unreachable!("the table is right"),
    }
}

/// Node by node, as a run does it: the bits are those of the nodes alone.
fn evaluate(op: &Op, operands: &[Operand<'_>], context: &mut Context<'_>) -> Result<Tensor> {
    let body = fused_of(op).body();
    let last_use = body.last_use();
    let mut made: HashMap<ValueId, (Tensor, Option<RowScales>)> = HashMap::new();
    for (at, node) in body.nodes().iter().enumerate() {
        let mut row_scales = None;
        let operand = |id: &ValueId| match (body.inputs().iter().position(|input| input == id), made.get(id)) {
            (Some(given), _) => operands[given].again(),
            (None, Some((tensor, Some(scales)))) => Operand::Quantized(tensor.clone(), scales),
            (None, Some((tensor, None))) => Operand::Tensor(tensor.clone()),
            (None, None) => unreachable!("the body was verified: `{}` is made before", body.get(*id).name),
        };
        let inputs: Vec<Operand<'_>> = node.inputs.iter().map(operand).collect();
        let facts: Vec<&Fact> = node.inputs.iter().map(|id| body.fact(*id)).collect();
        let mut inner = Context {
            mode: context.mode,
            state: context.state.as_deref_mut(),
            row_scales: &mut row_scales,
            tables: context.tables,
            macs: context.macs,
        };
        let tensor = node.op.perform(&inputs, &facts, &mut inner)?;
        drop(inputs);
        made.retain(|id, _| last_use.get(id).is_some_and(|last| last.0 as usize > at));
        made.insert(node.output, (tensor, row_scales));
    }
    let (tensor, row_scales) = made.remove(&body.outputs()[0]).expect("the last node makes it");
    *context.row_scales = row_scales;
    Ok(tensor)
}

/// Of all nodes, with empty caches.
fn macs(body: &Graph, dims: &[Vec<usize>]) -> Option<u64> {
    let mut facts: HashMap<ValueId, Fact> = HashMap::new();
    for (id, dims) in body.inputs().iter().zip(dims) {
        let dims = dims.iter().map(|n| Dim::Constant(*n)).collect();
        facts.insert(*id, Fact { dims, encoding: body.fact(*id).encoding });
    }
    let mut sum = 0;
    for node in body.nodes() {
        let inputs: Vec<&Fact> = node.inputs.iter().map(|id| &facts[id]).collect();
        let dims: Vec<Vec<usize>> = inputs.iter().map(|fact| fact.constant_dims()).collect::<Option<_>>()?;
        let def = node.op.def();
        sum += (def.macs)(&node.op, &dims);
        let made = (def.infer)(&node.op, &inputs)?;
        facts.insert(node.output, made);
    }
    Some(sum)
}
