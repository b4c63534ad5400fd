//! A node of the graph with the graph that its inner nodes are in: the body of a fused node, or the graph around.

use attar_graph::{Graph, Node, ValueId, op::Fused};

/// The operands of a fused node: its body's parameters by id, as values of the surrounding graph.
pub(super) struct Body<'g> {
    pub(super) node: &'g Node,
    pub(super) body: &'g Graph,
    /// `None` for a node that is not fused: its body is the surrounding graph.
    fused: Option<&'g Fused>,
}

impl<'g> Body<'g> {
    /// The body of a fused node.
    pub(super) fn of(node: &'g Node, fused: &'g Fused) -> Body<'g> {
        Body { node, body: fused.body(), fused: Some(fused) }
    }

    /// A node that is not fused.
    pub(super) fn unfused(node: &'g Node, graph: &'g Graph) -> Body<'g> {
        Body { node, body: graph, fused: None }
    }

    /// The value of the surrounding graph that a parameter of the body stands for.
    pub(super) fn outer(&self, id: ValueId) -> Option<ValueId> {
        match self.fused {
            None => Some(id),
            Some(_) => self.body.inputs().iter().position(|input| *input == id).map(|at| self.node.inputs[at]),
        }
    }

    /// The node that rounds the result.
    pub(super) fn rounding(&self) -> Option<&'g Node> {
        self.fused.and_then(Fused::rounding).map(|at| self.at(at))
    }

    /// A node of the body, by its index.
    pub(super) fn at(&self, index: usize) -> &'g Node {
        &self.body.nodes()[index]
    }

    pub(super) fn name(&self, id: ValueId) -> &'g str {
        &self.body.get(id).name
    }
}
