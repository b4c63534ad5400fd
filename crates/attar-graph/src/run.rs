//! The reference meaning of a graph: evaluation over candle tensors, block by block.
//!
//! Several lanes (batches of windows) run side by side so that a block's weights are read once for all of them and then
//! let go. What a node makes is kept only while a later one reads it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use attar_tensor::{Encoding, Source};
use candle_core::{Device, Tensor};

use crate::{
    BlockId, Error, Expr, Fact, Graph, Node, NodeId, Origin, Result, ValueId,
    integer::{IntegerMatrix, RowScales},
    op::{Context, Operand, Tables},
};

/// What evaluation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Fast kernels; no gradients.
    Inference,
    /// Ops that all have gradients.
    Training,
}

/// Where constants come from.
pub trait Weights: Sync {
    /// The weight `name` as f32.
    fn whole(&self, name: &str, expr: &Expr) -> Result<Tensor>;

    /// Some of its rows, in the order asked for.
    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> Result<Tensor> {
        let whole = self.whole(name, expr)?;
        Ok(whole.index_select(&Tensor::new(rows, whole.device())?, 0)?)
    }

    /// The weight `name` in integers, if it is stored in codes that are. Products with rounded values then are, too.
    fn integers(&self, _name: &str, _expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        Ok(None)
    }
}

/// Constants read from a checkpoint when they are asked for, and not kept.
pub struct SourceWeights(pub Arc<dyn Source>);

impl Weights for SourceWeights {
    fn whole(&self, _: &str, expr: &Expr) -> Result<Tensor> {
        let info = expr.info(&*self.0)?;
        let mut values = vec![0.0; info.elements()];
        expr.read(&*self.0, 0..info.matrix()[0], &mut values)?;
        Ok(Tensor::from_vec(values, info.dims.as_slice(), &Device::Cpu)?)
    }

    fn rows(&self, _: &str, expr: &Expr, rows: &[u32]) -> Result<Tensor> {
        let [count, columns] = expr.info(&*self.0)?.matrix();
        let mut distinct: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate() {
            distinct.entry(*row).or_default().push(at);
        }
        let mut values = vec![0.0; rows.len() * columns];
        let mut one = vec![0.0; columns];
        for (row, places) in distinct {
            let row = row as usize;
            if row >= count {
                return Err(Error::Token { token: row as u32, vocabulary: count });
            }
            expr.read(&*self.0, row..row + 1, &mut one)?;
            for at in places {
                values[at * columns..][..columns].copy_from_slice(&one);
            }
        }
        Ok(Tensor::from_vec(values, (rows.len(), columns), &Device::Cpu)?)
    }

    fn integers(&self, _: &str, expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        let Encoding::Quantized(_) = expr.encoding(&*self.0)? else { return Ok(None) };
        let [rows, _] = expr.info(&*self.0)?.matrix();
        Ok(IntegerMatrix::new(&expr.read_quantized(&*self.0, 0..rows)?).map(Arc::new))
    }
}

/// Constants held in memory by canonical name, for training; whatever is not there comes from `below`.
pub struct TensorWeights<'a> {
    /// By canonical name.
    pub tensors: HashMap<String, Tensor>,
    /// For all others.
    pub below: &'a dyn Weights,
}

impl Weights for TensorWeights<'_> {
    fn whole(&self, name: &str, expr: &Expr) -> Result<Tensor> {
        self.tensors.get(name).cloned().map_or_else(|| self.below.whole(name, expr), Ok)
    }

    fn integers(&self, name: &str, expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        if self.tensors.contains_key(name) { Ok(None) } else { self.below.integers(name, expr) }
    }
}

/// What [`crate::Op::Cache`] remembers between calls.
#[derive(Clone, Debug, Default)]
pub struct State(pub(crate) HashMap<String, Tensor>);

/// The inputs of one lane: a tensor for each of the graph's inputs, in order.
pub struct Inputs {
    /// In the order of [`Graph::inputs`].
    pub tensors: Vec<Tensor>,
    /// What earlier calls left behind, if this lane continues them.
    pub state: Option<State>,
}

impl Inputs {
    /// Tokens `[windows, length]` at positions from `past` on, all of the first segment. A graph takes as many of these
    /// three as it has inputs.
    ///
    /// # Panics
    /// If the windows differ in length.
    pub fn tokens(windows: &[&[u32]], past: usize) -> Result<Inputs> {
        let length = windows.first().map_or(0, |w| w.len());
        assert!(windows.iter().all(|w| w.len() == length), "windows of one lane have one length");
        let dims = (windows.len(), length);
        let positions: Vec<u32> = windows.iter().flat_map(|_| (past as u32)..(past + length) as u32).collect();
        let tokens = Tensor::from_vec(windows.concat(), dims, &Device::Cpu)?;
        let (positions, token_types) = (Tensor::from_vec(positions, dims, &Device::Cpu)?, Tensor::zeros_like(&tokens)?);
        Ok(Inputs { tensors: vec![tokens, positions, token_types], state: None })
    }
}

#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) values: HashMap<ValueId, Tensor>,
    /// Of quantized values of the block at work. A product in another block is one of f32.
    pub(crate) row_scales: HashMap<ValueId, RowScales>,
    pub(crate) state: Option<State>,
    pub(crate) tables: Tables,
}

impl Lane {
    /// Lets go of all values but those.
    pub(crate) fn keep(&mut self, keep: impl Fn(&ValueId) -> bool) {
        self.values.retain(|id, _| keep(id));
        self.row_scales.retain(|id, _| keep(id));
    }
}

