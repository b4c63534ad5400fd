//! Which units stay, site by site, and the weights of the layers that read them.

use std::collections::BTreeMap;

use attar_compress::{
    Cross, Hessian,
    prune::{Fit, Observed, Prune, Quota, Response, Sublayer, Unit, UnitSite, lost, refitted},
};
use attar_graph::{BlockId, Mode, SourceWeights, ValueId, Values, Weights, kernel::with_f32};
use attar_tensor::{Digest, Source, safetensors::Shards};
use candle_core::{D, Tensor};

use super::super::{codes::refused, kind::StepError, renewed::Renewed, transformed::write_tensors};
use crate::{
    Result,
    model::Float,
    session::Session,
    walk::{self, Side, Visitor, Walk, Windows, block_key, first_key},
    walker::Walker,
};

pub(in crate::step) static WALKER: Walker = Walker {
    name: "prune",
    doing: "prune",
    example: "[[step]]\nkind = \"prune\"\nmlp = 256\nkv_heads = 1\nblocks = 3\nends = 1\n",
};

/// A layer that gets another weight.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) site: &'a UnitSite,
    /// What stays of it; all, without one.
    pub(super) quota: Option<Quota>,
    /// It also takes over what was added after it and left: the residual stream after that, and its block.
    through: Option<(BlockId, ValueId)>,
}

impl Task<'_> {
    fn is(&self, other: &Task<'_>) -> bool {
        self.site.reader == other.site.reader && self.quota == other.quota && self.through == other.through
    }
}

/// A layer's new weight.
#[derive(Clone)]
pub(super) struct Made {
    /// The units that stay.
    pub(super) units: Vec<usize>,
    /// The name of the tensor in `blob`: the weight, with zeros for units that left.
    pub(super) tensor: String,
    /// What the layer lost by it, relative to the residual stream ([`lost`]).
    pub(super) loss: f64,
    pub(super) blob: Digest,
}

/// The layers that get another weight, in running order: those of which not all stays by `quota`, and the last one before a run of
/// sublayers that leave.
pub(super) fn tasks<'a>(
    sites: &'a [UnitSite],
    quota: impl Fn(&UnitSite) -> Result<Quota, StepError>,
    leaving: &[Sublayer],
) -> Result<Vec<Task<'a>>, StepError> {
    let mut tasks: Vec<Task<'a>> = Vec::new();
    for site in sites {
        if let Some(gone) = leaving.iter().find(|gone| leaves(site, gone)) {
            if let Some(last) = tasks.last_mut().filter(|task| task.site.stream.is_some()) {
                last.through = Some((gone.block, gone.stream.after));
            }
            continue;
        }
        let quota = Some(quota(site)?).filter(|quota| !quota.is_whole(site));
        tasks.push(Task { site, quota, through: None });
    }
    tasks.retain(|task| task.quota.is_some() || task.through.is_some());
    Ok(tasks)
}

/// Every task of several shapes once, in running order.
pub(super) fn together<'a, 't>(sites: &[UnitSite], shapes: impl Iterator<Item = &'t [Task<'a>]>) -> Vec<Task<'a>>
where
    'a: 't,
{
    let mut all: Vec<Task<'a>> = Vec::new();
    for task in shapes.flatten() {
        if !all.iter().any(|other| other.is(task)) {
            all.push(*task);
        }
    }
    all.sort_by_key(|task| (sites.iter().position(|site| site.reader == task.site.reader), task.through));
    all
}

/// What was made of a task that is one of `all`.
pub(super) fn of(task: &Task<'_>, all: &[Task<'_>], made: &[Made]) -> Made {
    let at = all.iter().position(|other| other.is(task)).expect("`together` has all");
    made[at].clone()
}

/// Whether a site is that of an MLP.
pub(super) fn is_mlp(site: &UnitSite) -> bool {
    matches!(site.unit, Unit::Channel { .. })
}

/// Whether a site leaves.
pub(super) fn left(site: &UnitSite, leaving: &[Sublayer]) -> bool {
    leaving.iter().any(|gone| leaves(site, gone))
}

/// Whether a site leaves with `gone`.
fn leaves(site: &UnitSite, gone: &Sublayer) -> bool {
    gone.block == site.block && gone.is_attention != is_mlp(site)
}

