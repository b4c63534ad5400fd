//! Why a checkpoint cannot be run.

use std::path::PathBuf;

/// The result of opening a model.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a checkpoint cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Its tensors cannot be read.
    #[error(transparent)]
    Tensor(#[from] attar_tensor::Error),
    /// Its weights do not fit its graph.
    #[error(transparent)]
    Weights(#[from] attar_graph::Error),
    /// The text form of a graph cannot be parsed.
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
        /// The operating system's error.
        source: std::io::Error,
    },
    /// There is no `config.json`.
    #[error("`{}` has no config.json", path.display())]
    NoConfig {
        /// The folder.
        path: PathBuf,
    },
    /// `config.json` lacks a setting, or has one of the wrong type.
    #[error("`{}` cannot be used: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        source: serde_json::Error,
    },
    /// The architecture is not in [`crate::ARCHITECTURES`].
    #[error("the architecture `{found}` is not known")]
    UnknownArchitecture {
        /// What the checkpoint says.
        found: String,
        /// The known name that is most like it.
        nearest: Option<String>,
    },
    /// A setting has a value that is not implemented.
    #[error("`{key} = {found}` is not supported; {wanted} is")]
    Unsupported {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// The values that are.
        wanted: &'static str,
    },
    /// Two settings contradict each other.
    #[error("the configuration contradicts itself: `{first}`, but `{second}`")]
    Contradiction {
        /// One setting.
        first: String,
        /// Another.
        second: String,
    },
    /// The checkpoint has a block that the graph would leave out.
    #[error("`{tensor}` belongs to a block beyond the {blocks} that the configuration has")]
    SurplusBlock {
        /// A tensor of that block.
        tensor: String,
        /// Blocks, by the configuration.
        blocks: usize,
    },
    /// The GGUF metadata lacks a key, or has a value of the wrong type.
    #[error("the GGUF metadata has no usable `{key}`")]
    Metadata {
        /// The key.
        key: String,
    },
    /// The tokenizer cannot be read or built.
    #[error("`{}` has no usable tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Tensor(error) | Error::Weights(attar_graph::Error::Tensor(error)) => error.hint(),
            Error::Weights(attar_graph::Error::Shape { .. }) | Error::SurplusBlock { .. } => {
                Some("config.json and the tensors come from different models: download both again from the same place".into())
            }
            Error::UnknownArchitecture { nearest, .. } => {
                let known: Vec<&str> = crate::ARCHITECTURES.iter().flat_map(|a| a.names.iter().copied()).collect();
                let nearest = nearest.as_ref().map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
                Some(format!("{nearest}known: {}", known.join(", ")))
            }
            Error::NoConfig { .. } => Some("a Hugging Face folder has a `config.json` next to its safetensors files".into()),
            _ => None,
        }
    }
}
