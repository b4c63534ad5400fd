//! JSON Schema of a settings struct: defaults, ranges and documentation, in the one place where a setting is defined.

pub(crate) use attar_settings::schema as of;
