//! What a compiler foretells of a device. Nothing here was measured, and every verdict on it says so.

use attar_tensor::nearest;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The eval that gates name for predictions.
pub const DEVICE: &str = "device";

/// Who foretells.
pub const PREDICTED: &str = "predicted";

/// Foretold of one model on one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Seconds from the first load to the last store of the prompt's run.
    pub latency: f64,
    /// Seconds of one token behind the prompt, if that was compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_latency: Option<f64>,
    /// Bytes of on-chip memory that are in use, at most.
    pub peak_sram: u64,
    /// Bytes of DRAM that are in use: weights, states and activations.
    pub peak_dram: u64,
    /// DRAM bytes that the prompt's run moves.
    pub dram_bytes: u64,
    /// Joules of one token: of the one behind the prompt, else the prompt's share.
    pub energy_per_token: f64,
}

/// One number of a [`Prediction`].
pub struct DeviceMetric {
    /// As gates name it, behind `device/`.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// What it counts.
    pub unit: &'static str,
    /// It, if it was foretold.
    pub value: fn(&Prediction) -> Option<f64>,
}

/// Every one, in the order of the documentation. Smaller is better for all.
pub static DEVICE_METRICS: &[DeviceMetric] = &[
    DeviceMetric { name: "latency", about: "time of the prompt's run", unit: "s", value: |p| Some(p.latency) },
    DeviceMetric { name: "decode-latency", about: "time of one token behind the prompt", unit: "s", value: |p| p.decode_latency },
    DeviceMetric { name: "peak-sram", about: "on-chip memory in use", unit: "bytes", value: |p| Some(p.peak_sram as f64) },
    DeviceMetric { name: "peak-dram", about: "DRAM in use", unit: "bytes", value: |p| Some(p.peak_dram as f64) },
    DeviceMetric {
        name: "dram-bytes",
        about: "DRAM bytes moved by the prompt's run",
        unit: "bytes",
        value: |p| Some(p.dram_bytes as f64),
    },
    DeviceMetric { name: "energy-per-token", about: "energy of one token", unit: "J", value: |p| Some(p.energy_per_token) },
];

/// The device metric of that name.
pub fn device_metric(name: &str) -> Result<&'static DeviceMetric> {
    DEVICE_METRICS.iter().find(|metric| metric.name == name).ok_or_else(|| Error::UnknownMetric {
        found: name.into(),
        nearest: nearest(name, DEVICE_METRICS.iter().map(|metric| metric.name)).map(Into::into),
        known: DEVICE_METRICS.iter().map(|metric| metric.name).collect(),
    })
}
