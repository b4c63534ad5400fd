//! The real engines of a machine, as the caller found them.

use std::path::PathBuf;

/// The real engines of this machine.
#[derive(Clone, Debug, Default)]
pub struct Engines {
    /// The shared library of ONNX Runtime.
    pub onnxruntime: Option<PathBuf>,
    /// Where it was looked for.
    pub looked: Vec<PathBuf>,
    /// An executable that serves engines: ourselves.
    pub host: PathBuf,
}

impl Engines {
    /// The error for an ONNX Runtime that is not here.
    pub fn onnxruntime_missing(&self) -> attar_eval::Error {
        attar_eval::Error::EngineMissing { looked: self.looked.clone() }
    }
}
