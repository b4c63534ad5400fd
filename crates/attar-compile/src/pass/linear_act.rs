//! A linear layer, the activation behind it and the rounding behind that. A bias is part of the layer.

use attar_graph::{Op, op::Kind};

use super::fusing::{Fusing, Group};

pub(super) static LINEAR_ACT: Fusing = Fusing {
    name: "linear_act",
    about: "Fuse linear layers with the activation behind them",
    groups: |view| {
        let linears = view.all(|op| *op == Op::Linear);
        let groups = linears.filter_map(|linear| {
            let silu = view.behind(linear, |op| *op == Op::Silu)?;
            Some(Group::of(Kind::LinearAct, [linear, silu].into_iter().chain(view.rounding(silu))))
        });
        groups.collect()
    },
};
