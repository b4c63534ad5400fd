//! Gate and up projections of an MLP, which read the same value, with their activation, multiplication and rounding.

use attar_graph::{Op, op::FusedKind};

use super::{
    fusing::{Fusing, Group},
    view::View,
};

pub(super) static GATED: Fusing = Fusing {
    name: "gated",
    about: "Fuse gate and up with what multiplies them",
    groups: |view| view.all(|op| matches!(op, Op::Swiglu | Op::Mul)).filter_map(|at| group(view, at)).collect(),
};

fn group(view: &View<'_>, at: usize) -> Option<Group> {
    let [a, b] = view.node(at).inputs[..] else { return None };
    let mut nodes = match view.node(at).op {
        Op::Swiglu => vec![linear(view, a, at)?, linear(view, b, at)?],
        _ => activated(view, a, b, at).or_else(|| activated(view, b, a, at))?,
    };
    let reads = |at: usize| view.node(at).inputs[0];
    if reads(nodes[0]) != reads(nodes[1]) {
        return None;
    }
    nodes.push(at);
    nodes.extend(view.rounding(at));
    Some(Group::of(FusedKind::Gated, nodes))
}

/// The gated form written as a product: gate, up, and the activation after the gate.
fn activated(view: &View<'_>, gate: attar_graph::ValueId, up: attar_graph::ValueId, at: usize) -> Option<Vec<usize>> {
    let activation = view.private(gate, at).filter(|activation| view.node(*activation).op.is_activation())?;
    Some(vec![linear(view, view.node(activation).inputs[0], activation)?, linear(view, up, at)?, activation])
}

fn linear(view: &View<'_>, id: attar_graph::ValueId, reader: usize) -> Option<usize> {
    view.private(id, reader).filter(|at| view.node(*at).op == Op::Linear)
}
