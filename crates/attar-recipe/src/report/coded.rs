//! How large the codes of weights are in the coded stream of a device: an estimate.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, rows_of};

/// Weights in codes that a device's coder takes: integers with a scale per row or tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodedReport {
    /// The device that a step was told.
    pub device: String,
    /// Matrices.
    pub layers: usize,
    /// Numbers in them.
    pub weights: u64,
    /// Zeros among these.
    pub zeros: u64,
    /// Bits per weight, without scales.
    pub bits_per_weight: f64,
    /// Entropy of the codes of a matrix, in bits per weight.
    pub entropy: f64,
    /// Bits per weight that the device's coder takes, estimated from that.
    pub coded_bits_per_weight: f64,
}

impl Finding for CodedReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        let row = |report: &CodedReport| {
            vec![
                report.device.clone(),
                format!("{} in {} matrices", report.weights, report.layers),
                format!("{:.1}%", 100.0 * report.zeros as f64 / report.weights.max(1) as f64),
                format!("{:.2}", report.bits_per_weight),
                format!("{:.2}", report.entropy),
                format!("{:.2}", report.coded_bits_per_weight),
            ]
        };
        let head = &["variant", "device", "weights", "zeros", "bits per weight", "entropy", "coded bits per weight (estimated)"];
        let rows = rows_of(found.iter().copied(), |report: &CodedReport| vec![row(report)]);
        vec![("Weights in a coded stream", Table { head, rows })]
    }
}