/// The new weights of `tasks`, in their order, which is the running one. With [`Fit::Residual`], nothing that leaves adds anything, and
/// every site has one task.
#[expect(clippy::too_many_arguments, reason = "settings, and what they are applied to")]
pub(super) fn fitted(
    settings: &Prune,
    fit: Fit,
    model: &Float,
    title: &str,
    tasks: &[Task<'_>],
    leaving: &[Sublayer],
    windows: &[Vec<u32>],
    session: &Session<'_>,
) -> Result<Vec<Made>, StepError> {
    let below = SourceWeights(model.source.clone());
    let renewed = Renewed::over(&model.source);
    for site in UnitSite::of(&model.graph).map_err(refused)? {
        if left(&site, leaving) {
            for id in std::iter::once(site.reader.weight).chain(site.reader.bias) {
                renewed.clear(&model.graph.get(id).name);
            }
        }
    }
    let named = |gone: &Sublayer| model.graph.get(gone.stream.after).name.clone();
    let mut names: Vec<String> = leaving.iter().map(named).collect();
    names.sort();
    names.insert(0, format!("{fit:?}"));
    let first = first_key(&model.graph, windows);
    let key = Digest::of_parts([b"pruned 3".as_slice(), first.as_bytes(), names.join(" ").as_bytes()]);
    let own = Side { graph: &model.graph, weights: &renewed };
    let float = Side { graph: &model.graph, weights: &below };
    let sides = if fit == Fit::Residual { vec![own, float] } else { vec![float] };
    let together = walk::windows_together(windows);
    let inputs = walk::lane_values(&model.graph, windows, together)?;
    let mut fitting =
        Fitting { settings, fit, model, below: &below, renewed: &renewed, tasks, inputs, session, made: Vec::new() };
    let count = tasks.last().map_or(0, |task| task.site.block.index() + 1);
    Walk::new(&WALKER, title, key, sides, session).over(windows).in_parts(2).visit(count, &mut fitting)?;
    Ok(fitting.made)
}

/// The sides of the walk: the model as far as it is pruned, and the unpruned one. Without the first, there is only the second.
const OWN: usize = 0;
const FLOAT: usize = 1;

struct Fitting<'a> {
    settings: &'a Prune,
    fit: Fit,
    model: &'a Float,
    below: &'a SourceWeights,
    renewed: &'a Renewed,
    tasks: &'a [Task<'a>],
    /// What the caller gives, lane by lane.
    inputs: Vec<Values>,
    session: &'a Session<'a>,
    made: Vec<Made>,
}

