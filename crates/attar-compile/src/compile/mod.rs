//! From a quantized model, a device and calibration text to plans for prefill and decode, with a proof.
//!
//! The text provides the ranges of values that are f32 in the graph, and the prompt of the proofs: the first blocks, and the
//! last norm with the head, run in integers on the residual stream that the float graph has at that point, once by the plan on
//! simulated memories and once by the plain reference, and must agree in every bit. The distance of the integers from the float
//! graph is reported as well.

mod embedding;
mod manifest;
mod memory;
mod prove;
mod quality;
mod seen;

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::Path,
    sync::Arc,
};

use attar_graph::Graph;
use attar_tensor::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Element, Error, Kernel, Program, Result,
    convert::{ALL_BLOCKS, Bind, Converted, Ranges, block_count, convert, is_encoder},
    device::Device,
    pass::Fuse,
    report::{Options, Report},
    schedule::{
        Freedom, Goal, Image, Schedule, Target, choose,
        chunk::{Chunked, Chunking, Point, front, tokens_text},
        schedule,
    },
    simulate::{Simulation, time},
};

pub use embedding::{Embedding, Index, Table};
pub use manifest::{Entry, Manifest, Pooled, Pooling};
pub use memory::MemoryImage;
pub use prove::Proven;
use prove::{Prover, Span};
pub use quality::Quality;
use seen::Seen;

/// Compile the model's blocks for a device: fuse, tile, plan memory, and prove the plan in simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compile {
    /// Name of a bundled device, or path of a device file.
    pub device: String,
    /// Device parameters to override: `sram=256KiB`, `dram.bandwidth=12GB/s`.
    pub set: Vec<String>,
    /// What to minimize.
    pub goal: Goal,
    /// Tokens in the prompt, or in the longest text of an encoder.
    pub seq: NonZeroU64,
    /// Tokens of the prompt per chunk [default: the best of about twenty sizes].
    pub chunk: Option<NonZeroU64>,
    /// Also plan decoding: one token after the prompt. Encoders do not decode.
    pub decode: bool,
    /// Also plan a run of so many tokens behind those before, with the logits of each: to verify a draft of them at once (speculative
    /// decoding, Leviathan et al. 2023). 2 or more, and no more than `seq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<NonZeroU64>,
    /// Sequences that run side by side, as many tokens of each: the weights are loaded once for all. Not for encoders.
    #[serde(skip_serializing_if = "is_one")]
    pub batch: NonZeroU64,
    /// Allow an MLP's gate, up and down projections to become one kernel where that is better.
    pub join: bool,
    /// Allow tensors to stay in SRAM between kernels where that is better.
    pub keep: bool,
    /// Allow a norm to be recomputed where its output is read, instead of stored, where that is better.
    pub recompute: bool,
    /// Also run the last norm and the head on the device if they are quantized to integers; of an encoder, its last norm.
    pub head: bool,
    /// Number of blocks, from the first, to prove on real numbers; 0 skips the proof of the head, too [default: all of them where that takes
    /// less than a minute: up to 2^24 weights and 2^31 multiply-accumulates; otherwise 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prove: Option<usize>,
    /// Tokens of text on which the integers are compared with float activations, all blocks and the head; 0 for none.
    pub quality: usize,
    /// Windows of the calibration text used to find value ranges.
    pub windows: NonZeroUsize,
    /// Also list the Pareto front over chunk sizes and goals.
    pub pareto: bool,
}

impl Default for Compile {
    fn default() -> Compile {
        Compile {
            device: "generic-npu".into(),
            set: Vec::new(),
            goal: Goal::Dram,
            seq: const { NonZeroU64::new(128).unwrap() },
            chunk: None,
            decode: true,
            verify: None,
            batch: NonZeroU64::MIN,
            join: true,
            keep: true,
            recompute: true,
            head: true,
            prove: None,
            quality: 1024,
            windows: const { NonZeroUsize::new(4).unwrap() },
            pareto: false,
        }
    }
}

fn is_one(batch: &NonZeroU64) -> bool {
    *batch == NonZeroU64::MIN
}

