//! Makers and readers of the values of a graph.

use std::collections::HashMap;

use attar_graph::{Graph, Node, Op, Origin, Value, ValueId};

/// A graph with its readers. Nodes are known by their places in running order.
pub(super) struct View<'g> {
    pub(super) graph: &'g Graph,
    makers: HashMap<ValueId, usize>,
    /// One entry for each operand.
    readers: HashMap<ValueId, Vec<usize>>,
}

impl<'g> View<'g> {
    pub(super) fn new(graph: &'g Graph) -> View<'g> {
        let (mut makers, mut readers) = (HashMap::new(), HashMap::<ValueId, Vec<usize>>::new());
        for (at, node) in graph.nodes().iter().enumerate() {
            makers.extend(node.outputs.iter().map(|id| (*id, at)));
            node.inputs.iter().for_each(|input| readers.entry(*input).or_default().push(at));
        }
        View { graph, makers, readers }
    }

    pub(super) fn node(&self, at: usize) -> &'g Node {
        &self.graph.nodes()[at]
    }

    /// The nodes that satisfy `wanted`.
    pub(super) fn all(&self, wanted: impl Fn(&Op) -> bool) -> impl Iterator<Item = usize> {
        self.graph.nodes().iter().enumerate().filter(move |(_, node)| wanted(&node.op)).map(|(at, _)| at)
    }

    /// The node that makes a value, if one does.
    pub(super) fn maker(&self, id: ValueId) -> Option<usize> {
        self.makers.get(&id).copied()
    }

    /// Who reads a value; one that reads it twice is there twice.
    pub(super) fn readers(&self, id: ValueId) -> &[usize] {
        self.readers.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Whether the caller gets a value.
    pub(super) fn is_returned(&self, id: ValueId) -> bool {
        self.graph.outputs().contains(&id)
    }

    pub(super) fn is_weight(&self, id: ValueId) -> bool {
        matches!(self.graph.get(id).origin, Origin::Weight(_))
    }

    /// What makes a value that only `reader` reads, once, in the same block: the two can be one node.
    pub(super) fn private(&self, id: ValueId, reader: usize) -> Option<usize> {
        let maker = self.maker(id)?;
        let same_block = self.node(maker).block == self.node(reader).block;
        (self.readers(id) == [reader] && same_block && !self.is_returned(id)).then_some(maker)
    }

    /// The node after `at` that can be fused with it: the only reader of its value, as the first operand, if `wanted` holds.
    pub(super) fn next(&self, at: usize, wanted: impl Fn(&Op) -> bool) -> Option<usize> {
        let [value] = self.node(at).outputs[..] else { return None };
        let [reader] = self.readers(value) else { return None };
        self.private(value, *reader)?;
        let node = self.node(*reader);
        (wanted(&node.op) && node.inputs[0] == value).then_some(*reader)
    }

    /// The node after `at` that rounds its value, if nothing else reads it.
    pub(super) fn rounding(&self, at: usize) -> Option<usize> {
        self.next(at, |op| matches!(op, Op::Quantize { .. }))
    }

    /// Whether two values are one: the same, or constants of one expression and encoding.
    pub(super) fn same(&self, a: ValueId, b: ValueId) -> bool {
        let constant = |id| match self.graph.get(id) {
            Value { fact, origin: Origin::Weight(expr), .. } => Some((fact, expr)),
            _ => None,
        };
        a == b || constant(a).is_some_and(|a| Some(a) == constant(b))
    }
}
