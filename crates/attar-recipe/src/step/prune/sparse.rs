//! Single weights that leave: which, and the values of those that stay, layer by layer.
//!
//! The graph keeps its shape; a weight becomes a tensor of the store with zeros in it, and [`Working::zeros`] says that they stay. Under
//! [`Fit::Residual`] the text goes through the sparse model as far as it is, and through the one before, side by side.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use attar_compile::device::Zeros;
use attar_compress::{
    Cross, Drift, Hessian, Layer,
    prune::{Fit, Prune, Score, Sparsity, Stream, Wanted, on_support, sparse, stored_as},
};
use attar_graph::{BlockId, Expr, Graph, Origin, SourceWeights, ValueId, Weights};
use attar_tensor::{Digest, Encoding, Overlay, Source, TensorInfo, safetensors::Shards};
use candle_core::Tensor;

use super::{
    super::{
        codes::refused,
        device,
        kind::{PlannedTensor, StepError},
        renewed::Renewed,
        transformed::write_tensors,
    },
    Planned, aside, check_bound, check_float, check_text, divergence,
    fit::{reached, sizes},
};
use crate::{
    Result,
    divergence::Yardstick,
    model::{Float, Working},
    report::SparseReport,
    session::Session,
    walk::{self, Side, Visitor, Walk, Windows, block_key, first_key},
    walker::Walker,
};

pub(in crate::step) static WALKER: Walker = Walker {
    name: "zeros",
    doing: "make sparse",
    example: "[[step]]\nkind = \"prune\"\nsparsity = \"2:4\"\nfit = \"residual\"\n",
};

/// What the step would do.
pub(super) fn plan(settings: &Prune, sparsity: Sparsity, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
    check_float(model)?;
    settings.check(&model.graph).map_err(refused)?;
    check_text(model)?;
    let layers = settings.sparse_layers(&model.graph).map_err(refused)?;
    let gains = Gains::of(settings, sparsity)?;
    model.notes.extend(gains.notes());
    walk::plan(model, if settings.fit == Fit::Residual { 2 } else { 1 });
    let windows = aside((model.tokens as usize) / model.window.max(1));
    // The walk is over by then.
    let measuring = Yardstick::memory(&model.graph, windows as u64 * model.window as u64).saturating_sub(model.walking);
    let planned = layers.iter().map(|layer| planned(layer, settings, sparsity, model, measuring)).collect();
    model.zeros.extend(layers.iter().map(|layer| model.graph.get(layer.weight).name.clone()));
    place(&mut model.graph, &layers, |_, expr| expr.clone());
    model.float.graph = model.graph.clone();
    Ok(planned)
}

fn planned(layer: &Layer, settings: &Prune, sparsity: Sparsity, model: &Working, measuring: u64) -> PlannedTensor {
    let value = model.graph.get(layer.weight);
    let dims = dims(&model.graph, layer);
    let info = TensorInfo { dims: dims.to_vec(), encoding: Encoding::Plain(stored_as(value.fact.encoding)) };
    let [rows, columns] = dims.map(|n| n as u64);
    let statistics = match (settings.fit, Stream::around(&model.graph, layer)) {
        (Fit::Residual, Some(_)) => Cross::bytes(dims[0], dims[1]) + 4 * model.tokens * rows,
        (Fit::Residual, None) => Cross::bytes(dims[1], dims[1]) + 4 * model.tokens * columns,
        _ => 4 * model.tokens * rows,
    };
    let solving = Prune::sparse_memory(dims) + 16 * rows * columns;
    PlannedTensor {
        name: value.name.clone(),
        dims: info.dims.clone(),
        from: value.fact.encoding.to_string(),
        to: format!("{}, {}", info.encoding, described(sparsity)),
        bits_per_weight: info.true_bits() as f64 / info.elements().max(1) as f64,
        bytes: info.true_bits() / 8,
        memory: (Hessian::bytes(dims[1]) + statistics + solving).max(measuring),
    }
}

