//! The step `quantize`: a unit is a tensor.

use std::{ops::Range, sync::Arc};

use attar_compress::{Assignment, Needs, Quantize, Seen, WeightRows};
use attar_graph::Expr;
use attar_tensor::{BlobWriter, Blobs, Digest, Encoding, Overlay, Source};

use super::{Step, StepError, StepKind, calibrated};
use crate::{ErrorKind, model::Working, plan::PlannedTensor, schema::of, session::Session};

pub(super) static QUANTIZE: StepKind = StepKind {
    name: "quantize",
    about: "Quantize weights to 2 to 8 bits",
    schema: of::<Quantize>,
    build: |section| Ok(Box::new(section.finish::<Quantize>(&["kind".into()])?)),
};

impl Step for Quantize {
    fn kind(&self) -> &'static StepKind {
        &QUANTIZE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let assignments = self.assign(&model.graph).map_err(refused)?;
        calibrated::check(&model.graph, &assignments, model.calibrated)?;
        let planned = assignments.iter().map(|a| PlannedTensor {
            name: a.name.clone(),
            dims: a.dims.to_vec(),
            from: model.graph.fact(a.id).encoding.to_string(),
            to: a.scheme.to_string(),
            bits_per_weight: a.scheme.bits_per_weight(a.dims),
            bytes: a.scheme.true_bits(a.dims).div_ceil(8),
            memory: a.algorithm.memory(a.dims),
        });
        let planned = planned.collect();
        assignments.iter().for_each(|a| place(model, a));
        Ok(planned)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let assignments = self.assign(&model.graph).map_err(refused)?;
        if assignments.iter().any(|a| a.algorithm.needs() != Needs::Nothing) {
            return calibrated::run(&assignments, model, session);
        }
        let total: usize = assignments.iter().map(|a| a.dims[0] * a.dims[1]).sum();
        session.observer.stage(&format!("{}: quantize", model.title), total as u64);
        let mut blobs = Blobs::default();
        let mut used = Vec::new();
        let mut done = 0;
        for assignment in &assignments {
            session.check_interrupt()?;
            let columns = assignment.dims[1];
            let before = done;
            let progress = |rows: usize| session.observer.advance((before + rows * columns) as u64, &assignment.name);
            let blob = session.unit(key(assignment, &*model.source)?, |to| {
                quantize(assignment, &*model.source, Seen::default(), to, &progress)
            })?;
            blobs.insert(&assignment.name, session.store, &blob, assignment.scheme, assignment.dims);
            used.push(blob);
            done += assignment.dims[0] * columns;
            progress(assignment.dims[0]);
        }
        install(model, &assignments, blobs)?;
        Ok(used)
    }
}

/// The model's selected weights are now those of the blobs.
pub(super) fn install(model: &mut Working, assignments: &[Assignment], blobs: Blobs) -> Result<(), StepError> {
    for assignment in assignments {
        model.damage.insert(assignment.name.clone(), blobs.damage(&assignment.name)?);
        place(model, assignment);
    }
    model.source = Arc::new(Overlay::new(Arc::new(blobs), model.source.clone()));
    Ok(())
}

/// The weight is now under its canonical name, in codes.
fn place(model: &mut Working, assignment: &Assignment) {
    model.graph.replace_weight(assignment.id, Encoding::Quantized(assignment.scheme), Expr::tensor(assignment.name.clone()));
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
