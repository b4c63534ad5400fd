//! Channels of the residual stream that leave: chosen on one passage of the text, then norms and layers fitted on another.
//!
//! Both walks are unit by unit: a unit of the first is what the channels are worth to a block, one of the second is a norm with the
//! layers that read it, or a layer that writes. The second walk has two sides, the smaller model as far as it is fitted and the unpruned one.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use attar_compress::{
    Cross, Hessian, Layer,
    prune::{Fit, Hidden, Observed, Place, Prune, Response, Stream, refitted},
};
use attar_graph::{Axis, BlockId, Expr, Graph, Runs, SourceWeights, ValueId, kernel::with_f32};
use attar_tensor::{Digest, Overlay, Source, safetensors::Shards};
use candle_core::Tensor;

use super::{
    super::{codes::refused, kind::StepError, renewed::Renewed, transformed::write_tensors},
    fit::{reached, sizes},
};
use crate::{
    Result,
    model::{Float, Working},
    session::Session,
    walk::{Side, Visitor, Walk, Windows, block_key, first_key},
    walker::Walker,
};

const EXAMPLE: &str = "[[step]]\nkind = \"prune\"\nhidden = 96\n";

pub(in crate::step) static CHOOSING: Walker =
    Walker { name: "prune-channels", doing: "weigh channels of the residual stream", example: EXAMPLE };

pub(in crate::step) static FITTING: Walker =
    Walker { name: "prune-hidden", doing: "fit to a narrower residual stream", example: EXAMPLE };

/// The smaller graph, of any channels: only shapes are planned.
pub(super) fn planned(stay: usize, graph: &Graph) -> Result<Graph, StepError> {
    let hidden = Hidden::of(graph).map_err(refused)?;
    hidden.narrowed(graph, &(0..stay).collect::<Vec<_>>(), &BTreeMap::new()).map_err(refused)
}

/// Bytes that the work at a place takes.
pub(super) fn memory(settings: &Prune, model: &Working) -> Result<u64, StepError> {
    let hidden = Hidden::of(&model.graph).map_err(refused)?;
    let of_layer = |layer: &Layer| {
        let dims = model.graph.fact(layer.weight).constant_dims().unwrap_or_default();
        let (rows, columns) = (dims[0], dims[1]);
        let outputs = Cross::bytes(rows, columns) + 4 * model.tokens * rows as u64;
        outputs + (8 * (4 * columns * columns + 4 * rows * columns)) as u64 + settings.method.0.memory([rows, columns])
    };
    let of_place = |(_, place): &(BlockId, Place)| match place {
        Place::Norm { .. } => 0,
        Place::Readers(layers) => layers.iter().filter(|layer| !is_head(&model.graph, layer)).map(of_layer).sum(),
        Place::Writer { layer, .. } => of_layer(layer),
    };
    Ok(Hessian::bytes(hidden.width()) + hidden.places().iter().map(of_place).max().unwrap_or(0))
}

/// The smaller model, and the channels of the stream that stay.
pub(super) fn made(
    settings: &Prune,
    stay: usize,
    before: &Float,
    title: &str,
    windows: &[Vec<u32>],
    session: &Session<'_>,
    used: &mut Vec<Digest>,
) -> Result<Float, StepError> {
    let hidden = Hidden::of(&before.graph).map_err(refused)?;
    let weights = SourceWeights(before.source.clone());
    let side = Side { graph: &before.graph, weights: &weights };
    let key = Digest::of_parts([b"channels 1".as_slice(), first_key(&before.graph, windows).as_bytes()]);
    let worth = vec![0.0; hidden.width()];
    let mut choosing = Choosing { settings, hidden: &hidden, before, session, worth, used };
    let blocks = before.graph.block_count();
    Walk::new(&CHOOSING, title, key, vec![side], session).over(windows).visit(blocks, &mut choosing)?;
    let channels = best(&choosing.worth, stay);
    let small = hidden.narrowed(&before.graph, &channels, &BTreeMap::new()).map_err(refused)?;
    let renewed = Renewed::over(&before.source);
    let own = Side { graph: &small, weights: &renewed };
    let listed: Vec<u8> = channels.iter().flat_map(|channel| (*channel as u64).to_le_bytes()).collect();
    let key = Digest::of_parts([b"narrowed 2".as_slice(), first_key(&small, windows).as_bytes(), &listed]);
    let names = BTreeMap::new();
    let mut fitting = Fitting {
        settings,
        hidden: &hidden,
        before,
        small: &small,
        channels: &channels,
        renewed: &renewed,
        session,
        names,
        used,
    };
    Walk::new(&FITTING, title, key, vec![own, side], session).over(windows).visit(blocks, &mut fitting)?;
    let Fitting { names, .. } = fitting;
    let mut files: Vec<PathBuf> = names.values().map(|(_, path)| path.clone()).collect();
    files.sort();
    files.dedup();
    let new = names.into_iter().map(|(id, (tensor, _))| (id, Expr::tensor(tensor))).collect();
    let top: Arc<dyn Source> = Arc::new(Shards::open(&files, &BTreeMap::new())?);
    let source: Arc<dyn Source> = Arc::new(Overlay::new(top, before.source.clone()));
    Ok(Float { graph: hidden.narrowed(&before.graph, &channels, &new).map_err(refused)?, source })
}

