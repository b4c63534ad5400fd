//! Copies of a graph with changes: the basis of all passes. A graph is small, so it is rebuilt rather than edited.

use std::collections::{HashMap, HashSet};

use crate::{Graph, Node, Origin, Result, ValueId};

/// A graph under construction, and which of its values replace those of the original.
pub struct Rewriting<'g> {
    from: &'g Graph,
    to: Graph,
    ids: HashMap<ValueId, ValueId>,
}

impl Rewriting<'_> {
    /// The value that replaces `id` of the original. A weight is added when it is first read.
    ///
    /// # Panics
    /// If `id` is the result of a node and has no replacement yet.
    pub fn value(&mut self, id: ValueId) -> Result<ValueId> {
        if let Some(known) = self.ids.get(&id) {
            return Ok(*known);
        }
        let value = self.from.get(id);
        let Origin::Weight(expr) = &value.origin else { panic!("`{}` has no replacement yet", value.name) };
        let made = self.to.weight(&value.name, value.fact.clone(), expr.clone())?;
        self.ids.insert(id, made);
        Ok(made)
    }

    /// The same of several.
    pub fn values(&mut self, ids: &[ValueId]) -> Result<Vec<ValueId>> {
        ids.iter().map(|id| self.value(*id)).collect()
    }

    /// Adds a node as it is.
    pub fn keep(&mut self, node: &Node) -> Result<()> {
        let inputs = self.values(&node.inputs)?;
        let names: Vec<&str> = node.outputs.iter().map(|id| self.from.get(*id).name.as_str()).collect();
        let made = self.to.node_of(&names, node.op.clone(), &inputs)?;
        self.ids.extend(node.outputs.iter().copied().zip(made));
        Ok(())
    }

    /// Makes `here` the replacement of `there`.
    pub fn put(&mut self, there: ValueId, here: ValueId) {
        self.ids.insert(there, here);
    }

    /// Whether `there` has a replacement. A weight has none before it is first read.
    pub fn has(&self, there: ValueId) -> bool {
        self.ids.contains_key(&there)
    }

    /// The graph so far. New nodes belong to the block that is being copied.
    pub fn graph(&mut self) -> &mut Graph {
        &mut self.to
    }
}

impl Graph {
    /// A graph with the same inputs, blocks and outputs, whose nodes `each` adds: it is called with every node, in order.
    pub fn rewrite(&self, each: &mut dyn FnMut(&mut Rewriting<'_>, &Node) -> Result<()>) -> Result<Graph> {
        self.rewrite_blocks(&mut |copy, nodes| nodes.iter().try_for_each(|node| each(copy, node)))
    }

    /// The same, called with all nodes of every block.
    pub fn rewrite_blocks(&self, each: &mut dyn FnMut(&mut Rewriting<'_>, &[&Node]) -> Result<()>) -> Result<Graph> {
        let mut copy = Rewriting { from: self, to: Graph::new(self.name()), ids: HashMap::new() };
        for id in self.inputs() {
            let value = self.get(*id);
            let input = copy.to.input(&value.name, value.fact.clone())?;
            copy.ids.insert(*id, input);
        }
        for block in self.blocks() {
            copy.to.block(self.block_name(block));
            each(&mut copy, &self.nodes_of(block).collect::<Vec<_>>())?;
        }
        for id in self.outputs() {
            let output = copy.value(*id)?;
            copy.to.output(output);
        }
        Ok(copy.to)
    }

    /// A copy without dead nodes, those on which no output depends, and without the weights that only they read; and the
    /// names of the values that were removed.
    pub fn without_dead(&self) -> Result<(Graph, Vec<String>)> {
        let mut alive: HashSet<ValueId> = self.outputs().iter().copied().collect();
        for node in self.nodes().iter().rev() {
            if node.outputs.iter().any(|id| alive.contains(id)) {
                alive.extend(&node.inputs);
            }
        }
        let mut gone = Vec::new();
        let graph = self.rewrite(&mut |copy, node| match node.outputs.iter().any(|id| alive.contains(id)) {
            true => copy.keep(node),
            false => {
                gone.extend(node.outputs.iter().map(|id| self.get(*id).name.clone()));
                Ok(())
            }
        })?;
        Ok((graph, gone))
    }
}