/// One run of a model: prefill, a chunk of it, decode, the verification of a draft, or all that an encoder does.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// `prefill`, `prefill-1` and so on for chunks, `decode`, `verify`, or `encode`.
    pub name: String,
    /// Tokens of this run, of each sequence of a batch.
    pub rows: u64,
    /// Tokens in the cache before it.
    pub past: u64,
    /// All blocks, without numbers.
    pub program: Program,
    /// Names of the nodes that stay on the host.
    pub host: Vec<String>,
    /// Whether it computes logits, or the normed rows of an encoder.
    pub head: bool,
    /// Rows of what it returns for each sequence.
    pub returned: u64,
    /// Its plan and the choices behind it.
    pub schedule: Schedule,
    /// Its predicted times.
    pub simulation: Simulation,
    /// Its cost, compared with the same program unfused.
    pub report: Option<Report>,
    /// The proof of the first blocks.
    pub proof: Option<Proven>,
}

/// What shapes alone decide: how the runs of a model are scheduled, whatever its numbers are.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The chunk sizes that were tried.
    pub chunks: Chunked,
    /// Whether logits are computed on the device.
    pub head: bool,
    target: Target,
    /// The runs of the best size, in order: tokens and tokens before them, schedule and predicted times.
    runs: Vec<([u64; 2], Schedule, Simulation)>,
}

impl Planned {
    /// Predicted seconds for the token after the prompt, if it is planned ([`Compile::decode`]).
    pub fn decode_latency(&self) -> Option<f64> {
        let (_, schedule, simulation) = self.runs.iter().find(|([rows, past], ..)| *rows == 1 && *past > 0)?;
        Some(simulation.latency(&schedule.plan.rates))
    }

    /// The plans of all runs, without the numbers of weights.
    pub fn plans(&self) -> impl Iterator<Item = &crate::Plan> {
        self.runs.iter().map(|(_, schedule, _)| &schedule.plan)
    }

    /// The schedule of a run with its predicted times, for a program with numbers.
    fn schedule(&self, run: [u64; 2], program: &Program) -> Option<(Schedule, Simulation)> {
        let (_, schedule, simulation) = self.runs.iter().find(|(planned, ..)| *planned == run)?;
        Some((schedule.rebind(program)?, simulation.clone()))
    }
}

/// A compiled model.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Name of the device.
    pub device: String,
    /// The chunk sizes that were tried.
    pub chunks: Chunked,
    /// The Pareto front over chunk sizes and goals, if it was requested.
    pub front: Vec<Point>,
    /// Prefill or its chunks, then decode and verify if they were requested.
    pub phases: Vec<Phase>,
    /// The proofs of the last norm and the head, if they are on the device, by name: `head` for one token, the same kernels in all phases
    /// but one, and `verify-head` for every token of that.
    pub heads: Vec<(&'static str, Proven)>,
    /// The weights and constants that all plans read.
    pub memory: MemoryImage,
    /// The tables that the residual stream begins with, if that is a row of its token alone, or a sum of rows.
    pub embedding: Option<Embedding>,
    /// What a runtime needs to know of the plans.
    pub manifest: Manifest,
    /// What the integers lose, if there was text to see it on and the logits are theirs.
    pub quality: Option<Quality>,
}

/// Progress of a long computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The stage: `observing ranges`, `trying chunk sizes`, `planning`, `planning and proving`.
    pub stage: &'static str,
    /// The item that begins.
    pub what: &'a str,
    /// Items done.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}

/// Called when an item begins; returns whether to go on.
pub type Watch<'a> = &'a dyn Fn(Progress<'_>) -> bool;

/// The schedule of a run of that name, tokens and program, if it is known.
type Known<'a> = &'a dyn Fn(&str, [u64; 2], &Program) -> Result<Option<(Schedule, Simulation)>>;

impl Progress<'_> {
    fn tell(self, watch: Watch<'_>) -> Result<()> {
        if watch(self) { Ok(()) } else { Err(Error::Interrupted) }
    }
}

