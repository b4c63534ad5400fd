//! Quantized weights that learn, and what `autoround` and `recover` do with them alike.

use std::{collections::BTreeMap, sync::Arc};

use attar_compress::{LostRule, Pattern, learn::Learned};
use attar_graph::{BlockId, Expr, Graph, ValueId};
use attar_tensor::{BlobWriter, Blobs, Digest, Encoding, Levels, Overlay, Scheme, Source};

use super::{
    codes::{Lossy, losses},
    kind::{PlannedTensor, StepError},
};
use crate::{
    Error,
    model::{Float, Working},
    session::Session,
};

/// A quantized weight that learns.
pub(super) struct Trainable {
    pub(super) id: ValueId,
    pub(super) name: String,
    /// Where its codes are, and where its float weights are.
    exprs: [Expr; 2],
    pub(super) dims: [usize; 2],
    pub(super) scheme: Scheme,
    pub(super) block: BlockId,
    /// Whether its float weights that are zero stay zero.
    pub(super) zeros: bool,
}

/// The quantized weights of linear layers that `select` names, in running order. Every pattern must name one.
pub(super) fn trainable(select: &[Pattern], model: &Working) -> Result<Vec<Trainable>, StepError> {
    let graph = &model.graph;
    check_matches_float(model)?;
    let mut trainable = Vec::new();
    for node in graph.nodes().iter().filter(|node| node.op == attar_graph::Op::Linear) {
        let id = node.inputs[1];
        let value = graph.get(id);
        let (Encoding::Quantized(scheme), attar_graph::Origin::Weight(expr)) = (value.fact.encoding, &value.origin) else {
            continue;
        };
        let dims = value.fact.constant_dims().and_then(|dims| dims.try_into().ok());
        let (Some(dims), Some((_, float))) = (dims, model.float.weight(&value.name)) else { continue };
        if select.iter().any(|pattern| pattern.matches(&value.name)) {
            if let Some(other) = graph.weights().find(|(other, _, e)| *other != id && *e == expr).map(|(_, value, _)| &value.name)
            {
                let message = format!("`{}` is one tensor with `{other}`: it cannot learn on its own", value.name);
                let error = Error::recipe(message).hint("leave it out of `select`".to_owned());
                return Err(StepError { key: Some("select".into()), error });
            }
            if matches!(scheme.grid.levels(), Levels::Learned) {
                let message = format!("`{}` is {scheme}: tables that were found do not learn further", value.name);
                let hint = "leave it out of `select`, or give it another grid".to_owned();
                return Err(StepError { key: Some("select".into()), error: Error::recipe(message).hint(hint) });
            }
            trainable.push(Trainable {
                id,
                name: value.name.clone(),
                exprs: [expr.clone(), float.clone()],
                dims,
                scheme,
                block: node.block,
                zeros: model.zeros.contains(&value.name),
            });
        }
    }
    let lazy = |pattern: &&Pattern| !trainable.iter().any(|trained| pattern.matches(&trained.name));
    match select.iter().enumerate().find(|(_, pattern)| lazy(pattern)) {
        Some((at, pattern)) => {
            let message = format!("`{}` matches no quantized weight", pattern.text());
            let hint = "a `quantize` step comes before this one".to_owned();
            Err(StepError { key: Some(format!("select[{at}]")), error: Error::recipe(message).hint(hint) })
        }
        None => Ok(trainable),
    }
}

/// Training knows losses alone, and no budget of coded bits.
pub(super) fn note_coded(step: &str, model: &mut Working) {
    if let (Some((device, _)), false) = (&model.coder, model.coded.is_empty()) {
        let note = format!(
            "`{step}` moves codes whatever their bits cost, and may exceed `coded_bits`: the report estimates what the coder of `{device}` takes behind it"
        );
        model.notes.push(note);
    }
}

/// What learns is held against the float model, value by value.
pub(super) fn check_matches_float(model: &Working) -> Result<(), StepError> {
    let integers = model.graph.nodes().iter().any(|node| matches!(node.op, attar_graph::Op::Quantize { .. }));
    if model.matches_float() && !integers {
        return Ok(());
    }
    if model.adapters.is_some() {
        let hint = "export adapters from one `recover` step, after all other training steps".to_owned();
        return Err(Error::recipe("weights cannot be trained next to finished adapters").hint(hint).into());
    }
    let hint = "put the step `activations` after this one".to_owned();
    Err(Error::recipe("weights must be trained before activations are quantized").hint(hint).into())
}

impl Trainable {
    /// As it stands, and its float weights `[rows, columns]`.
    pub(super) fn learned(&self, quantized: &dyn Source, float: &Float) -> crate::Result<(Learned, Vec<f32>)> {
        let original = self.original(float)?;
        let picked = self.exprs[0].read_quantized(quantized, 0..self.dims[0])?;
        let mut learned = Learned::new(picked, &original);
        if self.zeros {
            learned.keep_zeros(&original);
        }
        Ok((learned, original))
    }

