//! The step `prune`: a unit is a site (a layer whose columns leave), or the cost of a block's absence.
//!
//! The walk computes on the graph of the unpruned model, where what leaves has weights of zero: both models keep the same blocks, and a
//! killed run takes up at its block. The smaller graph is made at the end, and checked against the one with zeros. With `sparsity`, the
//! graph keeps its shape ([`sparse`]).

mod depth;
mod fit;
mod hidden;
mod latency;
mod sparse;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use attar_compress::{
    Cross, Hessian,
    allocate::{Cost as Width, solve},
    prune::{
        Cost, Cut, Depth, Fit, Hidden, Prune, Quota, Shape, Sublayer, Target, UnitSite, candidates, narrowed, renumbered,
        reshaped, stored_as, without,
    },
};
use attar_graph::{Expr, Graph, Op, Origin, SourceWeights};
use attar_tensor::{Digest, Encoding, Overlay, Source, TensorInfo, safetensors::Shards};

pub(super) use fit::WALKER;
pub(super) use hidden::{CHOOSING as CHANNELS_WALKER, FITTING as HIDDEN_WALKER};
pub(super) use sparse::WALKER as ZEROS_WALKER;

use super::{
    codes::refused,
    device,
    kind::{PlannedTensor, Step, StepError, StepKind},
    preserved,
};
use crate::{
    Error, ErrorKind,
    divergence::Yardstick,
    model::{Float, Working},
    report::{CandidateReport, CutReport, PruneReport, RemovedReport},
    session::Session,
    settings::of,
    size::ModelSize,
    walk,
};

