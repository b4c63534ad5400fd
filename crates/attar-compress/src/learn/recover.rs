//! Recovery: end-to-end distillation of the float model into the quantized one.
//!
//! The student is the quantized model, the teacher the float one; the loss is the KL divergence of their next-token
//! distributions on the calibration text (Hinton et al. 2015; for scales alone: EfficientQAT, Chen et al. 2024). The backward
//! pass goes block by block with recomputation, so that memory holds the activations of one block; a block's weights are
//! updated as soon as their gradients are known.

use std::collections::BTreeMap;

use attar_graph::{BlockId, Graph, Mode, TensorWeights, Values, Weights, gradient::kl_divergence};
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Differentiable, Learned, Plain, Rate, autoround::block_matrices, autoround::tensors};
use crate::{Error, Patterns, Result};

/// Distill the float model into the quantized weights, end to end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    /// Quantized weights to optimize, as patterns over canonical names. Every pattern must match at least one.
    #[serde(default = "block_matrices")]
    pub select: Patterns,
    /// What is trained.
    #[serde(default)]
    pub method: Method,
    /// Also train the gains of all norms.
    #[serde(default)]
    pub norms: bool,
    /// Rank of the `lora` adapters.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// What to do with the trained `lora` adapters.
    #[serde(default)]
    pub adapters: Adapters,
    /// Passes over the calibration text.
    #[serde(default = "default_epochs")]
    pub epochs: usize,
    /// Calibration windows per optimizer step.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Initial learning rate of the rounding, relative to the distance between two codes; decays to zero.
    #[serde(default = "default_rounding")]
    pub rounding: f64,
    /// Initial learning rate of the scales, relative to their value; decays to zero.
    #[serde(default = "default_scaling")]
    pub scaling: f64,
    /// Initial learning rate of norm gains, relative to their mean; decays to zero.
    #[serde(default = "default_norming")]
    pub norming: f64,
}

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every weight, through its rounding, and every scale.
    #[default]
    Full,
    /// Scales only.
    Scales,
    /// A low-rank term added to the weights (LoRA, Hu et al. 2021).
    Lora,
    /// Norm gains only.
    Norms,
}

/// What to do with low-rank terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Adapters {
    /// Added to the weights before rounding, with every scale trained along: codes change, nothing else is stored.
    #[default]
    Merge,
    /// Kept as separate linear layers of the model, and written to the folder `adapters` in PEFT's format. Codes and
    /// scales stay as they are.
    Export,
}

fn default_rank() -> usize {
    16
}

fn default_epochs() -> usize {
    2
}

fn default_batch() -> usize {
    4
}

fn default_rounding() -> f64 {
    0.003
}

fn default_scaling() -> f64 {
    0.0003
}

fn default_norming() -> f64 {
    0.003
}

/// Learning rates of a step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of weights before rounding, in distances between two codes.
    pub rounding: Rate,
    /// Of scales, relative to each.
    pub scaling: Rate,
    /// Of norm gains, relative to their mean.
    pub norming: Rate,
}

/// Rows of logits in memory at a time.
pub const ROWS: usize = 256;

/// Warm-up steps.
const WARM: usize = 4;

impl Recover {
    /// Refuses settings that cannot work.
    pub fn check(&self) -> Result<()> {
        let rates = [("rounding", self.rounding), ("scaling", self.scaling), ("norming", self.norming)];
        if self.exports_adapters() {
            self.check_export()?;
        }
        super::check(&[("epochs", self.epochs), ("batch", self.batch), ("rank", self.rank)], &rates)
    }

    /// Exported adapters must hold everything that was trained.
    fn check_export(&self) -> Result<()> {
        let method = match self.method {
            Method::Full => "full",
            Method::Scales => "scales",
            Method::Norms => "norms",
            Method::Lora if self.norms => {
                let hint = "PEFT adapters cannot hold norm gains: remove one of the two settings";
                return Err(Error::Contradiction { key: "norms", other: "adapters = \"export\"".into(), hint });
            }
            Method::Lora => return Ok(()),
        };
        Err(Error::Method { key: "adapters", method, problem: crate::error::HAS_NO })
    }

