//! A linear layer, the activation after it and the rounding after that. A bias is part of the layer.

use attar_graph::{Op, op::FusedKind};

use super::fusing::{Fusing, Group};

pub(super) static LINEAR_ACT: Fusing = Fusing {
    name: "linear_act",
    about: "Fuse linear layers with the activation after them",
    groups: |view| {
        let linears = view.all(|op| *op == Op::Linear);
        let groups = linears.filter_map(|linear| {
            let activation = view.next(linear, Op::is_activation)?;
            Some(Group::of(FusedKind::LinearAct, [linear, activation].into_iter().chain(view.rounding(activation))))
        });
        groups.collect()
    },
};
