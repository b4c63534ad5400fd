//! What a recipe can do to a model, one file a kind.

mod activations;
mod allocate;
mod autoround;
mod calibrated;
mod compile;
mod fuse;
mod memory_plan;
mod passage;
mod plain;
mod preserved;
mod pupils;
mod quantize;
mod recover;
mod rotate;
mod simulate;
mod smooth;
mod tile;
mod transformed;

use std::{path::PathBuf, sync::Arc};

use attar_tensor::Digest;

pub(crate) use compile::{Compilation, compiles};
pub(crate) use fuse::check_order;
pub use tile::cut_products;

use crate::{AllocationReport, Result, document::Section, model::Working, plan::PlannedTensor, session::Session};

/// A kind of step.
pub struct StepKind {
    /// Its name in recipes, and the verb on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// JSON Schema of its settings.
    pub schema: fn() -> serde_json::Value,
    pub(crate) build: fn(Section<'_, '_>) -> Result<Box<dyn Step>>,
    /// The folder of the files that it leaves beside the model, if it does.
    pub(crate) folder: Option<&'static str>,
    /// Whether it looks for the layers of the graph, which a fused graph hides.
    pub(crate) looks_inside: bool,
}

/// Every kind of step, in the order of the documentation.
pub static STEPS: &[&StepKind] = &[
    &rotate::ROTATE,
    &smooth::SMOOTH,
    &quantize::QUANTIZE,
    &autoround::AUTOROUND,
    &recover::RECOVER,
    &activations::ACTIVATIONS,
    &fuse::FUSE,
    &tile::TILE,
    &compile::COMPILE,
    &simulate::SIMULATE,
    &memory_plan::MEMORY_PLAN,
];

/// A step with its settings.
pub trait Step: std::fmt::Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> &'static StepKind;

    /// Its settings with every default filled in.
    fn settings(&self) -> serde_json::Value;

    /// Files that it reads beside the model and the recipe's texts, each with the setting that names it.
    fn files(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    /// What it would do to `model`, and what the model would be: facts only, nothing is read.
    #[doc(hidden)]
    fn plan(&self, model: &mut Working) -> std::result::Result<Vec<PlannedTensor>, StepError>;

    /// Does it, unit by unit. Returns the blobs that the model now needs.
    #[doc(hidden)]
    fn run(&self, model: &mut Working, session: &Session<'_>) -> std::result::Result<Vec<Digest>, StepError>;

    /// The same with another budget, in true bits a selected weight, for a step that has one.
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
