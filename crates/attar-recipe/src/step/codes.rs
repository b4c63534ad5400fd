//! Weights in codes: how one is made, what decides its bytes, and how a model gets it.

use std::{
    ops::Range,
    sync::{Arc, RwLock},
};

use attar_compress::{Assignment, Losses, LostRule, Rate, Seen, WeightRows};
use attar_graph::{Expr, Graph, SourceWeights, Weights};
use attar_tensor::{BlobWriter, Blobs, Digest, Encoding, Overlay, Scheme, Source};
use candle_core::{Device, Tensor};

use super::kind::StepError;
use crate::{ErrorKind, Result, model::Working, session::Session};

/// The weights as far as they are quantized.
pub(super) struct Live {
    below: SourceWeights,
    blobs: RwLock<Blobs>,
}

impl Live {
    /// Over the weights of `source`, of which none is replaced yet.
    pub(super) fn over(source: &Arc<dyn Source>) -> Live {
        Live { below: SourceWeights(source.clone()), blobs: RwLock::default() }
    }

    /// The weight `name` is now the blob's.
    pub(super) fn take(&self, name: &str, blob: &Digest, scheme: Scheme, dims: [usize; 2], session: &Session<'_>) -> Result<()> {
        let mut blobs = self.blobs.write().expect("no panic holds this lock");
        Ok(blobs.insert(name, session.store, blob, scheme, dims)?)
    }

    /// All that were replaced.
    pub(super) fn into_blobs(self) -> Blobs {
        self.blobs.into_inner().expect("no panic holds this lock")
    }
}

impl Weights for Live {
    fn whole(&self, name: &str, expr: &Expr) -> attar_graph::Result<Tensor> {
        let blobs = self.blobs.read().expect("no panic holds this lock");
        let Some(info) = blobs.tensors().get(name) else { return self.below.whole(name, expr) };
        Ok(Tensor::from_vec(blobs.whole(name)?, info.dims.as_slice(), &Device::Cpu)?)
    }

    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> attar_graph::Result<Tensor> {
        match self.blobs.read().expect("no panic holds this lock").tensors().contains_key(name) {
            true => {
                let whole = self.whole(name, expr)?;
                Ok(whole.index_select(&Tensor::new(rows, whole.device())?, 0)?)
            }
            false => self.below.rows(name, expr, rows),
        }
    }
}

/// The model's selected weights are now those of the blobs, and lost these rows and groups.
pub(super) fn install(
    model: &mut Working,
    assignments: &[Assignment],
    mut blobs: Blobs,
    losses: Vec<(String, Losses)>,
) -> Result<()> {
    for assignment in assignments {
        model.damage.insert(assignment.name.clone(), blobs.damage(&assignment.name)?);
        if assignment.lost == LostRule::Report {
            model.may_lose.insert(assignment.name.clone());
        }
        let stored = stored_name(&model.graph, assignment);
        blobs.rename(&assignment.name, &stored);
        place_as(&mut model.graph, assignment, &stored);
    }
    model.losses.extend(losses);
    model.source = Arc::new(Overlay::new(Arc::new(blobs), model.source.clone()));
    Ok(())
}

/// The weight, and what is tied to it, is now under its canonical name, in codes.
pub(super) fn place(graph: &mut Graph, assignment: &Assignment) {
    place_as(graph, assignment, &assignment.name);
}

fn place_as(graph: &mut Graph, assignment: &Assignment, stored: &str) {
    for id in assignment.ids() {
        graph.replace_weight(id, Encoding::Quantized(assignment.scheme), Expr::tensor(stored));
    }
}

/// The name that a weight in codes is stored under: its canonical one, unless another weight is read from a tensor of that name, which would be
/// hidden. So it is with a table that the head shared, in a checkpoint of attar.
fn stored_name(graph: &Graph, assignment: &Assignment) -> String {
    let others: Vec<&str> =
        graph.weights().filter(|(id, ..)| !assignment.is_of(*id)).flat_map(|(.., expr)| expr.tensors()).collect();
    let mut name = assignment.name.clone();
    while others.contains(&name.as_str()) {
        name.push('\'');
    }
    name
}

