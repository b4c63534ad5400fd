//! Patterns over canonical names: `*` matches anything within one part of the name, `**` any number of parts, `{a,b}`
//! either of the two.

use std::borrow::Cow;

use attar_tensor::nearest;
use globset::{GlobBuilder, GlobMatcher};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, kind};

/// One pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

/// Several: a name matches if one of them does.
pub type Patterns = Vec<Pattern>;

impl Pattern {
    /// From text.
    pub fn new(text: &str) -> Result<Pattern, globset::Error> {
        let glob = GlobBuilder::new(&text.replace('.', "/")).literal_separator(true).build()?;
        Ok(Pattern { text: text.into(), matcher: glob.compile_matcher() })
    }

    /// Whether it matches `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.matcher.is_match(name.replace('.', "/"))
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Whether every pattern of the setting `key` matches one of `names`.
pub(crate) fn check(key: &str, patterns: &[Pattern], names: &[&str], within_selection: bool) -> Result<(), Error> {
    for (i, pattern) in patterns.iter().enumerate() {
        if !names.iter().any(|name| pattern.matches(name)) {
            let nearest = examples(pattern.text(), names);
            return Err(Error::NoMatch { key: format!("{key}[{i}]"), pattern: pattern.text().into(), within_selection, nearest });
        }
    }
    Ok(())
}

/// A few names that `pattern` could have meant, or one of each kind.
fn examples(pattern: &str, names: &[&str]) -> Vec<String> {
    if let Some(name) = nearest(pattern, names.iter().copied()) {
        return vec![format!("`{name}`")];
    }
    let mut kinds: Vec<String> = names.iter().map(|name| format!("`{}`", kind(name))).collect();
    kinds.sort();
    kinds.dedup();
    kinds.truncate(9);
    kinds
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        let text = String::deserialize(deserializer)?;
        Pattern::new(&text).map_err(|e| de::Error::custom(format!("`{text}` is not a pattern: {}", e.kind())))
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A pattern over canonical weight names: `*` matches within one part of the name, `**` any number of parts, `{a,b}` either." })
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_its_part_of_the_name() {
        let matches = |pattern: &str, name: &str| Pattern::new(pattern).unwrap().matches(name);
        assert!(matches("blocks.*.{attention,mlp}.*", "blocks.11.mlp.down"));
        assert!(!matches("blocks.*.{attention,mlp}.*", "blocks.11.mlp_norm"));
        assert!(!matches("blocks.*", "blocks.1.mlp.down"));
        assert!(matches("blocks.**", "blocks.1.mlp.down"));
        assert!(!matches("lm_head", "xlm_head"));
    }
}
