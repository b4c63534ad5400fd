//! The reference implementation of graphs: evaluation over candle tensors, block by block.
//!
//! Several lanes (batches of windows) run together, so that the weights of a block are read once for all of them and then
//! freed. The result of a node is kept only while a later node reads it.

use std::collections::HashMap;

use candle_core::{D, Tensor};

use crate::{
    BlockId, Cached, Error, Fact, Graph, Inputs, Mode, Node, NodeId, Op, Origin, Result, State, ValueId, Weights,
    integer::RowScales,
    op::{Context, Operand, Tables},
};

#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) values: HashMap<ValueId, Tensor>,
    /// Of the quantized values of the current block. In another block, products of them are computed in f32.
    pub(crate) row_scales: HashMap<ValueId, RowScales>,
    pub(crate) state: Option<State>,
    pub(crate) tables: Tables,
}

impl Lane {
    /// Frees all other values.
    pub(crate) fn keep(&mut self, keep: impl Fn(&ValueId) -> bool) {
        self.values.retain(|id, _| keep(id));
        self.row_scales.retain(|id, _| keep(id));
    }
}

/// A value that was computed or given.
fn value(values: &HashMap<ValueId, Tensor>, graph: &Graph, id: ValueId) -> Result<Tensor> {
    values.get(&id).cloned().ok_or_else(|| Error::Input { name: graph.get(id).name.clone() })
}

/// Called with every value that a block computes: lane, value, tensor.
pub type Tap<'t> = &'t mut dyn FnMut(usize, ValueId, &Tensor);

/// An evaluation in progress.
pub struct Run<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    mode: Mode,
    lanes: Vec<Lane>,
    last_use: HashMap<ValueId, NodeId>,
    next: u32,
    macs: u64,
    joins: bool,
}

impl<'a> Run<'a> {
    /// At the first block.
    pub fn new(graph: &'a Graph, weights: &'a dyn Weights, mode: Mode, lanes: Vec<Inputs>) -> Run<'a> {
        let lanes = lanes
            .into_iter()
            .map(|lane| Lane { values: lane.of(graph).into_iter().collect(), state: lane.state, ..Lane::default() })
            .collect();
        Run { graph, weights, mode, lanes, last_use: graph.last_use(), next: 0, macs: 0, joins: false }
    }

    /// The same with linear layers that take the rows of all lanes at once, for many short lanes: a product of few rows takes little less time
    /// than one of many. The values of a block are then in memory for all lanes together.
    #[must_use]
    pub fn joining(self) -> Run<'a> {
        Run { joins: true, ..self }
    }

    /// The block that [`Run::step`] runs next.
    pub fn next_block(&self) -> Option<BlockId> {
        ((self.next as usize) < self.graph.block_count()).then_some(BlockId(self.next))
    }

    /// Multiply-accumulates so far.
    pub fn macs(&self) -> u64 {
        self.macs
    }

    /// Runs one block over all lanes.
    pub fn step(&mut self, mut tap: Option<Tap<'_>>) -> Result<()> {
        let Some(block) = self.next_block() else { return Ok(()) };
        let cached = Cached::new(self.weights);
        if self.joins && tap.is_none() {
            self.step_joining(block, &cached)?;
            self.next += 1;
            return Ok(());
        }
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            for node in self.graph.nodes_of(block) {
                let tensors = evaluate(self.graph, &cached, self.mode, node, lane, &mut self.macs)?;
                if let Some(tap) = &mut tap {
                    tensors.iter().for_each(|(id, tensor)| tap(index, *id, tensor));
                }
                lane.values.extend(tensors);
                forget(self.graph, &self.last_use, node, &mut lane.values);
            }
            lane.row_scales.clear();
        }
        self.next += 1;
        Ok(())
    }

    /// One block, node by node over all lanes.
    fn step_joining(&mut self, block: BlockId, weights: &dyn Weights) -> Result<()> {
        for node in self.graph.nodes_of(block) {
            let joined = self.joined(node, weights)?;
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                match &joined {
                    Some(results) => _ = lane.values.insert(node.outputs[0], results[index].clone()),
                    None => {
                        let tensors = evaluate(self.graph, weights, self.mode, node, lane, &mut self.macs)?;
                        lane.values.extend(tensors);
                    }
                }
                forget(self.graph, &self.last_use, node, &mut lane.values);
            }
        }
        self.lanes.iter_mut().for_each(|lane| lane.row_scales.clear());
        Ok(())
    }

    /// The results of a linear layer for all lanes, if their rows can be taken together.
    fn joined(&mut self, node: &Node, weights: &dyn Weights) -> Result<Option<Vec<Tensor>>> {
        let [input, constants @ ..] = &node.inputs[..] else { return Ok(None) };
        let constant = |id: &ValueId| matches!(self.graph.get(*id).origin, Origin::Weight(_));
        let integers = self.lanes.iter().any(|lane| lane.row_scales.contains_key(input));
        if !matches!(node.op, Op::Linear) || !constants.iter().all(constant) || integers || self.lanes.len() < 2 {
            return Ok(None);
        }
        let inputs: Vec<Tensor> = self.lanes.iter().map(|lane| value(&lane.values, self.graph, *input)).collect::<Result<_>>()?;
        let width = inputs[0].dim(D::Minus1)?;
        let rows: Vec<Tensor> = inputs.iter().map(|x| x.reshape(((), width))).collect::<candle_core::Result<_>>()?;
        let mut all = Lane::default();
        all.values.insert(*input, Tensor::cat(&rows, 0)?);
        let (_, result) = evaluate(self.graph, weights, self.mode, node, &mut all, &mut self.macs)?.remove(0);
        let mut start = 0;
        let parts = inputs.iter().zip(&rows).map(|(input, rows)| {
            let count = rows.dim(0)?;
            start += count;
            let mut dims = input.dims().to_vec();
            *dims.last_mut().expect("activations have dimensions") = result.dim(1)?;
            result.narrow(0, start - count, count)?.reshape(dims)
        });
        Ok(Some(parts.collect::<candle_core::Result<_>>()?))
    }

    /// Runs every block but the last.
    pub fn advance_to_last_block(&mut self, mut done: impl FnMut(usize, usize)) -> Result<()> {
        let blocks = self.graph.block_count();
        while (self.next as usize) + 1 < blocks {
            self.step(None)?;
            done(self.next as usize, blocks);
        }
        Ok(())
    }

    /// Runs every block and returns the outputs of a lane and its state.
    pub fn finish(mut self, lane: usize) -> Result<(Vec<Tensor>, Option<State>)> {
        while self.next_block().is_some() {
            self.step(None)?;
        }
        let lane = &mut self.lanes[lane];
        let outputs = self.graph.outputs().iter().map(|id| value(&lane.values, self.graph, *id)).collect::<Result<_>>()?;
        Ok((outputs, lane.state.take()))
    }

    /// What a lane that was given a state leaves in it after the blocks that have run.
    pub fn take_state(&mut self, lane: usize) -> Option<State> {
        self.lanes[lane].state.take()
    }

    /// The output of the last block for some positions of some windows of a lane: `[windows, positions, width]`. May be
    /// called any number of times, in any order, after [`Run::advance_to_last_block`]. `weights` may cache what it reads.
    /// Right only if the block is pointwise ([`Graph::is_pointwise`]).
    pub fn last_block(
        &self,
        weights: &dyn Weights,
        lane: usize,
        windows: std::ops::Range<usize>,
        positions: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        self.last_of(weights, |id| {
            let whole = value(&self.lanes[lane].values, self.graph, id)?;
            Ok(whole.narrow(0, windows.start, windows.len())?.narrow(1, positions.start, positions.len())?.contiguous()?)
        })
    }

    /// The same for one position of the first window of each of some lanes: `[lanes, 1, width]`.
    pub fn last_block_at(&self, weights: &dyn Weights, places: &[(usize, usize)]) -> Result<Tensor> {
        self.last_of(weights, |id| {
            let row = |(lane, position): &(usize, usize)| {
                Ok(value(&self.lanes[*lane].values, self.graph, id)?.narrow(0, 0, 1)?.narrow(1, *position, 1)?)
            };
            Ok(Tensor::cat(&places.iter().map(row).collect::<Result<Vec<Tensor>>>()?, 0)?)
        })
    }

    /// The output of the last block for what `part_of` takes of a value.
    fn last_of(&self, weights: &dyn Weights, part_of: impl Fn(ValueId) -> Result<Tensor>) -> Result<Tensor> {
        let block = BlockId(self.next);
        debug_assert!(self.graph.is_pointwise(block), "positions of the last block are independent");
        let mut part = Lane::default();
        for id in self.graph.live_into(block) {
            part.values.insert(id, part_of(id)?);
        }
        let mut macs = 0;
        for node in self.graph.nodes_of(block) {
            let tensors = evaluate(self.graph, weights, self.mode, node, &mut part, &mut macs)?;
            part.values.extend(tensors);
        }
        Ok(part.values[&self.graph.outputs()[0]].clone())
    }
}

