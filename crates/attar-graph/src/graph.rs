//! Values, nodes and blocks.

use std::collections::{HashMap, HashSet};

// A fused op has a graph as its body, so that its meaning needs no second definition: graphs and ops refer to each other.
use crate::{Error, Expr, Fact, Op, Result, error::Problem, op::Fused};

/// Index of a [`Value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

/// Index of a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

/// Index of a block: consecutive nodes that are loaded, run and compressed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub(crate) u32);

impl BlockId {
    /// The first of a graph.
    pub const FIRST: BlockId = BlockId(0);

    /// The block that runs after `block`.
    pub fn after(block: BlockId) -> BlockId {
        BlockId(block.0 + 1)
    }

    /// How many blocks run before it.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An operand of nodes: an input, a constant or the result of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Unique in the graph. A weight's is canonical: the same for every architecture and checkpoint format.
    pub name: String,
    /// Shape and encoding.
    pub fact: Fact,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// The caller.
    Input,
    /// A checkpoint.
    Weight(Expr),
    /// A node.
    Node(NodeId),
}

/// One application of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The op.
    pub op: Op,
    /// Its operands.
    pub inputs: Vec<ValueId>,
    /// Its results: one, but for ops such as [`Op::Split`].
    pub outputs: Vec<ValueId>,
    /// The block that it belongs to.
    pub block: BlockId,
}

impl Node {
    /// Its only result.
    ///
    /// # Panics
    /// If it has several: callers have matched the op, or handle all of [`Node::outputs`].
    pub fn output(&self) -> ValueId {
        match self.outputs[..] {
            [output] => output,
            _ => panic!("`{}` has {} results", self.op.def().name, self.outputs.len()),
        }
    }
}

/// A model, or a part of one. Nodes are in an order in which they can run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    name: String,
    values: Vec<Value>,
    nodes: Vec<Node>,
    blocks: Vec<String>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    names: HashMap<String, ValueId>,
    /// Of nodes in bodies.
    inner_names: HashSet<String>,
}

