//! Several nodes that a device computes as one kernel. The body stays a graph: it defines the meaning, the cost and the way
//! back, and nothing is defined twice.
//!
//! The inputs of the body are those of the node, weights included: these remain weights of the surrounding graph and are read
//! when a node of the body needs them. The last node of the body has the name of the fused node, and the names of the others
//! are unique in the surrounding graph, so that a fused node can be taken apart again.
//!
//! A fused node knows which node of its body plays which part ([`Roles`]): whoever compiles it asks, and does not match the
//! pattern again.

mod roles;

use std::{collections::HashMap, str::FromStr, sync::Arc};

use attar_tensor::nearest;
use candle_core::Tensor;

pub use roles::{Projection, Roles};

use super::{Context, Op, OpDef, Operand};
use crate::{Dim, Fact, Graph, Result, ValueId, error::Problem, integer::RowScales};

/// What a fused node computes, as far as a device's choice of kernel is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FusedKind {
    /// A norm with the addition before it or the rounding after it.
    Norm,
    /// Query, key and value projections of one input, with norms of each head of queries and keys and with their rotary
    /// embedding, concatenated along the last dimension: `[batch, seq, (heads + 2 * key heads) * head]`.
    Qkv,
    /// Attention with its caches and the reshapes around it; the scores are never materialised.
    Attention,
    /// The first half of a gated MLP: `activation(gate(x)) * up(x)`.
    Gated,
    /// A linear layer and the activation after it.
    LinearAct,
    /// A linear layer and the addition of its result to the residual stream.
    LinearAdd,
}

impl FusedKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [FusedKind; 6] =
        [FusedKind::Norm, FusedKind::Qkv, FusedKind::Attention, FusedKind::Gated, FusedKind::LinearAct, FusedKind::LinearAdd];

    /// Its name in text form.
    pub fn name(self) -> &'static str {
        match self {
            FusedKind::Norm => "norm",
            FusedKind::Qkv => "qkv",
            FusedKind::Attention => "attention",
            FusedKind::Gated => "gated",
            FusedKind::LinearAct => "linear_act",
            FusedKind::LinearAdd => "linear_add",
        }
    }
}

impl FromStr for FusedKind {
    type Err = Problem;

    fn from_str(name: &str) -> std::result::Result<FusedKind, Problem> {
        let names = || FusedKind::ALL.iter().map(|kind| kind.name());
        let found = FusedKind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| Problem::UnknownKind { name: name.into(), nearest: nearest(name, names()).map(Into::into) })
    }
}

/// A kind, a body, and the roles of its nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused {
    kind: FusedKind,
    body: Arc<Graph>,
    roles: Option<Roles>,
    rounding: Option<usize>,
}

impl Fused {
    /// A fused node with this body: one block, no weights of its own, no fused nodes, nodes of one result each, returning the
    /// value of its last node.
    ///
    /// # Errors
    /// If the body is invalid or breaks one of these rules.
    pub fn new(kind: FusedKind, body: Graph) -> Result<Fused> {
        body.verify()?;
        let refuse = |found| Err(crate::Error::Invalid(Problem::Body { kind: kind.name(), found }));
        if body.weights().next().is_some() {
            return refuse("a weight of its own");
        }
        if body.nodes().iter().any(|node| matches!(node.op, Op::Fused(_))) {
            return refuse("a fused node");
        }
        if body.nodes().iter().any(|node| node.outputs.len() > 1) {
            return refuse("a node with several results");
        }
        if body.block_count() != 1 || body.nodes().last().map(|node| node.output()) != body.outputs().first().copied() {
            return refuse("another value than the last to return, or several blocks");
        }
        if body.outputs().len() > 1 {
            return refuse("several values to return");
        }
        let (roles, rounding) = (Roles::find(kind, &body), roles::rounding(&body));
        Ok(Fused { kind, body: Arc::new(body), roles, rounding })
    }

    /// Its kind.
    pub fn kind(&self) -> FusedKind {
        self.kind
    }

    /// The nodes that it stands for.
    pub fn body(&self) -> &Graph {
        &self.body
    }

    /// Which nodes of the body play which role; `None` where the body is not of the form that its kind usually has.
    pub fn roles(&self) -> Option<&Roles> {
        self.roles.as_ref()
    }

    /// Index of the `quantize` node at the end of the body, if there is one.
    pub fn rounding(&self) -> Option<usize> {
        self.rounding
    }

    /// The name of its last node, which is that of the fused node.
    pub(crate) fn name(&self) -> &str {
        &self.body.get(self.body.outputs()[0]).name
    }

    /// The names of all its nodes but the last: no other node has them.
    pub(crate) fn inner_names(&self) -> impl Iterator<Item = &str> {
        let nodes = self.body.nodes();
        nodes[..nodes.len() - 1].iter().map(|node| self.body.get(node.output()).name.as_str())
    }

    /// Changes how an operand is stored.
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
            ids.insert(node.output(), graph.node(&body.get(node.output()).name, node.op.clone(), &inputs)?);
        }
        Ok(ids[&body.outputs()[0]])
    }),
    several: None,
    macs: |op, dims| macs(fused_of(op).body(), dims).unwrap_or(0),
};

fn fused_of(op: &Op) -> &Fused {
    match op {
        Op::Fused(fused) => fused,
        _ => unreachable!("the table is right"),
    }
}

/// Evaluates the body node by node, as a run does: the results have the bits of the single nodes.
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
        let tensor = node.op.perform(&inputs, &facts, &mut inner)?.swap_remove(0);
        drop(inputs);
        made.retain(|id, _| last_use.get(id).is_some_and(|last| last.0 as usize > at));
        made.insert(node.output(), (tensor, row_scales));
    }
    let (tensor, row_scales) = made.remove(&body.outputs()[0]).expect("the last node makes it");
    *context.row_scales = row_scales;
    Ok(tensor)
}

/// Multiply-accumulates of all nodes, with empty caches.
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
        facts.insert(node.output(), made);
    }
    Some(sum)
}
