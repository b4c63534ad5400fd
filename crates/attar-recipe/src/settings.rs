//! JSON Schema of a settings struct: defaults, ranges and documentation, in the one place where a setting is defined.

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde_json::Value;

/// Without definitions of its own: everything inline.
pub(crate) fn of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let schema: Schema = settings.into_generator().into_root_schema_for::<T>();
    schema.into()
}