impl Compile {
    /// The device with its overrides.
    ///
    /// # Errors
    /// If no device has that name, or an override is invalid.
    pub fn device(&self) -> Result<Device> {
        let is_path = self.device.ends_with(".toml") || self.device.contains(['/', '\\']);
        let mut device = if is_path { Device::load(Path::new(&self.device))? } else { Device::named(&self.device)? };
        let mut waiting: Vec<&String> = self.set.iter().collect();
        loop {
            // A change may need another: flash is nothing without its speed.
            let (before, mut missing) = (waiting.len(), None);
            for change in std::mem::take(&mut waiting) {
                let (key, value) = change.split_once('=').unwrap_or((change, ""));
                match device.set(key.trim(), value) {
                    Err(error @ Error::DeviceMissing { .. }) => {
                        waiting.push(change);
                        missing = missing.or(Some(error));
                    }
                    other => other?,
                }
            }
            match missing {
                None => return Ok(device),
                Some(error) if waiting.len() == before => return Err(error),
                Some(_) => {}
            }
        }
    }

    fn freedom(&self) -> Freedom {
        Freedom { join: self.join, keep: self.keep, recompute: self.recompute }
    }

    /// The settings as they are for a model: an encoder runs once, on all of its tokens.
    ///
    /// # Errors
    /// Settings that it cannot meet.
    fn of(&self, graph: &Graph) -> Result<Compile> {
        let (seq, verify, batch) = (self.seq.get(), self.verify.map(NonZeroU64::get), self.batch.get());
        if batch > MOST_SEQUENCES {
            return Err(Error::Batch { batch, most: MOST_SEQUENCES });
        }
        if let Some(verify) = verify.filter(|tokens| !(2..=seq).contains(tokens)) {
            return Err(Error::Verify { verify, seq });
        }
        if !is_encoder(graph) {
            if verify.is_some() && batch > 1 {
                return Err(Error::Drafts { batch });
            }
            let tokens = self.capacity();
            return match embedding::positions(graph).filter(|rows| *rows < tokens) {
                Some(rows) => Err(Error::Positions { tokens, rows }),
                None => Ok(self.clone()),
            };
        }
        if !is_one(&self.batch) {
            return Err(Error::Encoder { setting: "batch" });
        }
        match (self.verify, self.chunk.filter(|chunk| *chunk != self.seq)) {
            (Some(_), _) => Err(Error::Encoder { setting: "verify" }),
            (_, Some(_)) => Err(Error::Encoder { setting: "chunk" }),
            (None, None) => Ok(Compile { chunk: Some(self.seq), decode: false, ..self.clone() }),
        }
    }

