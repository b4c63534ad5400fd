//! What steps share that change weights and not the function: planning, storing what is costly to read by rows, checking.
//!
//! A changed weight stays an expression over what is stored, read by rows when it is wanted, where that costs little more
//! than the rows: columns rotated, channels scaled, heads rotated. Where all rows of a matrix are rotated together, any row
//! needs the whole, so the result is made once, as a blob of f32.

use std::{collections::BTreeMap, io::Write, path::PathBuf, sync::Arc};

use attar_compress::{Change, Rewrite};
use attar_graph::{Expr, Graph};
use attar_tensor::{
    Digest, Dtype, Encoding, Overlay, Source, TensorInfo,
    safetensors::{Entry, Shards, Writer},
};

use super::{
    kind::{PlannedTensor, StepError},
    preserved,
};
use crate::{
    Error,
    model::Working,
    report::{SiteReport, TransformReport},
    session::Session,
};

/// Up to so many rows are read for one: a head's.
const TOGETHER: usize = 256;

/// What `rewrite` would do to `model`; then the model is what it would be. `memory` is what the step itself takes.
///
/// # Errors
/// If zeros that must stay would be mixed with other weights.
pub(super) fn plan(model: &mut Working, rewrite: Rewrite, memory: u64) -> Result<Vec<PlannedTensor>, StepError> {
    if let Some(change) = rewrite.changes().iter().find(|change| model.zeros.contains(&change.name) && change.expr.mixes()) {
        let message = format!("`{}` is sparse, and mixing its inputs or outputs would fill its zeros", change.name);
        let hint = "put this step before the one that prunes".to_owned();
        return Err(StepError { key: Some("kind".into()), error: Error::recipe(message).hint(hint) });
    }
    let memory = memory.max(preserved::memory(&model.graph));
    let planned = rewrite.changes().iter().map(|change| planned(change, &model.graph, &rewrite.graph, memory)).collect();
    model.float.graph = rewrite.graph.clone();
    model.graph = rewrite.graph;
    Ok(planned)
}

fn planned(change: &Change, before: &Graph, after: &Graph, memory: u64) -> PlannedTensor {
    let info = TensorInfo { dims: change.dims.clone(), encoding: after.fact(change.id).encoding };
    let bits = info.true_bits();
    let from = change.from.map_or("new".to_owned(), |encoding| encoding.to_string());
    let made = if is_stored(change) { 3 * bits / 8 } else { 0 };
    PlannedTensor {
        name: change.name.clone(),
        dims: change.dims.clone(),
        from: untied(&change.name, before, after).map_or(from.clone(), |other| format!("{from}, tied to {other}")),
        to: info.encoding.to_string(),
        bits_per_weight: bits as f64 / info.elements().max(1) as f64,
        bytes: bits / 8,
        memory: memory.max(made),
    }
}

/// The first weight that was the same tensor as `name` and no longer is.
fn untied(name: &str, before: &Graph, after: &Graph) -> Option<String> {
    let expr = |graph: &Graph, name: &str| graph.weights().find(|(_, v, _)| v.name == name).map(|(.., expr)| expr.clone());
    let old = expr(before, name)?;
    let other = before.weights().find(|(_, _, other)| **other == old)?.1.name.clone();
    (other != name && expr(after, &other) != expr(after, name)).then_some(other)
}

fn is_stored(change: &Change) -> bool {
    change.expr.rows_together() > TOGETHER
}

/// Does what `rewrite` says, some of it over tensors of `added`, and checks that the function stays. Returns the blobs that
/// the model now needs.
pub(super) fn apply(
    step: &str,
    model: &mut Working,
    rewrite: Rewrite,
    added: Vec<PathBuf>,
    sites: Vec<SiteReport>,
    session: &Session<'_>,
) -> Result<Vec<Digest>, StepError> {
    let changes = rewrite.changes();
    let mut graph = rewrite.graph;
    let mut files = added;
    let source = over(&files, &model.source)?;
    let mut used = Vec::new();
    let stored: Vec<&Change> = changes.iter().filter(|change| is_stored(change)).collect();
    session.observer.stage(&format!("{}: {step}", model.title), stored.len() as u64);
    for (at, change) in stored.into_iter().enumerate() {
        session.check_interrupt()?;
        session.observer.advance(at as u64, &change.name);
        let (name, blob) = store(change, &*source, session)?;
        graph.replace_weight(change.id, Encoding::Plain(Dtype::F32), Expr::tensor(name));
        if !used.contains(&blob) {
            files.push(session.store.open(&blob)?);
            used.push(blob);
        }
    }
    let source = over(&files, &model.source)?;
    session.check_interrupt()?;
    let logits_off_at_most = preserved::at_most(changes.iter().filter_map(|change| plain(graph.fact(change.id).encoding)));
    let (before, after) = ((&model.graph, &model.source), (&graph, &source));
    let (logits_off, measured) = preserved::check(step, &model.title, before, after, logits_off_at_most, session)?;
    used.push(measured);
    let report = TransformReport { step: step.into(), weights: changes.len(), logits_off, logits_off_at_most, sites };
    model.findings.push(report);
    let exprs: BTreeMap<&str, &Expr> = graph.weights().map(|(_, value, expr)| (value.name.as_str(), expr)).collect();
    let changed: Vec<(String, Expr)> = changes.into_iter().map(|c| (c.name.clone(), exprs[c.name.as_str()].clone())).collect();
    model.transform(graph, changed, Arc::new(Shards::open(&files, &BTreeMap::new())?));
    Ok(used)
}

fn plain(encoding: Encoding) -> Option<Dtype> {
    match encoding {
        Encoding::Plain(dtype) => Some(dtype),
        _ => None,
    }
}

fn over(files: &[PathBuf], below: &Arc<dyn Source>) -> Result<Arc<dyn Source>, StepError> {
    Ok(Arc::new(Overlay::new(Arc::new(Shards::open(files, &BTreeMap::new())?), below.clone())))
}

/// The value of a change as a tensor of the store. Its name tells what it was made of, and no other content has it.
fn store(change: &Change, source: &dyn Source, session: &Session<'_>) -> Result<(String, Digest), StepError> {
    let key = Digest::of_parts([b"transformed 1".as_slice(), change.expr.digest(source)?.as_bytes()]);
    let name = format!("{}/{}", change.expr.tensor_name(), key.short());
    let blob = session.unit(key, |to| {
        let mut values = vec![0.0; change.dims.iter().product()];
        change.expr.read(source, 0..change.dims[0], &mut values)?;
        write_tensors(to, &[(name.clone(), &change.dims, &values)])
    })?;
    Ok((name, blob))
}

/// Tensors of f32 as a file: name, shape, values.
pub(super) fn write_tensors(to: &mut dyn Write, tensors: &[(String, &[usize], &[f32])]) -> Result<(), Error> {
    const PIECE: usize = 1 << 18;
    let failed = attar_tensor::Error::from;
    let entry =
        |(name, dims, _): &(String, &[usize], &[f32])| Entry { name: name.clone(), dtype: Dtype::F32, dims: dims.to_vec() };
    let mut writer = Writer::new(to, &tensors.iter().map(entry).collect::<Vec<_>>(), &BTreeMap::new()).map_err(failed)?;
    for piece in tensors.iter().flat_map(|(.., values)| values.chunks(PIECE)) {
        let mut bytes = Vec::with_capacity(4 * piece.len());
        Dtype::F32.encode(piece, &mut bytes);
        writer.append(&bytes).map_err(failed)?;
    }
    writer.finish();
    Ok(())
}