pub(super) static PRUNE: StepKind = StepKind {
    name: "prune",
    about: "Make a model smaller in shape or sparse, and fit what stays to take over",
    schema: of::<Prune>,
    build: |section| Ok(Box::new(section.finish::<Prune>(&["kind".into()])?)),
    folder: None,
    is_verb: true,
    examples: &[
        "attar prune model --mlp 256 --calibration text.txt --samples 16 --out smaller",
        "attar prune model --kv-heads 1 --method wanda --calibration text.txt --samples 16 --out few-heads",
        "attar prune model --target parameters=700k --calibration text.txt --samples 16 --out searched",
        "attar prune model --sparsity 2:4 --calibration text.txt --samples 16 --out sparse",
    ],
    looks_inside: true,
    needs_tokens: true,
    predicts: false,
    trains: false,
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

    fn files(&self) -> Vec<(String, PathBuf)> {
        let of_target = self.target.as_ref().and_then(|target| target.device.as_deref());
        self.device.as_deref().or(of_target).map(device::files).unwrap_or_default()
    }

    fn needs_text(&self) -> bool {
        true
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        if let Some(sparsity) = self.sparsity {
            return sparse::plan(self, sparsity, model);
        }
        check_float(model)?;
        let whole = "change the shape first, and remove single weights in a later step";
        model.check_no_zeros(PRUNE.name, whole).map_err(|error| StepError { key: Some("kind".into()), error })?;
        if self.hidden.is_some() {
            self.check(&model.graph).map_err(refused)?;
            check_text(model)?;
            walk::plan(model, 2);
            let memory = hidden::memory(self, model)?.max(yardstick_memory(model));
            let small = smallest(self, &model.graph, &*model.source)?;
            return Ok(planned(model, small, memory));
        }
        self.check(&model.graph).map_err(refused)?;
        check_text(model)?;
        walk::plan(model, self.sides() + 1);
        let sites = UnitSite::of(&model.graph).map_err(refused)?;
        let memory = sites.iter().map(|site| self.memory(site, model)).max().unwrap_or(0);
        let memory = memory.max(yardstick_memory(model)).max(preserved::memory(&model.graph));
        let small = smallest(self, &model.graph, &*model.source)?;
        Ok(planned(model, small, memory))
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        if let Some(sparsity) = self.sparsity {
            return sparse::run(self, sparsity, model, session);
        }
        let before = Float { graph: model.graph.clone(), source: model.source.clone() };
        let windows = session.calibration.unwrap_or_default();
        let (seen, aside) = windows.split_at(windows.len() - aside(windows.len()));
        let sites = UnitSite::of(&before.graph).map_err(refused)?;
        let work = Work { settings: self, before: &before, title: &model.title, sites: &sites, seen, aside, session };
        let mut used = Vec::new();
        if let Some(stay) = self.hidden {
            let after = hidden::made(self, stay, &before, &model.title, seen, session, &mut used)?;
            let (divergence, measured) = work.divergence(&after)?;
            used.push(measured);
            check_bound(self, divergence)?;
            let width = Hidden::of(&before.graph).map_err(refused)?.width();
            let stream = CutReport { name: "residual stream".into(), before: width, after: stay };
            model.findings.push(PruneReport { layers: vec![stream], ..self.report(&before, &after, divergence, aside) });
            (model.graph, model.source, model.float) = (after.graph.clone(), after.source.clone(), after);
            return Ok(used);
        }
        let mut shapes = self.shapes(&before.graph, &*before.source)?;
        let stay = shapes.iter().filter_map(ShapeOf::blocks).min();
        let removed = depth::chosen(self, stay, &before, &model.title, seen, session, &mut used)?;
        let mut candidates = Vec::new();
        if shapes.len() > 1 || self.vary {
            candidates = work.measured(&shapes, &removed, &mut used)?;
            let best =
                (0..shapes.len()).min_by(|a, b| candidates[*a].divergence.total_cmp(&candidates[*b].divergence)).unwrap_or(0);
            shapes = vec![shapes.swap_remove(best)];
            if let (true, ShapeOf::Candidate(shape)) = (self.vary, &shapes[0]) {
                let varied: Vec<ShapeOf> = work.varied(*shape, &removed, &mut used)?.into_iter().collect();
                let found = work.measured(&varied, &removed, &mut used)?;
                if found.iter().any(|varied| varied.divergence < candidates[best].divergence) {
                    shapes = varied;
                }
                candidates.extend(found);
            }
        }
        let widest = sites.iter().filter_map(|site| before.graph.fact(site.reader.input).width()).max();
        self.note_few_tokens(widest.unwrap_or(0), seen, session);
        let (shape, fit) = (&shapes[0], self.fit);
        let leaving = work.leaving(shape, &removed)?;
        let tasks = fit::tasks(&sites, |site| shape.quota(self, site), &leaving)?;
        let made = fit::fitted(self, fit, &before, &model.title, &tasks, &leaving, seen, session)?;
        let (after, checked) = work.made(&tasks, &made, &leaving)?;
        let (divergence, measured) = work.divergence(&after)?;
        used.extend([checked, measured]);
        used.extend(made.iter().map(|made| made.blob));
        check_bound(self, divergence)?;
        if tasks.is_empty() {
            session.observer.note("note: the model is of the shape that was asked for: `prune` removed nothing");
        }
        let smaller = tasks.iter().zip(&made).filter(|(task, _)| task.quota.is_some());
        let layer = |(task, made): (&fit::Task<'_>, &fit::Made)| CutReport {
            name: task.site.name.clone(),
            before: task.site.units(),
            after: made.units.len(),
        };
        let removed = removed.iter().take(self.leaving_groups(shape, &before.graph)?);
        model.findings.push(PruneReport {
            candidates,
            removed: removed.map(|gone| RemovedReport { name: gone.name.clone(), divergence: gone.divergence }).collect(),
            layers: smaller.map(layer).collect(),
            ..self.report(&before, &after, divergence, aside)
        });
        (model.graph, model.source, model.float) = (after.graph.clone(), after.source.clone(), after);
        Ok(used)
    }
}

