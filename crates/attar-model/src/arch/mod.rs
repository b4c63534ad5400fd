//! The architectures: each says what its configuration means, in one small file.

mod llama;
mod mistral;
mod qwen2;

use attar_graph::Graph;
use attar_tensor::{Checkpoint, gguf::Metadata, nearest};

use crate::{Config, Decoder, Error, Naming, Result, config::DecoderConfig, gguf};

/// How to read the configuration of one architecture.
pub struct Architecture {
    /// What checkpoints call it: the class of `config.json`, then the `general.architecture` of GGUF files.
    pub names: &'static [&'static str],
    /// Whether GGUF files of it keep the rotary pairs of query and key rows interleaved.
    pub gguf_interleaved: bool,
    /// What the configuration means. Differences from the shared settings go here.
    pub(crate) decoder: fn(&DecoderConfig, &mut Decoder) -> Result<()>,
}

/// Every architecture, in the order of the documentation.
pub static ARCHITECTURES: &[&Architecture] = &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2];

fn named(name: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().copied().find(|a| a.names.contains(&name)).ok_or_else(|| Error::UnknownArchitecture {
        found: name.into(),
        nearest: nearest(name, ARCHITECTURES.iter().flat_map(|a| a.names.iter().copied())).map(Into::into),
    })
}

fn build(architecture: &Architecture, config: &DecoderConfig) -> Result<Decoder> {
    let mut decoder = Decoder {
        name: architecture.names[1],
        vocabulary: config.vocab_size,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        blocks: config.num_hidden_layers,
        heads: config.num_attention_heads,
        key_heads: config.key_heads(),
        head: config.head(),
        epsilon: config.rms_norm_eps,
        rope: config.rope()?,
        window: None,
        tied: config.tie_word_embeddings,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
    };
    (architecture.decoder)(config, &mut decoder)?;
    Ok(decoder)
}

pub(crate) fn from_folder(checkpoint: &Checkpoint) -> Result<(Graph, Config)> {
    let path = checkpoint.path.join("config.json");
    let json = checkpoint.json("config.json")?.ok_or_else(|| Error::NoConfig { path: checkpoint.path.clone() })?;
    let config = Config::from_json(&path, json)?;
    let architecture = named(&config.architecture)?;
    let decoder = build(architecture, &DecoderConfig::parse(&path, &config.json)?)?;
    Ok((decoder.graph(Naming::HuggingFace, &*checkpoint.source)?, config))
}

pub(crate) fn from_gguf(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<(Graph, Config)> {
    let name = gguf::text(metadata, "general.architecture")?;
    let architecture = named(name)?;
    let json = gguf::config(architecture.names[0], name, metadata, &*checkpoint.source)?;
    let config = Config::from_json(&checkpoint.path, json)?;
    let mut decoder = build(architecture, &DecoderConfig::parse(&checkpoint.path, &config.json)?)?;
    gguf::adjust(&mut decoder, &*checkpoint.source)?;
    let naming = Naming::Gguf { interleaved: architecture.gguf_interleaved };
    Ok((decoder.graph(naming, &*checkpoint.source)?, config))
}
