//! The step `prune`: a unit is a site (a layer whose columns leave), or the cost of a block's absence.
//!
//! The walk computes on the graph of the unpruned model, where what leaves has weights of zero: both models keep the same blocks, and a
//! killed run takes up at its block. The smaller graph is made at the end, and checked against the one with zeros.

mod depth;
mod fit;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use attar_compress::{
    Hessian,
    prune::{Cut, Fit, Prune, Quota, Sublayer, UnitSite, renumbered, reshaped, stored_as, without},
};
use attar_graph::{Expr, Graph, Origin, SourceWeights};
use attar_tensor::{Digest, Encoding, Overlay, Source, TensorInfo, safetensors::Shards};

use super::{
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    preserved,
};
use crate::{
    Error, ErrorKind,
    divergence::Yardstick,
    model::{Float, Working},
    report::{CutReport, PruneReport, RemovedReport},
    session::Session,
    settings::of,
    size::ModelSize,
    walk,
    walker::Walker,
};

pub(super) static PRUNE: StepKind = StepKind {
    name: "prune",
    about: "Make a model smaller in shape: fewer MLP channels, heads or blocks, with the rest fitted to take over",
    schema: of::<Prune>,
    build: |section| Ok(Box::new(section.finish::<Prune>(&["kind".into()])?)),
    folder: None,
    is_verb: true,
    examples: &[
        "attar prune model --mlp 256 --calibration text.txt --samples 16 --out smaller",
        "attar prune model --heads 2 --kv-heads 1 --method activation --fit none --calibration text.txt --samples 16 --out few-heads",
        "attar prune model --blocks 3 --ends 1 --max-kl 3 --calibration text.txt --samples 16 --out shallow",
    ],
    looks_inside: true,
    needs_tokens: true,
    predicts: false,
};

pub(super) static WALKER: Walker = Walker {
    name: "prune",
    doing: "prune",
    example: "[[step]]\nkind = \"prune\"\nmlp = 256\nkv_heads = 1\nblocks = 3\nends = 1\n",
};

/// Of so many calibration windows one is kept aside, to measure on, up to [`ASIDE`].
const WINDOWS_FOR_ONE: usize = 8;
const ASIDE: usize = 8;

impl Step for Prune {
    fn kind(&self) -> &'static StepKind {
        &PRUNE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        check_float(model)?;
        let cuts = self.cuts(&model.graph).map_err(refused)?;
        let candidates = depth::candidates(self, &model.graph)?;
        check_text(model)?;
        walk::plan(model, self.sides() + 1);
        let memory = cuts.iter().map(|(site, _)| self.memory(site, model)).max().unwrap_or(0);
        let memory = memory.max(Yardstick::memory(&model.graph, model.tokens / WINDOWS_FOR_ONE as u64)).max(preserved::memory(&model.graph));
        // Any units and blocks will do: only shapes are planned.
        let kept: Vec<Vec<usize>> = cuts.iter().map(|(site, quota)| first_units(site, quota)).collect();
        let planned = cuts.iter().zip(&kept).map(|((site, _), units)| {
            let weight = site.reader.expr(&model.graph).clone();
            Cut { site, units, weight }
        });
        let small = reshaped(&model.graph, &planned.collect::<Vec<_>>()).map_err(refused)?;
        let leaving: Vec<Sublayer> = candidates.groups.iter().rev().take(candidates.leave).flatten().copied().collect();
        let leaving = depth::found_again(&leaving, &model.graph, &small);
        let small = renumbered(&without(&small, &leaving).map_err(refused)?).map_err(refused)?;
        let planned = changed(&model.graph, &small, memory);
        model.float.graph = small.clone();
        model.graph = small;
        Ok(planned)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let graph = model.graph.clone();
        let windows = session.calibration.unwrap_or_default();
        let (seen, aside) = windows.split_at(windows.len() - aside(windows.len()));
        let before = Float { graph: graph.clone(), source: model.source.clone() };
        let mut used = Vec::new();
        let removed = depth::chosen(self, &before, &model.title, seen, session, &mut used)?;
        let leaving: Vec<Sublayer> = removed.iter().flat_map(|removed| removed.sublayers.iter().copied()).collect();
        let sites = UnitSite::of(&graph).map_err(refused)?;
        let cuts = self.cuts(&graph).map_err(refused)?;
        let tasks = fit::tasks(&sites, &cuts, &leaving, &graph);
        let made = fit::fitted(self, &before, &model.title, &tasks, &leaving, seen, session)?;
        let files: Vec<PathBuf> = made.iter().map(|made| session.store.open(&made.blob)).collect::<attar_tensor::Result<_>>()?;
        let top: Arc<dyn Source> = Arc::new(Shards::open(&files, &BTreeMap::new())?);
        let source: Arc<dyn Source> = Arc::new(Overlay::new(top, model.source.clone()));

