//! A model in training: forward and backward through all blocks.
//!
//! The backward pass goes block by block, with recomputation unless all activations may be kept, so that memory holds the activations
//! of one block and what enters every other. Where the gradients go is the caller's business: `recover` updates a block as soon as its gradients are
//! known, `distill` first needs those of all blocks, for their norm.

use std::{collections::BTreeMap, ops::Range};

use attar_graph::{BlockId, Graph, Mode, TensorWeights, ValueId, Values, Weights, gradient::seeded};
use candle_core::Tensor;

use super::{Differentiable, Learned, Plain, adam::Rates, autoround::tensors, gradients::Tape};
use crate::{Error, Result};

/// Rows of logits in memory at a time.
pub const ROWS: usize = 256;

/// A model in training.
pub struct Student<'a> {
    /// Its graph.
    pub graph: &'a Graph,
    /// The weights that are not trained.
    pub below: &'a dyn Weights,
    /// Trainable quantized weights, by block and canonical name.
    pub learned: BTreeMap<BlockId, BTreeMap<String, Learned>>,
    /// Trainable plain tensors, likewise.
    pub plain: BTreeMap<BlockId, BTreeMap<String, Plain>>,
    /// Weights of other blocks that are one of the plain tensors: a head that is the table of embeddings.
    pub tied: Vec<Tied>,
    /// By block, what turns the student's states behind it into those of a wider or narrower teacher.
    pub maps: BTreeMap<BlockId, Plain>,
    /// Whether what is inside of all blocks is kept for the backward pass, instead of computing it twice.
    pub keeps: bool,
}

/// A weight that is a trained tensor of another block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tied {
    /// Its block and canonical name.
    pub weight: (BlockId, String),
    /// Those of the tensor.
    pub to: (BlockId, String),
}

/// A block on the way back.
enum Passed {
    /// What entered it.
    Entered(Values),
    /// Its trainable tensors, and all that its gradients need.
    Recorded(BTreeMap<String, Tensor>, Tape),
}

/// The loss of logits `[windows, positions, vocabulary]`, as their share of the batch's loss, and its gradient.
pub type Criterion = Box<dyn Fn(&Tensor) -> candle_core::Result<(f64, Tensor)>>;

/// What the logits of some positions of all windows are held against.
pub type Objective<'o> = &'o dyn Fn(Range<usize>) -> Result<Criterion>;

/// A loss on a value that leaves a block: which, and its gradient.
pub struct Inner {
    /// The value.
    pub value: ValueId,
    /// Its share of the batch's loss.
    pub loss: f64,
    /// The gradient of that.
    pub gradient: Tensor,
}