/// For people.
fn described(sparsity: Sparsity) -> String {
    match sparsity {
        Sparsity::Share(share) => format!("{:.0}% zeros", 100.0 * share),
        Sparsity::Pattern { .. } => sparsity.to_string(),
    }
}

/// Does it.
pub(super) fn run(
    settings: &Prune,
    sparsity: Sparsity,
    model: &mut Working,
    session: &Session<'_>,
) -> Result<Vec<Digest>, StepError> {
    let before = Float { graph: model.graph.clone(), source: model.source.clone() };
    let windows = session.calibration.unwrap_or_default();
    let (seen, aside) = windows.split_at(windows.len() - aside(windows.len()));
    let layers = settings.sparse_layers(&before.graph).map_err(refused)?;
    let gains = Gains::of(settings, sparsity)?;
    let widest = layers.iter().map(|layer| dims(&before.graph, layer)[1]).max();
    settings.note_few_tokens(widest.unwrap_or(0), seen, session);
    let score = settings.score().map_err(refused)?;
    let choice = Choice { settings, score, sparsity };
    let made = choice.made(&before, &model.title, &layers, seen, session)?;
    let files: Vec<PathBuf> = made.iter().map(|made| session.store.open(&made.blob)).collect::<attar_tensor::Result<_>>()?;
    let top: Arc<dyn Source> = Arc::new(Shards::open(&files, &BTreeMap::new())?);
    let mut after = Float { graph: before.graph.clone(), source: Arc::new(Overlay::new(top, before.source.clone())) };
    place(&mut after.graph, &layers, |at, _| Expr::tensor(made[at].tensor.clone()));
    let (divergence, measured) = divergence(&before, &after, &model.title, aside, session)?;
    check_bound(settings, divergence)?;
    model.findings.push(SparseReport {
        sparsity: sparsity.to_string(),
        method: settings.method.0.name().into(),
        fit: settings.fit.name().into(),
        device: settings.device.clone(),
        layers: layers.len(),
        weights: layers.iter().map(|layer| dims(&after.graph, layer).iter().product::<usize>() as u64).sum(),
        zeros: made.iter().map(|made| made.zeros).sum(),
        parameters: crate::size::ModelSize::of(&after.graph).parameters,
        divergence,
        tokens: aside.iter().map(Vec::len).sum(),
        gains: gains.gains,
        warning: gains.warning,
    });
    model.coder = settings.device.clone().zip(gains.coder);
    let names = || layers.iter().map(|layer| before.graph.get(layer.weight).name.clone());
    model.zeros.extend(names());
    model.coded.extend(names());
    (model.graph, model.source, model.float) = (after.graph.clone(), after.source.clone(), after);
    Ok(made.iter().map(|made| made.blob).chain([measured]).collect())
}

fn dims(graph: &Graph, layer: &Layer) -> [usize; 2] {
    graph.fact(layer.weight).constant_dims().and_then(|dims| dims.try_into().ok()).unwrap_or_default()
}

/// The weights of `layers` are now what `of` says, in the number format that they had.
fn place(graph: &mut Graph, layers: &[Layer], of: impl Fn(usize, &Expr) -> Expr) {
    for (at, layer) in layers.iter().enumerate() {
        let dtype = stored_as(graph.fact(layer.weight).encoding);
        let expr = of(at, layer.expr(graph)).rounded(dtype);
        graph.replace_weight(layer.weight, Encoding::Plain(dtype), expr);
    }
}

/// What zeros bring on a device.
struct Gains {
    gains: Vec<String>,
    /// What they do not bring.
    warning: Option<String>,
    /// What the device does with zeros, if it codes weights.
    coder: Option<Zeros>,
}

