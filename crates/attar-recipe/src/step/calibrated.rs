//! Quantizing with activations: block by block, and within a block input by input.
//!
//! What a linear layer reads is computed through all weights that were quantized before it, its second moments are
//! summed over the calibration windows, its weights are quantized, and the windows go on through the result. After each
//! block the activations are a blob of the store, so that a killed run takes up at the block it was in, with the very
//! numbers that it had.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
};

use attar_compress::{Assignment, Drift, Hessian, Needs, Seen};
use attar_graph::{BlockId, Expr, Graph, Inputs, Node, Op, SourceWeights, Stream, ValueId, Weights, kernel::instruction_set};
use attar_tensor::{
    Blobs, Digest, Dtype, Source,
    safetensors::{Entry, Shards, Writer},
};
use candle_core::{Device, Tensor};

use super::{codes, kind::StepError};
use crate::{Error, model::Working, session::Session};

/// Tokens that run through a block together.
pub(super) const LANE: usize = 2048;

/// The weights as far as they are quantized.
pub(super) struct Live {
    pub(super) below: SourceWeights,
    pub(super) blobs: RwLock<Blobs>,
}

impl Weights for Live {
    fn whole(&self, name: &str, expr: &Expr) -> attar_graph::Result<Tensor> {
        let blobs = self.blobs.read().expect("no panic holds this lock");
        let Some(info) = blobs.tensors().get(name) else { return self.below.whole(name, expr) };
        let mut values = vec![0.0; info.elements()];
        blobs.read(name, 0..info.matrix()[0], &mut values)?;
        Ok(Tensor::from_vec(values, info.dims.as_slice(), &Device::Cpu)?)
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

/// The weights of one block that are to be quantized, by the value that they read, in running order.
struct Stage<'a> {
    input: ValueId,
    assignments: Vec<&'a Assignment>,
}

impl Stage<'_> {
    /// Whether some of its weights want to see how far that has moved.
    fn drifts(&self) -> bool {
        self.assignments.iter().any(|assignment| assignment.algorithm.needs() == Needs::Drift)
    }

    /// Whether some of its weights want to see what they are multiplied with.
    fn sees(&self) -> bool {
        self.assignments.iter().any(|assignment| assignment.algorithm.needs() != Needs::Nothing)
    }
}