    /// Whether low-rank terms stay separate from the codes.
    pub fn exports_adapters(&self) -> bool {
        self.adapters == Adapters::Export
    }

    /// The rates of step `step` of `steps`: linear warm-up, then linear decay to zero.
    pub fn rates(&self, step: usize, steps: usize) -> Rates {
        let warm = ((step + 1) as f64 / WARM as f64).min(1.0);
        let left = warm * (1.0 - step as f64 / steps as f64);
        let rounding = if self.method == Method::Scales { 0.0 } else { self.rounding };
        let rate = |length: f64| Rate::new(length * left, step);
        Rates { rounding: rate(rounding), scaling: rate(self.scaling), norming: rate(self.norming) }
    }

    /// Whether quantized weights are trained.
    pub fn weights_learn(&self) -> bool {
        self.method != Method::Norms
    }

    /// Whether norm gains are trained.
    pub fn norms_learn(&self) -> bool {
        self.norms || self.method == Method::Norms
    }
}

/// A quantized model in training.
pub struct Student<'a> {
    /// Its graph.
    pub graph: &'a Graph,
    /// The weights that are not trained.
    pub below: &'a dyn Weights,
    /// Trainable quantized weights, by block and canonical name.
    pub learned: BTreeMap<BlockId, BTreeMap<String, Learned>>,
    /// Trainable plain tensors, likewise.
    pub plain: BTreeMap<BlockId, BTreeMap<String, Plain>>,
}

/// The block that makes a graph's only output, and that output.
fn last_block(graph: &Graph) -> BlockId {
    graph.blocks().last().expect("a model has blocks")
}