/// The `stay` channels that are worth most, in rising order; of equals, the first.
fn best(worth: &[f64], stay: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..worth.len()).collect();
    order.sort_by(|a, b| worth[*b].total_cmp(&worth[*a]).then(a.cmp(b)));
    order.truncate(stay);
    order.sort_unstable();
    order
}

/// Whether a layer makes the model's output. It is as large as a table, and often tied to one.
fn is_head(graph: &Graph, layer: &Layer) -> bool {
    graph.outputs().contains(&layer.output)
}

fn places(hidden: &Hidden, block: BlockId) -> impl Iterator<Item = &Place> {
    hidden.places().iter().filter(move |(of, _)| *of == block).map(|(_, place)| place)
}

/// What the channels are worth, block by block: what every layer behind a norm would lose without one, as a share of its output.
struct Choosing<'a> {
    settings: &'a Prune,
    hidden: &'a Hidden,
    before: &'a Float,
    session: &'a Session<'a>,
    worth: Vec<f64>,
    used: &'a mut Vec<Digest>,
}

impl Visitor for Choosing<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        let method = self.settings.method.0;
        let decided = Digest::of(format!("{} {}", method.name(), method.version()).as_bytes());
        block_key(before, &self.before.graph, block, &*self.before.source, [decided])
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        let norms = places(self.hidden, block).any(|place| matches!(place, Place::Readers(_)));
        if norms { vec![*key] } else { Vec::new() }
    }

    fn take(&mut self, _: BlockId, _: &Digest, blobs: &[Digest]) -> Result<()> {
        for blob in blobs {
            let stored = Shards::open(&[self.session.store.open(blob)?], &BTreeMap::new())?;
            self.worth.iter_mut().zip(stored.whole("worth")?).for_each(|(sum, worth)| *sum += f64::from(worth));
            self.used.push(*blob);
        }
        Ok(())
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        let mut worth = vec![0.0; self.worth.len()];
        for place in places(self.hidden, block) {
            let Place::Readers(layers) = place else { continue };
            let (moments, means) = self.seen(layers[0].input, windows)?;
            for reader in layers.iter().filter(|layer| !is_head(&self.before.graph, layer)) {
                let weight = read(&self.before.graph, &*self.before.source, reader.weight)?;
                let observed = Observed { weight: &weight, moments: &moments, means: &means, width: 1 };
                let energy = observed.output_energy().max(f64::MIN_POSITIVE);
                let scores = self.settings.method.0.scores(&observed)?;
                worth.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score / energy);
            }
        }
        let units = self.units(block, key);
        let blobs = units.into_iter().map(|unit| {
            let worth: Vec<f32> = worth.iter().map(|worth| *worth as f32).collect();
            self.session.unit(unit, |to| write_tensors(to, &[("worth".into(), &[worth.len()], &worth)]))
        });
        let blobs = blobs.collect::<Result<Vec<_>>>()?;
        self.take(block, key, &blobs)
    }
}

impl Choosing<'_> {
    fn seen(&self, input: ValueId, windows: &mut Windows<'_>) -> Result<(Hessian, Vec<f64>)> {
        let columns = self.worth.len();
        let (mut moments, mut means, mut tokens) = (Hessian::new(columns), vec![0.0; columns], 0usize);
        windows.reach(0, input, &mut |_, x| {
            moments.add(x)?;
            with_f32(x, |x| {
                tokens += x.len() / columns;
                x.chunks(columns).for_each(|token| means.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(*x)));
            })?;
            Ok(())
        })?;
        means.iter_mut().for_each(|sum| *sum /= tokens.max(1) as f64);
        Ok((moments, means))
    }
}

/// The sides of the second walk: the smaller model as far as it is fitted, and the unpruned one.
const OWN: usize = 0;
const FLOAT: usize = 1;

struct Fitting<'a> {
    settings: &'a Prune,
    hidden: &'a Hidden,
    before: &'a Float,
    small: &'a Graph,
    channels: &'a [usize],
    renewed: &'a Renewed,
    session: &'a Session<'a>,
    /// Constants of the unpruned graph that have new values, and where these are.
    names: BTreeMap<ValueId, (String, PathBuf)>,
    used: &'a mut Vec<Digest>,
}

