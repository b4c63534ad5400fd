//! Tensors without codes that learn: gains of norms, factors of adapters.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use attar_compress::{
    Pattern,
    learn::{Pace, Plain, adapter_names, directions},
};
use attar_graph::{BlockId, Expr, Graph, Op, Origin, ValueId};
use attar_tensor::{
    Digest, Dtype, Encoding, Overlay, Source,
    safetensors::{Entry, Shards, Writer},
};

use super::{
    kind::{PlannedTensor, StepError},
    trainable::Trainable,
};
use crate::{Error, model::Working, session::Session};

/// What the unit of all of them is called.
pub(super) const UNIT: &str = "plain";

/// A tensor without codes that learns.
pub(super) struct PlainTrainable {
    id: ValueId,
    /// Other constants that are the same tensor, with their blocks: a head that is the table of embeddings.
    pub(super) tied: Vec<(BlockId, ValueId)>,
    /// Its canonical name.
    pub(super) name: String,
    dims: Vec<usize>,
    /// How it is stored now; nothing, if it is new.
    from: Option<Encoding>,
    /// How it is stored afterwards.
    dtype: Dtype,
    pub(super) block: BlockId,
    start: Start,
    /// Whether numbers that are zero stay zero.
    pub(super) zeros: bool,
}

/// What it starts at.
enum Start {
    /// The gain of a norm, as the model has it. It moves relative to its mean.
    Gain(Expr),
    /// Any weight, as the model has it.
    Weight(Expr),
    /// The `A` of an adapter: directions that the seed decides.
    Directions { seed: u64 },
    /// The `B` of an adapter: zeros. It moves in distances between two codes of the weight that it adapts.
    Zeros { base: Expr },
}

/// The gains of all norms, in running order. They keep their number format, where it is a floating-point one.
pub(super) fn norms(graph: &Graph) -> Vec<PlainTrainable> {
    let norm = |node: &attar_graph::Node| {
        let Op::RmsNorm { .. } = node.op else { return None };
        let (id, value) = (node.inputs[1], graph.get(node.inputs[1]));
        let Origin::Weight(expr) = &value.origin else { return None };
        let dtype = match value.fact.encoding {
            Encoding::Plain(dtype) if dtype.is_float() => dtype,
            _ => Dtype::F32,
        };
        Some(PlainTrainable {
            id,
            tied: Vec::new(),
            name: value.name.clone(),
            dims: value.fact.constant_dims()?,
            from: Some(value.fact.encoding),
            dtype,
            block: node.block,
            start: Start::Gain(expr.clone()),
            zeros: false,
        })
    };
    graph.nodes().iter().filter_map(norm).collect()
}

/// The weights that `select` names, in running order, to be stored as `dtype` if that is given; others keep their number format, where
/// it is a floating-point one. Every pattern must name one. Numbers of those in `zeros` that are zero stay so.
pub(super) fn weights(
    select: &[Pattern],
    dtype: Option<Dtype>,
    graph: &Graph,
    zeros: &BTreeSet<String>,
) -> Result<Vec<PlainTrainable>, StepError> {
    let mut found: Vec<PlainTrainable> = Vec::new();
    for (node, id) in graph.nodes().iter().flat_map(|node| node.inputs.iter().map(move |id| (node, *id))) {
        let value = graph.get(id);
        let Origin::Weight(expr) = &value.origin else { continue };
        if !select.iter().any(|pattern| pattern.matches(&value.name)) || found.iter().any(|one| one.id == id) {
            continue;
        }
        if found.iter().any(|one| one.tied.iter().any(|(_, tied)| *tied == id)) {
            continue;
        }
        let kept = match value.fact.encoding {
            Encoding::Plain(dtype) if dtype.is_float() => dtype,
            _ => Dtype::F32,
        };
        found.extend(value.fact.constant_dims().map(|dims| PlainTrainable {
            id,
            tied: tied(graph, id, expr),
            name: value.name.clone(),
            dims,
            from: Some(value.fact.encoding),
            dtype: dtype.unwrap_or(kept),
            block: node.block,
            start: Start::Weight(expr.clone()),
            zeros: zeros.contains(&value.name),
        }));
    }
    let named = |one: &PlainTrainable, pattern: &Pattern| {
        let others = one.tied.iter().map(|(_, id)| graph.get(*id).name.as_str());
        std::iter::once(one.name.as_str()).chain(others).any(|name| pattern.matches(name))
    };
    let lazy = |pattern: &&Pattern| !found.iter().any(|one| named(one, pattern));
    match select.iter().enumerate().find(|(_, pattern)| lazy(pattern)) {
        Some((at, pattern)) => {
            let names = graph.weights().map(|(_, value, _)| value.name.as_str());
            let hint = attar_tensor::nearest(pattern.text(), names).map(|name| format!("a weight here is called `{name}`"));
            let error = Error::recipe(format!("`{}` matches no weight", pattern.text())).hint(hint);
            Err(StepError { key: Some(format!("select[{at}]")), error })
        }
        None => Ok(found),
    }
}

/// Constants besides `id` that are the tensor `expr`.
fn tied(graph: &Graph, id: ValueId, expr: &Expr) -> Vec<(BlockId, ValueId)> {
    let others = graph.weights().filter(|(other, _, e)| *other != id && *e == expr).map(|(other, ..)| other);
    let read = |other: ValueId| graph.nodes().iter().find(|node| node.inputs.contains(&other)).map(|node| (node.block, other));
    others.filter_map(read).collect()
}

