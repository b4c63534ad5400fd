//! Measures a model or an artifact, compares with a baseline, judges gates.
//!
//! Text becomes [`Window`]s ([`Perplexity`]); a [`Runner`] gives the logits of their tokens; [`compare`] and [`alone`]
//! turn logits into [`Measurements`]; a [`Gate`] judges those. There are two runners: [`Reference`], which evaluates the
//! graph, and [`OnnxRuntime`], which drives the real engine on a written artifact.
//!
//! Nothing is printed and no environment is read here.
//!
//! ```
//! use attar_eval::{Perplexity, Reference, Runner};
//! use attar_model::Model;
//!
//! let testdata = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
//! let model = Model::open(&testdata.join("models/shakespeare-1m")).unwrap();
//! let text = Perplexity { tokens: Some(512), ..Perplexity::of(testdata.join("evals/shakespeare-valid.txt")) };
//! let windows = text.windows(&model).unwrap();
//! let runner = Reference::new(&model);
//! let mut logits = runner.start(&windows, &|_, _| {}).unwrap();
//! let measured = attar_eval::alone(&windows, &mut *logits, None, &|_, _| {}).unwrap();
//! assert!(measured.perplexity.value < 40.0);
//! ```

pub mod engine;
mod error;
mod gate;
mod measure;
pub mod onnxruntime;
mod perplexity;
mod prediction;
mod reference;
mod runner;
mod statistics;
mod task;

pub use error::{Error, Result};
pub use gate::{Bound, Evaluation, Gate, Outcome, Status, Verdict};
pub use measure::{AgainstBase, Agreement, Measurements, alone, compare};
pub use onnxruntime::{Mode, OnnxRuntime};
pub use perplexity::{Perplexity, Window};
pub use prediction::{DEVICE, DEVICE_METRICS, DeviceMetric, PREDICTED, Prediction, device_metric};
pub use reference::Reference;
pub use runner::{Logits, Progress, Runner};
pub use statistics::Estimate;
pub use task::{Better, METRICS, Metric, TASKS, Task, metric};
