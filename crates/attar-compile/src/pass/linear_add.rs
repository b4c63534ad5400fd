//! A linear layer and the addition of its result: the residual is added in the epilogue of the product.
//!
//! If both operands of an addition are linear layers, it is fused with the later one.

use attar_graph::{Op, op::FusedKind};

use super::fusing::{Fusing, Group};

pub(super) static LINEAR_ADD: Fusing = Fusing {
    name: "linear_add",
    about: "Fuse linear layers with the addition of their result",
    groups: |view| {
        let sums = view.all(|op| *op == Op::Add);
        let groups = sums.filter_map(|sum| {
            let sides = view.node(sum).inputs.iter().filter_map(|id| view.private(*id, sum));
            let linear = sides.filter(|at| view.node(*at).op == Op::Linear).max()?;
            Some(Group::of(FusedKind::LinearAdd, [linear, sum]))
        });
        groups.collect()
    },
};
