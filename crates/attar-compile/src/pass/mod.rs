//! Passes: rewrites of a graph that keep what it computes, run before a model is scheduled for a device.
//!
//! A pass is a function from a graph to a graph and the names of the values that it changed; it reads no weight, prints nothing
//! and keeps no state. A second run changes nothing. Two rules hold for all passes: codes are never rounded again, and no weight
//! is copied or concatenated. A fused node keeps its nodes as a graph ([`attar_graph::op::Fused`]) and can be taken apart again.
//!
//! ```
//! use attar_compile::pass::{PASSES, run_passes};
//! let text = r#"
//! graph mlp(x: [batch, seq, 64] f32) {
//!   g = linear x, weight("gate": [176, 64] int4/g64)
//!   u = linear x, weight("up": [176, 64] int4/g64)
//!   y = swiglu g, u
//!   return y
//! }
//! "#;
//! let (fused, reports) = run_passes(&attar_graph::Graph::parse(text).unwrap(), PASSES).unwrap();
//! assert_eq!(fused.nodes().len(), 1);
//! assert_eq!(reports.iter().map(|report| report.changes.len()).sum::<usize>(), 1);
//! ```

mod attention;
mod common;
mod config;
mod dead;
mod fold_layout;
mod fold_norms;
mod fusing;
mod gated;
mod linear_act;
mod linear_add;
mod qkv;
mod quantize_pairs;
mod residual_norm;
mod view;

use std::time::Instant;

use attar_graph::Graph;
use attar_tensor::nearest;

pub use config::{Fuse, PassName};

use crate::{Error, Result};

/// A change of a graph that keeps what it computes.
pub trait Pass: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// What it does, in one line.
    fn about(&self) -> &'static str;

    /// Whether outputs keep every bit.
    fn is_exact(&self) -> bool {
        true
    }

    /// The changed graph, and what changed. Running it on its own result changes nothing.
    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)>;
}

/// Names of the values that a pass created, replaced or removed.
pub type Changes = Vec<String>;

/// Every pass, in the order in which they run.
pub static PASSES: &[&dyn Pass] = &[
    &common::Common,
    &quantize_pairs::QuantizePairs,
    &fold_norms::FoldNorms,
    &fold_layout::FoldLayout,
    &dead::Dead,
    &qkv::QKV,
    &attention::ATTENTION,
    &gated::GATED,
    &linear_act::LINEAR_ACT,
    &linear_add::LINEAR_ADD,
    &residual_norm::RESIDUAL_NORM,
];

/// What a pass changed.
#[derive(Clone, Debug, PartialEq)]
pub struct PassReport {
    /// Its name.
    pub name: &'static str,
    /// What it changed.
    pub changes: Changes,
    /// Number of nodes before and after, without the nodes of fused bodies.
    pub nodes: [usize; 2],
    /// Run time in microseconds, without verification.
    pub micros: u64,
}

/// The pass of that name.
pub fn find(name: &str) -> Result<&'static dyn Pass> {
    let found = PASSES.iter().copied().find(|pass| pass.name() == name);
    found.ok_or_else(|| Error::UnknownPass {
        name: name.into(),
        nearest: nearest(name, PASSES.iter().map(|pass| pass.name())).map(Into::into),
    })
}

/// Runs `passes` in order and verifies the graph after each.
pub fn run_passes(graph: &Graph, passes: &[&dyn Pass]) -> Result<(Graph, Vec<PassReport>)> {
    let mut graph = graph.clone();
    let mut reports = Vec::with_capacity(passes.len());
    for pass in passes {
        let start = Instant::now();
        let (after, changes) = pass.run(&graph)?;
        let micros = start.elapsed().as_micros() as u64;
        after.verify().map_err(|source| Error::Pass { pass: pass.name(), source })?;
        reports.push(PassReport { name: pass.name(), changes, nodes: [graph.nodes().len(), after.nodes().len()], micros });
        graph = after;
    }
    Ok((graph, reports))
}