/// Frees the values that no node after `node` reads.
fn forget(graph: &Graph, last_use: &HashMap<ValueId, NodeId>, node: &Node, values: &mut HashMap<ValueId, Tensor>) {
    let Origin::Node(here) = graph.get(node.outputs[0]).origin else { unreachable!("a node made it") };
    for id in node.inputs.iter().chain(&node.outputs) {
        if last_use.get(id).is_none_or(|last| *last <= here) && !graph.outputs().contains(id) {
            values.remove(id);
        }
    }
}

/// The results of a node.
pub(crate) fn evaluate(
    graph: &Graph,
    weights: &dyn Weights,
    mode: Mode,
    node: &Node,
    lane: &mut Lane,
    macs: &mut u64,
) -> Result<Vec<(ValueId, Tensor)>> {
    let operands: Vec<Operand<'_>> = node
        .inputs
        .iter()
        .map(|id| {
            Ok(match (&graph.get(*id).origin, lane.row_scales.get(id)) {
                (Origin::Weight(expr), _) => Operand::Weight(weights, &graph.get(*id).name, expr),
                (_, Some(scales)) => Operand::Quantized(value(&lane.values, graph, *id)?, scales),
                (_, None) => Operand::Tensor(value(&lane.values, graph, *id)?),
            })
        })
        .collect::<Result<_>>()?;
    let facts: Vec<&Fact> = node.inputs.iter().map(|id| graph.fact(*id)).collect();
    let mut row_scales = None;
    let mut context = Context { mode, state: lane.state.as_mut(), row_scales: &mut row_scales, tables: &mut lane.tables, macs };
    let tensors = node.op.perform(&operands, &facts, &mut context).map_err(|error| match error {
        Error::Kernel(source) => Error::Candle { node: graph.get(node.outputs[0]).name.clone(), op: node.op.def().name, source },
        other => other,
    })?;
    drop(operands);
    lane.row_scales.extend(row_scales.map(|scales| (node.outputs[0], scales)));
    Ok(node.outputs.iter().copied().zip(tensors).collect())
}
