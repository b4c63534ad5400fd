//! Which nodes of a fused body play which role: the one place that knows the form of each kind.

use super::FusedKind;
use crate::{Graph, Node, Op, ValueId};

/// The nodes of a body by role, as indices into its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roles {
    /// [`FusedKind::Norm`].
    Norm {
        /// The addition before the norm.
        add: Option<usize>,
        /// The norm.
        norm: usize,
    },
    /// [`FusedKind::Qkv`]: query, key and value.
    Qkv([Projection; 3]),
    /// [`FusedKind::Attention`].
    Attention {
        /// The attention.
        attention: usize,
    },
    /// [`FusedKind::Gated`].
    Gated {
        /// The linear layer before the activation.
        gate: usize,
        /// The linear layer that the activation multiplies.
        up: usize,
        /// The activation: a `swiglu`, or a pointwise op that a `mul` follows.
        activation: usize,
    },
    /// [`FusedKind::LinearAct`].
    LinearAct {
        /// The linear layer.
        linear: usize,
        /// The activation.
        activation: usize,
    },
    /// [`FusedKind::LinearAdd`].
    LinearAdd {
        /// The linear layer.
        linear: usize,
        /// The addition.
        add: usize,
        /// What the layer's result is added to.
        residual: ValueId,
    },
}

/// One of query, key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// The linear layer.
    pub linear: usize,
    /// The split into heads before the norm and the rotary embedding.
    pub split: Option<usize>,
    /// The norm of each head, between split and rotary embedding.
    pub norm: Option<usize>,
    /// The rotary embedding.
    pub rope: Option<usize>,
}

impl Roles {
    /// The roles of a body of this kind.
    pub(super) fn find(kind: FusedKind, body: &Graph) -> Option<Roles> {
        let body = Body(body);
        match kind {
            FusedKind::Norm => {
                let norm = body.first(|op| matches!(op, Op::RmsNorm { .. } | Op::LayerNorm { .. }))?;
                Some(Roles::Norm { add: body.input_of(norm, 0, |op| *op == Op::Add), norm })
            }
            FusedKind::Qkv => body.qkv(),
            FusedKind::Attention => Some(Roles::Attention { attention: body.first(|op| matches!(op, Op::Attention(_)))? }),
            FusedKind::Gated => body.gated(),
            FusedKind::LinearAct => {
                let linear = body.first(|op| *op == Op::Linear)?;
                Some(Roles::LinearAct { linear, activation: body.reader(linear)? })
            }
            FusedKind::LinearAdd => body.linear_add(),
        }
    }
}

/// The `quantize` at the end of a body.
pub(super) fn rounding(body: &Graph) -> Option<usize> {
    let last = body.nodes().len().checked_sub(1)?;
    matches!(body.nodes()[last].op, Op::Quantize { .. }).then_some(last)
}

/// A body that is searched.
struct Body<'g>(&'g Graph);

impl<'g> Body<'g> {
    fn node(&self, at: usize) -> &'g Node {
        &self.0.nodes()[at]
    }

    fn first(&self, wanted: impl Fn(&Op) -> bool) -> Option<usize> {
        self.0.nodes().iter().position(|node| wanted(&node.op))
    }

    /// The node that makes a value.
    fn maker(&self, id: ValueId) -> Option<usize> {
        self.0.nodes().iter().position(|node| node.output() == id)
    }

    /// The node that makes operand `operand` of a node, if it is of the wanted kind.
    fn input_of(&self, at: usize, operand: usize, wanted: impl Fn(&Op) -> bool) -> Option<usize> {
        let maker = self.maker(*self.node(at).inputs.get(operand)?)?;
        wanted(&self.node(maker).op).then_some(maker)
    }

    /// The first node that reads the value of another.
    fn reader(&self, at: usize) -> Option<usize> {
        self.0.nodes().iter().position(|node| node.inputs.contains(&self.node(at).output()))
    }

    /// Three projections, concatenated at the end.
    fn qkv(&self) -> Option<Roles> {
        let concat = self.0.nodes().iter().rfind(|node| node.op == Op::Concat)?;
        let [query, key, value] = concat.inputs[..] else { return None };
        Some(Roles::Qkv([self.projection(query)?, self.projection(key)?, self.projection(value)?]))
    }

    /// From a value of the concatenation back to its linear layer.
    fn projection(&self, packed: ValueId) -> Option<Projection> {
        let (mut at, mut split, mut norm, mut rope) = (self.maker(packed)?, None, None, None);
        loop {
            match self.node(at).op {
                Op::Linear => return Some(Projection { linear: at, split, norm, rope }),
                Op::Rope(_) => rope = Some(at),
                Op::RmsNorm { .. } if rope.is_some() && norm.is_none() && split.is_none() => norm = Some(at),
                Op::SplitHeads { .. } => split = Some(at),
                Op::MergeHeads => {}
                _ => return None,
            }
            at = self.maker(self.node(at).inputs[0])?;
        }
    }

    /// `swiglu gate, up`, or `mul activation(gate), up` in either order.
    fn gated(&self) -> Option<Roles> {
        let is_linear = |op: &Op| *op == Op::Linear;
        if let Some(activation) = self.first(|op| *op == Op::Swiglu) {
            let [gate, up] = [0, 1].map(|operand| self.input_of(activation, operand, is_linear));
            return Some(Roles::Gated { gate: gate?, up: up?, activation });
        }
        let mul = self.first(|op| *op == Op::Mul)?;
        let sides = [[0, 1], [1, 0]].into_iter();
        let mut found = sides.filter_map(|[activated, plain]| {
            let activation = self.input_of(mul, activated, |op| !is_linear(op))?;
            let (gate, up) = (self.input_of(activation, 0, is_linear)?, self.input_of(mul, plain, is_linear)?);
            Some(Roles::Gated { gate, up, activation })
        });
        found.next()
    }

    /// A linear layer whose value is one side of an addition.
    fn linear_add(&self) -> Option<Roles> {
        let linear = self.first(|op| *op == Op::Linear)?;
        let add = self.first(|op| *op == Op::Add)?;
        let inputs = &self.node(add).inputs;
        let residual = inputs.iter().find(|id| **id != self.node(linear).output()).or(inputs.first());
        Some(Roles::LinearAdd { linear, add, residual: *residual? })
    }
}