impl Gains {
    fn of(settings: &Prune, sparsity: Sparsity) -> Result<Gains, StepError> {
        let Some(name) = &settings.device else {
            let warning = "WARNING: zeros bring nothing by themselves: files and latency stay what they are on runtimes that store and multiply \
                           every weight, and only devices with a coder or a matching pattern gain; `device` says which one is meant";
            return Ok(Gains { gains: Vec::new(), warning: Some(warning.into()), coder: None });
        };
        let zeros = device::named(name)?.zeros;
        let gains = gains(&zeros, sparsity);
        let warning = match (sparsity, gains.is_empty()) {
            (_, true) => Some(format!(
                "WARNING: `{name}` gains nothing from `sparsity = {sparsity}`: bytes and latency stay what they are"
            )),
            (Sparsity::Pattern { .. }, _) if !skipped(&zeros, sparsity) => {
                Some(format!("WARNING: `{name}` skips no zeros of {sparsity}: zeros anywhere would save as much, and lose less"))
            }
            _ => None,
        };
        Ok(Gains { gains, warning, coder: Some(zeros).filter(|zeros| !zeros.coded.is_empty()) })
    }

    /// What a plan says of them.
    fn notes(&self) -> impl Iterator<Item = String> {
        self.gains.iter().cloned().chain(self.warning.clone())
    }
}

/// Whether the array of a device skips the zeros of a pattern.
fn skipped(zeros: &Zeros, sparsity: Sparsity) -> bool {
    matches!((sparsity, zeros.skips), (Sparsity::Pattern { keep, of }, Some(pattern)) if pattern == [keep as u64, of as u64])
}

/// What zeros bring, a sentence each.
fn gains(zeros: &Zeros, sparsity: Sparsity) -> Vec<String> {
    let mut gains = Vec::new();
    if let (Some(coded), Some(dense)) = (zeros.coded_bits(sparsity.share()), zeros.coded_bits(0.0)) {
        gains.push(format!("the coder of weights takes about {coded:.2} bits for an int8 weight, and {dense:.2} without zeros"));
    } else if !zeros.coded.is_empty() {
        gains.push("the coder of weights takes fewer bits for zeros".into());
    }
    if let Some(mask) = zeros.mask {
        let percent = 100.0 * (1.0 - sparsity.share());
        gains.push(format!("a file can hold {percent:.0}% of the weights and a mask of {mask} bit per weight"));
    }
    if skipped(zeros, sparsity) {
        gains.push(format!("the array skips the zeros of {sparsity}"));
    }
    gains
}

/// A layer's new weight.
struct Made {
    /// The name of the tensor in `blob`.
    tensor: String,
    blob: Digest,
    zeros: u64,
}

/// What decides which weights stay, and what they become.
struct Choice<'a> {
    settings: &'a Prune,
    score: Score,
    sparsity: Sparsity,
}

impl Choice<'_> {
    /// The new weights of `layers`, in their order.
    fn made(
        &self,
        model: &Float,
        title: &str,
        layers: &[Layer],
        windows: &[Vec<u32>],
        session: &Session<'_>,
    ) -> Result<Vec<Made>, StepError> {
        let below = SourceWeights(model.source.clone());
        let renewed = Renewed::over(&model.source);
        let own = Side { graph: &model.graph, weights: &renewed };
        let float = Side { graph: &model.graph, weights: &below };
        let sides = if self.settings.fit == Fit::Residual { vec![own, float] } else { vec![float] };
        let decided = format!("{:?} {} {:?} {}", self.score, self.settings.method.0.version(), self.settings.fit, self.sparsity);
        let key = Digest::of_parts([b"sparse 1".as_slice(), first_key(&model.graph, windows).as_bytes(), decided.as_bytes()]);
        let stages = stages(&model.graph, layers);
        let count = stages.last().map_or(0, |stage| stage.block.index() + 1);
        let mut visiting =
            Visiting { choice: self, model, below: &below, renewed: &renewed, stages: &stages, session, made: BTreeMap::new() };
        Walk::new(&WALKER, title, key, sides, session).over(windows).in_parts(PARTS).visit(count, &mut visiting)?;
        let mut made = visiting.made;
        let of = |layer: &Layer| made.remove(&layer.weight).expect("the walk visits the block of every layer");
        Ok(layers.iter().map(of).collect())
    }
}

/// Parts of a block that progress counts.
const PARTS: usize = 4;

/// Layers of a block that read the same, and are fitted to the same.
struct Stage {
    block: BlockId,
    input: ValueId,
    /// The residual stream that the layer's output is added to.
    stream: Option<Stream>,
    layers: Vec<Layer>,
}

