//! Weights in codes: how one is made, what decides its bytes, and how a model gets it.

use std::{ops::Range, sync::Arc};

use attar_compress::{Assignment, Seen, WeightRows};
use attar_graph::{Expr, Graph};
use attar_tensor::{BlobWriter, Blobs, Digest, Encoding, Overlay, Source};

use super::kind::StepError;
use crate::{ErrorKind, model::Working};

/// The model's selected weights are now those of the blobs.
pub(super) fn install(model: &mut Working, assignments: &[Assignment], blobs: Blobs) -> Result<(), StepError> {
    for assignment in assignments {
        model.damage.insert(assignment.name.clone(), blobs.damage(&assignment.name)?);
        place(&mut model.graph, assignment);
    }
    model.source = Arc::new(Overlay::new(Arc::new(blobs), model.source.clone()));
    Ok(())
}

/// The weight, and what is tied to it, is now under its canonical name, in codes.
pub(super) fn place(graph: &mut Graph, assignment: &Assignment) {
    for id in assignment.ids() {
        graph.replace_weight(id, Encoding::Quantized(assignment.scheme), Expr::tensor(assignment.name.clone()));
    }
}

/// All that decides the bytes of a unit.
pub(super) fn key(assignment: &Assignment, source: &dyn Source) -> Result<Digest, StepError> {
    let settings = format!(
        "quantize {} {} {} {:?}",
        assignment.algorithm.name(),
        assignment.algorithm.version(),
        assignment.scheme,
        assignment.search
    );
    Ok(Digest::of_parts([settings.as_bytes(), assignment.expr.digest(source)?.as_bytes()]))
}

pub(super) fn quantize(
    assignment: &Assignment,
    source: &dyn Source,
    seen: Seen<'_>,
    to: &mut dyn std::io::Write,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), crate::Error> {
    let weights = Rows { assignment, source };
    let writer = BlobWriter::new(to, assignment.scheme, assignment.dims).map_err(attar_tensor::Error::from)?;
    assignment.algorithm.quantize(&weights, seen, assignment.scheme, assignment.search, writer, progress)?;
    Ok(())
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
}

/// A choice that cannot be made is the recipe's fault.
pub(super) fn refused(error: attar_compress::Error) -> StepError {
    let key = error.key().map(Into::into);
    let kind = if key.is_some() { ErrorKind::Recipe } else { ErrorKind::Input };
    StepError { key, error: crate::Error { kind, ..error.into() } }
}
