//! Settings of what is registered (tasks, targets, steps): their JSON Schema, and how a table becomes settings.
//!
//! A setting is defined once, as a documented field of a struct. Recipes, the published schema and the flags of the command line
//! are derived from it.

mod share;
mod size;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use share::Share;
pub use size::{Count, Size};

/// Why a table is not the settings that were expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The path of the setting, empty for the whole table.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// The schema of a settings struct, without definitions of its own: everything inline.
pub fn schema<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    settings.into_generator().into_root_schema_for::<T>().into()
}

/// Settings from a table that follows the schema.
///
/// # Errors
/// If a key is missing or unknown, or has another type than its field; with the path of that key.
pub fn parse<T: DeserializeOwned>(table: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string().trim_matches('.').to_owned();
        Invalid { key, message: error.into_inner().to_string() }
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    /// Of a test.
    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Of {
        /// A number.
        of: Vec<u8>,
    }

    #[test]
    fn what_is_wrong_is_found_by_its_path() {
        assert_eq!(parse::<Of>(json!({ "of": [1] })), Ok(Of { of: vec![1] }));
        let wrong = parse::<Of>(json!({ "of": [1, "2"] })).unwrap_err();
        assert_eq!(wrong.key, "of[1]");
        assert!(wrong.message.contains("invalid type"), "{wrong}");
    }

    #[test]
    fn a_schema_is_whole_in_itself() {
        let schema = schema::<Of>();
        assert_eq!(schema["properties"]["of"]["items"]["type"], "integer");
        assert_eq!(schema["properties"]["of"]["description"], "A number.");
        assert_eq!(schema.get("$defs"), None);
    }
}