/// The layers by what they read, in running order.
fn stages(graph: &Graph, layers: &[Layer]) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for layer in layers {
        let block = graph.maker(layer.output).expect("a node makes it").block;
        let stream = Stream::around(graph, layer);
        match stages.iter_mut().find(|stage| stage.input == layer.input && stream.is_none() && stage.stream.is_none()) {
            Some(stage) => stage.layers.push(*layer),
            None => stages.push(Stage { block, input: layer.input, stream, layers: vec![*layer] }),
        }
    }
    stages
}

/// The sides of the walk: the model as far as it is sparse, and the one before. Without the first, there is only the second.
const OWN: usize = 0;
const FLOAT: usize = 1;

struct Visiting<'a> {
    choice: &'a Choice<'a>,
    model: &'a Float,
    below: &'a SourceWeights,
    renewed: &'a Renewed,
    stages: &'a [Stage],
    session: &'a Session<'a>,
    made: BTreeMap<ValueId, Made>,
}

impl Visitor for Visiting<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        // What enters later blocks depends on the new weights only where the text goes through them.
        let walked = self.choice.settings.fit == Fit::Residual;
        let names = self.layers(block).filter(|_| walked).map(|layer| Digest::of(self.name(layer).as_bytes()));
        block_key(before, &self.model.graph, block, &*self.model.source, names)
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        self.layers(block).map(|layer| self.unit(key, layer)).collect()
    }

    fn take(&mut self, block: BlockId, key: &Digest, blobs: &[Digest]) -> Result<()> {
        let taken: Vec<(&Layer, Digest)> = self.layers(block).zip(blobs.iter().copied()).collect();
        taken.into_iter().try_for_each(|(layer, blob)| self.place(layer, &self.unit(key, layer), blob))
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        let stages = self.stages.iter().filter(|stage| stage.block == block);
        for (part, stage) in stages.enumerate() {
            self.session.check_interrupt()?;
            let mut seen = None;
            for layer in &stage.layers {
                windows.tell(part.min(PARTS - 1) as u64, self.name(layer));
                let unit = self.unit(key, layer);
                let blob = match self.session.done(&unit)? {
                    Some(blob) => blob,
                    None => {
                        let seen = match &mut seen {
                            Some(seen) => seen,
                            none => none.insert(self.see(stage, windows)?),
                        };
                        let (weight, named) = (self.fit(layer, seen)?, self.tensor(layer, &unit));
                        let dims = dims(&self.model.graph, layer);
                        self.session.unit(unit, |to| write_tensors(to, &[(named, &dims, &weight)]))?
                    }
                };
                self.place(layer, &unit, blob)?;
            }
        }
        Ok(())
    }
}

/// What the layers of a stage read, and what they are to return for it.
struct Seen {
    moments: Hessian,
    drift: Option<Drift>,
    wanted: Option<Cross>,
}

impl<'a> Visiting<'a> {
    fn layers(&self, block: BlockId) -> impl Iterator<Item = &'a Layer> + use<'a> {
        self.stages.iter().filter(move |stage| stage.block == block).flat_map(|stage| &stage.layers)
    }