/// All that decides the bytes of a unit.
pub(super) fn key(assignment: &Assignment, source: &dyn Source) -> Result<Digest> {
    let settings = format!(
        "quantize {} {} {} {:?}{}{}",
        assignment.algorithm.name(),
        assignment.algorithm.version(),
        assignment.scheme,
        assignment.search,
        if assignment.zeros { " zeros" } else { "" },
        assignment.rate.map(|rate| format!(" {rate:?}")).unwrap_or_default()
    );
    Ok(Digest::of_parts([settings.as_bytes(), assignment.expr.digest(source)?.as_bytes()]))
}

pub(super) fn quantize(
    assignment: &Assignment,
    source: &dyn Source,
    seen: Seen<'_>,
    to: &mut dyn std::io::Write,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<()> {
    let weights = Rows { assignment, source };
    let writer = BlobWriter::new(to, assignment.scheme, assignment.dims).map_err(attar_tensor::Error::from)?;
    assignment.algorithm.quantize(&weights, seen, assignment.scheme, assignment.search, writer, progress)?;
    Ok(())
}

/// What a weight lost, and the blob that says so. Lost rows and groups are an error unless `rule` allows them. Measuring is a
/// unit: it reads all weights and all codes.
pub(super) fn losses(lossy: &Lossy<'_>, rule: LostRule, session: &Session<'_>) -> Result<(Losses, Digest)> {
    let weights = lossy.expr.digest(lossy.source)?;
    let key = [b"losses 1".as_slice(), lossy.blob.as_bytes(), weights.as_bytes()];
    let kept = session.json(Digest::of_parts(key), || {
        let mut codes = Blobs::default();
        codes.insert(lossy.name, session.store, lossy.blob, lossy.scheme, lossy.dims)?;
        Ok(Losses::measure(lossy, &codes, lossy.name)?)
    })?;
    let found: Losses = session.read_json(&kept, "what a weight lost")?;
    match found.first.first() {
        Some(first) if rule == LostRule::Error => {
            let (weight, others) = (lossy.name.to_owned(), found.lost - 1);
            Err(attar_compress::Error::Lost { weight, scheme: lossy.scheme, first: first.clone(), others }.into())
        }
        _ => Ok((found, kept)),
    }
}

/// A weight with its codes.
pub(super) struct Lossy<'a> {
    /// Its canonical name.
    pub(super) name: &'a str,
    /// Where its float weights are.
    pub(super) expr: &'a Expr,
    /// What they are read from.
    pub(super) source: &'a dyn Source,
    /// Its codes.
    pub(super) blob: &'a Digest,
    pub(super) scheme: Scheme,
    pub(super) dims: [usize; 2],
}

impl<'a> Lossy<'a> {
    /// An assigned weight of `source` that became `blob`.
    pub(super) fn of(assignment: &'a Assignment, source: &'a dyn Source, blob: &'a Digest) -> Lossy<'a> {
        let Assignment { name, expr, scheme, dims, .. } = assignment;
        Lossy { name, expr, source, blob, scheme: *scheme, dims: *dims }
    }
}

impl WeightRows for Lossy<'_> {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> attar_compress::Result<()> {
        Ok(self.expr.read(self.source, rows, out)?)
    }

    fn name(&self) -> &str {
        self.name
    }
}

struct Rows<'a> {
    assignment: &'a Assignment,
    source: &'a dyn Source,
}

impl WeightRows for Rows<'_> {
    fn dims(&self) -> [usize; 2] {
        self.assignment.dims
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> attar_compress::Result<()> {
        Ok(self.assignment.expr.read(self.source, rows, out)?)
    }

    fn name(&self) -> &str {
        self.assignment.expr.tensor_name()
    }

    fn keeps_zeros(&self) -> bool {
        self.assignment.zeros
    }

    fn rate(&self) -> Option<Rate> {
        self.assignment.rate
    }
}

/// A choice that cannot be made is the recipe's fault.
pub(super) fn refused(error: attar_compress::Error) -> StepError {
    let key = error.key().map(Into::into);
    let kind = if key.is_some() { ErrorKind::Recipe } else { ErrorKind::Input };
    StepError { key, error: crate::Error { kind, ..error.into() } }
}