/// The graph that the step makes of `graph`. Any units and blocks will do, and the shape that should win: only shapes are planned.
pub(super) fn smallest(settings: &Prune, graph: &Graph, source: &dyn Source) -> Result<Graph, StepError> {
    if let Some(stay) = settings.hidden {
        settings.check(graph).map_err(refused)?;
        return hidden::planned(stay, graph);
    }
    let shapes = settings.shapes(graph, source)?;
    let sites = UnitSite::of(graph).map_err(refused)?;
    let candidates = depth::candidates(settings, graph, shapes[0].blocks())?;
    let leaving: Vec<Sublayer> = candidates.groups.iter().rev().take(candidates.leave).flatten().copied().collect();
    let uneven = settings.uneven(&shapes[0], &sites, &leaving)?;
    let shape = uneven.as_ref().unwrap_or(&shapes[0]);
    let tasks = fit::tasks(&sites, |site| shape.quota(settings, site), &leaving)?;
    let units = |task: &fit::Task<'_>| match task.quota {
        Some(quota) => quota.first(task.site),
        None => (0..task.site.units()).collect(),
    };
    let kept: Vec<Vec<usize>> = tasks.iter().map(units).collect();
    let parts = tasks.iter().zip(&kept).map(|(task, units)| (*task, units.as_slice(), task.site.reader.expr(graph).clone()));
    let small = assembled(graph, &parts.collect::<Vec<_>>(), &leaving)?.small;
    renumbered(&small).map_err(refused)
}

/// A shape that the step may give the model.
enum ShapeOf {
    /// What the settings say stays of every site, and of the blocks.
    Settings(Option<usize>),
    /// A candidate under a budget.
    Candidate(Shape),
    /// One whose MLPs keep other numbers of channels, by the names of their readers.
    Varied(Shape, BTreeMap<String, usize>),
}

impl ShapeOf {
    /// The blocks that stay; all, without a number.
    fn blocks(&self) -> Option<usize> {
        match self {
            ShapeOf::Settings(blocks) => *blocks,
            ShapeOf::Candidate(shape) | ShapeOf::Varied(shape, _) => Some(shape.blocks),
        }
    }

    fn quota(&self, settings: &Prune, site: &UnitSite) -> Result<Quota, StepError> {
        match self {
            ShapeOf::Settings(_) => settings.quota(site).map_err(refused),
            ShapeOf::Candidate(shape) => Ok(shape.quota(site)),
            ShapeOf::Varied(shape, widths) => Ok(varied_quota(shape, widths, site)),
        }
    }
}

/// How much of a site stays where some MLPs have widths of their own.
fn varied_quota(shape: &Shape, widths: &BTreeMap<String, usize>, site: &UnitSite) -> Quota {
    widths.get(&site.name).map_or_else(|| shape.quota(site), |channels| Quota::Channels(*channels))
}

/// With fewer tokens for each input of a layer, a fit is poor.
const TOKENS_AN_INPUT: usize = 4;

/// Under `vary`, the width of an MLP is at most so many multiples from that of the best uniform shape.
const STEPS: usize = 4;

/// What is measured under a budget at most.
const CANDIDATES: usize = 10;

trait Planned {
    /// The shapes to choose from, those first that should lose least. Reads no weight.
    fn shapes(&self, graph: &Graph, source: &dyn Source) -> Result<Vec<ShapeOf>, StepError>;

    /// Under `vary`, the shape with another width of one MLP: a target that cannot hold such a model says so in the plan.
    fn uneven(&self, shape: &ShapeOf, sites: &[UnitSite], leaving: &[Sublayer]) -> Result<Option<ShapeOf>, StepError>;

    /// How many groups of sublayers leave for a shape.
    fn leaving_groups(&self, shape: &ShapeOf, graph: &Graph) -> Result<usize, StepError>;

