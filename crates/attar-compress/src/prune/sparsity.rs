//! Sparse weights: single weights leave, and matrices keep their shape.
//!
//! What leaves is said by [`Sparsity`]: a share of every matrix, or all but `n` of every `m` consecutive inputs. A score picks them
//! ([`super::sparse`]), and the values that stay are fitted by exact least squares, row by row ([`super::support`]).
//!
//! ```text
//! "2:4"    w = [.9 .1 -.4 .3 | .2 .2 -.7 0.]    stays = [1 0 1 0 | 1 0 1 0]
//! ```

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How many weights of a matrix leave, and from where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsity {
    /// So large a share of every matrix.
    Share(f64),
    /// All but `keep` of every `of` consecutive inputs.
    Pattern {
        /// Weights that stay.
        keep: usize,
        /// Consecutive inputs.
        of: usize,
    },
}

/// The longest pattern: what a code of a position in a byte can tell.
const LONGEST: usize = 256;

impl Sparsity {
    /// The share of weights that leave.
    pub fn share(self) -> f64 {
        match self {
            Sparsity::Share(share) => share,
            Sparsity::Pattern { keep, of } => 1.0 - keep as f64 / of as f64,
        }
    }

    /// How many of `count` weights leave.
    pub(super) fn leaving(self, count: usize) -> usize {
        (self.share() * count as f64).round() as usize
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sparsity::Share(share) => share.fmt(f),
            Sparsity::Pattern { keep, of } => write!(f, "{keep}:{of}"),
        }
    }
}

impl FromStr for Sparsity {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Sparsity, String> {
        let pattern = text.split_once(':').and_then(|(keep, of)| Some((keep.trim().parse().ok()?, of.trim().parse().ok()?)));
        match (pattern, text.trim().parse::<f64>()) {
            (Some((keep, of)), _) if keep > 0 && keep < of && of <= LONGEST => Ok(Sparsity::Pattern { keep, of }),
            (None, Ok(share)) if share > 0.0 && share < 1.0 => Ok(Sparsity::Share(share)),
            (Some((_, of)), _) if of > LONGEST => Err(format!("`{text}` is no pattern: of at most {LONGEST} inputs some stay")),
            (Some(_), _) => {
                Err(format!("`{text}` is no pattern: of `\"n:m\"`, at least 1 and less than m stay, as in `\"2:4\"`"))
            }
            (None, Ok(_)) => Err(format!("`{text}` is no share of weights that leave: more than 0 and less than 1 is")),
            (None, Err(_)) => Err(format!("`{text}` is neither a share such as 0.5 nor a pattern such as `\"2:4\"`")),
        }
    }
}

impl Serialize for Sparsity {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Sparsity::Share(share) => serializer.serialize_f64(*share),
            Sparsity::Pattern { .. } => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Sparsity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Sparsity, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Sparsity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share such as 0.5, or a pattern such as `\"2:4\"`")
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> std::result::Result<Sparsity, E> {
                share.to_string().parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, share: i64) -> std::result::Result<Sparsity, E> {
                share.to_string().parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, share: u64) -> std::result::Result<Sparsity, E> {
                share.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Sparsity, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Sparsity {
    fn schema_name() -> Cow<'static, str> {
        "Sparsity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1 },
            { "type": "string", "pattern": "^[0-9]+:[0-9]+$" }
        ] })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A matrix of which some weights leave.
pub struct Sparse {
    /// Which weights stay, `[rows, columns]`. None of them was zero.
    pub stays: Vec<bool>,
    /// What the choice left of the weights, `[rows, columns]`; zero where they leave.
    pub weight: Vec<f32>,
}

/// Marks the weights of least score that leave, of equals the first: of a run of weights that are compared, or of every group.
pub(super) fn leave(stays: &mut [bool], score: impl Fn(usize) -> f64, sparsity: Sparsity) {
    let size = match sparsity {
        Sparsity::Share(_) => stays.len(),
        Sparsity::Pattern { of, .. } => of,
    };
    let mut order: Vec<(f64, usize)> = Vec::with_capacity(size);
    for (group, stays) in stays.chunks_mut(size.max(1)).enumerate() {
        order.clear();
        order.extend((0..stays.len()).map(|at| (score(group * size + at), at)));
        let count = sparsity.leaving(stays.len());
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by(count, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        }
        order[..count].iter().for_each(|(_, at)| stays[*at] = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsity_is_a_share_or_a_pattern() {
        assert_eq!("0.5".parse(), Ok(Sparsity::Share(0.5)));
        assert_eq!("2:4".parse(), Ok(Sparsity::Pattern { keep: 2, of: 4 }));
        for wrong in ["0", "1", "1.5", "-0.5", "NaN", "4:2", "0:4", "4:4", "2:", "half", "1:257"] {
            assert!(wrong.parse::<Sparsity>().is_err(), "{wrong}");
        }
    }
}
