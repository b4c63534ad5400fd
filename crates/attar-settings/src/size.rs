//! Sizes in bytes and numbers of things, as settings spell them.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident, $units:expr, $wanted:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub u64);

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<$name, String> {
                in_units(text, $units).map($name).ok_or_else(|| format!(concat!("`{}` is not a ", $wanted), text))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_i64<E: de::Error>(self, n: i64) -> Result<$name, E> {
                        u64::try_from(n).map($name).map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
                    }

                    fn visit_u64<E: de::Error>(self, n: u64) -> Result<$name, E> {
                        Ok($name(n))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "oneOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }] })
            }

            fn inline_schema() -> bool {
                true
            }
        }
    };
}

amount!(
    /// A number of bytes: whole, or as text with a unit.
    Size,
    &BYTES,
    "size; write it as `60 MB`, with B, kB, MB, GB, KiB, MiB or GiB",
    "a whole number of bytes, or a size like `\"60 MB\"`"
);

amount!(
    /// A number of things: whole, or as text with `k`, `M` or `G` for powers of ten.
    Count,
    &THINGS,
    "count; write it as `100M`, with k, M or G for powers of ten",
    "a whole number, or one like `\"100M\"`"
);

/// Powers of ten, as disks are sold, and powers of two. The first is meant where none is said.
const BYTES: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// Powers of ten. The first is meant where none is said.
const THINGS: [(&str, u64); 6] =
    [("", 1), ("k", 1000), ("K", 1000), ("M", 1_000_000), ("G", 1_000_000_000), ("B", 1_000_000_000)];

/// A number and its unit.
fn in_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..end].trim(), text[end..].trim());
    let (_, factor) = if unit.is_empty() { units.first() } else { units.iter().find(|(name, _)| *name == unit) }?;
    let amount = number.parse::<f64>().ok()? * *factor as f64;
    // Whole numbers of f64 end there.
    (0.0..=9e15).contains(&amount).then_some(amount as u64)
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

    #[test]
    fn counts_have_units_of_ten() {
        let counts = [("100M", 100_000_000), ("1.5 G", 1_500_000_000), ("12", 12), ("7k", 7000)];
        counts.iter().for_each(|(text, count)| assert_eq!(text.parse(), Ok(Count(*count)), "{text}"));
        for text in ["", "M", "many", "3 MB", "-1", "nan"] {
            assert!(text.parse::<Count>().is_err(), "{text}");
        }
    }
}
