//! Moves that undo each other: heads split right after they were merged, slices of what was just concatenated, slices of
//! slices. What a checkpoint keeps in another order (rotary pairs, interleaved) is in its weight expressions from the
//! start, so no node is left for it.

use attar_graph::Graph;

use super::{Changes, Pass};
use crate::{Error, Result};

pub(super) struct FoldLayout;

impl Pass for FoldLayout {
    fn name(&self) -> &'static str {
        "fold_layout"
    }

    fn about(&self) -> &'static str {
        "Drop moves that undo each other"
    }

    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)> {
        graph.without_moves().map_err(|source| Error::Pass { pass: self.name(), source })
    }
}
