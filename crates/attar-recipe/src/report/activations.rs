//! Which activations the step `activations` quantized.

use serde::{Deserialize, Serialize};

use crate::table::{Table, or_dash};

/// Activations that the text of a report shows of each variant.
const WORST: usize = 10;

/// What became of one activation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActivationReport {
    /// The value's name in the graph.
    pub name: String,
    /// Size of its last dimension.
    pub width: usize,
    /// Codes, and what shares a scale: `int8/token`, `int8/tensor/asymmetric`, …
    pub encoding: String,
    /// Weights of the linear layers that read it, or the cache.
    pub feeds: Vec<String>,
    /// Signal to rounding noise on the calibration text in decibels; absent where there is no such text, or no noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snr_db: Option<f64>,
}

/// Activations in integers: the worst ten of each variant whose noise was measured.
pub(super) fn table(variants: &[(&str, &[ActivationReport])]) -> Table {
    let mut rows = Vec::new();
    for (variant, activations) in variants {
        let measured = activations.iter().filter_map(|activation| Some((activation, activation.snr_db?)));
        rows.extend(measured.take(WORST).map(|(activation, snr)| {
            let feeds = activation.feeds.join(", ");
            vec![or_dash(variant), activation.name.clone(), activation.encoding.clone(), format!("{snr:.1}"), feeds]
        }));
    }
    Table { head: &["variant", "activation", "codes", "SNR dB", "read by"], rows }
}