    /// Says so where the text is too short to fit a layer of so many inputs on.
    fn note_few_tokens(&self, widest: usize, seen: &[Vec<u32>], session: &Session<'_>);

    /// The report without what left where.
    fn report(&self, before: &Float, after: &Float, divergence: f64, aside: &[Vec<u32>]) -> PruneReport;

    /// Models that the text goes through.
    fn sides(&self) -> u64;

    /// Bytes that the work at a site takes.
    fn memory(&self, site: &UnitSite, model: &Working) -> u64;
}

impl Planned for Prune {
    fn shapes(&self, graph: &Graph, source: &dyn Source) -> Result<Vec<ShapeOf>, StepError> {
        self.check(graph).map_err(refused)?;
        let Some(target) = &self.target else { return Ok(vec![ShapeOf::Settings(self.blocks)]) };
        let (what, budget) = target.budget().map_err(refused).map_err(in_target)?;
        let full = Shape::of(graph).map_err(refused)?.ok_or(attar_compress::Error::NotUniform).map_err(refused)?;
        let fewest = depth::fewest(self, full.blocks).max(full.blocks / 2);
        let mut costs = |shape: Shape| {
            let candidates = depth::candidates(self, graph, Some(shape.blocks))?;
            let leaving: Vec<Sublayer> = candidates.groups.iter().rev().take(candidates.leave).flatten().copied().collect();
            cost(target, what, graph, source, &|site| shape.quota(site), &leaving)
        };
        let fixed = [self.mlp, self.heads, self.kv_heads, self.blocks.or((self.depth() != Depth::Block).then_some(full.blocks))];
        let multiple = self.multiple(full.mlp).map_err(refused)?;
        let found = candidates(full, fixed, fewest, multiple, budget, CANDIDATES, &mut costs)?;
        if found.shapes.is_empty() {
            let [budget, least] = [budget, found.least].map(|amount| what.shown(amount));
            return Err(refused(attar_compress::Error::NoShape { key: what.key(), budget, least }));
        }
        Ok(found.shapes.into_iter().map(ShapeOf::Candidate).collect())
    }

    fn uneven(&self, shape: &ShapeOf, sites: &[UnitSite], leaving: &[Sublayer]) -> Result<Option<ShapeOf>, StepError> {
        let (true, ShapeOf::Candidate(shape)) = (self.vary, shape) else { return Ok(None) };
        let Some(site) = sites.iter().find(|site| fit::is_mlp(site) && !fit::left(site, leaving)) else { return Ok(None) };
        let multiple = self.multiple(site.units()).map_err(refused)?;
        let other = if shape.mlp + multiple <= site.units() { shape.mlp + multiple } else { shape.mlp.saturating_sub(multiple) };
        Ok((other > 0).then(|| ShapeOf::Varied(*shape, BTreeMap::from([(site.name.clone(), other)]))))
    }

    fn leaving_groups(&self, shape: &ShapeOf, graph: &Graph) -> Result<usize, StepError> {
        Ok(depth::candidates(self, graph, shape.blocks())?.leave)
    }

    fn note_few_tokens(&self, widest: usize, seen: &[Vec<u32>], session: &Session<'_>) {
        let tokens: usize = seen.iter().map(Vec::len).sum();
        if self.fit != Fit::None && tokens < TOKENS_AN_INPUT * widest {
            let note = format!(
                "note: layers of {widest} inputs are fitted on {tokens} tokens, which may do more harm than good: raise `samples`"
            );
            session.observer.note(&note);
        }
    }

    fn report(&self, before: &Float, after: &Float, divergence: f64, aside: &[Vec<u32>]) -> PruneReport {
        PruneReport {
            method: self.method.0.name().into(),
            fit: self.fit.name().into(),
            before: ModelSize::of(&before.graph),
            after: ModelSize::of(&after.graph),
            divergence,
            tokens: aside.iter().map(Vec::len).sum(),
            candidates: Vec::new(),
            removed: Vec::new(),
            layers: Vec::new(),
        }
    }

    fn sides(&self) -> u64 {
        if self.fit == Fit::Residual { 2 } else { 1 }
    }

