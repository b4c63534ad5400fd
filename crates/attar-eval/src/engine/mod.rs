//! Real engines, each in a process of its own.
//!
//! [`Engine`] is the contract, [`ENGINES`] the registry; [`Places::find`] finds one on this machine, and an
//! [`Installation`] opens an artifact as a [`crate::Runner`].
//!
//! Why a process: an engine is somebody else's code, loaded at run time from wherever the user has it. One that is broken
//! or too old can hang or abort, an operator can loop, and a model can take more memory than there is. None of that may
//! take the other results of a run with it, so the parent keeps a pipe, a time limit and the child's last words. The two
//! sides speak one small protocol ([`protocol`]), so that a worker can be this executable with a C library loaded, or a
//! script in the engine's own Python environment.

mod artifact;
mod c;
mod child;
mod find;
mod kind;
mod litert;
mod onnxruntime;
mod onnxruntime_genai;
mod onnxruntime_qnn;
mod openvino;
mod openvino_npu;
pub mod protocol;
mod serve;
mod vela;

use attar_tensor::nearest;

use crate::{Error, Result};

pub use artifact::Artifact;
pub(crate) use artifact::Streaming;
pub use child::{VERB, kill_all};
pub use find::{Installation, Looked, Places};
pub use kind::{Ask, Engine, Failure, Home, Load, Mode, Opens, Package, Program, Session, Worker};
pub use serve::serve;

/// Every engine, in the order of the documentation. The first that opens a target is the default for it.
pub static ENGINES: &[&Engine] =
    &[&onnxruntime::ENGINE, &onnxruntime_genai::ENGINE, &openvino::ENGINE, &litert::ENGINE, &onnxruntime_qnn::ENGINE, &c::ENGINE];

/// Every compiler of a vendor, in the order of the documentation: it opens artifacts as engines do, and predicts for devices in place of
/// running. The first that opens a target is the default for it.
pub static COMPILERS: &[&Engine] = &[&openvino_npu::ENGINE, &vela::ENGINE];

/// What is installed like an engine: [`ENGINES`] and [`COMPILERS`].
pub fn installed() -> impl Iterator<Item = &'static Engine> + Clone {
    ENGINES.iter().chain(COMPILERS).copied()
}

/// The engine of that name.
pub fn engine(name: &str) -> Result<&'static Engine> {
    named(ENGINES, name)
}

/// The compiler of that name.
pub fn compiler(name: &str) -> Result<&'static Engine> {
    named(COMPILERS, name)
}

fn named(all: &[&'static Engine], name: &str) -> Result<&'static Engine> {
    all.iter().copied().find(|engine| engine.name == name).ok_or_else(|| Error::UnknownEngine {
        found: name.into(),
        nearest: nearest(name, all.iter().map(|engine| engine.name)).map(Into::into),
        known: all.iter().map(|engine| engine.name).collect(),
    })
}
