//! Sizes in bytes, as settings spell them.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes: whole, or as text with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Powers of ten, as disks are sold, and powers of two.
const UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wanted = || format!("`{text}` is not a size; write it as `60 MB`, with B, kB, MB, GB, KiB, MiB or GiB");
        let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = (text[..end].trim(), text[end..].trim());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit || unit.is_empty() && *name == "B").ok_or_else(wanted)?;
        let number: f64 = number.parse().map_err(|_| wanted())?;
        let bytes = number * *factor as f64;
        // Whole numbers of f64 end there.
        if !(0.0..=9e15).contains(&bytes) { Err(wanted()) } else { Ok(Size(bytes as u64)) }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of bytes, or a size like `\"60 MB\"`")
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Size, E> {
                u64::try_from(n).map(Size).map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Size, E> {
                Ok(Size(n))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }] })
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units_of_ten_and_of_two() {
        let sizes = [("60 MB", 60_000_000), ("1.5GiB", 3 << 29), ("17", 17), ("2 kB", 2000), ("0 B", 0)];
        sizes.iter().for_each(|(text, bytes)| assert_eq!(text.parse(), Ok(Size(*bytes)), "{text}"));
        for text in ["", "MB", "60 mb", "-1 MB", "nan", "1e300 GB", "6 0 MB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
