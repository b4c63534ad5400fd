//! Who runs a model, by the names that recipes and gates use: the reference, or an engine of [`ENGINES`].

use std::{borrow::Cow, fmt};

use attar_eval::{ENGINES, Engine, REFERENCE, engine};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What runs a model.
#[derive(Clone, Copy)]
pub enum RunnerKind {
    /// attar's reference implementation, on the weights as they will be written.
    Reference,
    /// An engine, on the written artifact.
    Engine(&'static Engine),
}

impl RunnerKind {
    /// The name in recipes and gates.
    pub fn name(self) -> &'static str {
        match self {
            RunnerKind::Reference => REFERENCE,
            RunnerKind::Engine(engine) => engine.name,
        }
    }

    /// The engine, if it is one.
    pub fn engine(self) -> Option<&'static Engine> {
        match self {
            RunnerKind::Reference => None,
            RunnerKind::Engine(engine) => Some(engine),
        }
    }

    /// The runner of that name.
    pub fn named(name: &str) -> attar_eval::Result<RunnerKind> {
        if name == REFERENCE { Ok(RunnerKind::Reference) } else { engine(name).map(RunnerKind::Engine) }
    }
}

impl PartialEq for RunnerKind {
    fn eq(&self, other: &RunnerKind) -> bool {
        self.name() == other.name()
    }
}

impl Eq for RunnerKind {}

impl fmt::Display for RunnerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for RunnerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for RunnerKind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for RunnerKind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<RunnerKind, D::Error> {
        from.deserialize_str(ByName)
    }
}

/// A visitor, since a mistake that it finds has the place of the name.
struct ByName;

impl de::Visitor<'_> for ByName {
    type Value = RunnerKind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a runner")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<RunnerKind, E> {
        RunnerKind::named(name).map_err(|_| {
            let known = [REFERENCE].into_iter().chain(ENGINES.iter().map(|engine| engine.name));
            let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
            E::custom(format!("no runner is named `{name}`; known: {}", known.join(", ")))
        })
    }
}

impl JsonSchema for RunnerKind {
    fn schema_name() -> Cow<'static, str> {
        "Runner".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = |name: &str, about: String| serde_json::json!({ "description": about, "type": "string", "const": name });
        let reference = one(REFERENCE, "Our own graph, on the weights as they will be written.".into());
        let engines = ENGINES.iter().map(|engine| one(engine.name, format!("{}, on the written artifact.", engine.title)));
        let all: Vec<serde_json::Value> = std::iter::once(reference).chain(engines).collect();
        json_schema!({ "oneOf": all })
    }
}