impl Visitor for Fitting<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        let mut decided = vec![self.decided()];
        if self.fit == Fit::Residual {
            decided.extend(self.tasks_in(block).map(|task| unit(&decided[0], task)).collect::<Vec<_>>());
        }
        block_key(before, &self.model.graph, block, &*self.model.source, decided)
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        self.tasks_in(block).map(|task| unit(key, task)).collect()
    }

    fn take(&mut self, block: BlockId, key: &Digest, blobs: &[Digest]) -> Result<()> {
        let units: Vec<(usize, Digest)> = self.indices(block).zip(blobs.iter().copied()).collect();
        units.into_iter().try_for_each(|(at, blob)| self.place(at, &unit(key, &self.tasks[at]), blob))
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        let mut last: Option<(Task<'_>, Seen)> = None;
        // What enters the block is not kept while it is visited.
        let takes_over = self.tasks_in(block).any(|task| task.through.is_some());
        let entering = if takes_over { windows.values(self.float(), &self.inputs) } else { Vec::new() };
        for (part, at) in self.indices(block).collect::<Vec<_>>().into_iter().enumerate() {
            self.session.check_interrupt()?;
            windows.tell(part.min(1) as u64, &self.tasks[at].site.name);
            let task = self.tasks[at];
            let unit = unit(key, &task);
            let blob = match self.session.done(&unit)? {
                Some(blob) => blob,
                None => {
                    let sees_the_same = |(other, _): &(Task<'_>, Seen)| Task { quota: task.quota, ..*other }.is(&task);
                    let seen = match last.take().filter(sees_the_same) {
                        Some((_, seen)) => seen,
                        None => self.see(&task, &entering, windows)?,
                    };
                    let (units, weight, loss) = self.fit(&task, &seen)?;
                    last = Some((task, seen));
                    let [named, listed, lost] = names(&task, &unit);
                    let dims = self.dims(&task);
                    let units: Vec<f32> = units.into_iter().map(|unit| unit as f32).collect();
                    let tensors: [(String, &[usize], &[f32]); 3] =
                        [(named, &dims, &weight), (listed, &[units.len()], &units), (lost, &[1], &[loss as f32])];
                    self.session.unit(unit, |to| write_tensors(to, &tensors))?
                }
            };
            self.place(at, &unit, blob)?;
        }
        Ok(())
    }
}

/// The key of a site's new weight in the block of that key.
fn unit(block: &Digest, task: &Task<'_>) -> Digest {
    let more = format!("{} {:?} {:?}", task.site.name, task.quota, task.through);
    Digest::of_parts([block.as_bytes().as_slice(), more.as_bytes()])
}

/// What the tensors of a unit are called: the weight, the units that stay, and what is lost.
fn names(task: &Task<'_>, unit: &Digest) -> [String; 3] {
    let weight = format!("{}/{}", task.site.name, unit.short());
    [weight.clone(), format!("{weight}/units"), format!("{weight}/lost")]
}

impl<'a> Fitting<'a> {
    fn indices(&self, block: BlockId) -> impl Iterator<Item = usize> + use<'a> {
        let tasks = self.tasks;
        (0..tasks.len()).filter(move |at| tasks[*at].site.block == block)
    }

    fn tasks_in(&self, block: BlockId) -> impl Iterator<Item = &'a Task<'a>> {
        let tasks = self.tasks;
        self.indices(block).map(move |at| &tasks[at])
    }

    /// All that decides a new weight, apart from its task and from what is seen.
    fn decided(&self) -> Digest {
        let method = self.settings.method.0;
        Digest::of(format!("{} {} {:?}", method.name(), method.version(), self.fit).as_bytes())
    }

    fn dims(&self, task: &Task<'_>) -> Vec<usize> {
        self.model.graph.fact(task.site.reader.weight).constant_dims().unwrap_or_default()
    }

    fn place(&mut self, at: usize, unit: &Digest, blob: Digest) -> Result<()> {
        let task = &self.tasks[at];
        let [tensor, listed, lost] = names(task, unit);
        let path = self.session.store.open(&blob)?;
        let stored = Shards::open(std::slice::from_ref(&path), &BTreeMap::new())?;
        self.renewed.take(&task.site.name, &tensor, path);
        let units = stored.whole(&listed)?.into_iter().map(|unit| unit as usize).collect();
        let loss = stored.whole(&lost)?.into_iter().map(f64::from).sum();
        self.made.push(Made { units, tensor, loss, blob });
        Ok(())
    }

    /// The units of a site that stay, the weight of its reader with zeros for the others, and what that loses.
    fn fit(&self, task: &Task<'_>, seen: &Seen) -> Result<(Vec<usize>, Vec<f32>, f64)> {
        let (graph, site) = (&self.model.graph, task.site);
        let dims = self.dims(task);
        let mut weight = vec![0.0; dims.iter().product()];
        site.reader.expr(graph).read(&*self.model.source, 0..dims[0], &mut weight)?;
        let observed = Observed { weight: &weight, moments: &seen.moments, means: &seen.means, width: site.width() };
        let units = match &task.quota {
            Some(quota) => self.settings.choose(site, quota, &observed)?,
            None => (0..site.units()).collect(),
        };
        let columns = site.columns(&units);
        let response = seen.wanted.as_ref().map_or(Response::Own, Response::Wanted);
        let fitted = match (self.fit, task.through) {
            (Fit::None, None) => {
                let mut stays = vec![false; dims[1]];
                columns.iter().for_each(|column| stays[*column] = true);
                let mut weight = weight.clone();
                weight
                    .chunks_mut(dims[1])
                    .for_each(|row| row.iter_mut().zip(&stays).for_each(|(w, stays)| *w *= f32::from(*stays)));
                weight
            }
            _ => refitted(&weight, &seen.moments, &response, &columns)?,
        };
        let loss = lost(&weight, &fitted, &seen.moments, &response);
        Ok((units, fitted, loss))
    }

    /// What the reader of a site reads, and what it is to return for it. Errors count relative to the residual stream that they are in: a
    /// norm follows, so a few tokens of huge size must not outweigh the others.
    fn see(&self, task: &Task<'_>, entering: &[Values], windows: &mut Windows<'_>) -> Result<Seen> {
        let (site, dims) = (task.site, self.dims(task));
        let (rows, columns) = (dims[0], dims[1]);
        let own = match site.stream {
            Some(stream) => reached(OWN, stream.before, windows)?,
            None => Vec::new(),
        };
        let streams = match self.fit {
            Fit::Residual => Some(reached(FLOAT, site.stream.map_or(site.reader.output, |stream| stream.after), windows)?),
            Fit::None | Fit::Layer => None,
        };
        let bias = site.reader.bias.map(|bias| self.constant(bias)).transpose()?;
        let wanted = match task.through {
            Some(through) => Some(self.streams_after(through, task, entering)?),
            None => streams.clone(),
        };
        let weight = self.constant(site.reader.weight)?.t().map_err(attar_graph::Error::from)?;
        let (mut moments, mut means, mut tokens) = (Hessian::new(columns), vec![0.0; columns], 0usize);
        let mut cross = wanted.is_some().then(|| Cross::new(rows, columns));
        windows.reach(OWN, site.reader.input, &mut |lane, x| {
            let added = |x: Tensor| match own.get(lane) {
                Some(before) => x + before,
                None => Ok(x),
            };
            let biased = |x: Tensor| bias.as_ref().map_or(Ok(x.clone()), |bias| x.broadcast_add(bias));
            let sizes = match &streams {
                Some(streams) => sizes(&streams[lane])?,
                None => sizes(&added(biased(x.broadcast_matmul(&weight)?)?)?)?,
            };
            let x = x.broadcast_div(&sizes)?;
            moments.add(&x)?;
            with_f32(&x, |x| {
                tokens += x.len() / columns;
                x.chunks(columns).for_each(|token| means.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(*x)));
            })?;
            if let (Some(cross), Some(wanted)) = (&mut cross, &wanted) {
                let rest = wanted[lane].zeros_like()?;
                cross.add(&(&wanted[lane] - added(biased(rest)?)?)?.broadcast_div(&sizes)?, &x)?;
            }
            Ok(())
        })?;
        means.iter_mut().for_each(|sum| *sum /= tokens.max(1) as f64);
        if !moments.is_finite() || cross.as_ref().is_some_and(|cross| !cross.is_finite()) {
            let graph = &self.model.graph;
            let (block, value) = (graph.block_name(site.block).into(), graph.get(site.reader.input).name.clone());
            return Err(attar_compress::Error::Activations { block, value }.into());
        }
        Ok(Seen { moments, means, wanted: cross })
    }

    /// The unpruned model's side.
    fn float(&self) -> usize {
        if self.fit == Fit::Residual { FLOAT } else { OWN }
    }

    /// The residual stream of the unpruned model at a place in a later block, lane by lane, given what enters the task's block.
    fn streams_after(&self, (last, stream): (BlockId, ValueId), task: &Task<'_>, entering: &[Values]) -> Result<Vec<Tensor>> {
        let (graph, mut all) = (&self.model.graph, Vec::new());
        for mut values in entering.iter().cloned() {
            let mut found = None;
            for block in graph.blocks().skip(task.site.block.index()).take_while(|block| *block <= last) {
                let left = graph.evaluate_block_with(block, self.below, Mode::Inference, &values, &mut |id, tensor| {
                    if id == stream {
                        found = Some(tensor.clone());
                    }
                    Ok(tensor)
                })?;
                values.extend(left);
            }
            all.push(found.expect("the block computes its residual stream"));
        }
        Ok(all)
    }

    fn constant(&self, id: ValueId) -> Result<Tensor> {
        let value = self.model.graph.get(id);
        let attar_graph::Origin::Weight(expr) = &value.origin else { unreachable!("a layer's bias is a constant") };
        Ok(self.below.whole(&value.name, expr)?)
    }
}

/// A value of the block on one side, lane by lane.
pub(super) fn reached(side: usize, value: ValueId, windows: &mut Windows<'_>) -> Result<Vec<Tensor>> {
    let mut all = Vec::new();
    windows.reach(side, value, &mut |_, x| {
        all.push(x.clone());
        Ok(())
    })?;
    Ok(all)
}

/// The root mean square of every token, `[.., 1]`.
pub(super) fn sizes(x: &Tensor) -> candle_core::Result<Tensor> {
    x.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, f64::from(f32::MIN_POSITIVE))?.sqrt()
}

/// What a layer reads, and what it is to return.
struct Seen {
    moments: Hessian,
    means: Vec<f64>,
    wanted: Option<Cross>,
}
