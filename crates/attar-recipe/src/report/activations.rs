//! Which activations the step `activations` quantized.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
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

impl Finding for ActivationReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Activations with the least signal to noise", table(found))]
    }

    fn arrange(found: &mut [Self]) {
        let snr = |activation: &ActivationReport| activation.snr_db.unwrap_or(f64::INFINITY);
        found.sort_by(|a, b| snr(a).total_cmp(&snr(b)));
    }
}

/// Activations in integers: the worst ten of each variant whose noise was measured.
fn table(variants: &Found<'_, ActivationReport>) -> Table {
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
