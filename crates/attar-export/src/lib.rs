//! Writes artifacts that other runtimes load; one folder per target.
//!
//! A [`Target`] turns a graph and its weights into files, then re-opens them with a reader that shares no code with
//! the writer and compares every number. Weights are streamed: a model far larger than memory can be written.
//!
//! Nothing here knows recipes, rounds a number or prints.
//!
//! ```no_run
//! # fn export(graph: attar_graph::Graph, source: std::sync::Arc<dyn attar_tensor::Source>) -> attar_export::Result<()> {
//! use attar_export::{Input, Options, target};
//! let (target, options) = (target("onnx")?, Options::default());
//! let plan = target.check(&graph, &options)?; // instant: nothing is read
//! let model = Input { graph: &graph, source: &*source };
//! let folder = std::path::Path::new("out");
//! let mut artifact = target.write(&model, &options, folder, &mut |_done, _total| ())?;
//! artifact.record(&target.verify(&model, &artifact, folder, None)?);
//! # Ok(()) }
//! ```

mod artifact;
mod checkpoint;
mod error;
mod kit;
mod noise;
mod onnx;
mod options;

use std::{ops::Range, path::Path};

use attar_graph::Graph;
use attar_tensor::{Source, nearest};

pub use artifact::{Artifact, FileEntry, PlainEntry, Plan, Port, TensorEntry, Totals, Verification, VerifiedTensor};
pub use checkpoint::CheckpointFolder;
pub use error::{Defect, Error, Result};
pub use onnx::{Onnx, verify::check as check_onnx};
pub use options::{Layout, Options};

/// A model to export.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What it computes.
    pub graph: &'a Graph,
    /// What its weight expressions read.
    pub source: &'a dyn Source,
}

/// Called with bytes done and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads rows of the weight of a canonical name as it was before quantization; `false` if there is no such weight.
pub type Original<'a> = &'a dyn Fn(&str, Range<usize>, &mut [f32]) -> attar_graph::Result<bool>;

/// A kind of artifact.
pub trait Target: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// What it writes, and for whom, in one line.
    fn about(&self) -> &'static str;

    /// Raised whenever the same model and options give other bytes. It decides, with them, whether an artifact that is there
    /// already is kept.
    fn version(&self) -> u32;

    /// What would be written, or why it cannot be. Reads no weight.
    fn check(&self, graph: &Graph, options: &Options) -> Result<Plan>;

    /// Writes the files into `folder`, made if need be. The same model gives the same bytes.
    fn write(&self, model: &Input<'_>, options: &Options, folder: &Path, progress: Progress<'_>) -> Result<Artifact>;

    /// Re-opens the files of `artifact` in `folder` and compares every weight with the model's, and with what it was
    /// before quantization if `original` tells.
    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification>;
}

/// Every target, in the order of the documentation.
pub static TARGETS: &[&dyn Target] = &[&Onnx, &CheckpointFolder];

/// The target of that name.
pub fn target(name: &str) -> Result<&'static dyn Target> {
    TARGETS.iter().copied().find(|t| t.name() == name).ok_or_else(|| Error::UnknownTarget {
        found: name.into(),
        nearest: nearest(name, TARGETS.iter().map(|t| t.name())).map(Into::into),
    })
}
