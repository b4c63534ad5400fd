//! Why a checkpoint cannot be run.

use std::path::PathBuf;

use crate::Kind;

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
    /// A setting is missing, has the wrong type or is out of range.
    #[error("`{}` cannot be used: `{key}` is {found}; expected {wanted}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What can be used.
        wanted: String,
    },
    /// Keys that would change what is computed, if they were known.
    #[error("`{}` sets {}, which {architecture} does not have", path.display(), listed(keys))]
    UnknownKeys {
        /// The file.
        path: PathBuf,
        /// The architecture.
        architecture: String,
        /// Keys and values.
        keys: Vec<(String, String)>,
        /// The known key that is most like the first.
        nearest: Option<String>,
    },
    /// Stored tensors that the graph does not use.
    #[error("the model would be read without {}", counted(tensors))]
    Unused {
        /// All of them, sorted.
        tensors: Vec<String>,
        /// What they look like.
        kind: Kind,
    },
    /// There is no head, and it is not the embedding.
    #[error("there is no `{tensor}`, and `tie_word_embeddings` is not set")]
    NoHead {
        /// The name that it would have.
        tensor: String,
    },
    /// A pattern that nothing matches.
    #[error("`ignore`: nothing is named `{pattern}`")]
    NothingToIgnore {
        /// As written.
        pattern: String,
        /// A name that is most like it.
        nearest: Option<String>,
    },
    /// Another tool quantized it, in a way that is not read.
    #[error("`{}`: the weights are already quantized with {method}, which attar does not {}", path.display(), if *known { "read" } else { "know" })]
    AlreadyQuantized {
        /// The file that says so.
        path: PathBuf,
        /// The method.
        method: String,
        /// Whether it is one that we know by name.
        known: bool,
    },
    /// Another tool quantized it, in a way that is read, and something is wrong with what it left.
    #[error("the weights are already quantized with {method}, and cannot be decoded")]
    Undecodable {
        /// The method.
        method: &'static str,
        /// What is wrong.
        #[source]
        source: Box<Error>,
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
    /// A graph that no Hugging Face folder of its architecture holds.
    #[error("a Hugging Face folder cannot hold the model: `{part}` has {found}; expected {wanted}")]
    Indescribable {
        /// A block, a weight or a node.
        part: String,
        /// What it has.
        found: String,
        /// What the architecture's classes have.
        wanted: String,
    },
    /// The GGUF metadata lacks a key, or has a value of the wrong type.
    #[error("the GGUF metadata has no usable `{key}`")]
    Metadata {
        /// The key.
        key: String,
    },
    /// A text holds a token that the model has no embedding for.
    #[error("the token `{}`, number {token}, is beyond the {vocabulary} rows of the embedding", text.escape_debug())]
    TokenBeyond {
        /// Its text.
        text: String,
        /// Its number.
        token: u32,
        /// Rows of the embedding.
        vocabulary: usize,
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

/// Tensors that an error names; the rest is counted.
const NAMED: usize = 10;

fn counted(tensors: &[String]) -> String {
    let names: Vec<String> = tensors.iter().take(NAMED).map(|tensor| format!("`{tensor}`")).collect();
    let more = if tensors.len() > NAMED { ", …" } else { "" };
    let what = if tensors.len() == 1 { "a stored tensor".into() } else { format!("{} stored tensors", tensors.len()) };
    format!("{what}: {}{more}", names.join(", "))
}

fn listed(keys: &[(String, String)]) -> String {
    let shown: Vec<String> = keys.iter().take(NAMED).map(|(key, value)| format!("`{key} = {value}`")).collect();
    shown.join(", ")
}

/// The way to leave something out on purpose.
fn ignoring(name: &str) -> String {
    format!(
        "to leave it out on purpose, name it in the recipe: `[model]` with `ignore = [\"{name}\"]` (on the command line `--ignore`)"
    )
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
            Error::Unused { tensors, kind } => Some(format!("{}; {}", kind.hint(), ignoring(&tensors[0]))),
            Error::UnknownKeys { keys, nearest, architecture, .. } => {
                let nearest = nearest.as_ref().map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
                let gguf = keys[0].0.starts_with(&format!("{architecture}."));
                let name = if gguf { keys[0].0.clone() } else { format!("config.{}", keys[0].0) };
                Some(format!("{nearest}{}", ignoring(&name)))
            }
            Error::AlreadyQuantized { .. } | Error::Undecodable { .. } => Some(
                "take the checkpoint that it was made from, or dequantize it once with its own library and `save_pretrained(FOLDER)`; read are GPTQ, AWQ, FP8 and compressed-tensors"
                    .into(),
            ),
            Error::NoHead { .. } => Some(
                "if the head is the embedding, config.json says `\"tie_word_embeddings\": true`; else a file is missing".into(),
            ),
            Error::TokenBeyond { .. } => Some(
                "the tokenizer was extended and the model was not (`resize_token_embeddings`): take the tokenizer that belongs to it, or a text without that token"
                    .into(),
            ),
            Error::NothingToIgnore { nearest, .. } => nearest.as_ref().map(|n| format!("did you mean `{n}`?")),
            Error::Indescribable { .. } => Some(
                "export to `checkpoint`, which keeps every layer as it is, or make all layers such as the architecture has them"
                    .into(),
            ),
            Error::NoConfig { .. } => Some("a Hugging Face folder has a `config.json` next to its safetensors files".into()),
            _ => None,
        }
    }
}