impl Visitor for Fitting<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        let fits = Digest::of(format!("{:?}", self.settings.fit != Fit::None).as_bytes());
        block_key(before, &self.before.graph, block, &*self.before.source, [fits])
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        places(self.hidden, block).enumerate().map(|(at, _)| unit(key, at)).collect()
    }

    fn take(&mut self, block: BlockId, key: &Digest, blobs: &[Digest]) -> Result<()> {
        blobs.iter().enumerate().try_for_each(|(at, blob)| self.place(block, at, &unit(key, at), *blob))
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        for (at, place) in places(self.hidden, block).enumerate() {
            self.session.check_interrupt()?;
            let unit = unit(key, at);
            let blob = match self.session.done(&unit)? {
                Some(blob) => blob,
                None => {
                    let new = match place {
                        Place::Norm { gain, input } => self.gain(*gain, *input, windows)?,
                        Place::Readers(_) if self.renewed_at(place).is_empty() => Vec::new(),
                        Place::Readers(layers) => self.readers(layers, windows)?,
                        Place::Writer { layer, stream } => self.writer(layer, *stream, windows)?,
                    };
                    let dims: Vec<Vec<usize>> = new.iter().map(|(id, _)| self.small_dims(*id)).collect();
                    let tensors: Vec<(String, &[usize], &[f32])> = new
                        .iter()
                        .zip(&dims)
                        .map(|((id, values), dims)| (self.named(*id, &unit), dims.as_slice(), values.as_slice()))
                        .collect();
                    self.session.unit(unit, |to| write_tensors(to, &tensors))?
                }
            };
            self.place(block, at, &unit, blob)?;
        }
        Ok(())
    }
}

/// The key of a place in the block of that key.
fn unit(block: &Digest, at: usize) -> Digest {
    Digest::of_parts([block.as_bytes().as_slice(), &(at as u64).to_le_bytes()])
}

/// A new constant, by the one of the unpruned graph.
type New = (ValueId, Vec<f32>);

