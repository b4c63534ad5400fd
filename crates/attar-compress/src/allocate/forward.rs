//! What changes of values do to a model's predictions or embeddings, measured.
//!
//! What enters a block is kept, so that a change in it costs the blocks from there on, and not those before it.

use std::cell::OnceCell;

use attar_graph::{BlockId, Graph, Mode, ValueId, Values, Weights, kernel::with_f32};
use candle_core::Tensor;
use rayon::prelude::*;

use super::divergence::divergence;
use crate::Result;

/// Positions whose logits are in memory at a time.
const LOGITS: usize = 128;

/// How far apart rows of two outputs are: the sum over all, and how many there are.
pub type Distance = fn(&Tensor, &Tensor) -> Result<(f64, usize)>;

/// A model on some text, block by block. Its last block gives what it returns.
pub struct Forward<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    /// What enters the block that is next, by lane.
    entering: Vec<Values>,
    /// What enters the last block, by lane, without any change: found when it is first needed.
    last: OnceCell<Vec<Values>>,
    next: Option<BlockId>,
}

/// What is read after `block`, once it ran on what enters it.
pub(super) fn after(graph: &Graph, weights: &dyn Weights, block: BlockId, lane: &Values) -> Result<Values> {
    after_with(graph, weights, block, lane, &mut |_, tensor| Ok(tensor))
}

/// Replaces a value that a node computes.
type Replace<'r> = &'r mut dyn FnMut(ValueId, Tensor) -> attar_graph::Result<Tensor>;

fn after_with(graph: &Graph, weights: &dyn Weights, block: BlockId, lane: &Values, change: Replace<'_>) -> Result<Values> {
    let mut all = lane.clone();
    all.extend(graph.evaluate_block_with(block, weights, Mode::Inference, lane, change)?);
    all.retain(|id, _| graph.is_read_after(*id, block));
    Ok(all)
}

