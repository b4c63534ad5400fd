//! Every stored tensor is used: it is in the graph, was read to build it, is known to be harmless, or is ignored on request.
//! Anything else is a part of the model that would be left out, and an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use attar_graph::Graph;
use attar_tensor::{Digest, Encoding, QuantizedTensor, Source, TensorInfo};

use crate::{Error, Names, Naming, Pattern, Result};

/// A source that knows which of its tensors were read.
pub(crate) struct Reads {
    source: Arc<dyn Source>,
    read: Mutex<BTreeSet<String>>,
}

impl Reads {
    pub(crate) fn of(source: Arc<dyn Source>) -> Reads {
        Reads { source, read: Mutex::default() }
    }

    fn names(&self) -> BTreeSet<String> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for Reads {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        self.source.tensors()
    }

    fn unreadable(&self) -> Vec<String> {
        self.source.unreadable()
    }

    fn info(&self, name: &str) -> attar_tensor::Result<&TensorInfo> {
        self.source.info(name)
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
        self.source.read(name, rows, out)
    }

    fn stored(&self, name: &str) -> Option<attar_tensor::StoredTensor> {
        self.source.stored(name)
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> attar_tensor::Result<QuantizedTensor> {
        self.source.read_quantized(name, rows)
    }

    fn digest(&self, name: &str) -> attar_tensor::Result<Digest> {
        self.source.digest(name)
    }
}

/// Tensors that a checkpoint stores and the graph does not use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unused {
    /// Each with the reason why that changes nothing.
    pub(crate) harmless: Vec<(String, &'static str)>,
    /// Those that the caller wants to be left out.
    pub(crate) ignored: Vec<String>,
}

/// What the graph does not use of `reads`, or an error if that matters. `names` is the architecture's table.
pub(crate) fn check(graph: &Graph, reads: &Reads, names: Option<(&'static Names, Naming)>, ignore: &[Pattern]) -> Result<Unused> {
    let mut used = reads.names();
    used.extend(graph.weights().flat_map(|(.., expr)| expr.tensors().into_iter().map(str::to_owned)));
    let (mut unused, mut lost) = (Unused::default(), Vec::new());
    let all = reads.tensors().keys().cloned().chain(reads.unreadable());
    for tensor in all.filter(|tensor| !used.contains(tensor)) {
        let harmless = names.and_then(|(names, _)| names.reason(&tensor));
        match harmless {
            Some(reason) => unused.harmless.push((tensor, reason)),
            None if adds_nothing(reads, &tensor)? => unused.harmless.push((tensor, "a bias of zeros adds nothing")),
            None if ignore.iter().any(|pattern| pattern.matches(&tensor)) => unused.ignored.push(tensor),
            None => lost.push(tensor),
        }
    }
    let Some(first) = lost.first() else { return Ok(unused) };
    let blocks = graph.blocks().filter(|block| graph.block_name(*block).starts_with("blocks.")).count();
    if let Some((names, naming)) = names
        && let Some(tensor) = lost.iter().find(|tensor| names.block(naming, tensor, names.prefix(naming, reads)) >= Some(blocks))
    {
        return Err(Error::SurplusBlock { tensor: tensor.clone(), blocks });
    }
    let kind = Kind::of(&lost).unwrap_or_else(|| Kind::of_one(first));
    lost.sort();
    Err(Error::Unused { tensors: lost, kind })
}

/// Whether it is a bias of zeros, as AutoGPTQ stores one for every layer.
fn adds_nothing(reads: &Reads, tensor: &str) -> Result<bool> {
    let Some(info) = reads.tensors().get(tensor) else { return Ok(false) };
    if !tensor.ends_with(".bias") || info.dims.len() != 1 || !matches!(info.encoding, Encoding::Plain(_)) {
        return Ok(false);
    }
    let mut values = vec![0.0; info.elements()];
    reads.source.read(tensor, 0..info.matrix()[0], &mut values)?;
    Ok(values.iter().all(|value| *value == 0.0))
}

/// What tensors that are left over look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Low-rank updates that were not merged.
    Adapter,
    /// Scales, zeros or tables of weights that another tool quantized.
    Quantized,
    /// Biases of layers that have none by the configuration.
    Bias,
    /// Norms of queries and keys.
    HeadNorm,
    /// Anything else.
    Other,
}

impl Kind {
    /// The most telling one among `tensors`.
    fn of(tensors: &[String]) -> Option<Kind> {
        let kinds: Vec<Kind> = tensors.iter().map(|tensor| Kind::of_one(tensor)).collect();
        [Kind::Adapter, Kind::Quantized, Kind::HeadNorm, Kind::Bias].into_iter().find(|kind| kinds.contains(kind))
    }

    fn of_one(tensor: &str) -> Kind {
        let parts: Vec<&str> = tensor.split('.').collect();
        let last = parts.last().copied().unwrap_or_default();
        let has = |words: &[&str]| parts.iter().any(|part| words.iter().any(|word| part.contains(word)));
        match last {
            _ if has(&["lora_", "adapter", "ia3_"]) => Kind::Adapter,
            "qweight" | "qzeros" | "scales" | "biases" | "g_idx" | "absmax" | "quant_map" | "nested_absmax"
            | "nested_quant_map" | "SCB" => Kind::Quantized,
            _ if has(&[
                "weight_scale",
                "input_scale",
                "weight_packed",
                "weight_shape",
                "zero_point",
                "quant_state",
                "k_scale",
                "v_scale",
            ]) =>
            {
                Kind::Quantized
            }
            _ if has(&["q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_norm", "key_norm"]) => Kind::HeadNorm,
            "bias" => Kind::Bias,
            _ => Kind::Other,
        }
    }

    /// The way out.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Kind::Adapter => "an adapter that is not merged: merge it first (`merge_and_unload()` of the peft library)",
            Kind::Quantized => "parts of weights that another tool quantized: take the checkpoint they were made from",
            Kind::Bias => {
                "by config.json those layers have no bias: if the model was trained with them, set what adds them there (`attention_bias`, `mlp_bias`)"
            }
            Kind::HeadNorm => {
                "norms of queries and keys belong to another architecture, such as Qwen3: config.json may name the wrong one"
            }
            Kind::Other => "config.json may be that of another model, or name another architecture",
        }
    }
}
