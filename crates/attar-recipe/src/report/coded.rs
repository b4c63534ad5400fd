//! How large the codes of sparse weights are in the coded stream of a device: an estimate.

use std::collections::BTreeMap;

use attar_graph::Expr;
use attar_tensor::{Encoding, Granularity, Levels, Scheme, Source};
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::{
    Result,
    model::Working,
    table::{Table, rows_of},
};

/// Sparse weights in codes that a device's coder takes: integers with a scale per row or tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodedReport {
    /// The device that `prune` was told.
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

impl CodedReport {
    /// Of the sparse weights of a finished model, if `prune` was told a device with a coder and some have such codes.
    pub(crate) fn of(model: &Working) -> Result<Option<CodedReport>> {
        let Some((device, zeros)) = &model.coder else { return Ok(None) };
        let mut sums = CodedReport { device: device.clone(), ..CodedReport::default() };
        for (_, value, expr) in model.graph.weights().filter(|(_, value, _)| model.zeros.contains(&value.name)) {
            let (Encoding::Quantized(scheme), Some(dims)) = (value.fact.encoding, value.fact.constant_dims()) else { continue };
            if !is_coded(&scheme) {
                continue;
            }
            let counts = counts(expr, &*model.source, dims[0])?;
            let (all, none) = (counts.values().sum::<u64>(), counts.get(&0).copied().unwrap_or(0));
            let weights = all as f64;
            let entropy = counts.values().map(|n| *n as f64 / weights).map(|share| -share * share.log2()).sum::<f64>();
            let Some(coded) = zeros.estimated_bits(entropy, none as f64 / weights) else { continue };
            sums.layers += 1;
            sums.weights += all;
            sums.zeros += none;
            sums.bits_per_weight += weights * f64::from(scheme.grid.bits());
            sums.entropy += weights * entropy;
            sums.coded_bits_per_weight += weights * coded;
        }
        let weights = sums.weights as f64;
        [&mut sums.bits_per_weight, &mut sums.entropy, &mut sums.coded_bits_per_weight]
            .into_iter()
            .for_each(|sum| *sum /= weights);
        Ok((sums.weights > 0).then_some(sums))
    }
}

/// Whether codes of a scheme are integers of a stream that the coder takes.
fn is_coded(scheme: &Scheme) -> bool {
    scheme.grid.levels() == Levels::Even && matches!(scheme.granularity, Granularity::Row | Granularity::Tensor)
}

/// How often every distance from zero is among the codes of a weight.
fn counts(expr: &Expr, source: &dyn Source, rows: usize) -> Result<BTreeMap<i32, u64>> {
    const ROWS: usize = 64;
    let mut counts = BTreeMap::new();
    for from in (0..rows).step_by(ROWS) {
        let part = expr.read_quantized(source, from..rows.min(from + ROWS))?;
        let [rows, columns] = part.dims;
        let (packing, mut codes) = (part.scheme.grid.packing(), vec![0; columns]);
        for (row, packed) in (0..rows).zip(part.codes.chunks(packing.row_bytes(columns).max(1))) {
            packing.unpack(packed, &mut codes);
            let zero = i32::from(part.fit(row, 0).zero);
            codes.iter().for_each(|code| *counts.entry(i32::from(*code) - zero).or_insert(0) += 1);
        }
    }
    Ok(counts)
}

impl Finding for CodedReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        let row = |report: &CodedReport| {
            vec![
                report.device.clone(),
                format!("{} weights of {} matrices", report.weights, report.layers),
                format!("{:.1}%", 100.0 * report.zeros as f64 / report.weights.max(1) as f64),
                format!("{:.2}", report.bits_per_weight),
                format!("{:.2}", report.entropy),
                format!("{:.2}", report.coded_bits_per_weight),
            ]
        };
        let head = &["variant", "device", "sparse", "zeros", "bits per weight", "entropy", "coded bits per weight (estimated)"];
        let rows = rows_of(found.iter().copied(), |report: &CodedReport| vec![row(report)]);
        vec![("Weights in a coded stream", Table { head, rows })]
    }
}
