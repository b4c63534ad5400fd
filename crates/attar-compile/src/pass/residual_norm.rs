//! A norm with the rounding after it, and with the addition before it if the norm is its only reader. A residual addition has
//! other readers, and a fused node has one value: it is fused with the linear layer before it (`linear_add`).

use attar_graph::{Op, op::FusedKind};

use super::fusing::{Fusing, Group};

pub(super) static RESIDUAL_NORM: Fusing = Fusing {
    name: "residual_norm",
    about: "Fuse norms with the rounding after them and the addition before them",
    groups: |view| {
        let norms = view.all(|op| matches!(op, Op::RmsNorm { .. } | Op::LayerNorm { .. }));
        let groups = norms.filter_map(|norm| {
            // The result of a `layer_norm` may be the residual stream itself, of which the sum before it is a part of its own.
            let adds = matches!(view.node(norm).op, Op::RmsNorm { .. });
            let sum = view.private(view.node(norm).inputs[0], norm).filter(|at| adds && view.node(*at).op == Op::Add);
            let nodes: Vec<usize> = sum.into_iter().chain([norm]).chain(view.rounding(norm)).collect();
            (nodes.len() > 1).then(|| Group::of(FusedKind::Norm, nodes))
        });
        groups.collect()
    },
};
