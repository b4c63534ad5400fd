//! `baseline`: the checkpoint that evals compare with, written like `model`, or `false`.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::source::ModelSetting;

/// What evals compare with, as recipes write it.
#[derive(Clone, Debug)]
pub(crate) enum Baseline {
    /// A checkpoint.
    Checkpoint(ModelSetting),
    /// `false`.
    Nothing,
}

impl Serialize for Baseline {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Baseline::Checkpoint(checkpoint) => checkpoint.serialize(to),
            Baseline::Nothing => false.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Baseline {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Baseline, D::Error> {
        from.deserialize_any(CheckpointOrFalse)
    }
}

/// A visitor, since a mistake that it finds has the place of the value.
struct CheckpointOrFalse;

impl<'de> de::Visitor<'de> for CheckpointOrFalse {
    type Value = Baseline;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path of a checkpoint, a table with `path` and `ignore`, or `false`")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<Baseline, E> {
        Ok(Baseline::Checkpoint(ModelSetting { path: path.into(), ignore: Vec::new() }))
    }

    fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Baseline, M::Error> {
        ModelSetting::deserialize(de::value::MapAccessDeserializer::new(map)).map(Baseline::Checkpoint)
    }

    fn visit_bool<E: de::Error>(self, compare: bool) -> Result<Baseline, E> {
        if compare { Err(E::invalid_value(de::Unexpected::Bool(true), &self)) } else { Ok(Baseline::Nothing) }
    }
}

impl JsonSchema for Baseline {
    fn schema_name() -> Cow<'static, str> {
        "Baseline".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [ModelSetting::json_schema(generator), { "type": "boolean", "const": false }] })
    }
}
