//! What a caller may choose.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an artifact is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How quantized weights are represented.
    pub layout: Layout,
}

/// How quantized weights are laid out in an ONNX file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Standard operators only: integers and scales, followed by `DequantizeLinear`. Supports every scheme.
    #[default]
    DequantizeLinear,
    /// ONNX Runtime's own `MatMulNBits` and `GatherBlockQuantized`. Groups of 16, 32, 64, 128 or 256 only.
    #[serde(rename = "matmul-nbits")]
    MatMulNBits,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::DequantizeLinear => "dequantize-linear",
            Layout::MatMulNBits => "matmul-nbits",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_print_as_they_are_written_in_recipes() {
        for layout in [Layout::DequantizeLinear, Layout::MatMulNBits] {
            assert_eq!(serde_json::to_value(layout).unwrap(), layout.to_string());
        }
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        assert!(serde_json::from_str::<Options>(r#"{ "layuot": "matmul-nbits" }"#).is_err());
    }
}
