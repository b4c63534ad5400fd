//! A linear layer and the sum that takes its value: the residual stream is added where the accumulators are.
//!
//! Where both sides of a sum are linear layers, the later one takes it.

use attar_graph::{Op, op::Kind};

use super::fusing::{Fusing, Group};

pub(super) static LINEAR_ADD: Fusing = Fusing {
    name: "linear_add",
    about: "Fuse linear layers with the sum that takes their value",
    groups: |view| {
        let sums = view.all(|op| *op == Op::Add);
        let groups = sums.filter_map(|sum| {
            let sides = view.node(sum).inputs.iter().filter_map(|id| view.private(*id, sum));
            let linear = sides.filter(|at| view.node(*at).op == Op::Linear).max()?;
            Some(Group::of(Kind::LinearAdd, [linear, sum]))
        });
        groups.collect()
    },
};