    fn subject<'a>(&self, graph: &Graph, source: &'a dyn Source) -> Result<Subject<'a>> {
        let (device, fused) = (self.device()?, fused(graph)?);
        let last = self.bind([1, self.seq.get() - 1], ALL_BLOCKS, false);
        let program = convert(&fused, source, &Ranges::default(), last, &device.numerics.weights)?.program;
        Ok(Subject { target: target(&device, &program)?, device, fused, source })
    }

    /// Schedules a model, without reading numbers.
    ///
    /// # Errors
    /// What the device cannot run or hold.
    pub fn plan(&self, graph: &Graph, source: &dyn Source) -> Result<Planned> {
        self.plan_watched(graph, source, &|_| true)
    }

    /// The same, telling `watch` of each schedule that is searched.
    ///
    /// # Errors
    /// Those of [`Compile::plan`], and a stop requested by `watch`.
    pub fn plan_watched(&self, graph: &Graph, source: &dyn Source, watch: Watch<'_>) -> Result<Planned> {
        let settings = self.of(graph)?;
        let subject = settings.subject(graph, source)?;
        let chunks = settings.chunks(&subject, settings.goal, watch)?;
        let (mut image, mut planned, mut head) = (Image::default(), Vec::new(), false);
        let runs = settings.runs(chunks.best().chunk, &subject);
        let total = runs.len();
        for (done, (name, rows, past)) in runs.into_iter().enumerate() {
            let what = format!("schedule of {name}");
            Progress { stage: "planning", what: &what, done, total }.tell(watch)?;
            let phase = settings.phase(&subject, name, [rows, past], &Ranges::default(), &mut image, &|_, _, _| Ok(None))?;
            head |= phase.head;
            planned.push(([rows, past], phase.schedule, phase.simulation));
        }
        Ok(Planned { chunks, head, target: subject.target, runs: planned })
    }

    /// The chunk sizes in which the prompt could run, with the best.
    fn chunks(&self, subject: &Subject<'_>, goal: Goal, watch: Watch<'_>) -> Result<Chunked> {
        let chunking = Chunking { chunk: self.chunk, ..Chunking::new(self.seq) };
        let sizes = chunking.sizes();
        let make = |rows, past| {
            if let (Some(done), 0) = (sizes.iter().position(|size| *size == rows), past) {
                let what = format!("{rows} tokens per run");
                Progress { stage: "trying chunk sizes", what: &what, done, total: sizes.len() }.tell(watch)?;
            }
            Ok(subject.convert(&Ranges::default(), self.bind([rows, past], ALL_BLOCKS, false))?.program)
        };
        chunking.search(&make, &subject.target, goal, self.freedom())
    }

    /// The Pareto front over all goals; `known` are the chunk sizes tried under this one.
    fn front(&self, subject: &Subject<'_>, known: &Chunked, watch: Watch<'_>) -> Result<Vec<Point>> {
        let mut found = Vec::new();
        for goal in [Goal::Dram, Goal::Latency, Goal::Energy].into_iter().filter(|_| self.pareto) {
            found.push((goal, if goal == self.goal { known.clone() } else { self.chunks(subject, goal, watch)? }));
        }
        Ok(front(found.iter().map(|(goal, chunked)| (*goal, chunked))))
    }

    /// A run of this prompt, or one that ends with the token after it. Of a prompt, logits are computed for the last token only.
    fn bind(&self, [rows, past]: [u64; 2], blocks: [usize; 2], numbers: bool) -> Bind {
        let (seq, end) = (self.seq.get(), past + rows);
        let head = self.head && end >= seq && blocks == ALL_BLOCKS;
        let capacity = self.capacity();
        let (batch, every_row) = (self.batch.get(), self.has_every_row([rows, past]));
        Bind { batch, rows, past, capacity, blocks, head, every_row, numbers }
    }

    /// Tokens that the caches have room for.
    fn capacity(&self) -> u64 {
        self.seq.get() + u64::from(self.decode || self.verify.is_some())
    }

    /// Whether a run computes the logits of all its tokens, and not of the last only: one that goes on behind the prompt.
    fn has_every_row(&self, [rows, past]: [u64; 2]) -> bool {
        past + rows > self.seq.get()
    }

    fn runs(&self, chunk: u64, subject: &Subject<'_>) -> Vec<(String, u64, u64)> {
        let seq = self.seq.get();
        if is_encoder(&subject.fused) {
            return vec![("encode".into(), seq, 0)];
        }
        let name = |at: u64| if chunk >= seq { "prefill".into() } else { format!("prefill-{}", at + 1) };
        let prefill = (0..seq.div_ceil(chunk)).map(|at| (name(at), chunk.min(seq - at * chunk), at * chunk));
        let decode = self.decode.then(|| ("decode".into(), 1, seq));
        let verify = self.verify.map(|tokens| (VERIFY.into(), tokens.get(), seq + 1 - tokens.get()));
        prefill.chain(decode).chain(verify).collect()
    }

    /// Plans a run. The first one decides the image that the others use. `known` may know its schedule.
    fn phase(
        &self,
        subject: &Subject<'_>,
        name: String,
        [rows, past]: [u64; 2],
        ranges: &Ranges,
        image: &mut Image,
        known: Known<'_>,
    ) -> Result<Phase> {
        let converted = subject.convert(ranges, self.bind([rows, past], ALL_BLOCKS, false))?;
        let batch = if is_one(&self.batch) { String::new() } else { format!(", batch of {}", self.batch) };
        let title = format!("{name}: {}{batch}", tokens_text(rows, past));
        let (schedule, simulation) = match known(&name, [rows, past], &converted.program)? {
            Some(known) => known,
            None => choose(&converted.program, &subject.target, self.goal, self.freedom(), &title, image)?,
        };
        image.add(&schedule.plan);
        let Converted { program, host, logits, output, .. } = converted;
        let (head, returned) = (logits.is_some(), program.get(output).rows / self.batch);
        Ok(Phase { name, rows, past, program, host, head, returned, schedule, simulation, report: None, proof: None })
    }

    /// How many of so many blocks are proven.
    fn proven_blocks(&self, all: usize, program: &Program, runs: &[(String, u64, u64)]) -> usize {
        let matrices = program.tensors.iter().filter(|tensor| tensor.role == crate::program::Role::Weight);
        let weights: u64 = matrices.map(|tensor| tensor.rows * tensor.columns).sum();
        let tokens = self.batch.get() * runs.iter().map(|(_, rows, _)| rows).sum::<u64>();
        let quick = weights <= QUICK_WEIGHTS && weights.saturating_mul(tokens) <= QUICK_PRODUCTS;
        self.prove.unwrap_or(if quick { all } else { 1 }).min(all)
    }

    /// What a run costs, compared with the same program unfused.
    fn report(&self, subject: &Subject<'_>, phase: &Phase) -> Result<Report> {
        let target = &subject.target;
        let options = Options { tokens: phase.rows * self.batch.get() };
        let other = schedule(&phase.program, target, self.goal, Freedom::NONE, "unfused")?;
        let times = time(&other.plan, &target.rates)?;
        let other = Report::new(&phase.program, &other, &times, target, options);
        let report = Report::new(&phase.program, &phase.schedule, &phase.simulation, target, options);
        Ok(report.resting_on(&subject.device, &phase.schedule.plan).against(&other))
    }

    /// Compiles a model, proves its first blocks and its head on `windows` of text, and compares its integers with float activations on
    /// `other` text, whose windows have as many tokens as the prompt. `planned` is the result of
    /// [`Compile::plan`] for a model of the same shapes, if it is known; then nothing that it has is computed again.
    ///
    /// # Errors
    /// What the device cannot run or hold; text on which values are not finite; a stop requested by `watch`; a plan whose result
    /// differs from the reference, which is a bug in attar.
    pub fn run(
        &self,
        graph: &Graph,
        source: &Arc<dyn Source>,
        [windows, other]: [&[Vec<u32>]; 2],
        planned: Option<&Planned>,
        watch: Watch<'_>,
    ) -> Result<Compiled> {
        let settings = self.of(graph)?;
        let subject = settings.subject(graph, &**source)?;
        // A device file may have changed since.
        let planned = planned.filter(|planned| planned.target == subject.target);
        let few = &windows[..windows.len().min(settings.windows.get())];
        let (encoder, few) = (is_encoder(graph), few.to_vec());
        let (texts, other) = if encoder { (beginnings(&few), in_turn(other)) } else { (few, other.to_vec()) };
        let seen = Seen::new(graph, source, &texts, watch)?;
        let (mut phases, mut image) = (Vec::new(), Image::default());
        let chunks =
            planned.map_or_else(|| settings.chunks(&subject, settings.goal, watch), |planned| Ok(planned.chunks.clone()))?;
        let front = settings.front(&subject, &chunks, watch)?;
        let runs = settings.runs(chunks.best().chunk, &subject);
        let whole = subject.convert(&seen.ranges, settings.bind(runs_last(&runs), ALL_BLOCKS, false))?;
        let blocks = settings.proven_blocks(block_count(&subject.fused), &whole.program, &runs);
        let mut prover = Prover::new(&settings, &subject.target, &seen, windows, blocks);
        for (done, (name, rows, past)) in runs.iter().cloned().enumerate() {
            Progress { stage: "planning and proving", what: &name, done, total: runs.len() }.tell(watch)?;
            let known = |name: &str, run: [u64; 2], program: &Program| {
                let known = planned.and_then(|planned| planned.schedule(run, program));
                let what = format!("schedule of {name}");
                let progress = Progress { stage: "planning and proving", what: &what, done, total: runs.len() };
                known.map_or_else(|| progress.tell(watch).map(|()| None), |known| Ok(Some(known)))
            };
            let mut phase = settings.phase(&subject, name.clone(), [rows, past], &seen.ranges, &mut image, &known)?;
            phase.report = Some(settings.report(&subject, &phase)?);
            if blocks > 0 {
                let blocks = subject.convert(&seen.ranges, settings.bind([rows, past], [0, blocks], true))?;
                phase.proof = Some(prover.blocks(blocks, Span { rows, past }, &image)?);
            }
            phases.push(phase);
        }
        let mut heads = Vec::new();
        if phases.iter().any(|phase| phase.head) && blocks > 0 {
            let verify = runs.iter().find(|(name, ..)| name == VERIFY).map(|(_, rows, past)| ("verify-head", *rows, *past));
            for (name, rows, past) in [("head", 1, settings.seq.get() - 1)].into_iter().chain(verify) {
                let bind = Bind { head: true, ..settings.bind([rows, past], [0, 0], true) };
                heads.push((name, prover.head(subject.convert(&seen.ranges, bind)?, Span { rows, past }, &image)?));
            }
        }
        let name = &whole.program.get(whole.input).name;
        let embedding = Embedding::of(&seen, name, whole.residual[0].clone())?;
        let measures = phases.iter().any(|phase| phase.head) && !other.is_empty();
        let measure = || quality::measure(&subject, &seen, &other, watch);
        let quality = if measures { Some(measure()?) } else { None };
        let manifest = Manifest::of(&settings, &subject.device.name, &phases, &whole, embedding.as_ref(), Pooling::of(graph));
        let bind = Bind { head: settings.head, ..settings.bind([1, 0], ALL_BLOCKS, true) };
        let Subject { device, fused, .. } = subject;
        let memory = MemoryImage::new(bind, &device, fused, seen.ranges, image);
        Ok(Compiled { device: device.name, chunks, front, phases, heads, memory, embedding, manifest, quality })
    }
}