pub(super) fn run(assignments: &[Assignment], model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
    let graph = model.graph.clone();
    check(model, assignments, session.calibration.is_some())?;
    let windows = session.calibration.unwrap_or_default();
    let live = Live { below: SourceWeights(model.source.clone()), blobs: RwLock::default() };
    let blocks: Vec<(BlockId, Vec<Stage<'_>>)> =
        graph.blocks().map(|block| Ok((block, stages(&graph, block, assignments)?))).collect::<Result<_, StepError>>()?;
    let last = blocks.iter().rposition(|(_, stages)| !stages.is_empty()).map_or(0, |at| at + 1);
    let float = model.float.clone();
    let float = Beside { graph: &float.graph, weights: &SourceWeights(float.source.clone()) };
    let drifts = blocks.iter().flat_map(|(_, stages)| stages).any(Stage::drifts);
    let mut walk = Walk {
        graph: &graph,
        source: model.source.clone(),
        float: drifts.then_some(float),
        beside: None,
        session,
        live: &live,
        windows,
        key: first_key(&graph, windows),
        stream: None,
        entering: None,
        used: Vec::new(),
    };
    session.observer.stage(&format!("{}: quantize, calibrated", model.title), last as u64);
    for (at, (block, stages)) in blocks.iter().take(last).enumerate() {
        session.check_interrupt()?;
        walk.block(*block, stages, at + 1 < last)?;
        session.observer.advance(at as u64 + 1, graph.block_name(*block));
    }
    let used = walk.used;
    let blobs = live.blobs.into_inner().expect("no panic holds this lock");
    codes::install(model, assignments, blobs)?;
    Ok(used)
}

/// Whether activations can be seen at all, and whether every weight that wants them has any. Nothing is read.
pub(super) fn check(model: &Working, assignments: &[Assignment], calibrated: bool) -> Result<(), StepError> {
    let graph = &model.graph;
    if assignments.iter().all(|a| a.algorithm.needs() == Needs::Nothing) {
        return Ok(());
    }
    if !calibrated {
        let hint = "add `[data.calibration]` with the `path` of a text".to_owned();
        let error = Error::recipe("the algorithm looks at activations, and the recipe has no text for that").hint(hint);
        return Err(StepError { key: Some("algorithm".into()), error });
    }
    if !model.is_beside_float() && assignments.iter().any(|a| a.algorithm.needs() == Needs::Drift) {
        let hint = "put the step `activations` behind this one".to_owned();
        let error = Error::recipe("the algorithm looks at the float model, which has no integer activations").hint(hint);
        return Err(StepError { key: Some("algorithm".into()), error });
    }
    graph.blocks().try_for_each(|block| stages(graph, block, assignments).map(drop))
}

/// What a float stream takes beside the quantized one: as much between two blocks, and what the layers read, `inputs` wide.
pub(super) fn memory_beside(model: &Working, inputs: usize) -> u64 {
    let [_, between] = model.token_bytes();
    model.tokens * (4 * between + 4 * inputs as u64)
}

/// The weights of a block that are to be quantized, by what they read.
fn stages<'a>(graph: &Graph, block: BlockId, assignments: &'a [Assignment]) -> Result<Vec<Stage<'a>>, StepError> {
    let mut stages: Vec<Stage<'a>> = Vec::new();
    for node in graph.nodes_of(block) {
        let Some(assignment) = assignments.iter().find(|a| is_decided_by(a, node)) else { continue };
        if node.op != Op::Linear && assignment.algorithm.needs() != Needs::Nothing {
            let error = Error::recipe(format!("`{}` is a table that is looked up in: it has no inputs to see", assignment.name))
                .hint("leave it out of `select`, or give it `algorithm = \"rtn\"` by an override".to_owned());
            return Err(StepError { key: Some("algorithm".into()), error });
        }
        match stages.iter_mut().find(|stage| stage.input == node.inputs[0]) {
            Some(stage) => stage.assignments.push(assignment),
            None => stages.push(Stage { input: node.inputs[0], assignments: vec![assignment] }),
        }
    }
    Ok(stages)
}

/// Whether a weight is quantized where `node` reads it. A table that is also the head has inputs to see only there.
fn is_decided_by(assignment: &Assignment, node: &Node) -> bool {
    let sees = assignment.algorithm.needs() != Needs::Nothing;
    let reads = node.inputs.get(1).is_some_and(|id| assignment.is_of(*id));
    match assignment.tied.is_empty() || !sees {
        true => node.inputs.get(1) == Some(&assignment.id),
        false => reads && node.op == Op::Linear,
    }
}

/// What decides the activations that enter the first block. Matrix kernels differ by instruction set in their last bits.
pub(super) fn first_key(graph: &Graph, windows: &[Vec<u32>]) -> Digest {
    let tokens: Vec<u8> = windows.iter().flat_map(|w| w.iter().copied().chain([u32::MAX]).flat_map(u32::to_le_bytes)).collect();
    Digest::of_parts([b"calibrated 1".as_slice(), instruction_set().as_bytes(), graph.to_string().as_bytes(), &tokens])
}

/// The float model.
#[derive(Clone, Copy)]
struct Beside<'a> {
    graph: &'a Graph,
    weights: &'a SourceWeights,
}

struct Walk<'a> {
    graph: &'a Graph,
    source: Arc<dyn Source>,
    /// If an algorithm wants to know what the float layers make.
    float: Option<Beside<'a>>,
    /// The windows on their way through the float model; with `stream`, at the same block.
    beside: Option<Stream<'a>>,
    session: &'a Session<'a>,
    live: &'a Live,
    windows: &'a [Vec<u32>],
    /// Of all that was decided so far.
    key: Digest,
    /// Made when a block must be worked on.
    stream: Option<Stream<'a>>,
    /// The blob of the activations that enter the next block.
    entering: Option<Digest>,
    used: Vec<Digest>,
}

