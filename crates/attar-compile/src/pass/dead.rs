//! Dead code: what nothing that the graph returns depends on. A cache that nobody reads is dead, too: its state is for
//! itself alone.

use attar_graph::Graph;

use super::{Changes, Pass};
use crate::{Error, Result};

pub(super) struct Dead;

impl Pass for Dead {
    fn name(&self) -> &'static str {
        "dead"
    }

    fn about(&self) -> &'static str {
        "Drop nodes that nothing returned depends on"
    }

    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)> {
        graph.without_dead().map_err(|source| Error::Pass { pass: self.name(), source })
    }
}
