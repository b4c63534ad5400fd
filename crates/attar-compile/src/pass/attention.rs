//! Attention with the ops around it: slices, splits into heads, rotary embedding and rounding of its operands, caches, the merge
//! of heads after it and the rounding of that. One node of kind `attention`, whose scores are never materialised.

use std::collections::BTreeSet;

use attar_graph::{Op, op::FusedKind};

use super::{
    fusing::{Fusing, Group},
    view::View,
};

pub(super) static ATTENTION: Fusing = Fusing {
    name: "attention",
    about: "Fuse attention with its caches, heads and rounding",
    groups: |view| view.all(|op| matches!(op, Op::Attention(_))).filter_map(|at| group(view, at)).collect(),
};

fn group(view: &View<'_>, attention: usize) -> Option<Group> {
    let mut nodes = BTreeSet::from([attention]);
    for operand in &view.node(attention).inputs {
        let (mut value, mut reader) = (*operand, attention);
        while let Some(at) = view.private(value, reader).filter(|at| is_on_the_way(&view.node(*at).op)) {
            nodes.insert(at);
            (value, reader) = (view.node(at).inputs[0], at);
        }
    }
    let merge = view.next(attention, |op| *op == Op::MergeHeads);
    nodes.extend(merge);
    nodes.extend(merge.and_then(|merge| view.rounding(merge)));
    (nodes.len() > 1).then_some(Group::of(FusedKind::Attention, nodes))
}

fn is_on_the_way(op: &Op) -> bool {
    matches!(op, Op::Cache { .. } | Op::Quantize { .. } | Op::Rope(_) | Op::SplitHeads { .. } | Op::Slice { .. })
}