/// Texts, and their first half, quarter and so on down to two tokens: an encoder reads texts of any length, and the values of short ones
/// are others.
fn beginnings(texts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let lengths = |whole: usize| std::iter::successors(Some(whole), |length| Some(length / 2)).take_while(|length| *length > 1);
    let each = |text: &Vec<u32>| lengths(text.len().max(2)).map(|length| text[..length.min(text.len())].to_vec()).collect();
    texts.iter().flat_map(|text| -> Vec<Vec<u32>> { each(text) }).collect()
}

/// One text whole, the next its first half, a quarter, an eighth, and so on.
fn in_turn(texts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let part = |(at, text): (usize, &Vec<u32>)| text[..(text.len() >> (at % 4)).max(1)].to_vec();
    texts.iter().enumerate().map(part).collect()
}

/// Sequences of a batch, whose attention is code of its own for each.
const MOST_SEQUENCES: u64 = 64;

/// The name of the run that verifies a draft.
const VERIFY: &str = "verify";

/// A model and the device that it is compiled for.
struct Subject<'a> {
    device: Device,
    /// The device's rates for the widest of the weights.
    target: Target,
    fused: Graph,
    source: &'a dyn Source,
}

impl Subject<'_> {
    fn convert(&self, ranges: &Ranges, bind: Bind) -> Result<Converted> {
        convert(&self.fused, self.source, ranges, bind, &self.device.numerics.weights)
    }
}

