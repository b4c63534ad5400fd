//! The settings of a budget.

use std::{borrow::Cow, fmt};

use attar_tensor::Scheme;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A scheme by its text: `int4/g32/int6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice(pub Scheme);

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Choice, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Choice).map_err(|e: attar_tensor::Error| {
            let hint = e.hint().unwrap_or_else(|| "a scheme is written like `int4/g64` or `int4/g32/int6`".into());
            de::Error::custom(format!("{e}; {hint}"))
        })
    }
}

impl JsonSchema for Choice {
    fn schema_name() -> Cow<'static, str> {
        "Choice".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// Scales are small codes, so that small groups cost little. The last choice fits rows of any width.
const DEFAULT_CHOICES: [&str; 8] = [
    "int2/g32/int6",
    "int3/g64/int6",
    "int3/g32/int6",
    "int4/g64/int6",
    "int4/g32/int6",
    "int5/g64/int6",
    "int6/g64/int6",
    "int8/row",
];

/// The default choices of a budget: 2.2 to 8 bits per weight.
pub fn default_choices() -> Vec<Choice> {
    DEFAULT_CHOICES.iter().map(|text| Choice(text.parse().expect("constants that the tests parse"))).collect()
}

/// How the loss of a choice is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Sensitivity {
    /// KL divergence in nats per token, to second order, from gradients on the calibration text.
    Fisher,
    /// KL divergence in nats per token, measured on the calibration text with one tensor quantized at a time. Slow.
    Kl,
    /// Squared error relative to the energy of the weights. Needs no text.
    Weights,
}

impl Sensitivity {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Sensitivity::Fisher => "fisher",
            Sensitivity::Kl => "kl",
            Sensitivity::Weights => "weights",
        }
    }

    /// Whether its predictions are KL divergences.
    pub fn is_divergence(self) -> bool {
        self != Sensitivity::Weights
    }
}

/// The size that weights may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// True bits per weight, over the selected weights.
    Bits(f64),
    /// Bytes of the whole model.
    Bytes(u64),
    /// Bits per weight of the stream that a device's coder makes of the codes, over the selected weights.
    Coded(f64),
}

impl Budget {
    /// The setting that gives it.
    pub fn key(self) -> &'static str {
        match self {
            Budget::Bits(_) => "bits",
            Budget::Bytes(_) => "bytes",
            Budget::Coded(_) => "coded_bits",
        }
    }

    /// Bits for the selected weights, whose number is `weights`, if the remainder of the model takes `rest` bits.
    pub fn bits(self, weights: u64, rest: u64) -> u64 {
        match self {
            // A mean that was divided out of whole bits gives them back.
            Budget::Bits(bits) | Budget::Coded(bits) => (bits * weights as f64 * (1.0 + 1e-12)).max(0.0) as u64,
            Budget::Bytes(bytes) => bytes.saturating_mul(8).saturating_sub(rest),
        }
    }

    /// The budget, in the words of a recipe, that allows the selected `weights` that many `bits`, rounded up.
    pub fn that_allows(self, bits: u64, weights: u64, rest: u64) -> String {
        match self {
            Budget::Bits(_) | Budget::Coded(_) => {
                format!("{} = {}", self.key(), (bits as f64 / weights.max(1) as f64 * 1e4).ceil() / 1e4)
            }
            Budget::Bytes(_) => format!("bytes = {}", (bits + rest).div_ceil(8)),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Bits(amount) | Budget::Coded(amount) => write!(f, "{} = {amount}", self.key()),
            Budget::Bytes(bytes) => write!(f, "bytes = {bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_allow_some_bits_does() {
        let (weights, rest, bits) = (1_000_003u64, 12_345u64, 3_456_789u64);
        for budget in [Budget::Bits(1.0), Budget::Bytes(1), Budget::Coded(1.0)] {
            let text = budget.that_allows(bits, weights, rest);
            let number = text.split(" = ").nth(1).and_then(|number| number.parse::<f64>().ok());
            let again = match budget {
                Budget::Bits(_) => number.map(Budget::Bits),
                Budget::Bytes(_) => number.map(|bytes| Budget::Bytes(bytes as u64)),
                Budget::Coded(_) => number.map(Budget::Coded),
            };
            let allowed = again.map(|again| again.bits(weights, rest)).unwrap_or(0);
            assert!(allowed >= bits && allowed < bits + 200, "{text}: {allowed}");
        }
    }

    #[test]
    fn default_choices_are_distinct_schemes_of_rising_size() {
        let bits: Vec<f64> = default_choices().iter().map(|choice| choice.0.bits_per_weight([4096, 4096])).collect();
        assert!(bits.windows(2).all(|pair| pair[0] < pair[1]), "{bits:?}");
    }
}
