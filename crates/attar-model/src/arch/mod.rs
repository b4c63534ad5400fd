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
use attar_tensor::{
    Checkpoint, Source,
    gguf::{Metadata, Value},
};

use crate::{
    Config, Error, Names, Naming, Pattern, Result,
    builder::Builder,
    config::check,
    gguf, keys, quantized, sentence,
    shape::{Keys, Shape},
};

/// A family of models that one function builds.
pub struct Architecture {
    /// The class in `config.json`, the name in GGUF files, which is the graph's too, and further names. The last is the
    /// `model_type` of transformers.
    pub names: &'static [&'static str],
    /// What checkpoints call the weights.
    pub weights: &'static Names,
    /// The `config.json` that transformers would write, from the header of a GGUF file.
    pub(crate) gguf: fn(&gguf::Header<'_>) -> Result<serde_json::Value>,
    /// The graph of a configuration, over the names of a checkpoint.
    pub(crate) build: fn(&Config, Builder<'_>) -> Result<Graph>,
    /// The sizes of that graph.
    pub(crate) shape: fn(&Config) -> Result<Shape>,
    /// Where a configuration says them.
    pub(crate) keys: &'static Keys,
}

/// Every architecture, in the order of the documentation.
pub static ARCHITECTURES: &[&Architecture] =
    &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &gemma3::GEMMA3, &phi3::PHI3, &gpt2::GPT2, &bert::BERT];

/// A head that equals the embedding it is tied to; where it differs, the graph reads it.
const TIED: (&str, &str) = ("lm_head.weight", "equal to the embedding, which the head is tied to");

/// What checkpoints of decoders with rotary positions hold besides weights.
const HARMLESS: &[(&str, &str)] = &[
    ("**.inv_freq", "frequencies that follow from the configuration"),
    ("blk.*.attn_rot_embd.weight", "frequencies that follow from the configuration"),
    TIED,
];

impl Architecture {
    /// The one that checkpoints call `name`.
    pub fn named(name: &str) -> Result<&'static Architecture> {
        let known = || ARCHITECTURES.iter().flat_map(|a| a.names.iter().copied());
        ARCHITECTURES.iter().copied().find(|a| a.names.contains(&name)).ok_or_else(|| Error::UnknownArchitecture {
            found: name.into(),
            // Names of other architectures look alike: `Phi3` is not a `Qwen3` that was misspelled.
            nearest: known().find(|known| one_letter_apart(name, known)).map(Into::into),
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

    pub(crate) fn graph(&self, config: &Config, naming: Naming, source: &dyn Source) -> Result<Graph> {
        (self.build)(config, Builder::new(self.graph_name(), self.weights, naming, source))
    }
}

/// Whether one letter is wrong, missing or too many, or stands in the other case.
fn one_letter_apart(found: &str, known: &str) -> bool {
    if found.eq_ignore_ascii_case(known) {
        return true;
    }
    let digits = |name: &str| name.chars().filter(char::is_ascii_digit).collect::<String>();
    let (a, b) = (found.as_bytes(), known.as_bytes());
    let front = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let back = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let longest = a.len().max(b.len());
    digits(found) == digits(known) && longest > 4 && a.len().abs_diff(b.len()) <= 1 && front + back + 1 >= longest
}

/// The module of a checkpoint that stores the weight `canonical` of `graph` and nothing else, if one does.
pub fn module(graph: &Graph, naming: Naming, canonical: &str) -> Option<String> {
    Architecture::of(graph)?.weights.module(naming, canonical)
}

/// A graph with what it was made by.
pub(crate) struct Built {
    pub(crate) graph: Graph,
    pub(crate) config: Config,
    /// The table of the names of its weights, and which of the two columns.
    pub(crate) names: Option<(&'static Names, Naming)>,
}

/// The graph of a Hugging Face folder, over the tensors of `source`.
pub(crate) fn from_folder(checkpoint: &Checkpoint, source: &dyn Source, ignore: &[Pattern]) -> Result<Built> {
    let mut config = config_of(checkpoint)?;
    config.pooling = sentence::pooling(checkpoint)?.unwrap_or_default();
    let lengths = [config.context, sentence::longest(checkpoint)?];
    config.context = lengths.into_iter().flatten().min();
    let architecture = Architecture::named(&config.architecture)?;
    check_type(&config, architecture, ignore)?;
    let graph = architecture.graph(&config, Naming::HuggingFace, source)?;
    keys::check(&config, ignore)?;
    Ok(Built { graph, config, names: Some((architecture.weights, Naming::HuggingFace)) })
}

/// `config.json`, and what `generation_config.json` says of the end of a text.
pub(crate) fn config_of(checkpoint: &Checkpoint) -> Result<Config> {
    let mut json = checkpoint.json("config.json")?.ok_or_else(|| Error::NoConfig { path: checkpoint.path.clone() })?;
    quantized::without(&mut json);
    let mut config = Config::from_json(&checkpoint.path.join("config.json"), json)?;
    if let Some(json) = checkpoint.json(GENERATION)? {
        config.generate_by(&checkpoint.path.join(GENERATION), &json)?;
    }
    Ok(config)
}

const GENERATION: &str = "generation_config.json";

/// `model_type`, by which transformers chooses the class, is that of the class in `architectures`.
fn check_type(config: &Config, architecture: &Architecture, ignore: &[Pattern]) -> Result<()> {
    let Some(kind) = config.settings()?.text("model_type")? else { return Ok(()) };
    if architecture.names.contains(&kind) || ignore.iter().any(|pattern| pattern.matches("config.model_type")) {
        return Ok(());
    }
    Err(Error::Contradiction {
        first: format!("architectures = {}", config.architecture),
        second: format!("model_type = {kind}"),
    })
}

/// The graph of a GGUF file, over the tensors of `source`.
pub(crate) fn from_gguf(checkpoint: &Checkpoint, metadata: &Metadata, source: &dyn Source, ignore: &[Pattern]) -> Result<Built> {
    let prefix = gguf::text(metadata, "general.architecture")?;
    if let Some(Value::Text(kind)) = metadata.get("general.type") {
        check("general.type", kind, |kind| kind == "model", "`model`")?;
    }
    let architecture = Architecture::named(prefix)?;
    let header = gguf::Header::new(architecture.names[0], prefix, metadata, source);
    let mut config = Config::from_json(&checkpoint.path, (architecture.gguf)(&header)?)?;
    config.pooling = header.pooling()?.unwrap_or_default();
    let graph = architecture.graph(&config, Naming::Gguf, source)?;
    header.check_keys(&checkpoint.path, ignore)?;
    keys::check(&config, &[])?;
    Ok(Built { graph, config, names: Some((architecture.weights, Naming::Gguf)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_is_suggested_only_where_one_letter_differs() {
        let suggested = |name: &str| match Architecture::named(name) {
            Err(Error::UnknownArchitecture { nearest, .. }) => nearest,
            _ => None,
        };
        assert_eq!(suggested("LlamaForCausalLm").as_deref(), Some("LlamaForCausalLM"));
        assert_eq!(suggested("LamaForCausalLM").as_deref(), Some("LlamaForCausalLM"));
        for other in ["Phi4ForCausalLM", "PhiForCausalLM", "Qwen4ForCausalLM", "Gemma2ForCausalLM", "OlmoForCausalLM", "opt"] {
            assert_eq!(suggested(other), None, "{other}");
        }
    }
}
