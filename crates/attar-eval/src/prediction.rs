//! What a compiler says of a device: predictions, and what its integers were computed to lose. No device ran anything, and every
//! verdict says which of the two it is about.

use attar_tensor::nearest;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The name of the eval that predictions belong to, in gates.
pub const DEVICE: &str = "device";

/// The name of the runner that made the prediction.
pub const PREDICTED: &str = "predicted";

/// What is predicted for one model on one device, as far as its compiler predicts it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Seconds from the first load to the last store of the prompt's run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// Seconds for one token after the prompt, if that run was compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_latency: Option<f64>,
    /// Peak bytes of on-chip memory in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_sram: Option<u64>,
    /// Bytes of DRAM in use: weights, states and activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_dram: Option<u64>,
    /// DRAM bytes that the prompt's run moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dram_bytes: Option<u64>,
    /// Joules per token: of the one after the prompt if that was compiled, otherwise the prompt's mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_per_token: Option<f64>,
    /// Bytes of what was compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiled_bytes: Option<u64>,
    /// Mean KL divergence of the program's integers from the same weights with float activations, in nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Perplexity of the program's integers over that with float activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<f64>,
    /// Signal-to-noise ratio of the program's logits against those with float activations, in decibels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snr: Option<f64>,
    /// Tokens on which these three were computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Metrics that rest on numbers of the device which nobody has measured or published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// What to know of these numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The calls that a vendor's compiler compiled, where it tells them apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<PredictedCall>,
}

/// What a vendor's compiler predicts of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictedCall {
    /// `prefill`, `decode`, or `encode`.
    pub name: String,
    /// Tokens at once.
    pub rows: u64,
    /// Tokens that the cache holds before them.
    pub past: u64,
    /// Cycles of the device's clock.
    pub cycles: u64,
    /// Seconds.
    pub latency: f64,
    /// Bytes of on-chip memory in use.
    pub peak_sram: u64,
    /// Bytes of DRAM and flash in use.
    pub peak_dram: u64,
    /// Bytes that are moved from and to DRAM and flash.
    pub dram_bytes: u64,
}

/// One number of a [`Prediction`].
pub struct DeviceMetric {
    /// The name that gates use after `device/`.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// Whether it was computed with the program's own integers, exactly as the device would; all else is predicted.
    pub computed: bool,
    /// Whether it is about tokens that a model predicts, so that an encoder has none.
    pub of_tokens: bool,
    /// The value, if there is one.
    pub value: fn(&Prediction) -> Option<f64>,
}

impl DeviceMetric {
    /// A word for how it is known.
    pub fn known(&self) -> &'static str {
        if self.computed { "computed with the program's integers" } else { "predicted" }
    }
}

/// Every device metric, in the order of the documentation. Smaller is better for all but `snr`.
pub static DEVICE_METRICS: &[DeviceMetric] = &[
    DeviceMetric {
        name: "latency",
        about: "predicted time to process the prompt",
        unit: "s",
        computed: false,
        of_tokens: false,
        value: |p| p.latency,
    },
    DeviceMetric {
        name: "decode-latency",
        about: "predicted time of one token after the prompt",
        unit: "s",
        computed: false,
        of_tokens: true,
        value: |p| p.decode_latency,
    },
    DeviceMetric {
        name: "peak-sram",
        about: "predicted peak of on-chip memory in use",
        unit: "bytes",
        computed: false,
        of_tokens: false,
        value: |p| p.peak_sram.map(|bytes| bytes as f64),
    },
    DeviceMetric {
        name: "peak-dram",
        about: "predicted peak of DRAM in use",
        unit: "bytes",
        computed: false,
        of_tokens: false,
        value: |p| p.peak_dram.map(|bytes| bytes as f64),
    },
    DeviceMetric {
        name: "dram-bytes",
        about: "predicted DRAM traffic to process the prompt",
        unit: "bytes",
        computed: false,
        of_tokens: false,
        value: |p| p.dram_bytes.map(|bytes| bytes as f64),
    },
    DeviceMetric {
        name: "energy-per-token",
        about: "predicted energy per token",
        unit: "J",
        computed: false,
        of_tokens: false,
        value: |p| p.energy_per_token,
    },
    DeviceMetric {
        name: "compiled-bytes",
        about: "size of what a vendor's compiler made",
        unit: "bytes",
        computed: false,
        of_tokens: false,
        value: |p| p.compiled_bytes.map(|bytes| bytes as f64),
    },
    DeviceMetric {
        name: "kl",
        about: "KL divergence of the compiled integers from the same weights with float activations",
        unit: "nats/token",
        computed: true,
        of_tokens: true,
        value: |p| p.kl,
    },
    DeviceMetric {
        name: "perplexity-ratio",
        about: "perplexity of the compiled integers over that with float activations",
        unit: "ratio",
        computed: true,
        of_tokens: true,
        value: |p| p.perplexity_ratio,
    },
    DeviceMetric {
        name: "snr",
        about: "signal-to-noise ratio of the compiled integers' logits",
        unit: "dB",
        computed: true,
        of_tokens: false,
        value: |p| p.snr,
    },
];

/// The device metric of that name.
pub fn device_metric(name: &str) -> Result<&'static DeviceMetric> {
    DEVICE_METRICS.iter().find(|metric| metric.name == name).ok_or_else(|| Error::UnknownMetric {
        found: name.into(),
        nearest: nearest(name, DEVICE_METRICS.iter().map(|metric| metric.name)).map(Into::into),
        known: DEVICE_METRICS.iter().map(|metric| metric.name).collect(),
    })
}