        let mut masked = graph.clone();
        for (task, made) in tasks.iter().zip(&made) {
            let dtype = stored_as(graph.fact(task.site.reader.weight).encoding);
            let expr = Expr::tensor(made.tensor.clone()).rounded(dtype);
            masked.replace_weight(task.site.reader.weight, Encoding::Plain(dtype), expr);
        }
        let cuts = tasks.iter().zip(&made);
        let cuts = cuts.map(|(task, made)| Cut { site: task.site, units: &made.units, weight: Expr::tensor(made.tensor.clone()) });
        let small = reshaped(&graph, &cuts.collect::<Vec<_>>()).map_err(refused)?;
        let short = |graph_of: &Graph| without(graph_of, &depth::found_again(&leaving, &graph, graph_of)).map_err(refused);
        let (masked, small) = (short(&masked)?, short(&small)?);
        let at_most = preserved::at_most(std::iter::empty());
        let (_, checked) =
            preserved::check(PRUNE.name, &model.title, (&masked, &source), (&small, &source), at_most, session)?;
        let small = renumbered(&small).map_err(refused)?;

        let after = Float { graph: small, source };
        let (divergence, measured) = divergence(&before, &after, aside, &model.title, session)?;
        used.extend([checked, measured]);
        used.extend(made.iter().map(|made| made.blob));
        if let Some(most) = self.max_kl.filter(|most| divergence > *most) {
            let message = format!("the pruned model is {divergence:.4} nats per token from the one before, and at most {most} are allowed");
            let hint = "let more stay, or raise `max_kl` and let `distill` make up for it".to_owned();
            let error = Error { kind: ErrorKind::Input, ..Error::recipe(message).hint(hint) };
            return Err(StepError { key: Some("max_kl".into()), error });
        }
        let smaller = tasks.iter().zip(&made).filter(|(task, _)| task.quota.is_some());
        model.findings.push(PruneReport {
            method: self.method.0.name().into(),
            fit: serde_json::to_value(self.fit).ok().and_then(|fit| Some(fit.as_str()?.to_owned())).unwrap_or_default(),
            before: ModelSize::of(&before.graph),
            after: ModelSize::of(&after.graph),
            divergence,
            tokens: aside.iter().map(Vec::len).sum(),
            removed: removed.iter().map(|gone| RemovedReport { name: gone.name.clone(), divergence: gone.divergence }).collect(),
            layers: smaller.map(|(task, made)| CutReport { name: task.site.name.clone(), before: task.site.units(), after: made.units.len() }).collect(),
        });
        (model.graph, model.source, model.float) = (after.graph.clone(), after.source.clone(), after);
        Ok(used)
    }
}

trait Sides {
    /// Models that the text goes through.
    fn sides(&self) -> u64;

    /// Bytes that the work at a site takes.
    fn memory(&self, site: &UnitSite, model: &Working) -> u64;
}

impl Sides for Prune {
    fn sides(&self) -> u64 {
        if self.fit == Fit::Residual { 2 } else { 1 }
    }

    fn memory(&self, site: &UnitSite, model: &Working) -> u64 {
        let dims: [usize; 2] =
            model.graph.fact(site.reader.weight).constant_dims().and_then(|dims| dims.try_into().ok()).unwrap_or_default();
        let [rows, columns] = dims;
        let solving = (8 * (2 * columns * columns + 4 * rows * columns)) as u64;
        let wanted = if self.fit == Fit::Residual { attar_compress::Cross::bytes(rows, columns) + 4 * model.tokens * rows as u64 } else { 0 };
        Hessian::bytes(columns) + wanted + solving.max(self.method.0.memory(dims))
    }
}

/// How many of so many windows are kept aside.
fn aside(windows: usize) -> usize {
    (windows / WINDOWS_FOR_ONE).clamp(usize::from(windows > 1), ASIDE)
}

