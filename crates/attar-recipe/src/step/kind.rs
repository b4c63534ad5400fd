//! What a step is: its kind, what it would do, what it does.

use std::{path::PathBuf, sync::Arc};

use attar_graph::Graph;
use attar_tensor::Digest;
use serde::Serialize;

use crate::{
    AllocationReport, Error, Result,
    document::Section,
    extras::{Content, Folder, numbered},
    model::Working,
    session::Session,
    shape,
};

/// A kind of step.
pub struct StepKind {
    /// Its name in recipes, and the verb on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// JSON Schema of its settings.
    pub schema: fn() -> serde_json::Value,
    pub(crate) build: fn(Section<'_, '_>) -> Result<Box<dyn Step>>,
    /// The folder of its extra files, if it leaves such.
    pub(crate) folder: Option<&'static str>,
    /// Whether it is a verb as it is, `attar NAME MODEL --out DIR`, with its settings as flags.
    pub is_verb: bool,
    /// Examples for the help of the verb. A test runs them, in the order of `STEPS`.
    pub examples: &'static [&'static str],
    /// Whether it looks for the layers of the graph, which a fused graph hides.
    pub(crate) looks_inside: bool,
    /// Whether it trains on a text of its own, `[data.train]`, which the verb calls `--train`.
    pub trains: bool,
    /// Whether it needs a model that predicts tokens. An encoder is refused.
    pub(crate) needs_tokens: bool,
    /// Whether it predicts the metrics of a device.
    pub(crate) predicts: bool,
}

impl StepKind {
    /// A step of this kind leaves extra files, in the folder of the kind.
    pub(crate) fn leave(&'static self, model: &mut Working, files: Vec<(String, Content)>) {
        let Some(folder) = self.folder else { return };
        let earlier = model.folders.iter().filter(|folder| folder.kind == self.name).count();
        model.folders.push(Folder { kind: self.name, name: numbered(folder, earlier), files });
    }
}

/// A step with its settings.
pub trait Step: std::fmt::Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> &'static StepKind;

    /// Its settings with every default filled in.
    fn settings(&self) -> serde_json::Value;

    /// Files that it reads, apart from the model and the recipe's texts, each with the setting that names it.
    fn files(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    /// Checkpoints that it reads, apart from the model, each with the setting that names it.
    fn checkpoints(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    /// Whether it looks at a text. A recipe that names none has attar's own then.
    fn needs_text(&self) -> bool {
        false
    }

    /// What it would do to `model`, and what the model would be: facts only, nothing is read.
    #[doc(hidden)]
    fn plan(&self, model: &mut Working) -> std::result::Result<Vec<PlannedTensor>, StepError>;

    /// Does it, unit by unit. Returns the blobs that the model now needs.
    #[doc(hidden)]
    fn run(&self, model: &mut Working, session: &Session<'_>) -> std::result::Result<Vec<Digest>, StepError>;

    /// The same with another budget, in true bits per selected weight, for a step that has one.
    #[doc(hidden)]
    fn with_bits(&self, _: f64) -> Option<Arc<dyn Step>> {
        None
    }

    /// How it would spend its budget on `model`, and the blobs that say so, for a step that has one.
    #[doc(hidden)]
    fn allocate(&self, _: &Working, _: &Session<'_>) -> std::result::Result<Option<(AllocationReport, Vec<Digest>)>, StepError> {
        Ok(None)
    }
}

/// An error, and the setting of the step that it is about.
pub struct StepError {
    pub(crate) key: Option<String>,
    pub(crate) error: crate::Error,
}

impl<E: Into<crate::Error>> From<E> for StepError {
    fn from(error: E) -> StepError {
        StepError { key: None, error: error.into() }
    }
}

/// What would become of one weight.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedTensor {
    /// Canonical name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its encoding now.
    pub from: String,
    /// Its encoding then.
    pub to: String,
    /// Codes, scales and zeros.
    pub bits_per_weight: f64,
    /// The same, in all.
    pub bytes: u64,
    /// Bytes of memory that the work takes.
    #[serde(skip)]
    pub(crate) memory: u64,
}

/// Whether steps of a kind can work on a graph at all.
pub(crate) fn check_graph(kind: &StepKind, graph: &Graph) -> std::result::Result<(), StepError> {
    let refused = |message: String, hint: &str| {
        Err(StepError { key: Some("kind".into()), error: Error::recipe(message).hint(hint.to_owned()) })
    };
    if kind.looks_inside && graph.nodes().iter().any(|node| node.op.fused().is_some()) {
        return refused(format!("the graph is fused, and `{}` looks for the layers in it", kind.name), "fuse last");
    }
    if kind.needs_tokens && !shape::predicts_tokens(graph) {
        let message =
            format!("`{}` needs a model that predicts tokens, and `{}` has no head: it is an encoder", kind.name, graph.name());
        return refused(message, "quantize an encoder with `quantize` or `autoround`, and measure its embeddings");
    }
    Ok(())
}
