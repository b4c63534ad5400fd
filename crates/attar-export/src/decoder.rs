//! What runtimes that generate text ask of a model.

use std::collections::HashMap;

use attar_graph::{Graph, Op, Origin, ValueId};

use crate::{Error, Result};

/// The sizes of a decoder that returns logits and keeps keys and values in caches.
pub(crate) struct Decoder {
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) head: usize,
}

impl Decoder {
    /// Of `graph`, for `target`.
    ///
    /// # Errors
    /// If it is no such decoder, or its layers differ.
    pub(crate) fn of(graph: &Graph, target: &'static str) -> Result<Decoder> {
        let refuse = |found| Error::Kind {
            target,
            wanted: "decoders with caches that return logits",
            found,
            hint: "use `target = \"onnx\"`",
        };
        check_attention(graph, target)?;
        let logits = graph.outputs().iter().find(|id| graph.get(**id).name == "logits");
        let logits = logits.ok_or_else(|| refuse("returns no logits"))?;
        let attentions: Vec<_> = graph.nodes().iter().filter(|node| matches!(node.op, Op::Attention(_))).collect();
        let [first, ..] = attentions[..] else { return Err(refuse("has no attention")) };
        let is_cache = |id: &ValueId| graph.maker(*id).is_some_and(|maker| matches!(maker.op, Op::Cache { .. }));
        if !attentions.iter().all(|node| node.inputs[1..].iter().all(is_cache)) {
            return Err(refuse("has attention without a cache"));
        }
        let dims = |id| graph.fact(id).dims.iter().map(|dim| dim.constant().unwrap_or(0)).collect::<Vec<usize>>();
        let (query, key) = (dims(first.inputs[0]), dims(first.inputs[1]));
        if !attentions.iter().all(|node| (dims(node.inputs[0]), dims(node.inputs[1])) == (query.clone(), key.clone())) {
            return Err(refuse("has layers with different heads"));
        }
        let table = graph.nodes().iter().find(|node| node.op == Op::Embedding).map(|node| node.inputs[1]);
        let table = table.filter(|id| matches!(graph.get(*id).origin, Origin::Weight(_)));
        let hidden = dims(table.ok_or_else(|| refuse("has no embedding"))?)[1];
        let vocabulary = dims(*logits).last().copied().unwrap_or(0);
        Ok(Decoder { vocabulary, hidden, layers: attentions.len(), heads: query[1], key_heads: key[1], head: query[3] })
    }
}

/// Attention is whole, and not in parts that are rounded one by one.
pub(crate) fn check_attention(graph: &Graph, target: &'static str) -> Result<()> {
    if !graph.nodes().iter().any(|node| matches!(node.op, Op::Scores { .. })) {
        return Ok(());
    }
    let found = "has attention in parts, for integer-only runtimes";
    let hint = "use `target = \"tflite\"`, or other `values` in the step `activations`";
    Err(Error::Kind { target, wanted: "models with whole attention", found, hint })
}

/// The attention layer and the role, `key` or `value`, of what a cache holds.
pub(crate) type CachePlaces = HashMap<ValueId, (usize, &'static str)>;

/// Which state each cache that an attention reads is: layers are counted in running order. An attention may be in its parts.
pub(crate) fn cache_places(graph: &Graph) -> CachePlaces {
    let mut places = HashMap::new();
    let is_cache = |id: ValueId| graph.maker(id).is_some_and(|node| matches!(node.op, Op::Cache { .. }));
    let mut layer = 0;
    for node in graph.nodes() {
        let (operands, ends): (&[(usize, &str)], bool) = match node.op {
            Op::Attention(_) => (&[(1, "key"), (2, "value")], true),
            Op::Scores { .. } => (&[(1, "key")], false),
            Op::Mix => (&[(1, "value")], true),
            _ => continue,
        };
        let cached: Vec<_> = operands.iter().filter(|(at, _)| is_cache(node.inputs[*at])).collect();
        for (at, role) in &cached {
            places.entry(node.inputs[*at]).or_insert((layer, *role));
        }
        layer += usize::from(ends && !cached.is_empty());
    }
    places
}
