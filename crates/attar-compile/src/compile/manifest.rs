//! `model.json`: what a runtime needs to know of a folder of plans.

use std::collections::BTreeMap;

use attar_graph::{Graph, Op};
use attar_tensor::Digest;
use serde::{Deserialize, Serialize};

use super::{Compile, Embedding, Index, Phase};
use crate::{convert::Converted, plan, schedule::Goal};

/// A compiled model as a folder has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Whether it is an encoder: its only run reads a whole text of up to `positions` tokens, and returns a row for each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encoder: bool,
    /// How an encoder makes one row of those of all tokens; none of decoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Sequences that run side by side: see [`crate::Program`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batch: u64,
    /// Tokens of each that the caches have room for, or that an encoder reads at most.
    pub positions: u64,
    /// Rows of `embedding.bin`; none if the model's first values depend on more than the rows of these tables.
    pub vocabulary: Option<u64>,
    /// Rows of `position_embedding.bin`, which are added to those of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_rows: Option<u64>,
    /// Rows of `token_type_embedding.bin`, which are added, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type_rows: Option<u64>,
    /// Codes of a row of the residual stream.
    pub width: u64,
    /// The value of one step of the logits, or of an encoder's rows; none if they are not computed.
    pub logits: Option<f64>,
    /// The runs: prefill or its chunks, then decode and verify; or `encode`.
    pub runs: Vec<Entry>,
    /// Digests of the plans, by the names of their runs: plans of another compilation have other constants.
    pub plans: BTreeMap<String, Digest>,
    /// Digests of `dram.bin`, `flash.bin`, `embedding.bin`, `position_embedding.bin` and `token_type_embedding.bin`, of those that there are.
    pub images: BTreeMap<String, Digest>,
}

fn one() -> u64 {
    1
}

fn is_one(batch: &u64) -> bool {
    *batch == 1
}

/// How one row of a text is made of those of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pooling {
    /// Which rows.
    pub of: Pooled,
    /// Whether the result has length 1.
    pub normalized: bool,
}

/// Rows that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooled {
    /// The mean of all.
    Mean,
    /// The first.
    First,
}

impl Pooling {
    /// That of a graph, if it pools at all.
    pub(super) fn of(graph: &Graph) -> Option<Pooling> {
        let has = |wanted: fn(&Op) -> bool| graph.nodes().iter().any(|node| wanted(&node.op));
        let mean = has(|op| *op == Op::MeanPool).then_some(Pooled::Mean);
        let of = mean.or_else(|| has(|op| *op == Op::FirstPool).then_some(Pooled::First))?;
        Some(Pooling { of, normalized: has(|op| matches!(op, Op::Normalize { .. })) })
    }
}

/// A run, whose plan is `NAME.plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `prefill`, `prefill-1` and so on, `decode`, `verify`, or `encode`.
    pub name: String,
    /// Tokens of the run, of each sequence.
    pub rows: u64,
    /// Tokens before it that it was planned for.
    pub past: u64,
    /// Whether it computes logits, or an encoder's rows.
    pub head: bool,
    /// Whether it computes those of every token, and not of the last only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub every_row: bool,
}

impl Entry {
    /// Tokens of each sequence whose logits it computes.
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
        pooling: Option<Pooling>,
    ) -> Manifest {
        let entry = |phase: &Phase| {
            let Phase { rows, past, head, returned, .. } = *phase;
            let every_row = head && rows > 1 && returned == rows;
            Entry { name: phase.name.clone(), rows, past, head, every_row }
        };
        let rows = |of| embedding.and_then(|embedding| embedding.rows(of));
        Manifest {
            version: plan::VERSION,
            device: device.into(),
            goal: Some(settings.goal),
            set: settings.set.clone(),
            encoder: last.states.is_empty(),
            pooling,
            batch: settings.batch.get(),
            positions: last.states.first().map_or(settings.seq.get(), |state| last.program.get(*state).rows / settings.batch),
            vocabulary: rows(Index::Token),
            position_rows: rows(Index::Position),
            token_type_rows: rows(Index::TokenType),
            width: last.program.get(last.input).columns,
            logits: last.logits,
            runs: phases.iter().map(entry).collect(),
            plans: phases.iter().map(|phase| (phase.name.clone(), Digest::of(&phase.schedule.plan.to_bytes()))).collect(),
            images: BTreeMap::new(),
        }
    }
}
