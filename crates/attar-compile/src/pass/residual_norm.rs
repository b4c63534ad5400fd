//! A norm with the rounding behind it, and with the sum before it where the norm alone reads that. A sum that is a residual
//! stream has other readers, and a fused node has one value: such a sum goes with the linear layer before it (`linear_add`).

use attar_graph::{Op, op::Kind};

use super::fusing::{Fusing, Group};

pub(super) static RESIDUAL_NORM: Fusing = Fusing {
    name: "residual_norm",
    about: "Fuse norms with the rounding behind and a sum before them",
    groups: |view| {
        let norms = view.all(|op| matches!(op, Op::RmsNorm { .. }));
        let groups = norms.filter_map(|norm| {
            let sum = view.private(view.node(norm).inputs[0], norm).filter(|at| view.node(*at).op == Op::Add);
            let nodes: Vec<usize> = sum.into_iter().chain([norm]).chain(view.rounding(norm)).collect();
            (nodes.len() > 1).then(|| Group::of(Kind::Norm, nodes))
        });
        groups.collect()
    },
};
