//! The step `activations`: a unit is a block.
//!
//! Windows of calibration text run through the graph that is being made: a value is seen through all weights and all
//! rounding before it, gets its scale, and what follows sees it rounded. Its noise is measured on the way. After each
//! block the activations are a blob of the store, as in the calibrated half of `quantize`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use attar_compress::{ActivationMode, ActivationSite as Site, Activations, Counts, Distribution, insert};
use attar_graph::{
    BlockId, Graph, Inputs, Origin, SourceWeights, Stream, TensorWeights, ValueId,
    integer::Rounding,
    kernel::{instruction_set, with_f32},
    op::zero_dtype,
};
use attar_tensor::{
    Damage, Digest, Dtype, Overlay, Source,
    safetensors::{Entry, Shards, Writer},
};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{
    calibrated::LANE,
    calibrated::read_activations,
    calibrated::write_activations,
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{ActivationReport, Error, ErrorKind, model::Working, session::Session, settings::of};

/// Moves whenever the same activations give other scales.
const VERSION: u32 = 1;

/// Channels whose values are gathered at a time.
const CHANNELS: usize = 64;

pub(super) static ACTIVATIONS: StepKind = StepKind {
    name: "activations",
    about: "Quantize activations and the KV cache to integers",
    schema: of::<Activations>,
    build: |section| Ok(Box::new(section.finish::<Activations>(&["kind".into()])?)),
    folder: None,
    looks_inside: true,
    predicts: false,
};

impl Step for Activations {
    fn kind(&self) -> &'static StepKind {
        &ACTIVATIONS
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let sites = self.sites(&model.graph).map_err(refused)?;
        if self.mode == ActivationMode::Static && !model.calibrated {
            let hint = "add `[data.calibration]` with the `path` of a text, or use `mode = \"dynamic\"`".to_owned();
            let error = Error::recipe("static scales come from activations, and the recipe has no text for that").hint(hint);
            return Err(StepError { key: Some("mode".into()), error });
        }
        model.graph = insert(&model.graph, &sites)?;
        model.activations.extend(sites.iter().map(|site| report(site, None)));
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let before = model.activations.len();
        let sites = self.sites(&model.graph).map_err(refused)?;
        self.plan(model)?;
        // A dynamic scale needs no text; with one, its noise is measured.
        let Some(windows) = session.calibration else { return Ok(Vec::new()) };
        let graph = model.graph.clone();
        let mut walk = Walk::new(self, &graph, &sites, model, session, windows);
        walk.all(&format!("{}: activations", model.title))?;
        let Walk { used: mut blobs, seen, .. } = walk;
        for (site, report) in sites.iter().zip(&mut model.activations[before..]) {
            report.snr_db = Some(seen[&site.value].damage().snr_db()).filter(|snr| snr.is_finite());
        }
        blobs.extend(install(&sites, &seen, model, session)?);
        Ok(blobs)
    }
}

fn report(site: &Site, snr_db: Option<f64>) -> ActivationReport {
    let feeds = site.feeds.iter().map(ToString::to_string).collect();
    ActivationReport { name: site.value.clone(), width: site.width, encoding: site.encoding(), feeds, snr_db }
}

/// A choice that cannot be made is the recipe's fault.
fn refused(error: attar_compress::Error) -> StepError {
    StepError { key: error.key().map(Into::into), error: Error { kind: ErrorKind::Recipe, ..error.into() } }
}

/// What was found of one value.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Seen {
    /// Static scales.
    scale: Vec<f32>,
    /// Static zeros.
    zero: Vec<f32>,
    /// Sum of the squared values.
    energy: f64,
    /// Sum of squared differences between the values and what their codes mean.
    squared_error: f64,
}

impl Seen {
    fn damage(&self) -> Damage {
        Damage { squared_error: self.squared_error, energy: self.energy }
    }

    fn rounding(&self, site: &Site) -> Rounding {
        match site.scales {
            None => Rounding::dynamic(site.codes.bits),
            Some(_) => Rounding::fixed(site.codes.bits, self.scale.clone(), self.zero.clone()),
        }
    }
}

/// What was found in a block, by value: the content of a unit.
type Found = BTreeMap<String, Seen>;

