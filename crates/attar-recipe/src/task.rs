//! The eval tasks as recipes write them: each of [`attar_eval::TASKS`] with its settings.

use std::{fmt, path::PathBuf};

use attar_eval::{Perplexity, Window};
use attar_model::{Config, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Result, document::Section, settings::of};

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunnerKind {
    /// attar's reference implementation, on the weights as they will be written.
    Reference,
    /// ONNX Runtime, on the written artifact.
    OnnxRuntime,
}

impl fmt::Display for RunnerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunnerKind::Reference => "reference",
            RunnerKind::OnnxRuntime => "onnxruntime",
        })
    }
}

/// A task with its settings.
pub trait EvalTask: fmt::Debug + Send + Sync {
    /// What it is and which metrics it yields.
    fn task(&self) -> &'static attar_eval::Task;
    /// Its settings with every default filled in.
    fn settings(&self) -> serde_json::Value;
    /// The files that it reads.
    fn files(&self) -> Vec<PathBuf>;
    /// Whether a model of that configuration can be measured so; no file is read.
    fn check(&self, config: &Config) -> attar_eval::Result<()>;
    /// Tokens in its longest window.
    fn longest(&self) -> usize;
    /// The tokens that a model is run on.
    fn windows(&self, model: &Model) -> Result<Vec<Window>>;
}

/// From what is left of an `[[eval]]`; the names are of keys that were taken before.
type Build = fn(Section<'_, '_>, &[String]) -> Result<Box<dyn EvalTask>>;

/// How a recipe names a task.
pub(crate) struct TaskKind {
    pub(crate) name: &'static str,
    pub(crate) schema: fn() -> serde_json::Value,
    pub(crate) build: Build,
}

/// What an eval measures that does not say it.
pub(crate) const DEFAULT_TASK: &str = "perplexity";

/// Every task, in the order of the documentation.
pub(crate) static TASKS: &[&TaskKind] = &[&TaskKind {
    name: "perplexity",
    schema: of::<Perplexity>,
    build: |section, also| Ok(Box::new(section.finish::<Perplexity>(also)?)),
}];

impl EvalTask for Perplexity {
    fn task(&self) -> &'static attar_eval::Task {
        attar_eval::TASKS[0]
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.data.clone()]
    }

    fn check(&self, config: &Config) -> attar_eval::Result<()> {
        Perplexity::check(self, config)
    }

    fn longest(&self) -> usize {
        self.window
    }

    fn windows(&self, model: &Model) -> Result<Vec<Window>> {
        Ok(Perplexity::windows(self, model)?)
    }
}
