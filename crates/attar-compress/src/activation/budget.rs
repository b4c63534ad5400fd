//! Under `bits = "auto"`: what 16-bit activations may cost, and how what they bring is found.

use attar_settings::Share;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What 16-bit activations may cost beyond 8 bits throughout: one of `cycles` and `bytes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivationBudget {
    /// Cycles of the array of `device` for the products of the selected layers with a prompt of 128 tokens, as a share of those
    /// with 8 bits: `"10%"` or `0.1`. Transfers are not counted. Weights that are not quantized count as those of 8 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycles: Option<Share>,
    /// Bytes of the quantized activations of a token, as a share of those with 8 bits: `"25%"` or `0.25`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Share>,
    /// Under `cycles`: name of a bundled device, or path of a device file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Under `cycles`: device parameters to override, such as `engine.w8a16=64`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
}

/// How the loss of 8 bits is found, one activation at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ActivationSensitivity {
    /// KL divergence in nats per token, to second order, from gradients on the calibration text.
    Fisher,
    /// KL divergence in nats per token, measured on the calibration text. Slow.
    Kl,
    /// Cosine distance of an encoder's embeddings of texts, measured on the calibration text.
    Drift,
    /// Squared error relative to the energy of the activation.
    Noise,
}

impl ActivationSensitivity {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            ActivationSensitivity::Fisher => "fisher",
            ActivationSensitivity::Kl => "kl",
            ActivationSensitivity::Drift => "drift",
            ActivationSensitivity::Noise => "noise",
        }
    }

    /// Whether losses are KL divergences.
    pub fn is_divergence(self) -> bool {
        matches!(self, ActivationSensitivity::Fisher | ActivationSensitivity::Kl)
    }
}

/// What has a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationCost {
    /// Cycles of a device's array.
    Cycles,
    /// Bytes of activations.
    Bytes,
}

impl ActivationCost {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            ActivationCost::Cycles => "cycles",
            ActivationCost::Bytes => "bytes",
        }
    }
}

impl ActivationBudget {
    /// What is bounded, and by how much it may grow.
    ///
    /// # Errors
    /// If it is not exactly one, no such share, or without the device that it needs.
    pub fn bound(&self) -> Result<(ActivationCost, f64)> {
        let (cost, share) = match (&self.cycles, &self.bytes) {
            (Some(cycles), None) => (ActivationCost::Cycles, cycles),
            (None, Some(bytes)) => (ActivationCost::Bytes, bytes),
            _ => return Err(Error::OneActivationBudget),
        };
        let of_device = [("budget.device", self.device.is_some()), ("budget.set", !self.set.is_empty())];
        match of_device.into_iter().find(|(_, given)| *given) {
            Some((key, _)) if cost == ActivationCost::Bytes => return Err(Error::Idle { key, other: "budget.cycles" }),
            _ if cost == ActivationCost::Cycles && self.device.is_none() => {
                return Err(Error::Idle { key: "budget.cycles", other: "budget.device" });
            }
            _ => {}
        }
        match share.number() {
            Some(number) if number.is_finite() && number >= 0.0 => Ok((cost, number)),
            _ => Err(Error::Increase { key: cost.name(), found: share.to_string() }),
        }
    }
}

/// As a recipe has it: `cycles = "10%"`.
impl std::fmt::Display for ActivationBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let given = [("cycles", &self.cycles), ("bytes", &self.bytes)];
        given
            .iter()
            .filter_map(|(key, share)| Some((key, share.as_ref()?)))
            .try_for_each(|(key, share)| write!(f, "{key} = {share}"))?;
        self.device.iter().try_for_each(|device| write!(f, ", device = {device:?}"))?;
        if self.set.is_empty() { Ok(()) } else { write!(f, ", set = {:?}", self.set) }
    }
}
