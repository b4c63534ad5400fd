//! What the machine offers and allows: every environment variable that attar reads, and the limit of memory.

use std::path::PathBuf;

use attar_recipe::Engines;

/// What the machine offers and allows.
pub(crate) struct Environment {
    /// `ATTAR_ONNXRUNTIME` (a shared library, or a folder to look in), `ATTAR_ENGINES` (a Python environment with real
    /// engines), `VIRTUAL_ENV`: the first that has ONNX Runtime counts.
    pub(crate) engine_roots: Vec<PathBuf>,
    /// Bytes of memory that a run may take, by `--max-memory`.
    pub(crate) max_memory: Option<u64>,
}

impl Environment {
    pub(crate) fn read(max_memory: Option<u64>) -> Environment {
        let roots = ["ATTAR_ONNXRUNTIME", "ATTAR_ENGINES", "VIRTUAL_ENV"];
        Environment { engine_roots: roots.iter().filter_map(std::env::var_os).map(PathBuf::from).collect(), max_memory }
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