/// The first units of every pool.
fn first_units(site: &UnitSite, quota: &Quota) -> Vec<usize> {
    match (*quota, site.unit) {
        (Quota::Heads { groups, each }, attar_compress::prune::Unit::Head { heads, key_heads, .. }) => {
            let group = heads / key_heads;
            (0..groups).flat_map(|key| key * group..key * group + each).collect()
        }
        (quota, _) => (0..quota.units()).collect(),
    }
}

/// A model in codes cannot change its shape.
fn check_float(model: &Working) -> Result<(), StepError> {
    let coded = model.graph.weights().find_map(|(_, value, _)| match value.fact.encoding {
        Encoding::Quantized(scheme) => Some((value.name.clone(), scheme)),
        _ => None,
    });
    if let Some((weight, scheme)) = coded {
        return Err(refused(attar_compress::Error::CodesStay { weight, scheme }));
    }
    if model.adapters.is_some() || !model.matches_float() {
        let error = Error::recipe("the shape must change before adapters are added or activations are quantized");
        return Err(StepError { key: Some("kind".into()), error: error.hint("put this step first".to_owned()) });
    }
    Ok(())
}

fn check_text(model: &Working) -> Result<(), StepError> {
    if !model.calibrated {
        let hint = "add `[data.calibration]` with the `path` of a text".to_owned();
        return Err(Error::recipe("`prune` looks at activations, and the recipe has no text for that").hint(hint).into());
    }
    if model.tokens < 2 * model.window as u64 {
        let hint = "take 16 or more windows: raise `samples` of `[data.calibration]`".to_owned();
        return Err(Error::recipe("`prune` needs two windows of text: one to look at, and one to measure on").hint(hint).into());
    }
    Ok(())
}

/// The weights that `small` has in another shape or encoding.
fn changed(graph: &Graph, small: &Graph, memory: u64) -> Vec<PlannedTensor> {
    let of = |graph: &Graph, name: &str| {
        let value = graph.get(graph.find(name)?);
        matches!(value.origin, Origin::Weight(_)).then(|| TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding })
    };
    let planned = |name: &str, info: TensorInfo, from: String, to: String| PlannedTensor {
        name: name.into(),
        dims: info.dims.clone(),
        from,
        to,
        bits_per_weight: info.true_bits() as f64 / info.elements().max(1) as f64,
        bytes: info.true_bits() / 8,
        memory,
    };
    let mut all = Vec::new();
    for (_, value, _) in graph.weights() {
        let Some(before) = of(graph, &value.name) else { continue };
        match of(small, &value.name) {
            Some(after) if after == before => {}
            Some(after) => {
                let (from, to) = (format!("{} {:?}", before.encoding, before.dims), after.encoding.to_string());
                all.push(planned(&value.name, after, from, to));
            }
            None => {
                let gone = TensorInfo { dims: vec![0], encoding: before.encoding };
                all.push(planned(&value.name, gone, format!("{} {:?}", before.encoding, before.dims), "removed".into()));
            }
        }
    }
    all
}

/// The KL divergence of `after` from `before` on some windows, and the blob that says so.
fn divergence(before: &Float, after: &Float, windows: &[Vec<u32>], title: &str, session: &Session<'_>) -> Result<(f64, Digest), StepError> {
    let weights = [before, after].map(|float| SourceWeights(float.source.clone()));
    let key = [b"divergence 1".as_slice(), walk::first_key(&before.graph, windows).as_bytes(), after.graph.to_string().as_bytes()].concat();
    let mut parts = vec![Digest::of(&key)];
    for float in [before, after] {
        for (_, _, expr) in float.graph.weights() {
            parts.push(expr.digest(&*float.source)?);
        }
    }
    let key = Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice()));
    let blob = session.unit(key, |to| {
        session.observer.stage(&format!("{title}: measure what pruning cost"), 0);
        let yardstick = Yardstick::new(&before.graph, &weights[0], windows, session)?;
        let found = yardstick.divergence(&after.graph, &weights[1], session)?;
        to.write_all(&found.to_le_bytes()).map_err(|e| attar_tensor::Error::from(e).into())
    })?;
    Ok((number(&blob, session)?, blob))
}

/// The number that a blob is.
fn number(blob: &Digest, session: &Session<'_>) -> Result<f64, Error> {
    let path = session.store.open(blob)?;
    let bytes = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
    Ok(bytes.try_into().map_or(f64::NAN, f64::from_le_bytes))
}