    fn memory(&self, site: &UnitSite, model: &Working) -> u64 {
        let dims: [usize; 2] =
            model.graph.fact(site.reader.weight).constant_dims().and_then(|dims| dims.try_into().ok()).unwrap_or_default();
        let [rows, columns] = dims;
        let solving = (8 * (2 * columns * columns + 4 * rows * columns)) as u64;
        let takes_over = self.fit == Fit::Residual || self.blocks.is_some() || self.target.is_some();
        let wanted = if takes_over { Cross::bytes(rows, columns) + 4 * model.tokens * rows as u64 } else { 0 };
        Hessian::bytes(columns) + wanted + solving.max(self.method.0.memory(dims))
    }
}

/// A mistake in the table `target`.
fn in_target(mistake: StepError) -> StepError {
    StepError { key: Some("target".into()), ..mistake }
}

/// What a model costs with so much of every site, and without sublayers.
fn cost(
    target: &Target,
    what: Cost,
    graph: &Graph,
    source: &dyn Source,
    quota: &dyn Fn(&UnitSite) -> Quota,
    leaving: &[Sublayer],
) -> Result<u64, StepError> {
    let narrow = narrowed(graph, quota).map_err(refused)?;
    let small = without(&narrow, &depth::found_again(leaving, graph, &narrow)).map_err(refused)?;
    let size = ModelSize::of(&small);
    Ok(match what {
        Cost::Parameters => size.parameters,
        Cost::Bytes => size.bytes,
        Cost::Macs => size.macs,
        Cost::KvBytes => size.kv_bytes,
        Cost::Latency => {
            Cost::nanoseconds(latency::seconds(target, &renumbered(&small).map_err(refused)?, source).map_err(in_target)?)
        }
    })
}

/// What all candidates share.
struct Work<'a> {
    settings: &'a Prune,
    before: &'a Float,
    title: &'a str,
    sites: &'a [UnitSite],
    /// Windows to look at, and windows to measure on.
    seen: &'a [Vec<u32>],
    aside: &'a [Vec<u32>],
    session: &'a Session<'a>,
}