    fn name(&self, layer: &Layer) -> &'a str {
        &self.model.graph.get(layer.weight).name
    }

    /// The key of a layer's new weight in the block of that key.
    fn unit(&self, block: &Digest, layer: &Layer) -> Digest {
        Digest::of_parts([block.as_bytes().as_slice(), self.name(layer).as_bytes()])
    }

    /// What the new weight is called in its blob.
    fn tensor(&self, layer: &Layer, unit: &Digest) -> String {
        format!("{}/{}", self.name(layer), unit.short())
    }

    fn place(&mut self, layer: &Layer, unit: &Digest, blob: Digest) -> Result<()> {
        let (tensor, path) = (self.tensor(layer, unit), self.session.store.open(&blob)?);
        let stored = Shards::open(std::slice::from_ref(&path), &BTreeMap::new())?;
        let weight = stored.whole(&tensor)?;
        self.renewed.take(self.name(layer), &tensor, path);
        let zeros = weight.iter().filter(|w| **w == 0.0).count() as u64;
        self.made.insert(layer.weight, Made { tensor, blob, zeros });
        Ok(())
    }

    /// The new weight of a layer.
    fn fit(&self, layer: &Layer, seen: &Seen) -> Result<Vec<f32>> {
        let Choice { settings, score, sparsity } = *self.choice;
        let [rows, columns] = dims(&self.model.graph, layer);
        let mut weight = vec![0.0; rows * columns];
        layer.expr(&self.model.graph).read(&*self.model.source, 0..rows, &mut weight)?;
        let chosen = sparse(score, &weight, &seen.moments, sparsity)?;
        let wanted = match (&seen.drift, &seen.wanted) {
            (Some(drift), _) => Wanted::Unmoved(drift),
            (None, Some(wanted)) => Wanted::Outputs(wanted),
            (None, None) => Wanted::Own,
        };
        if settings.fit == Fit::None {
            return Ok(weight.iter().zip(&chosen.stays).map(|(w, stays)| if *stays { *w } else { 0.0 }).collect());
        }
        Ok(on_support(&weight, &chosen.weight, &chosen.stays, &seen.moments, wanted)?)
    }

    /// Looks at the text. What is added to the residual stream counts relative to the size of that: a norm follows, so a few tokens of huge
    /// size must not outweigh the others.
    fn see(&self, stage: &Stage, windows: &mut Windows<'_>) -> Result<Seen> {
        let columns = dims(&self.model.graph, &stage.layers[0])[1];
        let (mut moments, mut drift, mut wanted) = (Hessian::new(columns), None, None);
        let residual = self.choice.settings.fit == Fit::Residual;
        match stage.stream {
            None if residual => {
                let float = reached(FLOAT, stage.input, windows)?;
                let mut moved = Drift::new(columns);
                windows.reach(OWN, stage.input, &mut |lane, x| {
                    moved.add(&float[lane], x)?;
                    Ok(moments.add(x)?)
                })?;
                drift = Some(moved);
            }
            None => windows.reach(OWN, stage.input, &mut |_, x| Ok(moments.add(x)?))?,
            Some(stream) => {
                let before = reached(OWN, stream.before, windows)?;
                let float = if residual { Some(reached(FLOAT, stream.after, windows)?) } else { None };
                let layer = &stage.layers[0];
                let weight = self.constant(layer.weight)?.t().map_err(attar_graph::Error::from)?;
                let bias = layer.bias.map(|bias| self.constant(bias)).transpose()?;
                let biased = |x: Tensor| bias.as_ref().map_or(Ok(x.clone()), |bias| x.broadcast_add(bias));
                let mut cross = Cross::new(dims(&self.model.graph, layer)[0], columns);
                windows.reach(OWN, stage.input, &mut |lane, x| {
                    let sizes = match &float {
                        Some(float) => sizes(&float[lane])?,
                        None => sizes(&(biased(x.broadcast_matmul(&weight)?)? + &before[lane])?)?,
                    };
                    let x = x.broadcast_div(&sizes)?;
                    if let Some(float) = &float {
                        let rest = (&float[lane] - biased(before[lane].clone())?)?;
                        cross.add(&rest.broadcast_div(&sizes)?, &x)?;
                    }
                    Ok(moments.add(&x)?)
                })?;
                wanted = float.is_some().then_some(cross);
            }
        }
        let finite = moments.is_finite() && wanted.as_ref().is_none_or(Cross::is_finite);
        if !finite {
            let graph = &self.model.graph;
            let (block, value) = (graph.block_name(stage.block).into(), graph.get(stage.input).name.clone());
            return Err(attar_compress::Error::Activations { block, value }.into());
        }
        Ok(Seen { moments, drift, wanted })
    }

    fn constant(&self, id: ValueId) -> Result<Tensor> {
        let value = self.model.graph.get(id);
        let Origin::Weight(expr) = &value.origin else { unreachable!("what a layer multiplies with and adds is a constant") };
        Ok(self.below.whole(&value.name, expr)?)
    }
}