impl<'a> Walk<'a> {
    /// Quantizes a block, or finds that it is done. `more` blocks need its results.
    fn block(&mut self, block: BlockId, stages: &[Stage<'_>], more: bool) -> Result<(), StepError> {
        let key = self.block_key(block, stages)?;
        let tensor_key = |a: &Assignment| Digest::of_parts([key.as_bytes().as_slice(), a.name.as_bytes()]);
        let leaving_key = Digest::of_parts([key.as_bytes().as_slice(), b"leaving"]);
        let mut done = Vec::new();
        for assignment in stages.iter().flat_map(|stage| &stage.assignments) {
            done.extend(self.session.done(&tensor_key(assignment))?.map(|blob| (*assignment, blob)));
        }
        let whole = done.len() == stages.iter().map(|stage| stage.assignments.len()).sum::<usize>();
        let leaving = if more && whole { self.session.done(&leaving_key)? } else { None };
        if whole && (leaving.is_some() || !more || self.stream.is_none()) {
            done.into_iter().for_each(|(assignment, blob)| self.take(assignment, blob));
            (self.stream, self.beside, self.entering, self.key) = (None, None, leaving, key);
            return Ok(());
        }
        self.start(block)?;
        for stage in stages {
            self.stage(stage, &tensor_key)?;
        }
        if more {
            let live = self.live;
            self.stream().leave(live)?;
            if let (Some(float), Some(beside)) = (self.float, &mut self.beside) {
                beside.leave(float.weights)?;
            }
            self.keep_activations(leaving_key)?;
        }
        self.key = key;
        Ok(())
    }

    fn block_key(&self, block: BlockId, stages: &[Stage<'_>]) -> Result<Digest, StepError> {
        let mut parts = vec![self.key, Digest::of(self.graph.block_name(block).as_bytes())];
        for node in self.graph.nodes_of(block) {
            for id in &node.inputs {
                if let attar_graph::Origin::Weight(expr) = &self.graph.get(*id).origin {
                    parts.push(expr.digest(&*self.source)?);
                }
            }
        }
        for assignment in stages.iter().flat_map(|stage| &stage.assignments) {
            parts.push(codes::key(assignment, &*self.source)?);
        }
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    fn take(&mut self, assignment: &Assignment, blob: Digest) {
        let mut blobs = self.live.blobs.write().expect("no panic holds this lock");
        for name in assignment.names() {
            blobs.insert(name, self.session.store, &blob, assignment.scheme, assignment.dims);
        }
        self.used.push(blob);
    }

    fn stream(&mut self) -> &mut Stream<'a> {
        self.stream.as_mut().expect("`start` made it")
    }

    /// Brings the windows to the start of `block`: from the store if they are there, or else through all blocks before.
    fn start(&mut self, block: BlockId) -> Result<(), StepError> {
        if self.stream.is_some() {
            return Ok(());
        }
        let mut stream = Stream::new(self.graph, self.lanes()?);
        let mut beside = match self.float {
            Some(float) => Some(Stream::new(float.graph, self.lanes()?)),
            None => None,
        };
        match self.entering {
            Some(blob) => {
                let count = self.lanes()?.len();
                let stored = Shards::open(&[self.session.store.path(&blob)], &BTreeMap::new())?;
                let mut entering = read_activations(&stored, if beside.is_some() { 2 * count } else { count })?;
                let of_float = entering.split_off(count);
                stream.restore(block, entering);
                beside.iter_mut().for_each(|beside| beside.restore(block, of_float.clone()));
            }
            None => {
                while stream.block() != block {
                    self.session.check_interrupt()?;
                    stream.leave(self.live)?;
                    if let (Some(float), Some(beside)) = (self.float, &mut beside) {
                        beside.leave(float.weights)?;
                    }
                }
            }
        }
        (self.stream, self.beside) = (Some(stream), beside);
        Ok(())
    }

    fn lanes(&self) -> Result<Vec<Inputs>, StepError> {
        let length = self.windows.first().map_or(1, Vec::len).max(1);
        let lane = |lane: &[Vec<u32>]| Ok(Inputs::tokens(&lane.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0)?);
        self.windows.chunks((LANE / length).max(1)).map(lane).collect()
    }

    fn stage(&mut self, stage: &Stage<'_>, key: &dyn Fn(&Assignment) -> Digest) -> Result<(), StepError> {
        self.session.check_interrupt()?;
        let (hessian, drift) = if stage.sees() { self.statistics(stage)? } else { (None, None) };
        for assignment in &stage.assignments {
            self.session.observer.advance(self.stream().block().index() as u64, &assignment.name);
            let seen = Seen { hessian: hessian.as_ref(), drift: drift.as_ref() };
            let source = self.source.clone();
            let blob = self.session.unit(key(assignment), |to| codes::quantize(assignment, &*source, seen, to, &|_| {}))?;
            self.take(assignment, blob);
        }
        if let Some(share) = hessian.as_ref().and_then(Hessian::raised_damping) {
            let value = &self.graph.get(stage.input).name;
            let note =
                format!("`{value}`: second moments are not positive definite; their damping was raised to {share} of their mean");
            self.session.observer.note(&note);
        }
        Ok(())
    }

    /// What a stage's weights want to have seen.
    fn statistics(&mut self, stage: &Stage<'_>) -> Result<(Option<Hessian>, Option<Drift>), StepError> {
        let (inputs, live) = (stage.assignments[0].dims[1], self.live);
        let (mut hessian, mut drift) = (Hessian::new(inputs), None);
        let mut of_float = Vec::new();
        if let (Some(float), Some(beside), true) = (self.float, &mut self.beside, stage.drifts()) {
            drift = Some(Drift::new(inputs));
            beside.reach(float.weights, stage.input, &mut |_, x| {
                of_float.push(x.clone());
                Ok(())
            })?;
        }
        self.stream().reach(live, stage.input, &mut |lane, x| {
            if let Some(drift) = &mut drift {
                drift.add(&of_float[lane], x)?;
            }
            Ok(hessian.add(x)?)
        })?;
        if !hessian.is_finite() {
            let value = self.graph.get(stage.input).name.clone();
            let block = self.graph.block_name(self.stream().block()).into();
            return Err(attar_compress::Error::Activations { block, value }.into());
        }
        if let dead @ 1.. = hessian.dead() {
            let value = &self.graph.get(stage.input).name;
            let note = format!("`{value}`: {dead} of {inputs} inputs are always zero; their weights are rounded to nearest");
            self.session.observer.note(&note);
        }
        Ok((Some(hessian), drift))
    }

    /// Stores what enters the next block, and lets go of what entered this one.
    fn keep_activations(&mut self, key: Digest) -> Result<(), StepError> {
        let mut entering = self.stream().entering();
        entering.extend(self.beside.iter().flat_map(Stream::entering));
        let blob = self.session.unit(key, |to| write_activations(&entering, to))?;
        if let Some(before) = self.entering.replace(blob).filter(|before| *before != blob) {
            crate::output::remove(&self.session.store.path(&before))?;
        }
        Ok(())
    }
}

pub(super) fn write_activations(lanes: &[BTreeMap<String, Tensor>], to: &mut dyn std::io::Write) -> Result<(), Error> {
    let entries: Vec<Entry> = lanes
        .iter()
        .enumerate()
        .flat_map(|(lane, values)| {
            values.iter().map(move |(name, t)| Entry {
                name: format!("{lane} {name}"),
                dtype: Dtype::F32,
                dims: t.dims().to_vec(),
            })
        })
        .collect();
    let failed = attar_tensor::Error::from;
    let mut writer = Writer::new(to, &entries, &BTreeMap::new()).map_err(failed)?;
    for tensor in lanes.iter().flat_map(BTreeMap::values) {
        let mut bytes = Vec::new();
        attar_graph::kernel::with_f32(tensor, |values| Dtype::F32.encode(values, &mut bytes))
            .map_err(attar_graph::Error::from)?;
        writer.append(&bytes).map_err(failed)?;
    }
    writer.finish();
    Ok(())
}

pub(super) fn read_activations(from: &Shards, lanes: usize) -> Result<Vec<BTreeMap<String, Tensor>>, StepError> {
    let mut all = vec![BTreeMap::new(); lanes];
    for (name, info) in from.tensors() {
        let Some((lane, value)) = name.split_once(' ') else { continue };
        let mut values = vec![0.0; info.elements()];
        from.read(name, 0..info.matrix()[0], &mut values)?;
        let tensor = Tensor::from_vec(values, info.dims.as_slice(), &Device::Cpu).map_err(attar_graph::Error::from)?;
        if let Some(lane) = lane.parse::<usize>().ok().and_then(|lane| all.get_mut(lane)) {
            lane.insert(value.into(), tensor);
        }
    }
    Ok(all)
}
