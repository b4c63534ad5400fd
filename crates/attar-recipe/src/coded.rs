//! Counts the codes of weights, for an estimate of what a device's coder makes of them.

use std::collections::{BTreeMap, HashSet};

use attar_compile::device::Zeros;
use attar_graph::Expr;
use attar_tensor::{Encoding, Granularity, Levels, Scheme, Source};
use serde::{Deserialize, Serialize};

use crate::{Result, model::Working, report::CodedReport};

/// Of the weights of a finished model that a step made for the coder of a device, if some have such codes.
pub(crate) fn coded(model: &Working) -> Result<Option<CodedReport>> {
    let Some((device, zeros)) = &model.coder else { return Ok(None) };
    let mut sums = CodedReport { device: device.clone(), ..CodedReport::default() };
    // Tied weights are one.
    let mut seen = HashSet::new();
    for (_, value, expr) in model.graph.weights().filter(|(_, value, _)| model.coded.contains(&value.name)) {
        let (Encoding::Quantized(scheme), Some(dims)) = (value.fact.encoding, value.fact.constant_dims()) else { continue };
        if !is_coded(&scheme) || !seen.insert(expr.clone()) {
            continue;
        }
        let codes = Codes::of(expr, &*model.source, dims[0])?;
        let Some(coded) = codes.coded_bits(zeros) else { continue };
        let weights = codes.weights as f64;
        sums.layers += 1;
        sums.weights += codes.weights;
        sums.zeros += codes.zeros;
        sums.bits_per_weight += weights * f64::from(scheme.grid.bits());
        sums.entropy += weights * codes.entropy;
        sums.coded_bits_per_weight += weights * coded;
    }
    let weights = sums.weights as f64;
    [&mut sums.bits_per_weight, &mut sums.entropy, &mut sums.coded_bits_per_weight].into_iter().for_each(|sum| *sum /= weights);
    Ok((sums.weights > 0).then_some(sums))
}

/// What a coder's bits are estimated from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Codes {
    /// How many there are.
    pub(crate) weights: u64,
    /// Zeros among them.
    pub(crate) zeros: u64,
    /// Codes of 1 and -1 among them.
    ones: u64,
    /// Bits per weight.
    entropy: f64,
}

impl Codes {
    /// Of a weight in codes.
    pub(crate) fn of(expr: &Expr, source: &dyn Source, rows: usize) -> Result<Codes> {
        let counts = counts(expr, source, rows)?;
        let of = |code: i32| counts.get(&code).copied().unwrap_or(0);
        let (weights, zeros, ones) = (counts.values().sum::<u64>(), of(0), of(1) + of(-1));
        let shares = counts.values().map(|n| *n as f64 / weights as f64);
        Ok(Codes { weights, zeros, ones, entropy: shares.map(|share| -share * share.log2()).sum() })
    }

    /// Bits per weight that the coder of a device takes, estimated; `None` without a coder.
    pub(crate) fn coded_bits(&self, coder: &Zeros) -> Option<f64> {
        coder.estimated_bits(self.entropy, self.zeros.saturating_sub(self.ones) as f64 / self.weights.max(1) as f64)
    }
}

/// Whether codes of a scheme are integers of a stream that the coder takes.
pub(crate) fn is_coded(scheme: &Scheme) -> bool {
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
