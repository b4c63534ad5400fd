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
mod config;
mod decoder;
mod error;
mod gguf;
mod names;
mod sentence;
mod tokenizer;

use std::{path::Path, path::PathBuf, sync::Arc};

use attar_graph::Graph;
use attar_tensor::{Checkpoint, Format, Source};

pub use arch::{ARCHITECTURES, Architecture, module};
pub use config::Config;
pub use error::{Error, Result};
pub use names::{Names, Naming, Row, Stored};
pub use tokenizer::Tokenizer;

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
    tokenizer: tokenizer::Origin,
}

impl Model {
    /// Opens a Hugging Face folder, a GGUF file or a folder that attar wrote. Reads headers and configurations only;
    /// every weight that the graph names is there, in the shape that the configuration says.
    pub fn open(path: &Path) -> Result<Model> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = match &checkpoint.format {
            Format::Gguf(metadata) => tokenizer::Origin::Gguf(path.into(), metadata.clone()),
            _ => tokenizer::Origin::File(path.join("tokenizer.json")),
        };
        let (graph, config) = match &checkpoint.format {
            Format::HuggingFace => arch::from_folder(&checkpoint)?,
            Format::Gguf(metadata) => arch::from_gguf(&checkpoint, metadata)?,
            Format::Attar(_) => written_graph(path, &checkpoint)?,
        };
        graph.verify_weights(&*checkpoint.source)?;
        let mut files = sentence::files(&checkpoint)?;
        files.extend(checkpoint.files);
        files.sort();
        Ok(Model { graph, source: checkpoint.source, config, path: path.into(), files, tokenizer })
    }

    /// Reads or builds the tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.tokenizer.open()
    }

    /// A copy with another graph and the source of its weights.
    pub fn with(&self, graph: Graph, source: Arc<dyn Source>) -> Model {
        Model {
            graph,
            source,
            config: self.config.clone(),
            path: self.path.clone(),
            files: self.files.clone(),
            tokenizer: self.tokenizer.clone(),
        }
    }

    /// The number of parameters; tied weights count once.
    pub fn parameters(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let distinct = self.graph.weights().filter(|(.., expr)| seen.insert((*expr).clone()));
        distinct.map(|(_, value, _)| value.fact.constant_dims().unwrap_or_default().iter().product::<usize>() as u64).sum()
    }
}

fn written_graph(path: &Path, checkpoint: &Checkpoint) -> Result<(Graph, Config)> {
    let file = path.join(GRAPH);
    let text = std::fs::read_to_string(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
    let graph = Graph::parse(&text).map_err(|source| Error::Graph { path: file, source })?;
    let config = checkpoint.json("config.json")?.ok_or_else(|| Error::NoConfig { path: path.into() })?;
    let config = Config::from_json(&path.join("config.json"), config)?;
    Ok((graph, config))
}
