//! The settings of the step `fuse`.

use std::borrow::Cow;

use attar_graph::Graph;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{PASSES, Pass, PassReport, find, run_passes};
use crate::Result;

/// Fuse graph nodes into the operations that a device executes as one.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fuse {
    /// Passes to run; their order is fixed [default: all passes that keep outputs bit-identical, that is, all but
    /// `fold_norms`].
    pub passes: Option<Vec<PassName>>,
}

impl Fuse {
    /// The graph after the passes, and a report of each.
    pub fn run(&self, graph: &Graph) -> Result<(Graph, Vec<PassReport>)> {
        let wanted = |pass: &dyn Pass| match &self.passes {
            Some(named) => named.iter().any(|named| named.0.name() == pass.name()),
            None => pass.is_exact(),
        };
        run_passes(graph, &PASSES.iter().copied().filter(|pass| wanted(*pass)).collect::<Vec<_>>())
    }
}

/// A pass by its name.
#[derive(Clone, Copy)]
pub struct PassName(pub &'static dyn Pass);

impl Serialize for PassName {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for PassName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<PassName, D::Error> {
        find(&String::deserialize(deserializer)?).map(PassName).map_err(de::Error::custom)
    }
}

impl JsonSchema for PassName {
    fn schema_name() -> Cow<'static, str> {
        "PassName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = PASSES.iter().map(|pass| pass.name()).collect();
        json_schema!({ "type": "string", "enum": names })
    }

    fn inline_schema() -> bool {
        true
    }
}

impl std::fmt::Debug for PassName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}
