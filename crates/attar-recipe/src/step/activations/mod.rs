//! The step `activations`: a unit is a block.
//!
//! Windows of calibration text run through the graph that is being made: a value is seen through all weights and all
//! rounding before it, gets its scale, and what follows sees it rounded. Its noise is measured on the way.

mod auto;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, RwLock},
};

use attar_compress::{ActivationBits, ActivationMode, ActivationSite as Site, Activations, Counts, Distribution, insert};
use attar_graph::{
    BlockId, Expr, Graph, SourceWeights, ValueId, Weights,
    integer::{IntegerMatrix, Rounding},
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
    device,
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{
    ActivationReport, Error, ErrorKind,
    model::Working,
    session::Session,
    settings::of,
    walk::{self, Side, Visitor, Walk, Windows, block_key, token_bytes},
    walker::Walker,
};

/// Moves whenever the same activations give other scales.
const VERSION: u32 = 2;

/// Channels whose values are gathered at a time.
const CHANNELS: usize = 64;

pub(super) static ACTIVATIONS: StepKind = StepKind {
    name: "activations",
    about: "Quantize activations and the KV cache to integers",
    schema: of::<Activations>,
    build: |section| Ok(Box::new(section.finish::<Activations>(&["kind".into()])?)),
    folder: None,
    is_verb: true,
    examples: &[
        "attar activations int8 --kv int8 --out dynamic",
        "attar activations int8 --mode static --select \"**\" --samples 16 --out static",
        "attar activations int8 --mode static --bits auto --budget bytes=25% --samples 16 --out widths",
    ],
    looks_inside: true,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

pub(super) static WALKER: Walker = Walker {
    name: "activations",
    doing: "activations",
    example: "[[step]]\nkind = \"quantize\"\ngrid = \"int8\"\n[[step]]\nkind = \"activations\"\nmode = \"static\"\nobserver = \"mse\"\nasymmetric = true\nkv = \"int4\"\n",
};

impl Step for Activations {
    fn kind(&self) -> &'static StepKind {
        &ACTIVATIONS
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let device = self.budget.as_ref().and_then(|budget| budget.device.as_deref());
        device.map_or_else(Vec::new, device::files)
    }

    fn needs_text(&self) -> bool {
        self.mode == ActivationMode::Static || self.bits == ActivationBits::Auto
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        model.graph = self.split(&model.graph)?.into_owned();
        let sites = self.sites(&model.graph).map_err(refused)?;
        walk::plan(model, u64::from(model.calibrated));
        let Some(budget) = &self.budget else { return place(&sites, model) };
        let sites = auto::plan(self, budget, sites, model)?;
        place(&sites, model)?;
        let planned = model.findings.activations.iter_mut().rev().zip(sites.iter().rev());
        planned.filter(|(_, site)| auto::is_open(site)).for_each(|(report, _)| report.encoding = either(&report.encoding));
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let before = model.findings.activations.len();
        model.graph = self.split(&model.graph)?.into_owned();
        let mut sites = self.sites(&model.graph).map_err(refused)?;
        let mut spent = Vec::new();
        if let Some(budget) = &self.budget {
            let auto::Spent { report, used } = auto::run(self, budget, &mut sites, model, session)?;
            model.findings.push(report);
            spent = used;
        }
        place(&sites, model)?;
        // A dynamic scale needs no text; with one, its noise is measured.
        let Some(windows) = session.calibration else { return Ok(Vec::new()) };
        let graph = model.graph.clone();
        let constants = Constants { found: RwLock::default(), below: SourceWeights(model.source.clone()) };
        let looking = Looking {
            settings: self,
            graph: &graph,
            source: model.source.clone(),
            session,
            sites: graph.blocks().map(|block| sites_of(&graph, &sites, block)).collect(),
            constants: &constants,
            seen: Found::new(),
            used: Vec::new(),
        };
        let Looking { used: mut blobs, seen, .. } = looking.all(windows, &model.title)?;
        blobs.extend(spent);
        for (site, report) in sites.iter().zip(&mut model.findings.activations[before..]) {
            report.snr_db = Some(seen[&site.quantized()].damage().snr_db()).filter(|snr| snr.is_finite());
        }
        blobs.extend(install(&sites, &seen, model, session)?);
        Ok(blobs)
    }
}

/// The model with its sites in integers.
fn place(sites: &[Site], model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
    model.graph = insert(&model.graph, sites)?;
    model.findings.extend(sites.iter().map(report));
    Ok(Vec::new())
}

fn report(site: &Site) -> ActivationReport {
    let feeds = site.feeds.iter().map(ToString::to_string).collect();
    ActivationReport { name: site.value.clone(), width: site.width, encoding: site.encoding(), feeds, snr_db: None }
}

/// An encoding of which nobody knows yet whether it has 8 or 16 bits.
fn either(encoding: &str) -> String {
    let shared = encoding.split_once('/').map_or("", |(_, shared)| shared);
    format!("int8 or int16/{shared}")
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

/// What was found in a block, by the names of rounded values: the content of a unit.
type Found = BTreeMap<String, Seen>;

/// Scales and zeros that were found, over the weights that the model has.
struct Constants {
    /// By their names in the graph.
    found: RwLock<HashMap<String, Tensor>>,
    below: SourceWeights,
}

impl Constants {
    fn get(&self, name: &str) -> Option<Tensor> {
        self.found.read().expect("no panic holds this lock").get(name).cloned()
    }

    fn add(&self, site: &Site, seen: &Seen) {
        let mut found = self.found.write().expect("no panic holds this lock");
        for (name, numbers) in site.constants().into_iter().zip([&seen.scale, &seen.zero]) {
            if !numbers.is_empty() {
                let tensor = Tensor::new(numbers.as_slice(), &Device::Cpu).expect("a list of numbers is a tensor");
                found.insert(name, tensor);
            }
        }
    }
}

impl Weights for Constants {
    fn whole(&self, name: &str, expr: &Expr) -> attar_graph::Result<Tensor> {
        self.get(name).map_or_else(|| self.below.whole(name, expr), Ok)
    }

    fn integers(&self, name: &str, expr: &Expr) -> attar_graph::Result<Option<Arc<IntegerMatrix>>> {
        if self.get(name).is_some() { Ok(None) } else { self.below.integers(name, expr) }
    }
}

/// Finds the scales of every block in turn.
struct Looking<'a> {
    settings: &'a Activations,
    graph: &'a Graph,
    source: Arc<dyn Source>,
    session: &'a Session<'a>,
    /// By block, the sites with their values.
    sites: Vec<Vec<(ValueId, &'a Site)>>,
    constants: &'a Constants,
    seen: Found,
    used: Vec<Digest>,
}

impl Visitor for Looking<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> crate::Result<Digest> {
        block_key(before, self.graph, block, &*self.source, [])
    }

    fn units(&self, _: BlockId, key: &Digest) -> Vec<Digest> {
        vec![*key]
    }

    fn take(&mut self, block: BlockId, _: &Digest, blobs: &[Digest]) -> crate::Result<()> {
        for blob in blobs {
            let found: Found = self.session.read_json(blob, "scales of activations")?;
            self.sites[block.index()].iter().for_each(|(_, site)| self.constants.add(site, &found[&site.quantized()]));
            self.seen.extend(found);
            self.used.push(*blob);
        }
        Ok(())
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> crate::Result<()> {
        let mut found = Found::new();
        for (value, site) in self.sites[block.index()].clone() {
            let seen = self.see(block, value, site, windows)?;
            self.constants.add(site, &seen);
            found.insert(site.quantized(), seen);
        }
        self.used.push(self.session.json(*key, || Ok(&found))?);
        self.seen.extend(found);
        Ok(())
    }
}

impl<'a> Looking<'a> {
    /// Every block up to the last that has a site.
    fn all(mut self, windows: &[Vec<u32>], title: &str) -> crate::Result<Looking<'a>> {
        let (graph, constants) = (self.graph, self.constants);
        let count = self.sites.iter().rposition(|sites| !sites.is_empty()).map_or(0, |at| at + 1);
        let first = first_key(self.settings, graph, windows);
        let sides = vec![Side { graph, weights: constants }];
        Walk::new(&WALKER, title, first, sides, self.session).visit(count, &mut self)?;
        Ok(self)
    }

    /// Runs the windows to a value, finds its scale and measures what rounding does to it.
    fn see(&self, block: BlockId, value: ValueId, site: &Site, windows: &mut Windows<'_>) -> crate::Result<Seen> {
        self.session.check_interrupt()?;
        windows.tell(0, &site.value);
        let mut lanes = Vec::new();
        windows.reach(0, value, &mut |_, x| {
            lanes.push(x.contiguous()?);
            Ok(())
        })?;
        if !is_finite(&lanes)? {
            return Err(not_finite(self.graph.block_name(block), &site.value));
        }
        let mut seen = scales(self.settings, site, &lanes)?;
        let rounding = seen.rounding(site);
        for x in &lanes {
            with_f32(x, |x| add_noise(&mut seen, &rounding, x, site.width)).map_err(attar_graph::Error::from)?;
        }
        Ok(seen)
    }
}

/// Static scales and zeros of values that were seen; none if they are dynamic.
fn scales(settings: &Activations, site: &Site, lanes: &[Tensor]) -> crate::Result<Seen> {
    let Some(count) = site.scales else { return Ok(Seen::default()) };
    let covers = match count {
        1 => vec![site.known.cover(site.codes, settings.range(&distribution(lanes)?, site.codes))],
        _ => channel_covers(settings, site, lanes)?,
    };
    let (scale, zero) = covers.into_iter().unzip();
    Ok(Seen { scale, zero: if site.codes.asymmetric { zero } else { Vec::new() }, ..Seen::default() })
}

/// A few channels at a time: their values are gathered and sorted.
fn channel_covers(settings: &Activations, site: &Site, lanes: &[Tensor]) -> crate::Result<Vec<(f32, f32)>> {
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
        let cover = |channel| site.codes.cover(settings.range(&Distribution::of(channel), site.codes));
        covers.extend(channels.into_iter().map(cover));
    }
    Ok(covers)
}

