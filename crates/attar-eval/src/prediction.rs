//! A compiler's predictions for a device. Nothing here was measured, and every verdict on it says so.

use attar_tensor::nearest;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The name of the eval that predictions belong to, in gates.
pub const DEVICE: &str = "device";

/// The name of the runner that made the prediction.
pub const PREDICTED: &str = "predicted";

/// What is predicted for one model on one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Seconds from the first load to the last store of the prompt's run.
    pub latency: f64,
    /// Seconds for one token after the prompt, if that run was compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_latency: Option<f64>,
    /// Peak bytes of on-chip memory in use.
    pub peak_sram: u64,
    /// Bytes of DRAM in use: weights, states and activations.
    pub peak_dram: u64,
    /// DRAM bytes that the prompt's run moves.
    pub dram_bytes: u64,
    /// Joules per token: of the one after the prompt if that was compiled, otherwise the prompt's mean.
    pub energy_per_token: f64,
}

/// One number of a [`Prediction`].
pub struct DeviceMetric {
    /// The name that gates use after `device/`.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// The predicted value, if there is one.
    pub value: fn(&Prediction) -> Option<f64>,
}

/// Every device metric, in the order of the documentation. Smaller is better for all.
pub static DEVICE_METRICS: &[DeviceMetric] = &[
    DeviceMetric { name: "latency", about: "predicted time to process the prompt", unit: "s", value: |p| Some(p.latency) },
    DeviceMetric {
        name: "decode-latency",
        about: "predicted time of one token after the prompt",
        unit: "s",
        value: |p| p.decode_latency,
    },
    DeviceMetric {
        name: "peak-sram",
        about: "predicted peak of on-chip memory in use",
        unit: "bytes",
        value: |p| Some(p.peak_sram as f64),
    },
    DeviceMetric {
        name: "peak-dram",
        about: "predicted peak of DRAM in use",
        unit: "bytes",
        value: |p| Some(p.peak_dram as f64),
    },
    DeviceMetric {
        name: "dram-bytes",
        about: "predicted DRAM traffic to process the prompt",
        unit: "bytes",
        value: |p| Some(p.dram_bytes as f64),
    },
    DeviceMetric {
        name: "energy-per-token",
        about: "predicted energy per token",
        unit: "J",
        value: |p| Some(p.energy_per_token),
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