impl Graph {
    /// A graph without nodes.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, fact: Fact) -> Result<ValueId> {
        let id = self.value(name, fact, Origin::Input)?;
        self.inputs.push(id);
        Ok(id)
    }

    /// Adds a constant.
    pub fn weight(&mut self, name: &str, fact: Fact, expr: Expr) -> Result<ValueId> {
        self.value(name, fact, Origin::Weight(expr))
    }

    /// Starts a block: nodes that follow belong to it.
    pub fn block(&mut self, name: impl Into<String>) -> BlockId {
        self.blocks.push(name.into());
        BlockId(self.blocks.len() as u32 - 1)
    }

    /// Adds a node with one result to the latest block; its fact is inferred.
    pub fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId> {
        self.node_of(&[name], op, inputs).map(|outputs| outputs[0])
    }

    /// Adds a node to the latest block, with a name for each of its results; their facts are inferred.
    ///
    /// # Errors
    /// If the op does not take such operands or has another number of results, or if a name is taken.
    pub fn node_of(&mut self, names: &[&str], op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        if self.blocks.is_empty() {
            self.block("");
        }
        let facts: Vec<&Fact> = inputs.iter().map(|id| self.fact(*id)).collect();
        let facts = op.infer(names.first().copied().unwrap_or_default(), &facts)?;
        if facts.len() != names.len() {
            let (op, found) = (op.def().name, names.len());
            return Err(Error::Invalid(Problem::Results { op, found, wanted: facts.len() }));
        }
        if let Op::Fused(fused) = &op {
            self.check_names(names[0], fused)?;
        }
        let node = NodeId(self.nodes.len() as u32);
        let results = names.iter().zip(facts).map(|(name, fact)| self.value(name, fact, Origin::Node(node)));
        let outputs = results.collect::<Result<Vec<ValueId>>>()?;
        if let Op::Fused(fused) = &op {
            self.inner_names.extend(fused.inner_names().map(Into::into));
        }
        let block = BlockId(self.blocks.len() as u32 - 1);
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), block });
        Ok(outputs)
    }

    /// Returns a value. It is known to callers by its name: `logits`, `hidden_states`, `embedding`.
    pub fn output(&mut self, id: ValueId) {
        self.outputs.push(id);
    }

    fn value(&mut self, name: &str, fact: Fact, origin: Origin) -> Result<ValueId> {
        let id = ValueId(self.values.len() as u32);
        if self.is_taken(name) {
            return Err(Error::Invalid(Problem::Twice { name: name.into() }));
        }
        self.names.insert(name.into(), id);
        self.values.push(Value { name: name.into(), fact, origin });
        Ok(id)
    }

    /// Names in a body are unique in the whole graph.
    fn check_names(&self, name: &str, fused: &Fused) -> Result<()> {
        if fused.name() != name {
            return Err(Error::Invalid(Problem::BodyName { name: name.into(), found: fused.name().into() }));
        }
        match fused.inner_names().find(|inner| self.is_taken(inner)) {
            Some(inner) => Err(Error::Invalid(Problem::Twice { name: inner.into() })),
            None => Ok(()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inputs, in the order of the text form.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The place among [`Graph::outputs`] of the one of that name.
    pub fn find_output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|id| self.get(*id).name == name)
    }

    /// The value that an input of that name gives.
    pub fn find_input(&self, name: &str) -> Option<ValueId> {
        self.inputs.iter().copied().find(|id| self.get(*id).name == name)
    }

    /// The values that it returns.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The nodes, in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values with their ids.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, value)| (ValueId(i as u32), value))
    }

    /// One value.
    pub fn get(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The fact of one value.
    pub fn fact(&self, id: ValueId) -> &Fact {
        &self.get(id).fact
    }

    /// The node that makes a value, if one does.
    pub fn maker(&self, id: ValueId) -> Option<&Node> {
        match self.get(id).origin {
            Origin::Node(node) => Some(&self.nodes[node.0 as usize]),
            _ => None,
        }
    }

    /// Whether a value, or a node in a body, has that name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.inner_names.contains(name)
    }

    /// The value of that name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The constants: value, canonical name, fact and expression, in order of first use.
    pub fn weights(&self) -> impl Iterator<Item = (ValueId, &Value, &Expr)> {
        self.values().filter_map(|(id, value)| match &value.origin {
            Origin::Weight(expr) => Some((id, value, expr)),
            _ => None,
        })
    }

    /// Gives a constant another expression or encoding. Its shape stays.
    ///
    /// # Panics
    /// If `id` is not a weight.
    pub fn replace_weight(&mut self, id: ValueId, encoding: attar_tensor::Encoding, expr: Expr) {
        let value = &mut self.values[id.0 as usize];
        assert!(matches!(value.origin, Origin::Weight(_)), "`{}` is a weight", value.name);
        value.fact.encoding = encoding;
        value.origin = Origin::Weight(expr);
        for node in &mut self.nodes {
            let Op::Fused(fused) = &mut node.op else { continue };
            for (operand, _) in node.inputs.iter().enumerate().filter(|(_, input)| **input == id) {
                fused.replace_encoding(operand, encoding);
            }
        }
    }

    /// Gives an input another encoding. Its shape stays.
    pub(crate) fn replace_input(&mut self, at: usize, encoding: attar_tensor::Encoding) {
        self.values[self.inputs[at].0 as usize].fact.encoding = encoding;
    }

    /// The number of blocks.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The blocks, in execution order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> {
        (0..self.blocks.len() as u32).map(BlockId)
    }

    /// The name of a block.
    pub fn block_name(&self, id: BlockId) -> &str {
        &self.blocks[id.0 as usize]
    }

    /// The nodes of a block, in execution order.
    pub fn nodes_of(&self, block: BlockId) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.block == block)
    }

    /// Whether position `i` of what a block makes depends on position `i` of what it reads alone.
    pub fn is_pointwise(&self, block: BlockId) -> bool {
        self.nodes_of(block).all(|node| node.op.is_pointwise())
    }

    /// The values that `block` reads from before it.
    pub fn live_into(&self, block: BlockId) -> Vec<ValueId> {
        let mut ids: Vec<ValueId> = self
            .nodes_of(block)
            .flat_map(|node| node.inputs.iter().copied())
            .filter(|id| match self.get(*id).origin {
                Origin::Input => true,
                Origin::Weight(_) => false,
                Origin::Node(made_by) => self.nodes[made_by.0 as usize].block < block,
            })
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// The last node that reads each value, for those that a node reads.
    pub fn last_use(&self) -> HashMap<ValueId, NodeId> {
        let reads =
            self.nodes.iter().enumerate().flat_map(|(at, node)| node.inputs.iter().map(move |id| (*id, NodeId(at as u32))));
        reads.collect()
    }
}
