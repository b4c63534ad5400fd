//! From a checkpoint of a known architecture to a graph with named weights and a tokenizer.
//!
//! A [`Model`] joins the two planes: its graph's weight expressions are over the names of its source. An [`Architecture`] is
//! a function from a configuration to a graph, built of shared parts, and a table of the names that checkpoints give its
//! weights. The names in the graph are canonical, the same for every architecture and checkpoint format, as far as an
//! architecture has such a weight:
//!
//! | name | weight |
//! |---|---|
//! | `embedding`, `position_embedding`, `token_type_embedding` | tables |
//! | `blocks.N.attention.{query,key,value,output}` | linear layers of attention |
//! | `blocks.N.attention.{query,key}_norm` | gains for the heads of queries and keys |
//! | `blocks.N.mlp.{gate,up,down}` | linear layers of the MLP |
//! | `blocks.N.{attention,mlp}_norm` | gains of a block's norms |
//! | `blocks.N.{attention,mlp}_out_norm` | gains for what attention and MLP return |
//! | `embedding_norm`, `final_norm` | gains before the first block and after the last |
//! | `lm_head` | from the last norm to logits |
//!
//! A bias has the name of its weight with `.bias` appended. A decoder returns `logits`, an encoder `sentence_embedding`.

mod arch;
mod builder;
mod chat;
mod config;
mod decoder;
mod error;
mod folder;
mod gguf;
mod keys;
mod names;
mod pattern;
mod quantized;
mod sentence;
mod settings;
mod shape;
mod summary;
mod tokenizer;
mod unused;

use std::{path::Path, path::PathBuf, sync::Arc};

use attar_graph::Graph;
use attar_tensor::{Checkpoint, Format, Source};

use arch::Built;
use unused::Reads;

pub use arch::{ARCHITECTURES, Architecture, module};
pub use chat::{ChatTemplate, dialogue};
pub use config::Config;
pub use error::{Error, Result};
pub use folder::{Folder, FolderTensor, Part, same_structure};
pub use gguf::HARMLESS_GGUF;
pub use keys::HARMLESS_KEYS;
pub use names::{Names, Naming, Row, Stored};
pub use pattern::Pattern;
pub use quantized::Already;
pub use shape::{describe, describe_in_part};
pub use summary::{ReadFile, Summary};
pub use tokenizer::{Encoder, Tokenizer};
pub use unused::Kind;

/// The text form of a graph in a folder that attar wrote.
pub const GRAPH: &str = "graph.ir";

/// A checkpoint of a known architecture.
pub struct Model {
    /// What it computes.
    pub graph: Graph,
    /// Where its weights are.
    pub source: Arc<dyn Source>,
    /// What the checkpoint says of the model, apart from its graph.
    pub config: Config,
    /// The folder or file it was opened from.
    pub path: PathBuf,
    /// Every file that its meaning depends on, sorted.
    pub files: Vec<PathBuf>,
    /// How another tool quantized the weights, which are then decoded.
    pub quantized: Option<Already>,
    tokenizer: tokenizer::Origin,
    unused: unused::Unused,
    left_out: Vec<String>,
}

/// How a checkpoint is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Stored tensors that may be left out of the model, and keys of its configuration (`config.KEY`) that change nothing.
    pub ignore: Vec<Pattern>,
}

impl Model {
    /// Opens a Hugging Face folder, a safetensors file with its `config.json` beside it, a GGUF file or a folder that attar
    /// wrote. Reads headers and configurations only. Every weight that the graph names is there, in the shape that the
    /// configuration says, and every tensor that is there is used.
    pub fn open(path: &Path) -> Result<Model> {
        Model::open_with(path, &OpenOptions::default())
    }

    /// The same with `options`.
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Model> {
        let mut checkpoint = Checkpoint::open(path)?;
        let quantized = quantized::open(&mut checkpoint)?;
        let tokenizer = match &checkpoint.format {
            Format::Gguf(metadata) => tokenizer::Origin::Gguf(path.into(), metadata.clone()),
            _ => {
                let (there, pieces) = (checkpoint.side_file(TOKENIZER)?, checkpoint.side_file(PIECES)?);
                match (there, pieces) {
                    (None, Some(pieces)) => tokenizer::Origin::Pieces(pieces, checkpoint.side_file(ADDED)?),
                    (there, _) => tokenizer::Origin::File(there.unwrap_or_else(|| checkpoint.path.join(TOKENIZER))),
                }
            }
        };
        let reads = Reads::of(checkpoint.source.clone());
        let Built { graph, config, names } = match &checkpoint.format {
            Format::HuggingFace => arch::from_folder(&checkpoint, &reads, &options.ignore)?,
            Format::Gguf(metadata) => arch::from_gguf(&checkpoint, metadata, &reads, &options.ignore)?,
            Format::Attar(_) => written_graph(&checkpoint)?,
        };
        graph.verify_weights(&*checkpoint.source)?;
        let unused = unused::check(&graph, &reads, names, &options.ignore)?;
        check_ignore(&options.ignore, &config, &checkpoint)?;
        let mut files = sentence::files(&checkpoint)?;
        files.extend(checkpoint.files);
        files.sort();
        let (source, left_out) = (checkpoint.source, checkpoint.left_out);
        Ok(Model { graph, source, config, path: checkpoint.path, files, quantized, tokenizer, unused, left_out })
    }

