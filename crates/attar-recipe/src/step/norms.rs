//! Norms whose gains learn.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use attar_compress::learn::Gain;
use attar_graph::{BlockId, Expr, Graph, Op, Origin, ValueId};
use attar_tensor::{
    Digest, Dtype, Encoding, Overlay, Source,
    safetensors::{Entry, Shards, Writer},
};

use super::StepError;
use crate::{Error, model::Working, plan::PlannedTensor, session::Session};

/// What the unit of all gains is called.
pub(super) const UNIT: &str = "norms";

/// A norm whose gain learns.
pub(super) struct Norm {
    id: ValueId,
    /// The gain's canonical name.
    pub(super) name: String,
    pub(super) expr: Expr,
    width: usize,
    from: Encoding,
    /// How it is stored afterwards: as before, where that is a floating-point format.
    dtype: Dtype,
    pub(super) block: BlockId,
}

/// All norms, in running order.
pub(super) fn norms(graph: &Graph) -> Vec<Norm> {
    let norm = |node: &attar_graph::Node| {
        let Op::RmsNorm { .. } = node.op else { return None };
        let (id, value) = (node.inputs[1], graph.get(node.inputs[1]));
        let Origin::Weight(expr) = &value.origin else { return None };
        let from = value.fact.encoding;
        let dtype = match from {
            Encoding::Plain(dtype) if dtype.is_float() => dtype,
            _ => Dtype::F32,
        };
        Some(Norm {
            id,
            name: value.name.clone(),
            expr: expr.clone(),
            width: value.fact.width()?,
            from,
            dtype,
            block: node.block,
        })
    };
    graph.nodes().iter().filter_map(norm).collect()
}

impl Norm {
    /// As it stands.
    pub(super) fn gain(&self, source: &dyn Source) -> Result<Gain, StepError> {
        let mut values = vec![0.0; self.width];
        self.expr.read(source, 0..1, &mut values)?;
        Ok(Gain::new(values, self.dtype))
    }

    pub(super) fn planned(&self, memory: u64) -> PlannedTensor {
        let bytes = (self.dtype.bytes() * self.width) as u64;
        PlannedTensor {
            name: self.name.clone(),
            dims: vec![self.width],
            from: self.from.to_string(),
            to: format!("{}, learned", self.dtype.name()),
            bits_per_weight: 8.0 * self.dtype.bytes() as f64,
            bytes,
            memory,
        }
    }

    /// Its name in the store: that of the unit with `key` and no other.
    fn stored(&self, key: &Digest) -> String {
        format!("{}/{}", self.name, key.short())
    }
}

/// Stores the gains of all norms as one blob.
pub(super) fn keep(gains: Vec<(&Norm, Vec<f32>)>, key: Digest, session: &Session<'_>) -> Result<Digest, StepError> {
    let entry = |norm: &Norm| Entry { name: norm.stored(&key), dtype: norm.dtype, dims: vec![norm.width] };
    let entries: Vec<Entry> = gains.iter().map(|(norm, _)| entry(norm)).collect();
    let write = |to: &mut dyn std::io::Write| {
        let mut writer = Writer::new(to, &entries, &BTreeMap::new())?;
        for (norm, values) in &gains {
            let mut bytes = Vec::with_capacity(norm.dtype.bytes() * norm.width);
            norm.dtype.encode(values, &mut bytes);
            writer.append(&bytes)?;
        }
        writer.finish();
        Ok(())
    };
    Ok(session.unit(key, |to| write(to).map_err(|e: std::io::Error| Error::from(attar_tensor::Error::from(e))))?)
}

/// The model's gains are now those of the blob at `path`, which [`keep`] made under `key`.
pub(super) fn install(model: &mut Working, norms: &[Norm], key: &Digest, path: PathBuf) -> Result<(), StepError> {
    place(&mut model.graph, norms, |norm| Expr::tensor(norm.stored(key)));
    let top = Shards::open(&[path], &BTreeMap::new())?;
    model.source = Arc::new(Overlay::new(Arc::new(top), model.source.clone()));
    Ok(())
}

/// The gains are in their formats, and where `at` says.
pub(super) fn place(graph: &mut Graph, norms: &[Norm], at: impl Fn(&Norm) -> Expr) {
    norms.iter().for_each(|norm| graph.replace_weight(norm.id, Encoding::Plain(norm.dtype), at(norm)));
}
