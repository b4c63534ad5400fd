//! Measures a model or an artifact, compares with a baseline, judges gates.
//!
//! A task of [`TASKS`] reads data and cuts it into [`Window`]s of tokens; a [`Runner`] gives an [`Output`] of a model for
//! them; the task scores that as [`Measurements`]; a [`Gate`] judges those. A runner is [`Reference`], which evaluates the
//! graph, or an [`Artifact`] in one of [`ENGINES`].
//!
//! Nothing is printed and no environment is read here.
//!
//! ```
//! use attar_eval::{Output, Perplexity, Reference, Runner, perplexity};
//! use attar_model::Model;
//!
//! let testdata = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
//! let model = Model::open(&testdata.join("models/shakespeare-1m")).unwrap();
//! let text = Perplexity { tokens: Some(512), ..Perplexity::of(testdata.join("evals/shakespeare-valid.txt")) };
//! let windows = text.windows(&model).unwrap();
//! let runner = Reference::new(&model);
//! let mut logits = runner.start(Output::Logits.into(), &windows, &|_, _| {}).unwrap();
//! let measured = perplexity::alone(&windows, &mut *logits, None, &|_, _| {}).unwrap();
//! assert!(measured.perplexity.value < 40.0);
//! ```

pub mod bench;
pub mod engine;
mod error;
mod gate;
mod generation;
mod prediction;
mod preset;
mod reference;
mod runner;
mod statistics;
mod task;

pub use bench::{Bench, Latencies, Scenario};
pub use engine::{Artifact, Ask, COMPILERS, ENGINES, Engine, Installation, Mode, Places, compiler, engine};
pub use error::{Error, Result};
pub use gate::{Bound, Evaluation, Gate, Outcome, Status, Verdict, WrittenGate};
pub use generation::{Generation, Sampling};
pub use prediction::{DEVICE, DEVICE_METRICS, DeviceMetric, PREDICTED, PredictedCall, Prediction, device_metric};
pub use preset::{PRESETS, Preset};
pub use reference::{REFERENCE, Reference, outputs};
pub use runner::{Asked, Output, Progress, Rows, Runner, Window};
pub use statistics::Estimate;
pub use task::{
    Against, Better, Column, DEFAULT_TASK, Digits, Invalid, Language, Load, Measurements, Metric, PROMPTS, Prepared, Settings,
    Sides, TASKS, Task, perplexity, perplexity::Perplexity, shipped_texts, task,
};