impl Fitting<'_> {
    fn named(&self, id: ValueId, unit: &Digest) -> String {
        format!("{}/{}", self.before.graph.get(id).name, unit.short())
    }

    /// The same value in the smaller graph.
    fn small(&self, id: ValueId) -> ValueId {
        self.small.find(&self.before.graph.get(id).name).expect("a smaller graph keeps its values")
    }

    fn small_dims(&self, id: ValueId) -> Vec<usize> {
        self.small.fact(self.small(id)).constant_dims().unwrap_or_default()
    }

    /// The constants that a place has new values for.
    fn renewed_at(&self, place: &Place) -> Vec<ValueId> {
        let fits = self.settings.fit != Fit::None;
        match place {
            Place::Norm { gain, .. } => vec![*gain],
            Place::Readers(layers) => {
                let fitted = layers.iter().filter(|layer| fits && !is_head(&self.before.graph, layer));
                fitted.map(|layer| layer.weight).collect()
            }
            Place::Writer { layer, .. } => fits.then_some(layer.weight).into_iter().collect(),
        }
    }

    fn place(&mut self, block: BlockId, at: usize, unit: &Digest, blob: Digest) -> Result<()> {
        let place = places(self.hidden, block).nth(at).expect("a unit is of a place");
        let path = self.session.store.open(&blob)?;
        for id in self.renewed_at(place) {
            let tensor = self.named(id, unit);
            self.renewed.take(&self.before.graph.get(id).name, &tensor, path.clone());
            self.names.insert(id, (tensor, path.clone()));
        }
        self.used.push(blob);
        Ok(())
    }

    /// The new gain of a norm: its root mean square is that of fewer channels.
    fn gain(&self, gain: ValueId, input: ValueId, windows: &mut Windows<'_>) -> Result<Vec<New>> {
        let index = self.index();
        let (mut ratio, mut lanes) = (0.0, 0);
        windows.reach(FLOAT, input, &mut |_, x| {
            let kept = x.index_select(&index, x.rank() - 1)?;
            ratio += f64::from(sizes(&kept)?.div(&sizes(x)?)?.mean_all()?.to_scalar::<f32>()?);
            lanes += 1;
            Ok(())
        })?;
        let ratio = ratio / f64::from(lanes.max(1));
        let old = read(&self.before.graph, &*self.before.source, gain)?;
        Ok(vec![(gain, self.channels.iter().map(|channel| (f64::from(old[*channel]) * ratio) as f32).collect())])
    }

    /// The weights of layers that read a norm, fitted to what they return in the unpruned model.
    fn readers(&self, layers: &[Layer], windows: &mut Windows<'_>) -> Result<Vec<New>> {
        let inputs = reached(OWN, self.small(layers[0].input), windows)?;
        let columns = self.channels.len();
        let mut moments = Hessian::new(columns);
        inputs.iter().try_for_each(|x| moments.add(x)).map_err(attar_graph::Error::from)?;
        let mut new = Vec::new();
        for layer in layers {
            let (rows, bias) = (self.small_dims(layer.weight)[0], self.bias(layer)?);
            let mut cross = Cross::new(rows, columns);
            windows.reach(FLOAT, layer.output, &mut |lane, y| {
                let y = bias.as_ref().map_or_else(|| Ok(y.clone()), |bias| y.broadcast_sub(bias))?;
                Ok(cross.add(&y, &inputs[lane])?)
            })?;
            new.push((layer.weight, self.fitted(layer, &moments, &cross, Axis::Columns)?));
        }
        Ok(new)
    }

    /// The weight of a layer that writes to the stream, fitted to what the stream is behind it in the unpruned model.
    fn writer(&self, layer: &Layer, stream: Stream, windows: &mut Windows<'_>) -> Result<Vec<New>> {
        if self.settings.fit == Fit::None {
            return Ok(Vec::new());
        }
        let index = self.index();
        let own = reached(OWN, self.small(stream.before), windows)?;
        let bias = self.bias(layer)?;
        let (rows, columns) = (self.channels.len(), self.small_dims(layer.weight)[1]);
        let mut wanted = Vec::new();
        windows.reach(FLOAT, stream.after, &mut |lane, after| {
            let kept = after.index_select(&index, after.rank() - 1)?;
            let y = (&kept - &own[lane])?;
            let y = match &bias {
                Some(bias) => y.broadcast_sub(&bias.index_select(&index, 0)?)?,
                None => y,
            };
            wanted.push((y, sizes(after)?));
            Ok(())
        })?;
        let (mut moments, mut cross) = (Hessian::new(columns), Cross::new(rows, columns));
        windows.reach(OWN, self.small(layer.input), &mut |lane, x| {
            let (y, sizes) = &wanted[lane];
            let x = x.broadcast_div(sizes)?;
            moments.add(&x)?;
            Ok(cross.add(&y.broadcast_div(sizes)?, &x)?)
        })?;
        Ok(vec![(layer.weight, self.fitted(layer, &moments, &cross, Axis::Rows)?)])
    }

    /// The channels that stay, to select by.
    fn index(&self) -> Tensor {
        let index: Vec<u32> = self.channels.iter().map(|channel| *channel as u32).collect();
        Tensor::new(index.as_slice(), &candle_core::Device::Cpu).expect("a list of numbers is a tensor")
    }

    /// A layer's weight by least squares; `axis` is where it lost channels.
    fn fitted(&self, layer: &Layer, moments: &Hessian, cross: &Cross, axis: Axis) -> Result<Vec<f32>> {
        if !moments.is_finite() || !cross.is_finite() {
            let graph = &self.before.graph;
            let block = graph.maker(layer.output).map_or("", |node| graph.block_name(node.block)).into();
            return Err(attar_compress::Error::Activations { block, value: graph.get(layer.input).name.clone() }.into());
        }
        let all: Vec<usize> = (0..moments.inputs()).collect();
        Ok(refitted(&self.old(layer, axis)?, moments, &Response::Wanted(cross), &all)?)
    }

    /// The old weight of a layer, of the channels that stay.
    fn old(&self, layer: &Layer, axis: Axis) -> Result<Vec<f32>> {
        let expr = layer.expr(&self.before.graph).clone().selected(axis, Runs::of(self.channels.to_vec()));
        let [rows, columns] = expr.info(&*self.before.source)?.matrix();
        let mut values = vec![0.0; rows * columns];
        expr.read(&*self.before.source, 0..rows, &mut values)?;
        Ok(values)
    }

    fn bias(&self, layer: &Layer) -> Result<Option<Tensor>> {
        let read = |id| read(&self.before.graph, &*self.before.source, id);
        let bias = layer.bias.map(read).transpose()?;
        Ok(bias
            .map(|bias| Tensor::new(bias.as_slice(), &candle_core::Device::Cpu))
            .transpose()
            .map_err(attar_graph::Error::from)?)
    }
}

/// All numbers of a constant.
fn read(graph: &Graph, source: &dyn Source, id: ValueId) -> Result<Vec<f32>> {
    let attar_graph::Origin::Weight(expr) = &graph.get(id).origin else { unreachable!("weights are constants") };
    let info = expr.info(source)?;
    let mut values = vec![0.0; info.elements()];
    expr.read(source, 0..info.matrix()[0], &mut values)?;
    Ok(values)
}