/// The factors of the adapters of `trainable` in a graph that has them, in the order of the trainable.
pub(super) fn adapters(graph: &Graph, trainable: &[Trainable]) -> Vec<PlainTrainable> {
    let factor = |(seed, trained): (usize, &Trainable)| {
        let [a, b] = adapter_names(&trained.name);
        let base = trained.codes().clone();
        [(a, Start::Directions { seed: seed as u64 }), (b, Start::Zeros { base })].map(|(name, start)| {
            let id = graph.find(&name).expect("`with_adapters` made it");
            let dims = graph.fact(id).constant_dims().expect("a weight has a shape");
            PlainTrainable {
                id,
                tied: Vec::new(),
                name,
                dims,
                from: None,
                dtype: Dtype::F32,
                block: trained.block,
                start,
                zeros: false,
            }
        })
    };
    trainable.iter().enumerate().flat_map(factor).collect()
}

impl PlainTrainable {
    /// As it starts.
    pub(super) fn learned(&self, source: &dyn Source) -> Result<Plain, StepError> {
        let (count, dims) = (self.dims.iter().product(), self.dims.clone());
        let (values, pace, unit) = match &self.start {
            Start::Gain(expr) => {
                let mut values = vec![0.0; count];
                expr.read(source, 0..1, &mut values)?;
                let unit = mean_magnitude(&values);
                (values, Pace::Norm, unit)
            }
            Start::Weight(expr) => {
                let mut values = vec![0.0; count];
                expr.read(source, 0..if dims.len() > 1 { dims[0] } else { 1 }, &mut values)?;
                (values, Pace::Weight, 1.0)
            }
            Start::Directions { seed } => {
                let (rank, columns) = (dims[0], dims[1]);
                (directions(rank, columns, *seed), Pace::Weight, (rank as f32).sqrt().recip())
            }
            Start::Zeros { base } => {
                let scales = base.read_quantized(source, 0..dims[0])?.scales;
                (vec![0.0; count], Pace::Weight, mean_magnitude(&scales))
            }
        };
        let mut learned = Plain::new(dims, values, self.dtype, pace, unit);
        if self.zeros {
            learned.keep_zeros();
        }
        Ok(learned)
    }

    pub(super) fn planned(&self, memory: u64) -> PlannedTensor {
        PlannedTensor {
            name: self.name.clone(),
            dims: self.dims.clone(),
            from: self.from.map_or("new".to_owned(), |encoding| encoding.to_string()),
            to: format!("{}, learned", self.dtype.name()),
            bits_per_weight: 8.0 * self.dtype.bytes() as f64,
            bytes: self.dtype.bytes() as u64 * self.numbers(),
            memory,
        }
    }

    /// Its own constant, and those tied to it.
    fn ids(&self) -> impl Iterator<Item = ValueId> + '_ {
        std::iter::once(self.id).chain(self.tied.iter().map(|(_, id)| *id))
    }

    pub(super) fn numbers(&self) -> u64 {
        self.dims.iter().product::<usize>() as u64
    }

    /// Its name in the store: that of the unit with `key` and no other.
    fn stored(&self, key: &Digest) -> String {
        format!("{}/{}", self.name, key.short())
    }
}

fn mean_magnitude(values: &[f32]) -> f32 {
    (values.iter().map(|value| f64::from(value.abs())).sum::<f64>() / values.len().max(1) as f64) as f32
}

/// Stores what they learned as one blob.
pub(super) fn keep(learned: Vec<(&PlainTrainable, Vec<f32>)>, key: Digest, session: &Session<'_>) -> Result<Digest, StepError> {
    keep_as(key, key, learned, session)
}

/// The same as another unit than the one that the names in the blob tell of.
pub(super) fn keep_as(
    unit: Digest,
    key: Digest,
    learned: Vec<(&PlainTrainable, Vec<f32>)>,
    session: &Session<'_>,
) -> Result<Digest, StepError> {
    let entry = |plain: &PlainTrainable| Entry { name: plain.stored(&key), dtype: plain.dtype, dims: plain.dims.clone() };
    let entries: Vec<Entry> = learned.iter().map(|(plain, _)| entry(plain)).collect();
    let write = |to: &mut dyn std::io::Write| {
        let mut writer = Writer::new(to, &entries, &BTreeMap::new())?;
        for (plain, values) in &learned {
            let mut bytes = Vec::with_capacity(plain.dtype.bytes() * values.len());
            plain.dtype.encode(values, &mut bytes);
            writer.append(&bytes)?;
        }
        writer.finish();
        Ok(())
    };
    Ok(session.unit(unit, |to| write(to).map_err(|e: std::io::Error| Error::from(attar_tensor::Error::from(e))))?)
}

/// They are now what the blob at `path` has, which [`keep`] made under `key`.
pub(super) fn install(model: &mut Working, plain: &[PlainTrainable], key: &Digest, path: PathBuf) -> Result<(), StepError> {
    for one in plain {
        for id in one.ids() {
            model.graph.replace_weight(id, Encoding::Plain(one.dtype), Expr::tensor(one.stored(key)));
        }
    }
    let top = Shards::open(&[path], &BTreeMap::new())?;
    model.source = Arc::new(Overlay::new(Arc::new(top), model.source.clone()));
    Ok(())
}

/// They are in the formats that they will have; where they come from stays.
pub(super) fn place(graph: &mut Graph, plain: &[PlainTrainable]) {
    for one in plain {
        let Origin::Weight(expr) = graph.get(one.id).origin.clone() else { continue };
        one.ids().for_each(|id| graph.replace_weight(id, Encoding::Plain(one.dtype), expr.clone()));
    }
}