/// The sites whose value is made in `block`, in running order.
fn sites_of<'a>(graph: &Graph, sites: &'a [Site], block: BlockId) -> Vec<(ValueId, &'a Site)> {
    let made = graph.nodes_of(block).filter_map(|node| {
        let site = sites.iter().find(|site| site.quantized() == graph.get(node.outputs[0]).name)?;
        Some((node.inputs[0], site))
    });
    made.collect()
}

/// What decides the activations that enter the first block. Matrix kernels differ by instruction set in their last bits.
fn first_key(settings: &Activations, graph: &Graph, windows: &[Vec<u32>]) -> Digest {
    let observer = settings.observer();
    let how = format!("activations {VERSION} {} {} {}", observer.name(), observer.version(), instruction_set());
    let settings = serde_json::to_vec(settings).expect("settings are JSON");
    Digest::of_parts([how.as_bytes(), &settings, graph.to_string().as_bytes(), &token_bytes(windows)])
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
        let (found, formats) = (&seen[&site.quantized()], [Dtype::F32, zero_dtype(site.codes.bits)]);
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
    let constants = Shards::open(&[session.store.open(&blob)?], &BTreeMap::new())?;
    model.source = Arc::new(Overlay::new(Arc::new(constants), model.source.clone()));
    Ok(Some(blob))
}
