//! Writes artifacts that other runtimes load; one folder per target.
//!
//! A [`Target`] with its options is a [`Format`]: it turns a graph and its weights into files, then re-opens them with a
//! reader that shares no code with the writer and compares every number. Weights are streamed: a model far larger than
//! memory can be written.
//!
//! Nothing here knows recipes, rounds a number or prints.
//!
//! ```no_run
//! # fn export(graph: attar_graph::Graph, source: std::sync::Arc<dyn attar_tensor::Source>) -> attar_export::Result<()> {
//! use attar_export::{Input, Side, target};
//! let onnx = target("onnx")?.default_format().expect("every option of ONNX has a default");
//! let plan = onnx.check(&graph)?; // instant: nothing is read
//! let model = Input { graph: &graph, source: &*source, side: &Side::default() };
//! let folder = std::path::Path::new("out");
//! let mut artifact = onnx.write(&model, folder, &mut |_done, _total| ())?;
//! artifact.record(&onnx.verify(&model, &artifact, folder, None)?);
//! # Ok(()) }
//! ```

mod artifact;
mod c;
mod checkpoint;
mod decoder;
mod error;
mod family;
mod genai;
mod kit;
mod layout;
mod litert;
mod noise;
mod onnx;
mod openvino;
mod qnn;
mod safetensors;
mod target;

use attar_tensor::nearest;

pub use artifact::{Artifact, FileEntry, Packed, PlainEntry, Plan, Port, TensorEntry, Totals, Verification, VerifiedTensor};
pub use c::{C, Linked, compiled_files};
pub use checkpoint::CheckpointFolder;
pub use error::{Defect, Error, Result};
pub use genai::OnnxGenai;
pub use litert::{integer::Lookups, lm::LiteRtLm, plain::Tflite, verify::check as check_litert};
pub use onnx::{AccuracyLevel, Layout, Logits, Onnx, Style, verify::check as check_onnx};
pub use openvino::{OpenVino, verify::check as check_openvino};
pub use qnn::{Qnn, Soc};
pub use safetensors::{Numbers, Safetensors};
pub use target::{CONFIG, Content, Format, Input, Original, Progress, SIDE_FILES, Side, Target, parse};

/// Every target, in the order of the documentation.
pub static TARGETS: &[&Target] = &[
    &onnx::TARGET,
    &genai::TARGET,
    &openvino::TARGET,
    &litert::lm::TARGET,
    &litert::plain::TARGET,
    &qnn::TARGET,
    &c::TARGET,
    &safetensors::TARGET,
    &checkpoint::TARGET,
];

/// The target of that name.
pub fn target(name: &str) -> Result<&'static Target> {
    TARGETS.iter().copied().find(|target| target.name == name).ok_or_else(|| Error::UnknownTarget {
        found: name.into(),
        nearest: nearest(name, TARGETS.iter().map(|target| target.name)).map(Into::into),
    })
}
