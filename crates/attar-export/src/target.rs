//! What a target is: the contract behind [`crate::TARGETS`].

use std::{collections::BTreeMap, fmt, ops::Range, path::Path, path::PathBuf};

use attar_graph::Graph;
use attar_model::ChatTemplate;
use attar_settings::Invalid;
use attar_tensor::{Digest, Source};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Artifact, Error, Plan, Result, Verification};

/// A kind of artifact.
pub struct Target {
    /// The name in recipes and on the command line.
    pub name: &'static str,
    /// What it writes, and for whom, in one line.
    pub about: &'static str,
    /// Raised whenever the same model and options give other bytes. It decides, with them, whether an artifact that is there
    /// already is kept.
    pub version: u32,
    /// JSON Schema of its options, without definitions of its own.
    pub schema: fn() -> Value,
    /// The target with options from a table that follows the schema: [`parse`].
    pub parse: fn(Value) -> std::result::Result<Box<dyn Format>, Invalid>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.name)
    }
}

impl Target {
    /// The target with its default options, or none if an option has no default.
    pub fn default_format(&self) -> Option<Box<dyn Format>> {
        (self.parse)(Value::Object(serde_json::Map::new())).ok()
    }
}

/// A target with its options.
pub trait Format: Send + Sync {
    /// The options with every default filled in.
    fn options(&self) -> Value;

    /// Whether outputs are those of all tokens of a call, as evals need them.
    fn returns_all(&self) -> bool {
        true
    }

    /// Whether it writes the plans of the step `compile` ([`Side::compiled`]), not the graph.
    fn needs_plans(&self) -> bool {
        false
    }

    /// What would be written, or why it cannot be. Reads no weight.
    fn check(&self, graph: &Graph) -> Result<Plan>;

    /// Whether what belongs to a model is what the target needs. Reads files, and no weight.
    fn check_side(&self, _side: &Side) -> Result<()> {
        Ok(())
    }

    /// Writes the files into `folder`, made if need be. The same model gives the same bytes.
    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact>;

    /// Re-opens the files of `artifact` in `folder` and compares every weight with the model's, and with what it was
    /// before quantization if `original` tells.
    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification>;
}

/// The [`Target::parse`] of options of type `F`.
///
/// # Errors
/// What is wrong with an option, by its key.
pub fn parse<F: Format + DeserializeOwned + 'static>(options: Value) -> std::result::Result<Box<dyn Format>, Invalid> {
    attar_settings::parse::<F>(options).map(|format| Box::new(format) as Box<dyn Format>)
}

/// A model to export.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What it computes.
    pub graph: &'a Graph,
    /// What its weight expressions read.
    pub source: &'a dyn Source,
    /// What belongs to it apart from graph and weights.
    pub side: &'a Side,
}

/// What belongs to a model apart from graph and weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    /// Its configuration in the form of Hugging Face's `config.json`; `null` if there is none.
    pub config: Value,
    /// Tokens that a text may have, if the model says so.
    pub context: Option<usize>,
    /// Other files by their names in a Hugging Face folder: `tokenizer.json`, `generation_config.json`, …
    pub files: BTreeMap<&'static str, Content>,
    /// The files of the last step `compile`, by their names in its folder; none without one.
    pub compiled: BTreeMap<String, Content>,
}

/// The files of a checkpoint's folder that a runtime or a reader may want, apart from the weights and the configuration.
pub const SIDE_FILES: [&str; 17] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "sentence_bert_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "README.md",
];

/// The configuration of a model beside its side files, in the form of Hugging Face.
pub const CONFIG: &str = "config.json";

/// The content of a side file.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// As it is in a file.
    File(PathBuf),
    /// Made from the checkpoint.
    Text(String),
    /// Made by a step.
    Bytes(Vec<u8>),
}

impl Content {
    /// The bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Content::File(path) => std::fs::read(path).map_err(Error::io("read", path)),
            Content::Text(text) => Ok(text.clone().into_bytes()),
            Content::Bytes(bytes) => Ok(bytes.clone()),
        }
    }
}

impl Content {
    /// Of the bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn digest(&self) -> Result<Digest> {
        match self {
            Content::File(path) => Ok(Digest::of_file(path)?),
            other => Ok(Digest::of(&other.bytes()?)),
        }
    }
}

impl Side {
    /// The object in a JSON file, if there is one of that name.
    ///
    /// # Errors
    /// If the file cannot be read, or holds something else.
    pub(crate) fn object(&self, name: &'static str) -> Result<Option<serde_json::Map<String, Value>>> {
        let Some(content) = self.files.get(name) else { return Ok(None) };
        let parsed = serde_json::from_slice(&content.bytes()?);
        parsed.map(Some).map_err(|error| Error::Beside { name, reason: error.to_string() })
    }

    /// The tokens that begin, end and fill up texts: what the generation configuration says comes before what the model's says. A model without one
    /// to fill up takes one that ends.
    pub(crate) fn special_tokens(&self) -> Result<Vec<(&'static str, Value)>> {
        let generation = match self.files.get("generation_config.json").map(Content::bytes).transpose()? {
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            None => Value::Null,
        };
        let token = |name: &str| {
            let found = [&generation[name], &self.config[name]].into_iter().find(|value| !value.is_null());
            found.filter(|value| value.is_u64() || value.is_array()).cloned()
        };
        let (begin, end) = (token("bos_token_id"), token("eos_token_id"));
        let first = end.as_ref().map(|end| end.get(0).unwrap_or(end).clone());
        let pad = token("pad_token_id").filter(Value::is_u64).or(first);
        let all = [("bos_token_id", begin), ("eos_token_id", end), ("pad_token_id", pad)];
        Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }

    /// The chat template, if the model has one.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what it should be.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let read = |name: &'static str| {
            let Some(content) = self.files.get(name) else { return Ok(None) };
            let path = if let Content::File(path) = content { path.clone() } else { name.into() };
            let failed = |source| attar_model::Error::Io { path: path.clone(), source };
            let text = match content {
                Content::File(path) => std::fs::read_to_string(path).map_err(failed)?,
                Content::Text(text) => text.clone(),
                Content::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            };
            Ok(Some((path, text)))
        };
        Ok(ChatTemplate::beside(read)?)
    }

    /// The tokenizer in the format of the `tokenizers` library, if the model has one.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Vec<u8>>> {
        self.files.get("tokenizer.json").map(Content::bytes).transpose()
    }
}

/// Called with bytes done and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads rows of the weight of a canonical name as it was before quantization; `false` if there is no such weight.
pub type Original<'a> = &'a dyn Fn(&str, Range<usize>, &mut [f32]) -> attar_graph::Result<bool>;
