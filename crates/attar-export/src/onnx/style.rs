//! Which operators are written.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which operators an ONNX file is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// ONNX Runtime's own where it has them: `GroupQueryAttention` with the rotary embedding inside, `SkipSimplifiedLayerNormalization`,
    /// one `MatMulNBits` for query, key and value and one for gate and up. OpenVINO reads them, too.
    #[default]
    Fused,
    /// Operators of the ONNX standard, opset 24, where they do what the model does: `Attention` with its cache, `RotaryEmbedding`,
    /// `RMSNormalization`. `layout` decides about weights; those of query, key and value are one product, as in `fused`.
    Standard,
    /// Operators of the ONNX standard, opset 21; `layout` decides about weights.
    Plain,
}

/// Versions of the format: of the standard's operators, and of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Versions {
    pub(super) opset: i64,
    pub(super) ir: i64,
}

impl Style {
    /// The oldest pair that has the operators and 4-bit integers.
    pub(super) fn versions(self) -> Versions {
        match self {
            Style::Standard => Versions { opset: 24, ir: 12 },
            Style::Fused | Style::Plain => Versions { opset: 21, ir: 10 },
        }
    }

    /// Whether linear layers that read the same value are one product.
    pub(super) fn packs(self) -> bool {
        self != Style::Plain
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Style::Fused => "fused",
            Style::Standard => "standard",
            Style::Plain => "plain",
        })
    }
}

/// For which tokens a decoder returns logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Logits {
    /// For all of a call: evals need them.
    #[default]
    All,
    /// For the last of each row: what generating needs, without the memory of the others. Rows are padded in front.
    Last,
}

/// The `accuracy_level` of `MatMulNBits`: the least precise type that it may round activations to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct AccuracyLevel(u8);

impl AccuracyLevel {
    /// Activations in 8-bit integers.
    pub const INT8: AccuracyLevel = AccuracyLevel(4);

    /// Whether activations stay f32 in ONNX Runtime's kernels for processors.
    pub fn is_exact(self) -> bool {
        self.0 < 2
    }
}

impl From<AccuracyLevel> for u8 {
    fn from(level: AccuracyLevel) -> u8 {
        level.0
    }
}

impl TryFrom<u8> for AccuracyLevel {
    type Error = String;

    fn try_from(level: u8) -> Result<AccuracyLevel, String> {
        match level {
            0..=4 => Ok(AccuracyLevel(level)),
            _ => Err(format!("{level} is no accuracy level: 0 (not set), 1 (f32), 2 (f16), 3 (bf16) or 4 (int8)")),
        }
    }
}

impl JsonSchema for AccuracyLevel {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AccuracyLevel".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": 4 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_print_as_they_are_written_in_recipes() {
        for style in [Style::Fused, Style::Standard, Style::Plain] {
            assert_eq!(serde_json::to_value(style).unwrap(), style.to_string());
        }
    }

    #[test]
    fn levels_are_those_of_the_operator() {
        assert!(AccuracyLevel::default().is_exact() && !AccuracyLevel::INT8.is_exact());
        assert!(serde_json::from_str::<AccuracyLevel>("5").is_err());
    }
}