/// Multiply-accumulates of all runs up to which all blocks are proven unless the settings say otherwise.
const QUICK_PRODUCTS: u64 = 1 << 31;

/// The same for weights, which a proof holds as numbers.
const QUICK_WEIGHTS: u64 = 1 << 24;

/// Tokens of the last run, and tokens before it.
fn runs_last(runs: &[(String, u64, u64)]) -> [u64; 2] {
    runs.last().map_or([1, 0], |(_, rows, past)| [*rows, *past])
}

/// The graph after the passes that kernels need.
pub(crate) fn fused(graph: &Graph) -> Result<Graph> {
    Ok(Fuse::default().run(graph)?.0)
}

/// The device with its rates for the widest weights of a program.
pub(crate) fn target(device: &Device, program: &Program) -> Result<Target> {
    let weights = program.tensors.iter().filter(|tensor| tensor.role == crate::program::Role::Weight);
    let bits = weights.map(|tensor| crate::data::code_bits(tensor.element)).max().unwrap_or(8);
    let wide = program.kernels.iter().any(|(_, kernel)| match kernel {
        Kernel::Linear(linear) => program.get(linear.x).element == Element::INT16,
        _ => false,
    });
    if wide {
        device.rates(bits, 16)?;
    }
    Target::new(device, bits)
}
