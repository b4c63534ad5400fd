//! What makes a checkpoint one that we cannot run.

use std::path::PathBuf;

/// The result of opening a model.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a checkpoint cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Its bytes.
    #[error(transparent)]
    Tensor(#[from] attar_tensor::Error),
    /// Its graph.
    #[error(transparent)]
    Weights(#[from] attar_graph::Error),
    /// The graph in text form.
    #[error("`{}` is not a graph", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        source: attar_graph::Error,
    },
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// No `config.json`.
    #[error("`{}` has no config.json", path.display())]
    NoConfig {
        /// The folder.
        path: PathBuf,
    },
    /// `config.json` is not what it should be.
    #[error("`{}` cannot be used: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        source: serde_json::Error,
    },
    /// An architecture that is not in [`crate::ARCHITECTURES`].
    #[error("the architecture `{found}` is not known")]
    UnknownArchitecture {
        /// By the checkpoint.
        found: String,
        /// The closest that is known.
        nearest: Option<String>,
    },
    /// A setting of a known architecture that we do not run.
    #[error("`{key} = {found}` is not supported; {wanted} is")]
    Unsupported {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// What would be.
        wanted: &'static str,
    },
    /// Settings that contradict each other.
    #[error("the configuration says `{first}` and `{second}`, which cannot both be")]
    Contradiction {
        /// One setting.
        first: String,
        /// Another.
        second: String,
    },
    /// A block that would silently be left out.
    #[error("`{tensor}` is of a block that the configuration does not have: it counts {blocks}")]
    SurplusBlock {
        /// A stored tensor of it.
        tensor: String,
        /// By the configuration.
        blocks: usize,
    },
    /// GGUF metadata without a key that we need, or with a value of another type.
    #[error("the GGUF metadata has no usable `{key}`")]
    Metadata {
        /// The key.
        key: String,
    },
    /// A tokenizer that cannot be read or built.
    #[error("`{}` has no usable tokenizer: {reason}", path.display())]
    Tokenizer {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Tensor(error) | Error::Weights(attar_graph::Error::Tensor(error)) => error.hint(),
            Error::Weights(attar_graph::Error::Shape { .. }) | Error::SurplusBlock { .. } => {
                Some("config.json and the tensors come from different models: fetch both again from one place".into())
            }
            Error::UnknownArchitecture { nearest, .. } => {
                let known: Vec<&str> = crate::ARCHITECTURES.iter().flat_map(|a| a.names.iter().copied()).collect();
                let nearest = nearest.as_ref().map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
                Some(format!("{nearest}known: {}", known.join(", ")))
            }
            Error::NoConfig { .. } => Some("a Hugging Face folder has `config.json` beside its safetensors".into()),
            _ => None,
        }
    }
}
