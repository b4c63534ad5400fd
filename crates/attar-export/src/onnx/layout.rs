//! The options of the target.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
}