impl<'a> Forward<'a> {
    /// Before the first block. `lanes` are inputs of the graph.
    pub fn new(graph: &'a Graph, weights: &'a dyn Weights, lanes: Vec<Values>) -> Forward<'a> {
        Forward { graph, weights, entering: lanes, last: OnceCell::new(), next: graph.blocks().next() }
    }

    /// The block that is next; none behind the last.
    pub fn block(&self) -> Option<BlockId> {
        self.next
    }

    /// Goes on to the block behind the next one.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn step(&mut self) -> Result<()> {
        let Some(block) = self.next else { return Ok(()) };
        self.next = self.graph.blocks().find(|other| other.index() == block.index() + 1);
        if self.next.is_some() {
            self.entering = self.each(&self.entering, block, &mut |_, tensor| Ok(tensor))?;
        }
        Ok(())
    }

    /// The values of `id`, which a node of the next block computes: `[windows, positions, width]` by lane.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn values(&self, id: ValueId) -> Result<Vec<Tensor>> {
        let mut found = Vec::new();
        let Some(block) = self.next else { return Ok(found) };
        for lane in &self.entering {
            self.graph.evaluate_block_with(block, self.weights, Mode::Inference, lane, &mut |made, tensor| {
                if made == id {
                    found.push(tensor.contiguous()?);
                }
                Ok(tensor)
            })?;
        }
        Ok(found)
    }

    /// Mean distance of what the model returns if the value `id` of the next block is replaced, for all that read it: of logits, the
    /// [`kl_divergence`] of each position; of an encoder's embeddings, the [`cosine_distance`] of each text.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn distance(
        &self,
        id: ValueId,
        replace: &dyn Fn(&Tensor) -> attar_graph::Result<Tensor>,
        distance: Distance,
    ) -> Result<f64> {
        let mut change = |made, tensor| if made == id { replace(&tensor) } else { Ok(tensor) };
        let (mut sum, mut count) = (0.0, 0);
        let Some(first) = self.next else { return Ok(sum) };
        let blocks: Vec<BlockId> = self.graph.blocks().skip(first.index()).collect();
        let Some((last, through)) = blocks.split_last() else { return Ok(sum) };
        let changed = self.through(through, &mut change)?;
        if self.last.get().is_none() {
            // Nothing has changed yet.
            let unchanged = self.through(through, &mut |_, tensor| Ok(tensor))?;
            self.last.get_or_init(|| unchanged);
        }
        for (wanted, found) in self.last.get().into_iter().flatten().zip(&changed) {
            let length = self.positions(*last, wanted);
            let at_once = self.at_once(*last, length);
            for first in (0..length).step_by(at_once) {
                let positions = first..(first + at_once).min(length);
                let wanted = self.output(*last, wanted, positions.clone(), &mut |_, tensor| Ok(tensor))?;
                let (more, rows) = distance(&wanted, &self.output(*last, found, positions, &mut change)?)?;
                (sum, count) = (sum + more, count + rows);
            }
        }
        Ok(sum / count.max(1) as f64)
    }

    /// What leaves the last of some blocks, of which the next one is the first.
    fn through(&self, blocks: &[BlockId], change: Replace<'_>) -> Result<Vec<Values>> {
        let mut lanes = self.entering.clone();
        for block in blocks {
            lanes = self.each(&lanes, *block, change)?;
        }
        Ok(lanes)
    }

    fn each(&self, lanes: &[Values], block: BlockId, change: Replace<'_>) -> Result<Vec<Values>> {
        lanes.iter().map(|lane| after_with(self.graph, self.weights, block, lane, change)).collect()
    }

    /// Positions of a lane that enters the last block.
    fn positions(&self, last: BlockId, lane: &Values) -> usize {
        let read = self.graph.live_into(last);
        read.iter().find_map(|id| lane.get(id)?.dims().get(1)).copied().unwrap_or(0)
    }

    /// Positions of which the last block can give what it returns on its own.
    fn at_once(&self, last: BlockId, length: usize) -> usize {
        let alone = self.graph.nodes_of(last).all(|node| node.op.is_pointwise());
        if alone { LOGITS } else { length.max(1) }
    }

    fn output(&self, last: BlockId, lane: &Values, positions: std::ops::Range<usize>, change: Replace<'_>) -> Result<Tensor> {
        let read = self.graph.live_into(last);
        let cut = |id: &ValueId| Ok((*id, lane[id].narrow(1, positions.start, positions.len())?.contiguous()?));
        let part: Values = read.iter().filter(|id| lane.contains_key(id)).map(cut).collect::<candle_core::Result<_>>()?;
        let mut made = self.graph.evaluate_block_with(last, self.weights, Mode::Inference, &part, change)?;
        Ok(made.remove(&self.graph.outputs()[0]).expect("the last block makes what the model returns"))
    }
}

/// The sum over rows of `KL(softmax z || softmax moved)` in nats, and the number of rows.
///
/// # Errors
/// If the shapes differ.
pub fn kl_divergence(z: &Tensor, moved: &Tensor) -> Result<(f64, usize)> {
    rows_apart(z, &(moved - z)?, &divergence)
}

/// The sum over rows of 1 less their cosine, and the number of rows.
///
/// # Errors
/// If the shapes differ.
pub fn cosine_distance(a: &Tensor, b: &Tensor) -> Result<(f64, usize)> {
    let distance = |a: &[f32], b: &[f32]| {
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let lengths = (product(a, a) * product(b, b)).sqrt();
        if lengths > 0.0 { 1.0 - product(a, b) / lengths } else { 0.0 }
    };
    rows_apart(a, b, &distance)
}

fn rows_apart(a: &Tensor, b: &Tensor, distance: &(dyn Fn(&[f32], &[f32]) -> f64 + Sync)) -> Result<(f64, usize)> {
    let width = a.dims().last().copied().unwrap_or(1).max(1);
    let each = with_f32(a, |a| {
        with_f32(b, |b| {
            let rows = a.par_chunks(width).zip(b.par_chunks(width));
            rows.map(|(a, b)| distance(a, b)).collect::<Vec<f64>>()
        })
    })??;
    Ok((each.iter().sum(), each.len()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn cosines_are_of_rows_whatever_their_length() {
        let rows = |values: &[f32]| Tensor::from_slice(values, (2, 2), &Device::Cpu).expect("two rows of two");
        let (sum, count) = cosine_distance(&rows(&[3.0, 0.0, 1.0, 1.0]), &rows(&[0.5, 0.0, -2.0, 2.0])).expect("shapes agree");
        assert!((sum - 1.0).abs() < 1e-6 && count == 2, "{sum} of {count}");
    }
}
