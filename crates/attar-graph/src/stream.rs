//! Activations between blocks, for algorithms that change weights as they go.
//!
//! A [`crate::Run`] evaluates a block as a whole. Calibration must stop inside a block: observe the inputs of a linear
//! layer, change its weights, and continue with the changed ones. A stream evaluates a block in pieces, for every lane, and between the
//! pieces keeps only values no wider than the widest that enters a block; wider ones are recomputed when they are
//! needed. So its memory is a few times that of the activations between two blocks, whatever an MLP does inside.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use candle_core::Tensor;

use crate::{
    BlockId, Cached, Graph, Inputs, Mode, Origin, Result, ValueId, Weights,
    run::{Lane, evaluate},
};

/// Lanes of activations at some point of a graph.
pub struct Stream<'a> {
    graph: &'a Graph,
    lanes: Vec<Lane>,
    block: BlockId,
    /// Values of the block that are computed, in all lanes.
    reached: HashSet<ValueId>,
    /// The last block that reads each value.
    last_use: HashMap<ValueId, BlockId>,
}

impl<'a> Stream<'a> {
    /// Before the first block.
    pub fn new(graph: &'a Graph, lanes: Vec<Inputs>) -> Stream<'a> {
        let lanes = lanes.into_iter().map(|lane| Lane { values: lane.of(graph).into_iter().collect(), ..Lane::default() });
        let last_use = graph.last_use().into_iter().map(|(id, node)| (id, graph.nodes()[node.0 as usize].block)).collect();
        Stream { graph, lanes: lanes.collect(), block: BlockId(0), reached: HashSet::new(), last_use }
    }

    /// The current block.
    pub fn block(&self) -> BlockId {
        self.block
    }

    /// The computed values that enter the block: by lane, then by name. With the same inputs, [`Stream::restore`] continues
    /// from here in another process.
    pub fn entering(&self) -> Vec<BTreeMap<String, Tensor>> {
        let name = |id: &ValueId| self.graph.get(*id).name.clone();
        let computed = |id: &ValueId| matches!(self.graph.get(*id).origin, Origin::Node(_));
        let of = |lane: &Lane| lane.values.iter().filter(|(id, _)| computed(id)).map(|(id, t)| (name(id), t.clone())).collect();
        self.lanes.iter().map(of).collect()
    }

    /// Continues at `block` with the values that another stream had [`Stream::entering`] it.
    pub fn restore(&mut self, block: BlockId, entering: Vec<BTreeMap<String, Tensor>>) {
        self.block = block;
        self.reached.clear();
        for (lane, values) in self.lanes.iter_mut().zip(entering) {
            lane.values.retain(|id, _| matches!(self.graph.get(*id).origin, Origin::Input));
            lane.row_scales.clear();
            lane.values.extend(values.into_iter().filter_map(|(name, tensor)| Some((self.graph.find(&name)?, tensor))));
        }
    }

    /// Computes `target`, a value of the current block, and passes it to `each`, lane by lane.
    pub fn reach(
        &mut self,
        weights: &dyn Weights,
        target: ValueId,
        each: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let cached = Cached::new(weights);
        let mut after = self.reached.clone();
        self.add_ancestors(target, &HashSet::new(), &mut after);
        let keep = self.kept(&after, Some(target));
        for index in 0..self.lanes.len() {
            let mut wanted = HashSet::new();
            let known = self.lanes[index].values.keys().copied().collect();
            self.add_ancestors(target, &known, &mut wanted);
            self.evaluate(index, &cached, &wanted)?;
            each(index, &self.lanes[index].values[&target])?;
            self.lanes[index].keep(|id| keep.contains(id));
        }
        self.reached = after;
        Ok(())
    }

    /// Computes the values that later blocks read, and moves on to the next block.
    pub fn leave(&mut self, weights: &dyn Weights) -> Result<()> {
        let cached = Cached::new(weights);
        let (graph, block) = (self.graph, self.block);
        let later = |id: &ValueId| self.last_use.get(id).is_some_and(|last| *last > block) || graph.outputs().contains(id);
        let results: Vec<ValueId> = graph.nodes_of(block).flat_map(|node| node.outputs.iter().copied()).filter(later).collect();
        let keep: HashSet<ValueId> =
            self.last_use.iter().filter(|(_, last)| **last > block).map(|(id, _)| *id).chain(results.iter().copied()).collect();
        for index in 0..self.lanes.len() {
            let known: HashSet<ValueId> = self.lanes[index].values.keys().copied().collect();
            let mut wanted = HashSet::new();
            results.iter().for_each(|id| self.add_ancestors(*id, &known, &mut wanted));
            self.evaluate(index, &cached, &wanted)?;
            self.lanes[index].keep(|id| keep.contains(id));
            self.lanes[index].row_scales.clear();
        }
        self.reached.clear();
        self.block = BlockId(block.0 + 1);
        Ok(())
    }

    fn evaluate(&mut self, index: usize, weights: &dyn Weights, wanted: &HashSet<ValueId>) -> Result<()> {
        let mut macs = 0;
        for node in self.graph.nodes_of(self.block).filter(|node| node.outputs.iter().any(|id| wanted.contains(id))) {
            let lane = &mut self.lanes[index];
            let tensors = evaluate(self.graph, weights, Mode::Inference, node, lane, &mut macs)?;
            lane.values.extend(tensors);
        }
        Ok(())
    }

    /// Adds `id` and the values of the block that it depends on, down to `known` ones.
    fn add_ancestors(&self, id: ValueId, known: &HashSet<ValueId>, all: &mut HashSet<ValueId>) {
        let Origin::Node(made_by) = self.graph.get(id).origin else { return };
        let node = &self.graph.nodes()[made_by.0 as usize];
        if node.block != self.block || known.contains(&id) || !all.insert(id) {
            return;
        }
        node.inputs.iter().for_each(|input| self.add_ancestors(*input, known, all));
    }

    /// The values to keep once `reached` is computed: narrow ones that are read later, and those that wide ones are
    /// recomputed from.
    fn kept(&self, reached: &HashSet<ValueId>, target: Option<ValueId>) -> BTreeSet<ValueId> {
        let widest = self.graph.live_into(self.block).into_iter().filter_map(|id| self.graph.fact(id).width()).max().unwrap_or(0);
        let ahead = self.graph.nodes_of(self.block).filter(|node| !node.outputs.iter().all(|id| reached.contains(id)));
        let read_here = ahead.flat_map(|node| node.inputs.iter().copied());
        let read_later = self.last_use.iter().filter(|(_, last)| **last > self.block).map(|(id, _)| *id);
        let mut keep = BTreeSet::new();
        for id in read_here.chain(read_later).chain(target) {
            self.keep(id, reached, widest, &mut keep);
        }
        keep
    }

    fn keep(&self, id: ValueId, reached: &HashSet<ValueId>, widest: usize, keep: &mut BTreeSet<ValueId>) {
        let wide = self.elements_per_position(id) > widest;
        match self.graph.get(id).origin {
            Origin::Weight(_) => {}
            Origin::Node(made_by) if reached.contains(&id) && wide => {
                self.graph.nodes()[made_by.0 as usize].inputs.iter().for_each(|input| self.keep(*input, reached, widest, keep));
            }
            _ => {
                keep.insert(id);
            }
        }
    }

    /// Elements per position.
    fn elements_per_position(&self, id: ValueId) -> usize {
        self.graph.fact(id).dims.iter().filter_map(crate::Dim::constant).product()
    }
}