/// What the values that leave a block are held against; called for every block but the last, in running order.
pub type Within<'w> = &'w mut dyn FnMut(&Student<'_>, BlockId, &Values) -> Result<Option<Inner>>;

/// What the backward pass finds of a block.
pub struct Found {
    /// The values of its trainable tensors, by canonical name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Their gradients.
    pub gradients: BTreeMap<String, Vec<f32>>,
}

/// Takes what is found of a block: the last block first.
pub type Sink<'s> = &'s mut dyn FnMut(&mut Student<'_>, BlockId, Found) -> Result<()>;

/// The block that makes a graph's only output.
pub(super) fn last_block(graph: &Graph) -> BlockId {
    graph.blocks().last().expect("a model has blocks")
}

/// Windows and positions of what enters a block.
pub(super) fn shape_of(entering: &Values) -> Result<(usize, usize)> {
    let first = entering.values().next().expect("something enters the last block");
    Ok((first.dim(0)?, first.dim(1)?))
}

/// Some positions of all windows.
pub(super) fn part_of(values: &Values, positions: &Range<usize>) -> Result<Values> {
    values.iter().map(|(id, t)| Ok((*id, t.narrow(1, positions.start, positions.len())?.contiguous()?))).collect()
}

/// The positions of windows in parts of at most [`ROWS`] rows.
pub(super) fn parts(windows: usize, length: usize) -> impl Iterator<Item = Range<usize>> {
    let positions = (ROWS / windows).max(1);
    (0..length).step_by(positions).map(move |from| from..(from + positions).min(length))
}

impl Student<'_> {
    /// The loss of a batch; `found` takes the gradients of all trainable tensors. `head` are the weights of the last block,
    /// kept in memory.
    pub fn backward(
        &mut self,
        inputs: &Values,
        head: &dyn Weights,
        objective: Objective<'_>,
        within: Within<'_>,
        found: Sink<'_>,
    ) -> Result<f64> {
        let last = last_block(self.graph);
        let mut passed: Vec<(BlockId, Passed, Option<Inner>)> = Vec::new();
        let mut values = inputs.clone();
        for block in self.graph.blocks().take_while(|block| *block != last) {
            let entering = entering(self.graph, block, &values);
            if self.keeps && self.first().is_some_and(|first| first <= block) {
                let learned = self.tensors(block)?;
                let tape = self.differentiable(block, &learned).record(&entering, self.first() != Some(block))?;
                let made = tape.leaving.iter().map(|(id, tensor)| (*id, tensor.detach())).collect();
                values = passed_on(self.graph, block, made, &values);
                let inner = within(self, block, &values)?;
                passed.push((block, Passed::Recorded(learned, tape), inner));
            } else {
                values = self.advance(block, &values)?;
                let inner = within(self, block, &values)?;
                passed.push((block, Passed::Entered(entering), inner));
            }
        }
        let (mut loss, mut gradients) = self.head(last, &values, head, objective, found)?;
        while let Some((block, passed, inner)) = passed.pop() {
            if let Some(inner) = inner {
                loss += inner.loss;
                add(&mut gradients, inner.value, inner.gradient)?;
            }
            if self.first().is_none_or(|first| block < first) {
                continue;
            }
            for (id, gradient) in self.back(block, passed, &gradients, found)? {
                add(&mut gradients, id, gradient)?;
            }
        }
        if !loss.is_finite() {
            return Err(Error::Loss { block: self.graph.block_name(last).into() });
        }
        Ok(loss)
    }

    /// Calls `each` with the logits of all positions, part by part.
    pub fn logits(
        &self,
        inputs: &Values,
        head: &dyn Weights,
        each: &mut dyn FnMut(Range<usize>, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let last = last_block(self.graph);
        let mut values = inputs.clone();
        for block in self.graph.blocks().take_while(|block| *block != last) {
            values = self.advance(block, &values)?;
        }
        let mine = entering(self.graph, last, &values);
        let (windows, length) = shape_of(&mine)?;
        let weights = TensorWeights { tensors: self.tensors(last)?.into_iter().collect(), below: head };
        for part in parts(windows, length) {
            let left = self.graph.evaluate_block(last, &weights, Mode::Inference, &part_of(&mine, &part)?)?;
            each(part, &left[&self.graph.outputs()[0]])?;
        }
        Ok(())
    }

    /// The first block that makes a value which is not finite, or else the last block.
    pub fn first_not_finite(&self, inputs: &Values) -> Result<BlockId> {
        let last = last_block(self.graph);
        let mut values = inputs.clone();
        for block in self.graph.blocks().take_while(|block| *block != last) {
            values = self.advance(block, &values)?;
            for value in values.values().filter(|value| value.dtype().is_float()) {
                if !attar_graph::kernel::with_f32(value, |value| value.iter().all(|x| x.is_finite()))? {
                    return Ok(block);
                }
            }
        }
        Ok(last)
    }

    /// The first block with a tensor that is trained.
    fn first(&self) -> Option<BlockId> {
        self.learned.keys().chain(self.plain.keys()).min().copied()
    }

    fn differentiable<'b>(&'b self, block: BlockId, learned: &'b BTreeMap<String, Tensor>) -> Differentiable<'b> {
        Differentiable { graph: self.graph, block, learned, below: self.below }
    }

    /// Current values of all trainable tensors of a block.
    fn tensors(&self, block: BlockId) -> Result<BTreeMap<String, Tensor>> {
        let mut all = self.learned.get(&block).map(tensors).transpose()?.unwrap_or_default();
        for (name, plain) in self.plain.get(&block).into_iter().flatten() {
            all.insert(name.clone(), plain.tensor()?);
        }
        for Tied { weight, to } in self.tied.iter().filter(|tied| tied.weight.0 == block) {
            all.insert(weight.1.clone(), self.plain[&to.0][&to.1].tensor()?);
        }
        Ok(all)
    }

    /// The trained tensor that a weight of a block is.
    pub(super) fn of_tensor<'s>(&'s self, block: BlockId, name: &'s str) -> (BlockId, &'s str) {
        let tied = self.tied.iter().find(|tied| tied.weight.0 == block && tied.weight.1 == name);
        tied.map_or((block, name), |tied| (tied.to.0, tied.to.1.as_str()))
    }

    /// Updates the trainable tensors of a block.
    pub(super) fn learn(&mut self, block: BlockId, found: &Found, rates: Rates) -> Result<()> {
        for (name, learned) in self.learned.get_mut(&block).into_iter().flatten() {
            let values = attar_graph::kernel::with_f32(&found.tensors[name], <[f32]>::to_vec)?;
            learned.step(&found.gradients[name], &values, rates.rounding, rates.scaling)?;
        }
        for (name, plain) in self.plain.get_mut(&block).into_iter().flatten() {
            plain.step(&found.gradients[name], rates);
        }
        Ok(())
    }

    pub(super) fn advance(&self, block: BlockId, values: &Values) -> Result<Values> {
        let weights = TensorWeights { tensors: self.tensors(block)?.into_iter().collect(), below: self.below };
        advance(self.graph, block, &weights, values)
    }

    /// The loss, and its gradients with respect to the inputs of the last block.
    fn head(
        &mut self,
        last: BlockId,
        values: &Values,
        head: &dyn Weights,
        objective: Objective<'_>,
        found: Sink<'_>,
    ) -> Result<(f64, Values)> {
        let output = self.graph.outputs()[0];
        let mine = entering(self.graph, last, values);
        let (windows, length) = shape_of(&mine)?;
        let learned = self.tensors(last)?;
        let block = Differentiable { graph: self.graph, block: last, learned: &learned, below: head };
        let (mut total, mut joined): (f64, BTreeMap<_, Vec<Tensor>>) = (0.0, BTreeMap::new());
        let mut of_weights: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for part in parts(windows, length) {
            let criterion = objective(part.clone())?;
            let gradients = block.gradients(&part_of(&mine, &part)?, true, &|left| {
                let (loss, gradient) = criterion(&left[&output])?;
                seeded(&left[&output], loss, gradient)
            })?;
            total += gradients.loss;
            gradients.entering.into_iter().for_each(|(id, gradient)| joined.entry(id).or_default().push(gradient));
            for (name, gradient) in gradients.weights {
                match of_weights.get_mut(&name) {
                    Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g),
                    None => drop(of_weights.insert(name, gradient)),
                }
            }
        }
        if !total.is_finite() {
            return Err(Error::Loss { block: self.graph.block_name(last).into() });
        }
        found(self, last, Found { tensors: learned, gradients: of_weights })?;
        let joined = joined.into_iter().map(|(id, parts)| Ok((id, Tensor::cat(&parts, 1)?)));
        Ok((total, joined.collect::<Result<_>>()?))
    }

    /// The backward pass of a block: the gradients of its inputs, given those of its outputs.
    fn back(&mut self, block: BlockId, passed: Passed, gradients: &Values, found: Sink<'_>) -> Result<Values> {
        let (learned, tape) = match passed {
            Passed::Recorded(learned, tape) => (learned, tape),
            Passed::Entered(entered) => {
                let learned = self.tensors(block)?;
                let tape = self.differentiable(block, &learned).record(&entered, self.first() != Some(block))?;
                (learned, tape)
            }
        };
        let made = self.graph.leaving(block);
        let gradients = tape.gradients(&|left| {
            let mut sum: Option<Tensor> = None;
            for id in &made {
                let Some(gradient) = gradients.get(id) else { continue };
                let part = seeded(&left[id], 0.0, gradient.clone())?;
                sum = Some(sum.map_or(Ok(part.clone()), |sum| sum + part)?);
            }
            sum.ok_or_else(|| candle_core::Error::Msg("nothing that the block makes is read".into()))
        })?;
        found(self, block, Found { tensors: learned, gradients: gradients.weights })?;
        Ok(gradients.entering)
    }
}

/// Adds to the gradient of a value.
fn add(gradients: &mut Values, id: ValueId, gradient: Tensor) -> Result<()> {
    let sum = match gradients.remove(&id) {
        Some(before) => (before + gradient)?,
        None => gradient,
    };
    gradients.insert(id, sum);
    Ok(())
}

/// The values that the blocks after `block` read.
fn advance(graph: &Graph, block: BlockId, weights: &dyn Weights, values: &Values) -> Result<Values> {
    let left = graph.evaluate_block(block, weights, Mode::Inference, &entering(graph, block, values))?;
    Ok(passed_on(graph, block, left, values))
}

/// What a block made, and those of `values` that later blocks read.
fn passed_on(graph: &Graph, block: BlockId, mut made: Values, values: &Values) -> Values {
    made.extend(values.iter().filter(|(id, _)| graph.is_read_after(**id, block)).map(|(id, t)| (*id, t.clone())));
    made
}

/// Those of `values` that `block` or a later one reads.
fn entering(graph: &Graph, block: BlockId, values: &Values) -> Values {
    graph.live_into(block).into_iter().filter_map(|id| Some((id, values.get(&id)?.clone()))).collect()
}