/// Called with every value that a block makes: lane, value, tensor.
pub type Tap<'t> = &'t mut dyn FnMut(usize, ValueId, &Tensor);

/// An evaluation under way.
pub struct Run<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    mode: Mode,
    lanes: Vec<Lane>,
    last_use: HashMap<ValueId, NodeId>,
    next: u32,
    macs: u64,
}

impl<'a> Run<'a> {
    /// At the first block.
    pub fn new(graph: &'a Graph, weights: &'a dyn Weights, mode: Mode, lanes: Vec<Inputs>) -> Run<'a> {
        let lanes = lanes
            .into_iter()
            .map(|lane| Lane {
                values: graph.inputs().iter().copied().zip(lane.tensors).collect(),
                state: lane.state,
                ..Lane::default()
            })
            .collect();
        Run { graph, weights, mode, lanes, last_use: graph.last_use(), next: 0, macs: 0 }
    }

    /// The block that [`Run::step`] would run.
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
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            for node in self.graph.nodes_of(block) {
                let tensor = evaluate(self.graph, &cached, self.mode, node, lane, &mut self.macs)?;
                if let Some(tap) = &mut tap {
                    tap(index, node.output, &tensor);
                }
                lane.values.insert(node.output, tensor);
                forget(self.graph, &self.last_use, node, &mut lane.values);
            }
            lane.row_scales.clear();
        }
        self.next += 1;
        Ok(())
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
        let outputs = self.graph.outputs().iter().map(|id| lane.values[id].clone()).collect();
        Ok((outputs, lane.state.take()))
    }

    /// What the last block makes of some positions of some windows of a lane: `[windows, positions, width]`. Any number
    /// of calls, in any order, once [`Run::advance_to_last_block`] is through. `weights` may keep what it reads.
    pub fn last_block(
        &self,
        weights: &dyn Weights,
        lane: usize,
        windows: std::ops::Range<usize>,
        positions: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        let block = BlockId(self.next);
        debug_assert!(self.graph.nodes_of(block).all(|n| n.op.is_pointwise()), "positions of the last block are independent");
        let live = self.graph.live_into(block);
        let mut part = Lane::default();
        for id in live {
            let whole = &self.lanes[lane].values[&id];
            let narrow = whole.narrow(0, windows.start, windows.len())?.narrow(1, positions.start, positions.len())?;
            part.values.insert(id, narrow.contiguous()?);
        }
        let mut macs = 0;
        for node in self.graph.nodes_of(block) {
            let tensor = evaluate(self.graph, weights, self.mode, node, &mut part, &mut macs)?;
            part.values.insert(node.output, tensor);
        }
        Ok(part.values[&self.graph.outputs()[0]].clone())
    }
}

/// Lets go of what no node behind `node` reads.
fn forget(graph: &Graph, last_use: &HashMap<ValueId, NodeId>, node: &Node, values: &mut HashMap<ValueId, Tensor>) {
    let Origin::Node(here) = graph.get(node.output).origin else { unreachable!("a node made it") };
    for id in node.inputs.iter().chain([&node.output]) {
        if last_use.get(id).is_none_or(|last| *last <= here) && !graph.outputs().contains(id) {
            values.remove(id);
        }
    }
}

/// Keeps what it reads whole for as long as it lives.
pub struct Cached<'a> {
    below: &'a dyn Weights,
    read: Mutex<HashMap<String, Tensor>>,
    integers: Mutex<HashMap<String, Option<Arc<IntegerMatrix>>>>,
}

impl<'a> Cached<'a> {
    /// Over `below`.
    pub fn new(below: &'a dyn Weights) -> Cached<'a> {
        Cached { below, read: Mutex::default(), integers: Mutex::default() }
    }
}

impl Weights for Cached<'_> {
    fn whole(&self, name: &str, expr: &Expr) -> Result<Tensor> {
        let mut read = self.read.lock().expect("no panic holds this lock");
        if let Some(tensor) = read.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = self.below.whole(name, expr)?;
        read.insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> Result<Tensor> {
        self.below.rows(name, expr, rows)
    }

    fn integers(&self, name: &str, expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        let mut read = self.integers.lock().expect("no panic holds this lock");
        if let Some(known) = read.get(name) {
            return Ok(known.clone());
        }
        let integers = self.below.integers(name, expr)?;
        read.insert(name.into(), integers.clone());
        Ok(integers)
    }
}

pub(crate) fn evaluate(
    graph: &Graph,
    weights: &dyn Weights,
    mode: Mode,
    node: &Node,
    lane: &mut Lane,
    macs: &mut u64,
) -> Result<Tensor> {
    let operands: Vec<Operand<'_>> = node
        .inputs
        .iter()
        .map(|id| match &graph.get(*id).origin {
            Origin::Weight(expr) => Operand::Weight(weights, &graph.get(*id).name, expr),
            _ => match lane.row_scales.get(id) {
                Some(scales) => Operand::Quantized(lane.values[id].clone(), scales),
                None => Operand::Tensor(lane.values[id].clone()),
            },
        })
        .collect();
    let facts: Vec<&Fact> = node.inputs.iter().map(|id| graph.fact(*id)).collect();
    let mut row_scales = None;
    let mut context = Context { mode, state: lane.state.as_mut(), row_scales: &mut row_scales, tables: &mut lane.tables, macs };
    let tensor = node.op.perform(&operands, &facts, &mut context).map_err(|error| match error {
        Error::Kernel(source) => Error::Candle { node: graph.get(node.output).name.clone(), op: node.op.def().name, source },
        other => other,
    })?;
    drop(operands);
    lane.row_scales.extend(row_scales.map(|scales| (node.output, scales)));
    Ok(tensor)
}
