//! The real engine on a written artifact, in a process of its own.
//!
//! Why a process: the engine is somebody else's shared library, loaded at run time from wherever the user has it. One
//! that is broken or too old can hang or end the process that loads it, an operator can loop, and a model can take more
//! memory than there is. None of that may take a run's other results with it, so the parent keeps a pipe, a time limit
//! and the child's last words.

mod child;
mod find;

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Logits, Progress, Result, Runner, Window,
    engine::protocol::{Reply, Request},
    runner::likeliest,
};
use child::Child;

pub use find::find;

/// The argument that makes a host serve.
pub const VERB: &str = "engine";

/// Precision of products that the engine fuses with `DequantizeLinear`. `MatMulNBits` nodes state their own precision
/// (`accuracy_level`) and run the same in both modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Activations stay f32.
    Exact,
    /// The engine's default: activations that meet quantized weights are rounded to int8.
    Default,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Exact => "exact",
            Mode::Default => "default",
        })
    }
}

/// Runs `model.onnx` of an artifact by ONNX Runtime.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    /// Its shared library: see [`find`].
    pub library: PathBuf,
    /// The folder of `model.onnx`.
    pub artifact: PathBuf,
    /// How exactly.
    pub mode: Mode,
    /// An executable that calls [`crate::engine::serve`] when its one argument is [`VERB`].
    pub host: PathBuf,
    /// Threads an op; the engine decides if not given.
    pub threads: Option<usize>,
    /// The longest that one answer may take: loading the model, or running one window.
    pub timeout: Duration,
}

impl OnnxRuntime {
    /// With what is mostly wanted: as many threads as the engine likes, and ten minutes for an answer.
    pub fn new(library: impl Into<PathBuf>, artifact: impl Into<PathBuf>, mode: Mode, host: impl Into<PathBuf>) -> OnnxRuntime {
        let timeout = Duration::from_secs(600);
        OnnxRuntime { library: library.into(), artifact: artifact.into(), mode, host: host.into(), threads: None, timeout }
    }

    fn open(&self) -> Result<Engine> {
        let model = self.artifact.join("model.onnx");
        exists(&self.library, "the library of onnxruntime")?;
        exists(&model, "the artifact's model")?;
        let mut child = Child::spawn(&self.host, self.timeout)?;
        let (library, exact) = (self.library.clone(), self.mode == Mode::Exact);
        child.ask("loading the model", Request::Open { library, model, exact, threads: self.threads }, &[])?;
        Ok(Engine { child })
    }
}

fn exists(path: &Path, what: &'static str) -> Result<()> {
    if path.is_file() { Ok(()) } else { Err(Error::NoFile { path: path.into(), what }) }
}

impl Runner for OnnxRuntime {
    fn name(&self) -> &str {
        "onnxruntime"
    }

    fn start<'r>(&'r self, windows: &'r [Window], progress: Progress<'r>) -> Result<Box<dyn Logits + 'r>> {
        Ok(Box::new(Rows { engine: self.open()?, windows, progress, fed: None }))
    }

    fn generate(&self, prompt: &[u32], limit: usize, stop: &[u32], each: &mut dyn FnMut(u32)) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut engine = self.open()?;
        let mut said = Vec::new();
        let mut feed = prompt.to_vec();
        while said.len() < limit {
            engine.feed(&feed, said.is_empty())?;
            let (logits, _) = engine.rows(feed.len() - 1..feed.len())?;
            let next = likeliest(&logits);
            said.push(next);
            each(next);
            if stop.contains(&next) {
                break;
            }
            feed = vec![next];
        }
        Ok(said)
    }
}

/// A child with a model open.
struct Engine {
    child: Child,
}

impl Engine {
    fn feed(&mut self, tokens: &[u32], afresh: bool) -> Result<()> {
        self.child.ask("running tokens", Request::Feed { afresh }, tokens).map(|_| ())
    }

    fn rows(&mut self, rows: Range<usize>) -> Result<(Vec<f32>, usize)> {
        let doing = "fetching logits";
        let asked = rows.len();
        match self.child.ask(doing, Request::Rows { start: rows.start, end: rows.end }, &[])? {
            (Reply::Rows { vocabulary }, logits) if logits.len() == asked * vocabulary => Ok((logits, vocabulary)),
            (reply, logits) => Err(self.child.nonsense(doing, format!("{reply:?} with {} numbers", logits.len()))),
        }
    }
}

/// Windows that run when their rows are asked for.
struct Rows<'r> {
    engine: Engine,
    windows: &'r [Window],
    progress: Progress<'r>,
    fed: Option<usize>,
}

impl Logits for Rows<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        if self.fed != Some(window) {
            self.engine.feed(&self.windows[window].tokens, true)?;
            self.fed = Some(window);
            (self.progress)(window as u64 + 1, self.windows.len() as u64);
        }
        let (logits, vocabulary) = self.engine.rows(positions)?;
        *out = logits;
        Ok(vocabulary)
    }
}