    /// Reads or builds the tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(self.tokenizer.open()?.within(self.vocabulary()))
    }

    /// Rows of the embedding.
    fn vocabulary(&self) -> Option<usize> {
        let embedding = self.graph.find("embedding")?;
        self.graph.fact(embedding).constant_dims()?.first().copied()
    }

    /// Why the tokenizer cannot be used: it is missing, or is of a kind in its GGUF file that is not known. One that is in a
    /// file of its own is not opened here.
    pub fn no_tokenizer(&self) -> Option<String> {
        match &self.tokenizer {
            tokenizer::Origin::File(path) if path.exists() => None,
            tokenizer::Origin::File(_) => Some(format!("there is no `{TOKENIZER}`")),
            tokenizer::Origin::Pieces(..) | tokenizer::Origin::Gguf(..) => self.tokenizer().err().map(|error| error.to_string()),
        }
    }

    /// The chat template in a GGUF file's metadata.
    pub fn chat_template(&self) -> Option<&str> {
        match &self.tokenizer {
            tokenizer::Origin::Gguf(_, metadata) => match metadata.get("tokenizer.chat_template") {
                Some(attar_tensor::gguf::Value::Text(template)) => Some(template),
                _ => None,
            },
            tokenizer::Origin::File(_) | tokenizer::Origin::Pieces(..) => None,
        }
    }

    /// The file of that name beside the model, if it is a folder that has one. A link that leads out of the folder is an error.
    pub fn side_file(&self, name: &str) -> Result<Option<PathBuf>> {
        if self.path.is_dir() { Ok(attar_tensor::inside(&self.path, name, "the folder")?) } else { Ok(None) }
    }

    /// A copy with another graph and the source of its weights.
    pub fn with(&self, graph: Graph, source: Arc<dyn Source>) -> Model {
        Model {
            graph,
            source,
            config: self.config.clone(),
            path: self.path.clone(),
            files: self.files.clone(),
            quantized: self.quantized.clone(),
            tokenizer: self.tokenizer.clone(),
            unused: self.unused.clone(),
            left_out: self.left_out.clone(),
        }
    }

    /// The number of parameters; tied weights count once.
    pub fn parameters(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let distinct = self.graph.weights().filter(|(.., expr)| seen.insert((*expr).clone()));
        distinct.map(|(_, value, _)| value.fact.constant_dims().unwrap_or_default().iter().product::<usize>() as u64).sum()
    }
}

const TOKENIZER: &str = "tokenizer.json";
const PIECES: &str = "tokenizer.model";
const ADDED: &str = "added_tokens.json";

fn written_graph(checkpoint: &Checkpoint) -> Result<Built> {
    let file = checkpoint.side_file(GRAPH)?.unwrap_or_else(|| checkpoint.path.join(GRAPH));
    let text = std::fs::read_to_string(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
    let graph = Graph::parse(&text).map_err(|source| Error::Graph { path: file, source })?;
    Ok(Built { graph, config: arch::config_of(checkpoint)?, names: None })
}

/// A pattern that matches nothing is misspelled.
fn check_ignore(ignore: &[Pattern], config: &Config, checkpoint: &Checkpoint) -> Result<()> {
    let mut names: Vec<String> = checkpoint.source.tensors().keys().cloned().chain(checkpoint.source.unreadable()).collect();
    match &checkpoint.format {
        Format::Gguf(metadata) => names.extend(metadata.keys().cloned()),
        _ => names.extend(config.keys()),
    }
    let strange = ignore.iter().find(|pattern| !names.iter().any(|name| pattern.matches(name)));
    strange.map_or(Ok(()), |pattern| {
        let nearest = attar_tensor::nearest(pattern.text(), names.iter().map(String::as_str)).map(Into::into);
        Err(Error::NothingToIgnore { pattern: pattern.text().into(), nearest })
    })
}
