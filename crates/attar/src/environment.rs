//! Every environment variable that attar reads.

use std::path::PathBuf;

use attar_recipe::Engines;

/// What the environment says.
pub(crate) struct Environment {
    /// `ATTAR_ONNXRUNTIME` (a shared library, or a folder to look in), `ATTAR_ENGINES` (a Python environment with real
    /// engines), `VIRTUAL_ENV`: the first that has ONNX Runtime counts.
    pub(crate) engine_roots: Vec<PathBuf>,
}

impl Environment {
    pub(crate) fn read() -> Environment {
        let roots = ["ATTAR_ONNXRUNTIME", "ATTAR_ENGINES", "VIRTUAL_ENV"];
        Environment { engine_roots: roots.iter().filter_map(std::env::var_os).map(PathBuf::from).collect() }
    }

    /// The real engines of this machine.
    pub(crate) fn engines(&self) -> Engines {
        Engines {
            onnxruntime: attar_eval::onnxruntime::find(&self.engine_roots),
            looked: self.engine_roots.clone(),
            host: std::env::current_exe().unwrap_or_else(|_| "attar".into()),
        }
    }
}
