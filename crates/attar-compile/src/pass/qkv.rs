//! Query, key and value of an attention layer: three linear layers that read one value, with the rotary embedding of two of
//! them and the norm of each head before it, become one node of kind `qkv`. Its value is their concatenation,
//! `[batch, seq, (heads + 2 * key heads) * head]`; slices take it apart again.
//!
//! The weights stay three operands. As one expression they would need one encoding, and one scale where a scale is the
//! tensor's; so they keep their codes, and each its own format.

use std::collections::BTreeSet;

use attar_graph::{Op, ValueId, op::FusedKind};

use super::{
    fusing::{Fusing, Group},
    view::View,
};

pub(super) static QKV: Fusing = Fusing {
    name: "qkv",
    about: "Fuse query, key and value with their norms and rotary positions",
    groups: |view| view.all(|op| matches!(op, Op::Attention(_))).filter_map(|at| group(view, at)).collect(),
};

fn group(view: &View<'_>, attention: usize) -> Option<Group> {
    let mut nodes = BTreeSet::new();
    let mut packed = Vec::new();
    let mut linears = Vec::new();
    for operand in &view.node(attention).inputs {
        let part = part(view, *operand, attention)?;
        packed.push(part.output);
        linears.push(part.linear);
        nodes.extend(part.nodes);
    }
    let reads = |at: &usize| view.node(*at).inputs[0];
    let one_input = linears.iter().all(|at| reads(at) == reads(&linears[0]));
    let distinct = linears.iter().collect::<BTreeSet<_>>().len() == 3;
    (one_input && distinct).then_some(Group { kind: FusedKind::Qkv, nodes, packed })
}

/// A linear layer, and what belongs to it.
struct Projection {
    linear: usize,
    nodes: Vec<usize>,
    output: ValueId,
}

/// Up from an operand of attention: through caches and rounding, which stay outside, to the rotary embedding, if there is one, the
/// norm of each head before it, if there is one, the heads and the linear layer.
fn part(view: &View<'_>, operand: ValueId, attention: usize) -> Option<Projection> {
    let (mut value, mut reader) = (operand, attention);
    loop {
        let at = view.maker(value).filter(|at| view.node(*at).block == view.node(reader).block)?;
        match view.node(at).op {
            Op::Cache { .. } | Op::Quantize { .. } => (value, reader) = (view.node(at).inputs[0], at),
            Op::Rope(_) => {
                let before = |at: usize| view.private(view.node(at).inputs[0], at);
                let norm = before(at).filter(|norm| is_norm(view, *norm));
                let split = before(norm.unwrap_or(at)).filter(|split| is_split(view, *split))?;
                let linear = before(split).filter(|linear| is_linear(view, *linear))?;
                return Some(Projection { linear, nodes: [linear, split, at].into_iter().chain(norm).collect(), output: value });
            }
            Op::SplitHeads { .. } => {
                let output = view.node(at).inputs[0];
                let linear = view.private(output, at).filter(|linear| is_linear(view, *linear))?;
                return Some(Projection { linear, nodes: vec![linear], output });
            }
            _ => return None,
        }
    }
}

fn is_norm(view: &View<'_>, at: usize) -> bool {
    matches!(view.node(at).op, Op::RmsNorm { .. })
}

fn is_split(view: &View<'_>, at: usize) -> bool {
    matches!(view.node(at).op, Op::SplitHeads { .. })
}

fn is_linear(view: &View<'_>, at: usize) -> bool {
    view.node(at).op == Op::Linear
}