struct Walk<'a> {
    settings: &'a Activations,
    graph: &'a Graph,
    source: Arc<dyn Source>,
    below: SourceWeights,
    session: &'a Session<'a>,
    windows: &'a [Vec<u32>],
    /// The sites of each block, with their values.
    blocks: Vec<(BlockId, Vec<(ValueId, &'a Site)>)>,
    /// Of all that was decided so far.
    key: Digest,
    seen: Found,
    /// Scales and zeros that were found, by their names in the graph.
    constants: HashMap<String, Tensor>,
    /// Made when a block must be worked on.
    stream: Option<Stream<'a>>,
    /// The blob of the activations that enter the next block.
    entering: Option<Digest>,
    used: Vec<Digest>,
}

impl<'a> Walk<'a> {
    fn new(
        settings: &'a Activations,
        graph: &'a Graph,
        sites: &'a [Site],
        model: &Working,
        session: &'a Session<'a>,
        windows: &'a [Vec<u32>],
    ) -> Walk<'a> {
        Walk {
            settings,
            graph,
            source: model.source.clone(),
            below: SourceWeights(model.source.clone()),
            session,
            windows,
            blocks: graph.blocks().map(|block| (block, sites_of(graph, sites, block))).collect(),
            key: first_key(settings, graph, windows),
            seen: Found::new(),
            constants: HashMap::new(),
            stream: None,
            entering: None,
            used: Vec::new(),
        }
    }

    /// Every block up to the last that has a site.
    fn all(&mut self, title: &str) -> Result<(), StepError> {
        let last = self.blocks.iter().rposition(|(_, sites)| !sites.is_empty()).map_or(0, |at| at + 1);
        self.session.observer.stage(title, last as u64);
        for at in 0..last {
            self.session.check_interrupt()?;
            self.block(at, at + 1 < last)?;
            self.session.observer.advance(at as u64 + 1, self.graph.block_name(self.blocks[at].0));
        }
        Ok(())
    }

    /// Finds the scales of a block, or finds that they are known. `more` blocks need its results.
    fn block(&mut self, at: usize, more: bool) -> Result<(), StepError> {
        let (block, sites) = self.blocks[at].clone();
        let key = self.block_key(block)?;
        let leaving_key = Digest::of_parts([key.as_bytes().as_slice(), b"leaving"]);
        let done = self.session.done(&key)?;
        let leaving = if more && done.is_some() { self.session.done(&leaving_key)? } else { None };
        self.key = key;
        if let Some(blob) = done.filter(|_| leaving.is_some() || !more || self.stream.is_none()) {
            self.take(&sites, self.read(&blob)?);
            self.used.push(blob);
            (self.stream, self.entering) = (None, leaving);
            return Ok(());
        }
        self.start(block)?;
        let mut found = Found::new();
        for (value, site) in &sites {
            let seen = self.see(block, *value, site)?;
            self.take(&[(*value, site)], Found::from([(site.value.clone(), seen.clone())]));
            found.insert(site.value.clone(), seen);
        }
        let text = crate::json::json(&found);
        let unit = |to: &mut dyn std::io::Write| to.write_all(&text).map_err(|e| attar_tensor::Error::from(e).into());
        self.used.push(self.session.unit(key, unit)?);
        if more { self.leave(leaving_key) } else { Ok(()) }
    }

    /// The weights of the block, its shape and what was seen before decide it.
    fn block_key(&self, block: BlockId) -> Result<Digest, StepError> {
        let mut parts = vec![self.key, Digest::of(self.graph.block_name(block).as_bytes())];
        for id in self.graph.nodes_of(block).flat_map(|node| &node.inputs) {
            let value = self.graph.get(*id);
            if let Origin::Weight(expr) = &value.origin
                && self.source.info(expr.tensor_name()).is_ok()
            {
                parts.push(expr.digest(&*self.source)?);
            }
        }
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    fn read(&self, blob: &Digest) -> Result<Found, StepError> {
        let path = self.session.store.path(blob);
        let text = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
        let found = serde_json::from_slice(&text);
        Ok(found.map_err(|e| Error::input("scales of activations in the store cannot be read").because(&e))?)
    }

    fn take(&mut self, sites: &[(ValueId, &Site)], found: Found) {
        for (_, site) in sites {
            let seen = &found[&site.value];
            for (name, numbers) in site.constants().into_iter().zip([&seen.scale, &seen.zero]) {
                if !numbers.is_empty() {
                    let tensor = Tensor::new(numbers.as_slice(), &Device::Cpu).expect("a list of numbers is a tensor");
                    self.constants.insert(name, tensor);
                }
            }
        }
        self.seen.extend(found);
    }

    /// Brings the windows to the start of `block`: from the store if they are there, or else through all blocks before.
    fn start(&mut self, block: BlockId) -> Result<(), StepError> {
        if self.stream.is_some() {
            return Ok(());
        }
        let length = self.windows.first().map_or(1, Vec::len).max(1);
        let lanes = self.windows.chunks((LANE / length).max(1)).map(|lane| {
            let lane: Vec<&[u32]> = lane.iter().map(Vec::as_slice).collect();
            Inputs::tokens(&lane, 0)
        });
        let lanes = lanes.collect::<attar_graph::Result<Vec<Inputs>>>()?;
        let count = lanes.len();
        let mut stream = Stream::new(self.graph, lanes);
        match self.entering {
            Some(blob) => {
                let blob = Shards::open(&[self.session.store.path(&blob)], &BTreeMap::new())?;
                stream.restore(block, read_activations(&blob, count)?);
            }
            None => {
                while stream.block() != block {
                    self.session.check_interrupt()?;
                    stream.leave(&self.weights())?;
                }
            }
        }
        self.stream = Some(stream);
        Ok(())
    }

    fn weights(&self) -> TensorWeights<'_> {
        TensorWeights { tensors: self.constants.clone(), below: &self.below }
    }

    /// Runs the windows to a value, finds its scale and measures what rounding does to it.
    fn see(&mut self, block: BlockId, value: ValueId, site: &Site) -> Result<Seen, StepError> {
        self.session.check_interrupt()?;
        self.session.observer.advance(block.index() as u64, &site.value);
        let mut stream = self.stream.take().expect("`start` made it");
        let mut lanes = Vec::new();
        stream.reach(&self.weights(), value, &mut |_, x| {
            lanes.push(x.contiguous()?);
            Ok(())
        })?;
        self.stream = Some(stream);
        if !is_finite(&lanes)? {
            return Err(not_finite(self.graph.block_name(block), &site.value).into());
        }
        let mut seen = self.scales(site, &lanes)?;
        let rounding = seen.rounding(site);
        for x in &lanes {
            with_f32(x, |x| add_noise(&mut seen, &rounding, x, site.width)).map_err(attar_graph::Error::from)?;
        }
        Ok(seen)
    }

    /// Static scales and zeros.
    fn scales(&self, site: &Site, lanes: &[Tensor]) -> Result<Seen, StepError> {
        let Some(count) = site.scales else { return Ok(Seen::default()) };
        let covers = match count {
            1 => vec![site.codes.cover(self.settings.range(&distribution(lanes)?, site.codes))],
            _ => self.channel_covers(site, lanes)?,
        };
        let (scale, zero) = covers.into_iter().unzip();
        Ok(Seen { scale, zero: if site.codes.asymmetric { zero } else { Vec::new() }, ..Seen::default() })
    }

    /// A few channels at a time: their values are gathered and sorted.
    fn channel_covers(&self, site: &Site, lanes: &[Tensor]) -> Result<Vec<(f32, f32)>, StepError> {
        let mut covers = Vec::with_capacity(site.width);
        for first in (0..site.width).step_by(CHANNELS) {
            let mut channels = vec![Vec::new(); CHANNELS.min(site.width - first)];
            for x in lanes {
                let gather = |x: &[f32]| {
                    let rows = x.chunks(site.width).map(|row| &row[first..]);
                    rows.for_each(|row| channels.iter_mut().zip(row).for_each(|(channel, x)| channel.push(*x)));
                };
                with_f32(x, gather).map_err(attar_graph::Error::from)?;
            }
            let cover = |channel| site.codes.cover(self.settings.range(&Distribution::of(channel), site.codes));
            covers.extend(channels.into_iter().map(cover));
        }
        Ok(covers)
    }

    /// Hands the activations on, stores them, and lets go of what entered this block.
    fn leave(&mut self, key: Digest) -> Result<(), StepError> {
        let mut stream = self.stream.take().expect("`start` made it");
        stream.leave(&self.weights())?;
        let entering = stream.entering();
        self.stream = Some(stream);
        let blob = self.session.unit(key, |to| write_activations(&entering, to))?;
        if let Some(before) = self.entering.replace(blob).filter(|before| *before != blob) {
            crate::output::remove(&self.session.store.path(&before))?;
        }
        Ok(())
    }
}