impl Work<'_> {
    /// What leaves for a shape, of what was chosen to leave.
    fn leaving(&self, shape: &ShapeOf, removed: &[depth::Removed]) -> Result<Vec<Sublayer>, StepError> {
        let leave = self.settings.leaving_groups(shape, &self.before.graph)?;
        Ok(removed.iter().take(leave).flat_map(|removed| removed.sublayers.iter().copied()).collect())
    }

    /// Every shape with its divergence. All are fitted to the layers' own outputs, in one passage of the text.
    fn measured(
        &self,
        shapes: &[ShapeOf],
        removed: &[depth::Removed],
        used: &mut Vec<Digest>,
    ) -> Result<Vec<CandidateReport>, StepError> {
        let fit = self.one_stream();
        let mut of_shapes = Vec::new();
        for shape in shapes {
            let leaving = self.leaving(shape, removed)?;
            of_shapes.push((fit::tasks(self.sites, |site| shape.quota(self.settings, site), &leaving)?, leaving));
        }
        let all = fit::together(self.sites, of_shapes.iter().map(|(tasks, _)| tasks.as_slice()));
        let made = fit::fitted(self.settings, fit, self.before, self.title, &all, &[], self.seen, self.session)?;
        used.extend(made.iter().map(|made| made.blob));
        let mut found = Vec::new();
        for (shape, (tasks, leaving)) in shapes.iter().zip(&of_shapes) {
            let mine: Vec<fit::Made> = tasks.iter().map(|task| fit::of(task, &all, &made)).collect();
            let (after, checked) = self.made(tasks, &mine, leaving)?;
            let (divergence, measured) = self.divergence(&after)?;
            used.extend([checked, measured]);
            let (shape, widths) = match shape {
                ShapeOf::Settings(_) => continue,
                ShapeOf::Candidate(shape) => (shape, Vec::new()),
                ShapeOf::Varied(shape, widths) => {
                    (shape, self.sites.iter().filter_map(|site| widths.get(&site.name).copied()).collect())
                }
            };
            let of_device = self.settings.target.as_ref().filter(|target| target.latency.is_some());
            let latency = of_device.map(|target| latency::seconds(target, &after.graph, &*after.source)).transpose()?;
            found.push(CandidateReport { shape: *shape, widths, size: ModelSize::of(&after.graph), latency, divergence });
        }
        Ok(found)
    }

    /// Widths of its own for every MLP, within the budget that `shape` meets: what the layers lose, each alone, is least in sum. Nothing, if
    /// all widths are the same.
    fn varied(&self, shape: Shape, removed: &[depth::Removed], used: &mut Vec<Digest>) -> Result<Option<ShapeOf>, StepError> {
        let (settings, before) = (self.settings, self.before);
        let target = settings.target.as_ref().expect("`check` asks for one");
        let (what, budget) = target.budget().map_err(refused)?;
        let leaving = self.leaving(&ShapeOf::Candidate(shape), removed)?;
        let full = Shape::of(&before.graph).map_err(refused)?.map_or(shape.mlp, |full| full.mlp);
        let multiple = settings.multiple(full).map_err(refused)?;
        let widths: Vec<usize> =
            (1..=full / multiple).map(|n| n * multiple).filter(|n| n.abs_diff(shape.mlp) <= STEPS * multiple).collect();
        let of_width = |mlp: usize| fit::tasks(self.sites, |site| Ok(Shape { mlp, ..shape }.quota(site)), &leaving);
        let of_widths = widths.iter().map(|mlp| of_width(*mlp)).collect::<Result<Vec<_>, _>>()?;
        let all = fit::together(self.sites, of_widths.iter().map(Vec::as_slice));
        let made = fit::fitted(settings, self.one_stream(), before, self.title, &all, &[], self.seen, self.session)?;
        used.extend(made.iter().map(|made| made.blob));
        let mlps: Vec<&UnitSite> = self.sites.iter().filter(|site| fit::is_mlp(site) && !fit::left(site, &leaving)).collect();
        let lost = |site: &UnitSite, tasks: &[fit::Task<'_>]| {
            tasks.iter().find(|task| task.site.name == site.name).map_or(0.0, |task| fit::of(task, &all, &made).loss)
        };
        let options = |site: &&UnitSite| -> Vec<Width> {
            widths.iter().zip(&of_widths).map(|(mlp, tasks)| Width { bits: *mlp as u64, loss: lost(site, tasks) }).collect()
        };
        let items: Vec<Vec<Width>> = mlps.iter().map(options).collect();
        let mut channels = (shape.mlp + multiple) * mlps.len();
        loop {
            channels -= multiple;
            let Some(solution) = solve(&items, channels as u64) else { return Ok(None) };
            let chosen = solution.choices.iter().map(|at| widths[*at]);
            let widths: BTreeMap<String, usize> = mlps.iter().map(|site| site.name.clone()).zip(chosen).collect();
            let quota = |site: &UnitSite| varied_quota(&shape, &widths, site);
            let costs = cost(target, what, &before.graph, &*before.source, &quota, &leaving)?;
            if costs <= budget {
                let varies = widths.values().any(|width| *width != shape.mlp);
                return Ok(varies.then_some(ShapeOf::Varied(shape, widths)));
            }
        }
    }

    /// What candidates are fitted to: their layers' own outputs, for which one passage of the text is enough.
    fn one_stream(&self) -> Fit {
        if self.settings.fit == Fit::Residual { Fit::Layer } else { self.settings.fit }
    }

    /// The smaller model, which computes what the one with zeros does; and the blob that says so.
    fn made(&self, tasks: &[fit::Task<'_>], made: &[fit::Made], leaving: &[Sublayer]) -> Result<(Float, Digest), StepError> {
        let files: Vec<PathBuf> =
            made.iter().map(|made| self.session.store.open(&made.blob)).collect::<attar_tensor::Result<_>>()?;
        let top: Arc<dyn Source> = Arc::new(Shards::open(&files, &BTreeMap::new())?);
        let source: Arc<dyn Source> = Arc::new(Overlay::new(top, self.before.source.clone()));
        let parts = tasks.iter().zip(made).map(|(task, made)| (*task, made.units.as_slice(), Expr::tensor(made.tensor.clone())));
        let Assembled { masked, small } = assembled(&self.before.graph, &parts.collect::<Vec<_>>(), leaving)?;
        let at_most = preserved::at_most(std::iter::empty());
        let (_, checked) =
            preserved::check(PRUNE.name, self.title, (&masked, &source), (&small, &source), at_most, self.session)?;
        Ok((Float { graph: renumbered(&small).map_err(refused)?, source }, checked))
    }

    /// The KL divergence of a smaller model on windows that were kept aside, and the blob that says so.
    fn divergence(&self, after: &Float) -> Result<(f64, Digest), StepError> {
        divergence(self.before, after, self.title, self.aside, self.session)
    }
}

