//! The architectures: each is a function from a configuration to a graph, and a table of the names of its weights.

mod bert;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

use attar_graph::Graph;
use attar_tensor::{Checkpoint, gguf::Metadata, nearest};
use serde_json::Value;

use crate::{Config, Error, Names, Naming, Result, builder::Builder, gguf, sentence};

/// A family of models that one function builds.
pub struct Architecture {
    /// The class in `config.json`, the name in GGUF files, which is the graph's too, and further names.
    pub names: &'static [&'static str],
    /// What checkpoints call the weights.
    pub weights: &'static Names,
    /// The `config.json` that transformers would write, from the header of a GGUF file.
    pub(crate) gguf: fn(&gguf::Header<'_>) -> Result<Value>,
    /// The graph of a configuration, over the names of a checkpoint.
    pub(crate) build: fn(&Config, Builder<'_>) -> Result<Graph>,
}

/// Every architecture, in the order of the documentation.
pub static ARCHITECTURES: &[&Architecture] =
    &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &gemma3::GEMMA3, &phi3::PHI3, &gpt2::GPT2, &bert::BERT];

impl Architecture {
    /// The one that checkpoints call `name`.
    pub fn named(name: &str) -> Result<&'static Architecture> {
        ARCHITECTURES.iter().copied().find(|a| a.names.contains(&name)).ok_or_else(|| Error::UnknownArchitecture {
            found: name.into(),
            nearest: nearest(name, ARCHITECTURES.iter().flat_map(|a| a.names.iter().copied())).map(Into::into),
        })
    }

    /// The one that built `graph`, or a graph that it was made from.
    pub fn of(graph: &Graph) -> Option<&'static Architecture> {
        ARCHITECTURES.iter().copied().find(|architecture| architecture.graph_name() == graph.name())
    }

    /// What its graphs are called.
    fn graph_name(&self) -> &'static str {
        self.names[1]
    }

    fn graph(&self, config: &Config, naming: Naming, checkpoint: &Checkpoint) -> Result<Graph> {
        (self.build)(config, Builder::new(self.graph_name(), self.weights, naming, &*checkpoint.source))
    }
}

/// The module of a checkpoint that stores the weight `canonical` of `graph` and nothing else, if one does.
pub fn module(graph: &Graph, naming: Naming, canonical: &str) -> Option<String> {
    Architecture::of(graph)?.weights.module(naming, canonical)
}

/// The graph of a Hugging Face folder.
pub(crate) fn from_folder(checkpoint: &Checkpoint) -> Result<(Graph, Config)> {
    let json = checkpoint.json("config.json")?.ok_or_else(|| Error::NoConfig { path: checkpoint.path.clone() })?;
    let mut config = Config::from_json(&checkpoint.path.join("config.json"), json)?;
    config.pooling = sentence::pooling(checkpoint)?.unwrap_or_default();
    let lengths = [config.context, sentence::longest(checkpoint)?];
    config.context = lengths.into_iter().flatten().min();
    let graph = Architecture::named(&config.architecture)?.graph(&config, Naming::HuggingFace, checkpoint)?;
    Ok((graph, config))
}

/// The graph of a GGUF file.
pub(crate) fn from_gguf(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<(Graph, Config)> {
    let prefix = gguf::text(metadata, "general.architecture")?;
    let architecture = Architecture::named(prefix)?;
    let header = gguf::Header { class: architecture.names[0], prefix, metadata, source: &*checkpoint.source };
    let mut config = Config::from_json(&checkpoint.path, (architecture.gguf)(&header)?)?;
    config.pooling = header.pooling()?.unwrap_or_default();
    let graph = architecture.graph(&config, Naming::Gguf, checkpoint)?;
    Ok((graph, config))
}
