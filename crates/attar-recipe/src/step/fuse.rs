//! The step `fuse`: the graph changes, and no byte of a weight. It comes after the steps that look for linear layers.

use std::{collections::BTreeMap, sync::Arc};

use attar_compile::pass::Fuse;
use attar_graph::{Expr, Graph, ValueId};
use attar_tensor::{Digest, Encoding, TensorInfo};

use super::{
    kind::{PlannedTensor, Step, StepError, StepKind},
    preserved,
};
use crate::{FusionReport, model::Working, report::TransformReport, session::Session, settings::of};

pub(super) static FUSE: StepKind = StepKind {
    name: "fuse",
    about: "Fuse graph nodes into the operations that a device executes as one",
    schema: of::<Fuse>,
    build: |section| Ok(Box::new(section.finish::<Fuse>(&["kind".into()])?)),
    folder: None,
    is_verb: false,
    examples: &[],
    looks_inside: false,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

/// A graph after passes, what each did, and the weights that are other expressions now: name, encoding before.
struct Fused {
    graph: Graph,
    reports: Vec<FusionReport>,
    changed: Vec<(ValueId, Encoding)>,
}

fn fused(settings: &Fuse, before: &Graph) -> Result<Fused, StepError> {
    let (graph, reports) = settings.run(before)?;
    let was: BTreeMap<&str, (&Expr, Encoding)> =
        before.weights().map(|(_, value, expr)| (value.name.as_str(), (expr, value.fact.encoding))).collect();
    let changed = graph.weights().filter_map(|(id, value, expr)| {
        let (old, encoding) = was[value.name.as_str()];
        (old != expr).then_some((id, encoding))
    });
    let changed = changed.collect();
    let reports = reports.iter().map(FusionReport::of).collect();
    Ok(Fused { graph, reports, changed })
}

impl Fused {
    /// `model` computes the same with this graph; what its weights are held against follows them.
    fn install(self, model: &mut Working) {
        for (id, _) in &self.changed {
            let value = self.graph.get(*id);
            let attar_graph::Origin::Weight(expr) = &value.origin else { unreachable!("`changed` lists weights") };
            if let Some(float) = model.float.graph.find(&value.name) {
                model.float.graph.replace_weight(float, value.fact.encoding, expr.clone());
            }
        }
        model.graph = self.graph;
        model.findings.extend(self.reports);
    }

    fn planned(&self) -> Vec<PlannedTensor> {
        let planned = self.changed.iter().map(|(id, from)| {
            let value = self.graph.get(*id);
            let info = TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding };
            let bits = info.true_bits();
            PlannedTensor {
                name: value.name.clone(),
                from: from.to_string(),
                to: info.encoding.to_string(),
                bits_per_weight: bits as f64 / info.elements().max(1) as f64,
                bytes: bits / 8,
                memory: 0,
                dims: info.dims,
            }
        });
        planned.collect()
    }
}

impl Step for Fuse {
    fn kind(&self) -> &'static StepKind {
        &FUSE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let fused = fused(self, &model.graph)?;
        let planned = fused.planned();
        fused.install(model);
        Ok(planned)
    }

    /// Logits are compared to the bit, unless a pass rounds.
    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let fused = fused(self, &model.graph)?;
        let source = Arc::clone(&model.source);
        let logits_off_at_most = if fused.changed.is_empty() { 0.0 } else { preserved::at_most(std::iter::empty()) };
        let (before, after) = ((&model.graph, &source), (&fused.graph, &source));
        let (logits_off, measured) = preserved::check(FUSE.name, &model.title, before, after, logits_off_at_most, session)?;
        let (step, weights) = (FUSE.name.into(), fused.changed.len());
        model.findings.push(TransformReport { step, weights, logits_off, logits_off_at_most, sites: Vec::new() });
        fused.install(model);
        Ok(vec![measured])
    }
}
