//! Shares of a whole, as settings spell them.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// `"3%"` or `0.03`, as it was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Share {
    /// `0.03`.
    Number(f64),
    /// `"3%"`, which may be no number.
    Percent(String),
}

impl Share {
    /// The share as a number; `None` if the text is no percentage.
    pub fn number(&self) -> Option<f64> {
        match self {
            Share::Number(n) => Some(*n),
            Share::Percent(text) => text.strip_suffix('%')?.trim().parse::<f64>().ok().map(|percent| percent / 100.0),
        }
    }
}

/// As a recipe has it: `0.03`, `"3%"`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Number(n) => n.fmt(f),
            Share::Percent(text) => write!(f, "{text:?}"),
        }
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "number" }, { "type": "string" }] })
    }

    fn inline_schema() -> bool {
        true
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Share, D::Error> {
        /// A visitor, since an untagged enum would not say what it expects.
        struct NumberOrPercent;

        impl de::Visitor<'_> for NumberOrPercent {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share such as `\"3%\"` or `0.03`")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Share, E> {
                Ok(Share::Number(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Share, E> {
                Ok(Share::Number(number as f64))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Share, E> {
                Ok(Share::Number(number as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
                Ok(Share::Percent(text.into()))
            }
        }

        from.deserialize_any(NumberOrPercent)
    }
}
