//! A variant whose steps are done, and what a report says of it.

use attar_eval::{DEFAULT_TASK, DEVICE, Evaluation, Outcome, PREDICTED};
use attar_export::Artifact;
use attar_model::Model;
use attar_tensor::{Digest, Encoding};

use crate::{
    json::json,
    model::Working,
    report::{ArtifactReport, Findings, LossReport, PlainReport, TensorReport, VariantReport},
};

/// A variant whose steps are done and whose artifacts are written.
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) working: Working,
    /// In the order of the recipe.
    pub(crate) artifacts: Vec<Written>,
}

/// A verified artifact.
pub(crate) struct Written {
    /// Relative to the output folder.
    pub(crate) folder: String,
    pub(crate) artifact: Artifact,
    /// How many weights were decoded from it and found equal.
    pub(crate) verified: u64,
}

impl Made {
    /// What compilers predict of it; of several devices, of the first.
    pub(crate) fn prediction(&self) -> Option<Evaluation> {
        let prediction = self.working.findings.prediction()?;
        Some(Evaluation {
            eval: DEVICE.into(),
            task: DEFAULT_TASK.into(),
            variant: (!self.name.is_empty()).then(|| self.name.clone()),
            runner: PREDICTED.into(),
            mode: None,
            device: None,
            outcome: Outcome::Predicted(prediction),
        })
    }

    pub(crate) fn report(&self) -> VariantReport {
        let working = &self.working;
        let (bits_per_weight, quantized_bits_per_weight) = working.bits();
        VariantReport {
            name: self.name.clone(),
            bits_per_weight,
            quantized_bits_per_weight,
            tensors: self.tensors(),
            plain: self.plain(),
            findings: self.findings().arranged(),
            artifacts: self.artifacts.iter().map(Written::report).collect(),
        }
    }

    /// What the steps found, and how weights are kept after all of them.
    fn findings(&self) -> Findings {
        let mut findings = self.working.findings.clone();
        findings.extend(LossReport::of(&self.working.losses));
        findings
    }

    /// Matrices that no step quantized, if others are, in the graph's order.
    fn plain(&self) -> Vec<PlainReport> {
        let quantized = |value: &attar_graph::Value| matches!(value.fact.encoding, Encoding::Quantized(_));
        let weights = || self.working.graph.weights().map(|(_, value, _)| value);
        let report = |value: &attar_graph::Value| {
            let dims = value.fact.constant_dims().filter(|dims| dims.len() == 2 && !quantized(value))?;
            Some(PlainReport { name: value.name.clone(), dims, encoding: value.fact.encoding.to_string() })
        };
        if weights().any(quantized) { weights().filter_map(report).collect() } else { Vec::new() }
    }

    /// Every weight that a step changed, in the graph's order.
    fn tensors(&self) -> Vec<TensorReport> {
        let report = |(_, value, _): (_, &attar_graph::Value, _)| {
            let damage = self.working.damage.get(&value.name)?;
            let dims = value.fact.constant_dims()?;
            let snr = damage.snr_db();
            Some(TensorReport {
                name: value.name.clone(),
                encoding: value.fact.encoding.to_string(),
                bits_per_weight: value.fact.encoding.true_bits([dims[0], dims[1]]) as f64 / (dims[0] * dims[1]) as f64,
                snr_db: snr.is_finite().then_some(snr),
                dims,
            })
        };
        self.working.graph.weights().filter_map(report).collect()
    }
}

impl Written {
    fn report(&self) -> ArtifactReport {
        ArtifactReport {
            target: self.artifact.target.clone(),
            folder: self.folder.clone(),
            bytes: self.artifact.files.iter().map(|file| file.bytes).sum(),
            digest: Digest::of(&json(&self.artifact.files)),
            totals: self.artifact.totals.clone(),
            verified_weights: self.verified,
        }
    }
}