    /// What decides how it learns, apart from its numbers.
    pub(super) fn key(&self) -> Digest {
        Digest::of(format!("{}{}", self.name, zeros_key(self.zeros)).as_bytes())
    }

    /// Where its codes are.
    pub(super) fn codes(&self) -> &Expr {
        &self.exprs[0]
    }

    /// Whether its float weights are the checkpoint's own, at most with their rows in another order.
    pub(super) fn is_of_checkpoint(&self) -> bool {
        matches!(self.exprs[1], Expr::Tensor(_) | Expr::Halves(..))
    }

    /// Its float weights `[rows, columns]`.
    pub(super) fn original(&self, float: &Float) -> crate::Result<Vec<f32>> {
        let mut original = vec![0.0; self.dims[0] * self.dims[1]];
        self.exprs[1].read(&*float.source, 0..self.dims[0], &mut original)?;
        Ok(original)
    }

    /// Stores what it learned.
    pub(super) fn keep(&self, learned: &Learned, original: &[f32], key: Digest, session: &Session<'_>) -> crate::Result<Digest> {
        session.unit(key, |to| {
            let writer = BlobWriter::new(to, self.scheme, self.dims).map_err(attar_tensor::Error::from)?;
            learned.write(original, writer)?;
            Ok(())
        })
    }

    /// Its float weights next to the codes in `blob`.
    fn lossy<'a>(&'a self, float: &'a dyn Source, blob: &'a Digest) -> Lossy<'a> {
        Lossy { name: &self.name, expr: &self.exprs[1], source: float, blob, scheme: self.scheme, dims: self.dims }
    }

    pub(super) fn planned(&self, memory: u64) -> PlannedTensor {
        PlannedTensor {
            name: self.name.clone(),
            dims: self.dims.to_vec(),
            from: self.scheme.to_string(),
            to: format!("{}, learned", self.scheme),
            bits_per_weight: self.scheme.bits_per_weight(self.dims),
            bytes: self.scheme.true_bits(self.dims).div_ceil(8),
            memory,
        }
    }

    pub(super) fn weights(&self) -> u64 {
        (self.dims[0] * self.dims[1]) as u64
    }
}

/// Values of the widest kind that a block's gradients keep, and of that between blocks, for a token.
const KEPT: [u64; 2] = [12, 48];

/// What going back through a block takes, with `tokens` at a time: values and gradients, and attention's of one window.
pub(super) fn gradient_memory(model: &Working, tokens: u64) -> u64 {
    let [inside, between] = model.token_bytes();
    tokens * (KEPT[0] * inside + KEPT[1] * between)
}

/// The model's weights are now what they learned to be: the blobs `made`, in the order of `trainable`. Returns the blobs that
/// say which rows they lost.
pub(super) fn install(
    model: &mut Working,
    trainable: &[Trainable],
    made: &[Digest],
    blobs: Blobs,
    session: &Session<'_>,
) -> Result<Vec<Digest>, StepError> {
    let mut used = Vec::new();
    for (trained, blob) in trainable.iter().zip(made) {
        let rule = if model.may_lose.contains(&trained.name) { LostRule::Report } else { LostRule::Error };
        let float = model.float.source.clone();
        let (found, kept) = losses(&trained.lossy(&*float, blob), rule, session)?;
        model.losses.insert(trained.name.clone(), found);
        model.damage.insert(trained.name.clone(), blobs.damage(&trained.name)?);
        used.push(kept);
        model.graph.replace_weight(trained.id, Encoding::Quantized(trained.scheme), Expr::tensor(trained.name.clone()));
    }
    model.source = Arc::new(Overlay::new(Arc::new(blobs), model.source.clone()));
    Ok(used)
}

/// What keys of learned weights say of zeros that stay.
pub(super) fn zeros_key(zeros: bool) -> &'static str {
    if zeros { " zeros" } else { "" }
}

/// The digests of all weights that the blocks of a graph read.
pub(super) fn weights_key(graph: &Graph, source: &dyn Source, blocks: impl Iterator<Item = BlockId>) -> crate::Result<Digest> {
    let mut seen: BTreeMap<ValueId, Digest> = BTreeMap::new();
    for id in blocks.flat_map(|block| graph.nodes_of(block)).flat_map(|node| &node.inputs) {
        if let attar_graph::Origin::Weight(expr) = &graph.get(*id).origin {
            seen.insert(*id, expr.digest(source)?);
        }
    }
    Ok(Digest::of_parts(seen.values().map(|digest| digest.as_bytes().as_slice())))
}
