//! Counts the codes of sparse weights, for an estimate of what a device's coder makes of them.

use std::collections::BTreeMap;

use attar_graph::Expr;
use attar_tensor::{Encoding, Granularity, Levels, Scheme, Source};

use crate::{Result, model::Working, report::CodedReport};

/// Of the sparse weights of a finished model, if `prune` was told a device with a coder and some have such codes.
pub(crate) fn coded(model: &Working) -> Result<Option<CodedReport>> {
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
    [&mut sums.bits_per_weight, &mut sums.entropy, &mut sums.coded_bits_per_weight].into_iter().for_each(|sum| *sum /= weights);
    Ok((sums.weights > 0).then_some(sums))
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
