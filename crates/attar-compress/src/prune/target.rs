//! Budgets for the shape of a model.

use attar_settings::{Count, Size};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, GridName, Result};

/// What the smaller model may cost: one of these.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Parameters; tied weights count once. Whole, or as text: `100M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Count>,
    /// Bytes of the weights in the number formats that they have at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Size>,
    /// Multiply-accumulates for one token, without those of attention with its cache. Whole, or as text: `90M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macs: Option<Count>,
    /// Bytes that one token adds to the key-value cache, in 16 bits a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_bytes: Option<Size>,
    /// Seconds that `device` takes for one token after a prompt of 128 tokens, by the plan that the step `compile` makes: a prediction.
    /// The model is planned in integers: weights of the blocks in `grid`, the others and all activations in 8 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// Under `latency`: name of a bundled device, or path of a device file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Under `latency`: device parameters to override, such as `sram=2MiB`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// Under `latency`: number format of the weights of the blocks [default: int8].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<GridName>,
    /// Under `latency`: weights that share a scale, which is int8 then [default: those of a row, with a scale in f16].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
}

/// Which of a model's costs has a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Parameters.
    Parameters,
    /// Bytes of the weights.
    Bytes,
    /// Multiply-accumulates for one token.
    Macs,
    /// Bytes of cache for one token.
    KvBytes,
    /// Nanoseconds for one token on a device.
    Latency,
}

/// Of a second: whole numbers of them are compared, so that what can be met is met.
const NANOSECONDS: f64 = 1e9;

impl Cost {
    /// The setting that bounds it.
    pub fn key(self) -> &'static str {
        match self {
            Cost::Parameters => "parameters",
            Cost::Bytes => "bytes",
            Cost::Macs => "macs",
            Cost::KvBytes => "kv_bytes",
            Cost::Latency => "latency",
        }
    }

    /// An amount of [`Cost::Latency`].
    pub fn nanoseconds(seconds: f64) -> u64 {
        (seconds * NANOSECONDS).ceil() as u64
    }

    /// An amount of it as the setting would say it.
    pub fn shown(self, amount: u64) -> String {
        match self {
            Cost::Latency => (amount as f64 / NANOSECONDS).to_string(),
            _ => amount.to_string(),
        }
    }
}

impl Target {
    /// What is bounded, and the bound.
    ///
    /// # Errors
    /// If it is not exactly one, if what is said of a device has no latency to bound, or the other way round.
    pub fn budget(&self) -> Result<(Cost, u64)> {
        self.check_device()?;
        let given = [
            self.parameters.map(|n| (Cost::Parameters, n.0)),
            self.bytes.map(|n| (Cost::Bytes, n.0)),
            self.macs.map(|n| (Cost::Macs, n.0)),
            self.kv_bytes.map(|n| (Cost::KvBytes, n.0)),
            self.latency.map(|seconds| (Cost::Latency, (seconds * NANOSECONDS).round() as u64)),
        ];
        match given.into_iter().flatten().collect::<Vec<_>>()[..] {
            [one] => Ok(one),
            ref other => Err(Error::OneBudget { found: other.len() }),
        }
    }

    fn check_device(&self) -> Result<()> {
        let of_device = [
            ("target.device", self.device.is_some()),
            ("target.set", !self.set.is_empty()),
            ("target.grid", self.grid.is_some()),
            ("target.group", self.group.is_some()),
        ];
        match (self.latency, of_device.into_iter().find(|(_, given)| *given)) {
            (None, Some((key, _))) => Err(Error::Idle { key, other: "target.latency" }),
            (Some(_), _) if self.device.is_none() => Err(Error::Idle { key: "target.latency", other: "target.device" }),
            (Some(found), _) if !(found.is_finite() && found > 0.0) => Err(Error::Bound { key: "latency", found }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_one_budget() {
        let both = Target { parameters: Some(Count(5)), macs: Some(Count(5)), ..Target::default() };
        assert!(both.budget().is_err() && Target::default().budget().is_err());
        assert_eq!(Target { parameters: Some(Count(5)), ..Target::default() }.budget().unwrap(), (Cost::Parameters, 5));
    }
}
