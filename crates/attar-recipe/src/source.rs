//! `model` of a recipe: the path of a checkpoint, or a table that says what of it may be left out. And in words, what was
//! read of it.
//!
//! ```toml
//! [model]
//! path = "models/tuned"
//! ignore = ["model.layers.*.self_attn.rotary_emb.*", "config.attention_multiplier"]
//! ```

use std::{borrow::Cow, fmt, path::PathBuf};

use attar_model::{OpenOptions, Pattern, Summary};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::table::bytes;

/// `model`, as a path or as a table.
#[derive(Clone, Debug)]
pub(crate) struct ModelSetting {
    pub(crate) path: PathBuf,
    /// Patterns over stored tensors and keys of the configuration that may be left out.
    pub(crate) ignore: Vec<String>,
}

/// The table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    path: PathBuf,
    #[serde(default)]
    ignore: Vec<String>,
}

impl ModelSetting {
    /// How the checkpoint is opened.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions { ignore: self.ignore.iter().map(Pattern::new).collect() }
    }
}

/// A path alone where nothing is ignored, so that the two ways to say so are one.
impl Serialize for ModelSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.ignore.is_empty() {
            true => self.path.serialize(serializer),
            false => Table { path: self.path.clone(), ignore: self.ignore.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ModelSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ModelSetting, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = ModelSetting;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path of a checkpoint, or a table with `path` and `ignore`")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<ModelSetting, E> {
        Ok(ModelSetting { path: path.into(), ignore: Vec::new() })
    }

    fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<ModelSetting, M::Error> {
        let Table { path, ignore } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(ModelSetting { path, ignore })
    }
}

impl JsonSchema for ModelSetting {
    fn schema_name() -> Cow<'static, str> {
        "Model".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "object"],
            "properties": {
                "path": { "type": "string", "description": "The checkpoint." },
                "ignore": {
                    "type": "array",
                    "items": { "type": "string" },
                    "default": [],
                    "description": "Patterns over stored tensors and keys of the configuration (`config.KEY`) that may be left out: `*` matches within one part of a name, `**` any number of parts."
                }
            },
            "required": ["path"],
            "additionalProperties": false
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What was read of a checkpoint, a line for each fact.
pub fn what_was_read(read: &Summary) -> String {
    let tied = read.tied.map(|tied| if tied { "the embedding (tied)" } else { "a weight of its own" }.to_owned());
    let none = |list: &[String]| if list.is_empty() { "none".into() } else { list.join("; ") };
    let end: Vec<String> = read.end.iter().map(u32::to_string).collect();
    let mut facts = vec![("parameters", format!("{} in {} blocks", read.parameters, read.blocks))];
    facts.extend(read.quantized.iter().map(|how| ("weights", format!("{how}; to quantize them again loses more"))));
    facts.extend(tied.map(|tied| ("head", tied)));
    facts.extend([("rotary positions", none(&read.rope)), ("attention to", none(&read.window)), ("norms", none(&read.norms))]);
    facts.extend([("biases of", none(&read.biases)), ("end of text", none(&end))]);
    facts.extend(read.no_tokenizer.iter().map(|reason| ("tokenizer", format!("none that can be used: {reason}"))));
    let more = [("not needed", &read.harmless), ("ignored", &read.ignored), ("not read", &read.left_out)];
    facts.extend(more.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| (name, list.join("; "))));
    let mut text = "what was read:\n".to_owned();
    facts.iter().for_each(|(name, fact)| text += &format!("  {name}: {fact}\n"));
    for file in &read.files {
        let digest = file.digest.map(|digest| format!(", {}", digest.short())).unwrap_or_default();
        text += &format!("  {}: {}{digest}\n", file.name, bytes(file.bytes));
    }
    text
}