/// The sites whose value is made in `block`, in running order.
fn sites_of<'a>(graph: &Graph, sites: &'a [Site], block: BlockId) -> Vec<(ValueId, &'a Site)> {
    let made = graph.nodes_of(block).filter_map(|node| {
        let site = sites.iter().find(|site| site.quantized() == graph.get(node.output).name)?;
        Some((node.inputs[0], site))
    });
    made.collect()
}

/// What decides the activations that enter the first block. Matrix kernels differ by instruction set in their last bits.
fn first_key(settings: &Activations, graph: &Graph, windows: &[Vec<u32>]) -> Digest {
    let tokens: Vec<u8> = windows.iter().flat_map(|w| w.iter().copied().chain([u32::MAX]).flat_map(u32::to_le_bytes)).collect();
    let observer = settings.observer();
    let how = format!("activations {VERSION} {} {} {}", observer.name(), observer.version(), instruction_set());
    let settings = serde_json::to_vec(settings).expect("settings are JSON");
    Digest::of_parts([how.as_bytes(), &settings, graph.to_string().as_bytes(), &tokens])
}

fn is_finite(lanes: &[Tensor]) -> attar_graph::Result<bool> {
    for x in lanes {
        if !with_f32(x, |x| x.iter().all(|x| x.is_finite()))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn not_finite(block: &str, value: &str) -> Error {
    attar_compress::Error::Activations { block: block.into(), value: value.into() }.into()
}

fn distribution(lanes: &[Tensor]) -> attar_graph::Result<Distribution> {
    let mut counts = Counts::default();
    for x in lanes {
        with_f32(x, |x| counts.add(x))?;
    }
    Ok(counts.distribution())
}

/// In the order of the values: sums do not depend on threads.
fn add_noise(seen: &mut Seen, rounding: &Rounding, x: &[f32], width: usize) {
    let mut rounded = vec![0.0; x.len()];
    rounding.round(x, width, &mut rounded);
    for (x, q) in x.iter().zip(&rounded) {
        seen.energy += f64::from(*x).powi(2);
        seen.squared_error += f64::from(x - q).powi(2);
    }
}

/// Static scales and zeros are now weights of the model, in one blob of the store.
fn install(sites: &[Site], seen: &Found, model: &mut Working, session: &Session<'_>) -> Result<Option<Digest>, StepError> {
    let mut entries = Vec::new();
    let mut bytes = Vec::new();
    for site in sites.iter().filter(|site| site.scales.is_some()) {
        let (found, formats) = (&seen[&site.value], [Dtype::F32, zero_dtype(site.codes.bits)]);
        for ((name, numbers), dtype) in site.constants().into_iter().zip([&found.scale, &found.zero]).zip(formats) {
            if !numbers.is_empty() {
                dtype.encode(numbers, &mut bytes);
                entries.push(Entry { name, dtype, dims: vec![numbers.len()] });
            }
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let names: Vec<&[u8]> = entries.iter().map(|entry| entry.name.as_bytes()).collect();
    let key = Digest::of_parts([b"constants of activations".as_slice(), &bytes].into_iter().chain(names));
    let blob = session.unit(key, |to| {
        let failed = attar_tensor::Error::from;
        let mut writer = Writer::new(to, &entries, &BTreeMap::new()).map_err(failed)?;
        writer.append(&bytes).map_err(failed)?;
        writer.finish();
        Ok(())
    })?;
    let constants = Shards::open(&[session.store.path(&blob)], &BTreeMap::new())?;
    model.source = Arc::new(Overlay::new(Arc::new(constants), model.source.clone()));
    Ok(Some(blob))
}