/// The KL divergence of `after` from `before` on windows that were kept aside, and the blob that says so.
fn divergence(
    before: &Float,
    after: &Float,
    title: &str,
    aside: &[Vec<u32>],
    session: &Session<'_>,
) -> Result<(f64, Digest), StepError> {
    let weights = [before, after].map(|float| SourceWeights(float.source.clone()));
    let mut parts =
        vec![Digest::of(b"divergence 1"), walk::first_key(&before.graph, aside), Digest::of(after.graph.to_string().as_bytes())];
    for float in [before, after] {
        for (_, _, expr) in float.graph.weights() {
            parts.push(expr.digest(&*float.source)?);
        }
    }
    let key = Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice()));
    Ok(session.number(key, || {
        session.observer.stage(&format!("{title}: measure what pruning costs"), 0);
        let yardstick = Yardstick::new(&before.graph, &weights[0], aside, session)?;
        yardstick.divergence(&after.graph, &weights[1], session)
    })?)
}

/// Fails above the bound of the settings.
fn check_bound(settings: &Prune, divergence: f64) -> Result<(), StepError> {
    let Some(most) = settings.max_kl.filter(|most| divergence > *most) else { return Ok(()) };
    let message =
        format!("the pruned model is {divergence:.4} nats per token from the one before, and at most {most} are allowed");
    let hint = "let more stay, or raise `max_kl` and let `distill` make up for it".to_owned();
    let error = Error { kind: ErrorKind::Bound, ..Error::input(message).hint(hint) };
    Err(StepError { key: Some("max_kl".into()), error })
}

/// A model without what leaves, its blocks numbered as before.
struct Assembled {
    /// With zeros in the place of units that leave.
    masked: Graph,
    /// Without them.
    small: Graph,
}

/// `graph` with the new weights of tasks, each with the units that stay.
fn assembled(graph: &Graph, parts: &[(fit::Task<'_>, &[usize], Expr)], leaving: &[Sublayer]) -> Result<Assembled, StepError> {
    let mut masked = graph.clone();
    for (task, _, expr) in parts {
        let dtype = stored_as(graph.fact(task.site.reader.weight).encoding);
        masked.replace_weight(task.site.reader.weight, Encoding::Plain(dtype), expr.clone().rounded(dtype));
    }
    let cuts = parts.iter().map(|(task, units, expr)| Cut { site: task.site, units, weight: expr.clone() });
    let small = reshaped(graph, &cuts.collect::<Vec<_>>()).map_err(refused)?;
    let short = |of: &Graph| without(of, &depth::found_again(leaving, graph, of)).map_err(refused);
    Ok(Assembled { masked: short(&masked)?, small: short(&small)? })
}

/// Bytes that measuring on what is kept aside takes.
fn yardstick_memory(model: &Working) -> u64 {
    let windows = aside(model.tokens as usize / model.window.max(1));
    Yardstick::memory(&model.graph, (windows * model.window) as u64)
}

/// The model is of the shape of `small` from now on.
fn planned(model: &mut Working, small: Graph, memory: u64) -> Vec<PlannedTensor> {
    let planned = changed(&model.graph, &small, memory);
    model.float.graph = small.clone();
    model.graph = small;
    planned
}

/// How many of so many windows are kept aside.
fn aside(windows: usize) -> usize {
    (windows / WINDOWS_FOR_ONE).clamp(usize::from(windows > 1), ASIDE)
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
    let integers = model.graph.nodes().iter().any(|node| matches!(node.op, Op::Quantize { .. }));
    if model.adapters.is_some() || integers || !model.matches_float() {
        let error = Error::recipe("the shape must change before adapters are added or activations are quantized");
        return Err(StepError {
            key: Some("kind".into()),
            error: error.hint("put this step first, on the checkpoint that the model was made from".to_owned()),
        });
    }
    Ok(())
}

fn check_text(model: &Working) -> Result<(), StepError> {
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
        matches!(value.origin, Origin::Weight(_))
            .then(|| TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding })
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
