//! Recovery: end-to-end distillation of the float model into the quantized one.
//!
//! The student is the quantized model, the teacher the float one; the loss is the KL divergence of their next-token
//! distributions on the calibration text (Hinton et al. 2015; for scales alone: EfficientQAT, Chen et al. 2024). A block's
//! weights are updated as soon as their gradients are known.

use std::ops::Range;

use attar_graph::{Graph, Mode, Values, Weights, kernel::kl_divergence};
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Rate, Rates,
    autoround::block_matrices,
    student::{Criterion, Student, last_block, part_of, shape_of},
};
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

    /// One optimizer step on a batch. `heads` are the weights of the last block of student and teacher, kept in memory. Returns
    /// the mean KL divergence before the step.
    pub fn step(
        student: &mut Student<'_>,
        inputs: &Values,
        teacher: (&Graph, &Values),
        heads: [&dyn Weights; 2],
        rates: Rates,
    ) -> Result<f64> {
        let (_, length) = shape_of(teacher.1)?;
        let last = last_block(teacher.0);
        let objective = |part: Range<usize>| {
            let wanted = teacher.0.evaluate_block(last, heads[1], Mode::Inference, &part_of(teacher.1, &part)?)?;
            let wanted = wanted[&teacher.0.outputs()[0]].clone();
            let share = part.len() as f64 / length as f64;
            Ok(Box::new(move |logits: &Tensor| {
                let (divergence, gradient) = kl_divergence(&wanted, logits)?;
                Ok((divergence * share, gradient.affine(share, 0.0)?))
            }) as Criterion)
        };
        student.backward(inputs, heads[0], &objective, &mut |_, _, _| Ok(None), &mut |student, block, found| {
            student.learn(block, &found, rates)
        })
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
