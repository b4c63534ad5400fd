//! AutoRound (Cheng et al. 2024), generalized: optimizes the rounding and the scales of a block's weights so that its outputs
//! match those of the float model's block.
//!
//! The inputs are those of the quantized model and the targets those of the float model, so a block also compensates for the
//! error of the blocks before it.

use std::collections::BTreeMap;

use attar_graph::{BlockId, Graph, Values, Weights};
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Differentiable, Learned, Rate, relative_error};
use crate::{Error, Pattern, Patterns, Result};

/// Optimize the rounding and the scales of quantized weights, block by block.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoRound {
    /// Quantized weights to optimize, as patterns over canonical names. Every pattern must match at least one.
    #[serde(default = "block_matrices")]
    pub select: Patterns,
    /// Optimizer steps per block.
    #[serde(default = "default_iterations")]
    pub iterations: usize,
    /// Calibration windows per optimizer step.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Initial learning rate of the rounding, relative to the distance between two codes; decays to zero.
    #[serde(default = "default_rounding")]
    pub rounding: f64,
    /// Initial learning rate of the scales, relative to their value; decays to zero.
    #[serde(default = "default_scaling")]
    pub scaling: f64,
}

pub(super) fn block_matrices() -> Patterns {
    vec![Pattern::new("blocks.*.{attention,mlp}.*").expect("a constant that the tests parse")]
}

fn default_iterations() -> usize {
    100
}

fn default_batch() -> usize {
    4
}

fn default_rounding() -> f64 {
    0.01
}

fn default_scaling() -> f64 {
    0.005
}

/// The error of a block before and after optimization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// On the first batch, before the first step.
    pub before: f64,
    /// On the same batch, after the last step.
    pub after: f64,
}

/// A block, its inputs and its targets.
pub struct Task<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The block.
    pub block: BlockId,
    /// The weights that are not trained.
    pub below: &'a dyn Weights,
    /// Inputs, per batch.
    pub entering: &'a [Values],
    /// Target outputs, per batch.
    pub wanted: &'a [Values],
}

impl AutoRound {
    /// Refuses settings that cannot work.
    pub fn check(&self) -> Result<()> {
        let rates = [("rounding", self.rounding), ("scaling", self.scaling)];
        super::check(&[("iterations", self.iterations), ("batch", self.batch)], &rates)
    }

    /// Optimizes `learned`, weights of the block by canonical name. `done` is called after every step and may stop it with an
    /// error.
    pub fn optimize(
        &self,
        task: &Task<'_>,
        learned: &mut BTreeMap<String, Learned>,
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Progress> {
        let mut before = None;
        for iteration in 0..self.iterations {
            // Visits all batches equally often, neighbours in the text far apart.
            let batch = (iteration * stride(task.entering.len())) % task.entering.len();
            let left = 1.0 - iteration as f64 / self.iterations as f64;
            let loss =
                task.step(batch, learned, Rate::new(self.rounding * left, iteration), Rate::new(self.scaling * left, iteration))?;
            before.get_or_insert(loss);
            done(iteration + 1)?;
        }
        let after = task.loss(0, learned)?;
        Ok(Progress { before: before.unwrap_or(after), after })
    }
}

/// A number coprime to `n`, near its golden section: multiples of it modulo `n` visit all of `0..n`, neighbours far apart.
pub fn stride(n: usize) -> usize {
    let common = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = (n as f64 * 0.618) as usize;
    (golden.max(1)..).find(|s| common(*s, n) == 1).expect("every number is prime to some larger one")
}

impl Task<'_> {
    fn step(&self, batch: usize, learned: &mut BTreeMap<String, Learned>, rounding: Rate, scaling: Rate) -> Result<f64> {
        let values = tensors(learned)?;
        let block = Differentiable { graph: self.graph, block: self.block, learned: &values, below: self.below };
        let wanted = &self.wanted[batch];
        let gradients = block.gradients(&self.entering[batch], false, &|left| error(left, wanted))?;
        if !gradients.loss.is_finite() {
            return Err(Error::Loss { block: self.graph.block_name(self.block).into() });
        }
        for (name, learned) in learned {
            let value = attar_graph::kernel::with_f32(&values[name], <[f32]>::to_vec)?;
            learned.step(&gradients.weights[name], &value, rounding, scaling)?;
        }
        Ok(gradients.loss)
    }

    fn loss(&self, batch: usize, learned: &BTreeMap<String, Learned>) -> Result<f64> {
        let weights = attar_graph::TensorWeights { tensors: tensors(learned)?.into_iter().collect(), below: self.below };
        let left = self.graph.evaluate_block(self.block, &weights, attar_graph::Mode::Inference, &self.entering[batch])?;
        Ok(error(&left, &self.wanted[batch])?.to_scalar::<f32>()?.into())
    }
}

fn error(left: &Values, wanted: &Values) -> candle_core::Result<Tensor> {
    let mut errors = wanted.iter().map(|(id, wanted)| relative_error(&left[id], wanted));
    let first = errors.next().expect("something leaves a block")?;
    errors.try_fold(first, |sum, error| sum + error?)
}

/// The values of rounded weights, by name.
pub fn tensors(learned: &BTreeMap<String, Learned>) -> Result<BTreeMap<String, Tensor>> {
    let tensor = |(name, learned): (&String, &Learned)| {
        let dims = learned.dims();
        Ok((name.clone(), Tensor::from_vec(learned.values()?, (dims[0], dims[1]), &Device::Cpu)?))
    };
    learned.iter().map(tensor).collect()
}
