//! `model.json`: what a runtime needs to know of a folder of plans.

use std::collections::BTreeMap;

use attar_tensor::Digest;
use serde::{Deserialize, Serialize};

use super::{Compile, Embedding, Phase};
use crate::{convert::Converted, plan, schedule::Goal};

/// A compiled model as a folder has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`plan::VERSION`] of the plans.
    pub version: u32,
    /// The device that it was compiled for.
    pub device: String,
    /// What was minimized; none in folders of attar before it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Numbers of the device that were set: `sram=256KiB`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// Tokens that the caches have room for.
    pub positions: u64,
    /// Rows of `embedding.bin`; none if the model's first values depend on more than a token.
    pub vocabulary: Option<u64>,
    /// Codes of a row of the residual stream.
    pub width: u64,
    /// The value of one step of the logits; none if they are not computed.
    pub logits: Option<f64>,
    /// The runs: prefill or its chunks, then decode and verify.
    pub runs: Vec<Entry>,
    /// Digests of `dram.bin`, `flash.bin` and `embedding.bin`, of those that there are.
    pub images: BTreeMap<String, Digest>,
}

/// A run, whose plan is `NAME.plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// `prefill`, `prefill-1` and so on, `decode`, or `verify`.
    pub name: String,
    /// Tokens of the run.
    pub rows: u64,
    /// Tokens before it that it was planned for.
    pub past: u64,
    /// Whether it computes logits.
    pub head: bool,
    /// Whether it computes those of every token, and not of the last only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub every_row: bool,
}

impl Entry {
    /// Tokens whose logits it computes.
    pub fn logits(&self) -> u64 {
        match (self.head, self.every_row) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => self.rows,
        }
    }
}

impl Manifest {
    pub(super) fn of(
        settings: &Compile,
        device: &str,
        phases: &[Phase],
        last: &Converted,
        embedding: Option<&Embedding>,
    ) -> Manifest {
        let entry = |phase: &Phase| {
            let Phase { rows, past, head, .. } = *phase;
            let every_row = head && rows > 1 && settings.has_every_row([rows, past]);
            Entry { name: phase.name.clone(), rows, past, head, every_row }
        };
        Manifest {
            version: plan::VERSION,
            device: device.into(),
            goal: Some(settings.goal),
            set: settings.set.clone(),
            positions: last.states.first().map_or(0, |state| last.program.get(*state).rows),
            vocabulary: embedding.map(|embedding| embedding.rows),
            width: last.program.get(last.input).columns,
            logits: last.logits,
            runs: phases.iter().map(entry).collect(),
            images: BTreeMap::new(),
        }
    }
}