impl Student<'_> {
    /// One optimizer step on a batch. `heads` are the weights of the last block of student and teacher, kept in memory. Returns
    /// the mean KL divergence before the step.
    pub fn step(&mut self, inputs: &Values, teacher: (&Graph, &Values), heads: [&dyn Weights; 2], rates: Rates) -> Result<f64> {
        let last = last_block(self.graph);
        let mut entered: Vec<(BlockId, Values)> = Vec::new();
        let mut values = inputs.clone();
        for block in self.graph.blocks().take_while(|block| *block != last) {
            entered.push((block, entering(self.graph, block, &values)));
            values = self.advance(block, &values)?;
        }
        let (loss, mut gradients) = self.head(last, &values, teacher, heads, rates)?;
        if !loss.is_finite() {
            return Err(Error::Loss { block: self.graph.block_name(last).into() });
        }
        while let Some((block, values)) = entered.pop() {
            let back = self.back(block, &values, &gradients, rates)?;
            for (id, gradient) in back {
                let sum = match gradients.remove(&id) {
                    Some(before) => (before + gradient)?,
                    None => gradient,
                };
                gradients.insert(id, sum);
            }
        }
        Ok(loss)
    }

    /// Current values of all trainable tensors of a block.
    fn tensors(&self, block: BlockId) -> Result<BTreeMap<String, Tensor>> {
        let mut all = self.learned.get(&block).map(tensors).transpose()?.unwrap_or_default();
        for (name, plain) in self.plain.get(&block).into_iter().flatten() {
            all.insert(name.clone(), plain.tensor()?);
        }
        Ok(all)
    }

    /// Updates the trainable tensors of a block.
    fn learn(
        &mut self,
        block: BlockId,
        tensors: &BTreeMap<String, Tensor>,
        gradients: &BTreeMap<String, Vec<f32>>,
        rates: Rates,
    ) -> Result<()> {
        for (name, learned) in self.learned.get_mut(&block).into_iter().flatten() {
            let values = attar_graph::kernel::with_f32(&tensors[name], <[f32]>::to_vec)?;
            learned.step(&gradients[name], &values, rates.rounding, rates.scaling)?;
        }
        for (name, plain) in self.plain.get_mut(&block).into_iter().flatten() {
            plain.step(&gradients[name], rates);
        }
        Ok(())
    }

    fn advance(&self, block: BlockId, values: &Values) -> Result<Values> {
        let weights = TensorWeights { tensors: self.tensors(block)?.into_iter().collect(), below: self.below };
        advance(self.graph, block, &weights, values)
    }

    /// The divergence, and its gradients with respect to the inputs of the last block, whose trainable tensors are updated.
    fn head(
        &mut self,
        last: BlockId,
        values: &Values,
        teacher: (&Graph, &Values),
        heads: [&dyn Weights; 2],
        rates: Rates,
    ) -> Result<(f64, Values)> {
        let output = self.graph.outputs()[0];
        let mine = entering(self.graph, last, values);
        let first = mine.values().next().expect("something enters the last block");
        let (windows, length) = (first.dim(0)?, first.dim(1)?);
        let (positions, rows) = ((ROWS / windows).max(1), (windows * length) as f64);
        let learned = self.tensors(last)?;
        let block = Differentiable { graph: self.graph, block: last, learned: &learned, below: heads[0] };
        let (mut total, mut parts): (f64, BTreeMap<_, Vec<Tensor>>) = (0.0, BTreeMap::new());
        let mut of_weights: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for from in (0..length).step_by(positions) {
            let count = positions.min(length - from);
            let narrow = |values: &Values| -> Result<Values> {
                values.iter().map(|(id, t)| Ok((*id, t.narrow(1, from, count)?.contiguous()?))).collect()
            };
            let wanted = teacher.0.evaluate_block(last, heads[1], Mode::Inference, &narrow(teacher.1)?)?;
            let wanted = &wanted[&teacher.0.outputs()[0]];
            let share = (windows * count) as f64 / rows;
            let gradients =
                block.gradients(&narrow(&mine)?, true, &|left| kl_divergence(wanted, &left[&output])?.affine(share, 0.0))?;
            total += gradients.loss;
            gradients.entering.into_iter().for_each(|(id, gradient)| parts.entry(id).or_default().push(gradient));
            for (name, gradient) in gradients.weights {
                match of_weights.get_mut(&name) {
                    Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g),
                    None => drop(of_weights.insert(name, gradient)),
                }
            }
        }
        self.learn(last, &learned, &of_weights, rates)?;
        let joined = parts.into_iter().map(|(id, parts)| Ok((id, Tensor::cat(&parts, 1)?)));
        Ok((total, joined.collect::<Result<_>>()?))
    }

    /// The backward pass of a block: updates its weights and returns the gradients of its inputs, given those of its outputs.
    fn back(&mut self, block: BlockId, entered: &Values, gradients: &Values, rates: Rates) -> Result<Values> {
        let learned = self.tensors(block)?;
        let made = self.graph.leaving(block);
        if learned.is_empty() && block == BlockId::FIRST {
            return Ok(Values::new());
        }
        let task = Differentiable { graph: self.graph, block, learned: &learned, below: self.below };
        let found = task.gradients(entered, true, &|left| {
            let mut sum: Option<Tensor> = None;
            for id in &made {
                let Some(gradient) = gradients.get(id) else { continue };
                let part = (&left[id] * gradient)?.sum_all()?;
                sum = Some(sum.map_or(Ok(part.clone()), |sum| sum + part)?);
            }
            sum.ok_or_else(|| candle_core::Error::Msg("nothing that the block makes is read".into()))
        })?;
        self.learn(block, &learned, &found.weights, rates)?;
        Ok(found.entering)
    }
}

/// The values that the blocks after `block` read.
fn advance(graph: &Graph, block: BlockId, weights: &dyn Weights, values: &Values) -> Result<Values> {
    let mut left = graph.evaluate_block(block, weights, Mode::Inference, &entering(graph, block, values))?;
    left.extend(values.iter().filter(|(id, _)| graph.is_read_after(**id, block)).map(|(id, t)| (*id, t.clone())));
    Ok(left)
}

/// Those of `values` that `block` or a later one reads.
fn entering(graph: &Graph, block: BlockId, values: &Values) -> Values {
    graph.live_into(block).into_iter().filter_map(|id| Some((id, values.get(&id)?.clone()))).collect()
}
