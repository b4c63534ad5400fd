//! How fast an artifact is in its engine: latencies under load, throughput, memory.
//!
//! Every stream is a process of its own that has loaded the artifact. The engine's own process takes the times (protocol: [`Request::Time`](
//! crate::engine::protocol::Request::Time)), so no pipe is in them. Scenarios are those of MLPerf Inference (Reddi et al. 2020): single-stream, multi-stream
//! and server.

mod energy;
mod load;
mod machine;
mod quantile;

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use self::{
    energy::Energy,
    load::Request,
    machine::Machine,
    quantile::{Intervals, Percentiles},
};
use self::{
    energy::{Counting, IDLE, Meter, POWERCAP, Powercap, Told},
    load::{Clock, Served, Server, Timed, arrivals, serve},
    machine::{Ticks, resident},
    quantile::{at, enough_for_p99, interval},
};
use crate::{
    Error, Estimate, Result,
    engine::{Artifact, Streaming},
};

/// A share of the processors' time that others may take without being mentioned.
const QUIET: f64 = 0.05;

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "scenario")]
pub enum Scenario {
    /// One stream, which sends its next request when it has its answer.
    SingleStream,
    /// Several such.
    MultiStream {
        /// How many.
        streams: usize,
    },
    /// Poisson arrivals.
    Server {
        /// Requests per second.
        rate: f64,
        /// Processes that answer.
        streams: usize,
    },
}

impl Scenario {
    fn streams(self) -> usize {
        match self {
            Scenario::SingleStream => 1,
            Scenario::MultiStream { streams } | Scenario::Server { streams, .. } => streams,
        }
    }
}

/// What is asked of an artifact.
#[derive(Clone, Debug)]
pub struct Bench {
    /// How requests come.
    pub scenario: Scenario,
    /// Requests that count, in order.
    pub requests: Vec<Request>,
    /// Requests of each stream before, which do not.
    pub warm_up: usize,
    /// Tokens that prompts are cut from.
    pub text: Vec<u32>,
    /// Of the arrivals.
    pub seed: u64,
    /// A command that prints joules, in place of the machine's own counters.
    pub meter: Option<String>,
}

/// Times of one artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// How requests came.
    #[serde(flatten)]
    pub scenario: Scenario,
    /// Requests that count, those that failed included.
    pub requests: u64,
    /// Requests that were not answered. Percentiles are of the others.
    pub failed: u64,
    /// Why, of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Requests before, which do not count.
    pub warm_up: u64,
    /// Seconds from when a request was due to its first token.
    pub ttft: Percentiles,
    /// Seconds from a token to the next. Intervals are of requests that are drawn again, since tokens of one are not independent.
    pub tpot: Percentiles,
    /// Seconds from when a request was due to its last token.
    pub e2e: Percentiles,
    /// Seconds that requests waited for a free stream.
    pub waited: Percentiles,
    /// Tokens that were written in a second, by all streams together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Requests that were answered in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Whether requests came faster than they could be answered: then waits grow for as long as one measures.
    pub overload: bool,
    /// Seconds until the artifact was loaded; the mean of all streams.
    pub load_seconds: f64,
    /// Memory of the engine's processes, all together.
    pub memory: Memory,
    /// What the machine used, where something counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// What to know of these numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Resident memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Once the artifact was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<u64>,
    /// At the peak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// Of a process of its own, with a text of so many tokens read: how the cache of keys and values grows, and what goes with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<Grown>,
}

/// Resident memory with a text read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// Tokens of the text.
    pub tokens: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How the times of one artifact are to those of another, request by request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The median of the ratios of pairs.
    pub median: Option<f64>,
    /// Where it lies with 95% confidence.
    pub interval: [Option<f64>; 2],
    /// Pairs of which both were answered.
    pub pairs: u64,
}

impl Bench {
    /// Measures an artifact. `progress` counts requests.
    pub fn run(&self, artifact: &Artifact, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Latencies> {
        let mut streams = (0..self.scenario.streams()).map(|_| Stream::open(artifact, self)).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            (0..self.warm_up).try_for_each(|at| stream.warm(at))?;
        }
        let counting = self.counting();
        let before = Ticks::now();
        let spent = |streams: &[Stream<'_>]| streams.iter().filter_map(|stream| Ticks::of_process(stream.process())).sum::<u64>();
        let spent_before = spent(&streams);
        let due = match self.scenario {
            Scenario::Server { rate, .. } => Some(arrivals(rate, self.requests.len(), self.seed)),
            _ => None,
        };
        let clock = Running(Instant::now());
        let done = |done: usize| progress(done as u64, self.requests.len() as u64);
        let served = serve(&mut streams, self.requests.len(), due.as_deref(), &clock, &done);
        let mut found = self.latencies(&served, due.as_deref());
        let tokens = served.iter().filter_map(|s| s.timed.as_ref().ok()).map(|timed| timed.next.len() + 1).sum();
        match counting.map(|counting| counting.and_then(|counting| counting.end(tokens))) {
            None => {}
            Some(Ok(energy)) => found.energy = Some(energy),
            Some(Err(error)) => found.notes.push(format!("energy was not measured: {error}")),
        }
        found.load_seconds = streams.iter().map(|stream| stream.loaded_in).sum::<f64>() / streams.len() as f64;
        found.memory = memory(&streams);
        if let (Some(before), Some(after)) = (before, Ticks::now()) {
            // A stream that was opened anew has lost what it had spent.
            let [others, stolen] = after.since(before, spent(&streams).saturating_sub(spent_before));
            found.notes.extend(busy(others, "went to other processes"));
            found.notes.extend(busy(stolen, "was taken by the machine's host"));
        }
        drop(streams);
        match self.growth(artifact) {
            Ok(growth) => found.memory.growth = growth,
            Err(error) => found.notes.push(format!("memory with longer texts was not measured: {error}")),
        }
        Ok(found)
    }

    /// Memory of a process with longer and longer texts read, up to the longest that is asked for.
    fn growth(&self, artifact: &Artifact) -> Result<Vec<Grown>> {
        let mut stream = Stream::open(artifact, self)?;
        let longest = self.requests.iter().map(|request| request.prompt + request.answer - 1).max().unwrap_or(0);
        let lengths: BTreeSet<usize> = (1..=GROWN).map(|part| longest * part / GROWN).filter(|length| *length > 0).collect();
        let mut found = Vec::new();
        for length in lengths {
            stream.open.timed(&self.prompt(0, length), 1)?;
            let [_, now] = resident(stream.process());
            found.extend(now.map(|bytes| Grown { tokens: length as u64, bytes }));
        }
        Ok(found)
    }

    /// Measures several artifacts by turns, one stream each, so that what disturbs one disturbs all. The ratios are of end-to-end times to those of the
    /// first.
    pub fn compare(&self, artifacts: &[Artifact], progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Vec<(Latencies, Ratio)>> {
        let mut streams = artifacts.iter().map(|artifact| Stream::open(artifact, self)).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            (0..self.warm_up).try_for_each(|at| stream.warm(at))?;
        }
        let clock = Running(Instant::now());
        let mut served: Vec<Vec<Served>> = vec![Vec::new(); artifacts.len()];
        for at in 0..self.requests.len() {
            // Each goes first as often as any other.
            for turn in 0..streams.len() {
                let which = (turn + at) % streams.len();
                let timed = streams[which].answer(at).map_err(|error| error.to_string());
                served[which].push(Served { at, waited: 0.0, ended: clock.now(), timed });
            }
            progress(at as u64 + 1, self.requests.len() as u64);
        }
        let whole = |served: &Served| served.timed.as_ref().ok().map(|timed| timed.first + timed.next.iter().sum::<f64>());
        let of_first: Vec<Option<f64>> = served[0].iter().map(whole).collect();
        let found = streams.iter().zip(&served).map(|(stream, served)| {
            let mut found = Bench { scenario: Scenario::SingleStream, ..self.clone() }.latencies(served, None);
            found.load_seconds = stream.loaded_in;
            found.memory = memory(std::slice::from_ref(stream));
            // Times between turns are those of others.
            let busy: f64 = served.iter().filter_map(whole).sum();
            let tokens: usize = served.iter().filter_map(|s| s.timed.as_ref().ok()).map(|timed| timed.next.len() + 1).sum();
            found.tokens_per_second = (busy > 0.0).then(|| tokens as f64 / busy);
            found.requests_per_second = None;
            let pairs = served.iter().zip(&of_first).filter_map(|(own, first)| Some(whole(own)? / (*first)?));
            let mut ratios: Vec<f64> = pairs.collect();
            ratios.sort_by(f64::total_cmp);
            let ratio = Ratio { median: at(&ratios, 0.5), interval: interval(&ratios, 0.5), pairs: ratios.len() as u64 };
            (found, ratio)
        });
        Ok(found.collect())
    }

    /// Begins to count joules, if something can: the user's own meter, or the machine's counters.
    fn counting(&self) -> Option<std::io::Result<Counting>> {
        let meter: Box<dyn Meter> = match &self.meter {
            Some(command) => Box::new(Told { command: command.clone() }),
            None => Box::new(Powercap::at(Path::new(POWERCAP))?),
        };
        Some(Counting::begin(meter, IDLE))
    }

    fn latencies(&self, served: &[Served], due: Option<&[f64]>) -> Latencies {
        let answered: Vec<(&Served, &Timed)> = served.iter().filter_map(|s| Some((s, s.timed.as_ref().ok()?))).collect();
        let whole = |(served, timed): &(&Served, &Timed)| served.waited + timed.first + timed.next.iter().sum::<f64>();
        let of = |time: &dyn Fn(&(&Served, &Timed)) -> f64| Percentiles::of(&answered.iter().map(time).collect::<Vec<f64>>());
        let failures: Vec<&String> = served.iter().filter_map(|served| served.timed.as_ref().err()).collect();
        let tokens: usize = answered.iter().map(|(_, timed)| timed.next.len() + 1).sum();
        let took = served.iter().map(|served| served.ended).fold(0.0, f64::max);
        let rate = |count: usize| (took > 0.0 && count > 0).then(|| count as f64 / took);
        let mut notes = Vec::new();
        if answered.len() < enough_for_p99() {
            notes.push(format!(
                "{} answers say little of the 99th percentile: {} or more bound it from above",
                answered.len(),
                enough_for_p99()
            ));
        }
        Latencies {
            scenario: self.scenario,
            requests: served.len() as u64,
            failed: failures.len() as u64,
            failure: failures.first().map(|failure| (*failure).clone()),
            warm_up: (self.warm_up * self.scenario.streams()) as u64,
            ttft: of(&|(served, timed)| served.waited + timed.first),
            tpot: between(&answered.iter().map(|(_, timed)| timed.next.clone()).collect::<Vec<_>>()),
            e2e: of(&whole),
            waited: of(&|(served, _)| served.waited),
            tokens_per_second: rate(tokens),
            requests_per_second: rate(answered.len()),
            overload: due.is_some_and(|due| overloaded(&answered, due, self.scenario.streams())),
            load_seconds: 0.0,
            memory: Memory::default(),
            energy: None,
            notes,
        }
    }

    /// The prompt of a request: each begins elsewhere in the text.
    fn prompt(&self, at: usize, length: usize) -> Vec<u32> {
        let start = at.wrapping_mul(STEP) % self.text.len().max(1);
        self.text.iter().copied().cycle().skip(start).take(length).collect()
    }
}

/// Tokens between the beginnings of prompts; a prime, so that they differ.
const STEP: usize = 61;

fn busy(share: f64, whose: &str) -> Option<String> {
    (share > QUIET).then(|| format!("the machine was busy: {:.0}% of its processors' time {whose}", 100.0 * share))
}

fn memory(streams: &[Stream<'_>]) -> Memory {
    let sum = |of: &dyn Fn(&Stream<'_>) -> Option<u64>| streams.iter().map(of).sum::<Option<u64>>();
    Memory { loaded: sum(&|stream| stream.loaded), peak: sum(&|stream| resident(stream.process())[0]), growth: Vec::new() }
}

/// Lengths of texts that memory is looked at with.
const GROWN: usize = 4;

/// Requests that say too little of how requests differ.
const FEW: usize = 8;

/// Times between tokens, of all requests together.
fn between(requests: &[Vec<f64>]) -> Percentiles {
    let requests: Vec<Vec<f64>> = requests.iter().filter(|times| !times.is_empty()).cloned().collect();
    let all = Percentiles::of(&requests.concat());
    let around = |share: f64, value: Option<f64>| match (requests.len(), value) {
        (0..FEW, _) | (_, None) => [None, None],
        (_, Some(place)) => {
            let Estimate { value, standard_error } = Estimate::percentile(&requests, share);
            let reach = 1.96 * standard_error.unwrap_or(f64::NAN);
            // The nearest rank and the interpolated quantile may lie apart by a sample.
            [Some((value - reach).max(0.0).min(place)), Some((value + reach).max(place))]
        }
    };
    Percentiles {
        intervals: Intervals { p50: around(0.5, all.p50), p90: around(0.9, all.p90), p99: around(0.99, all.p99) },
        ..all
    }
}

/// Whether the mean time of an answer is longer than the streams have for one.
fn overloaded(answered: &[(&Served, &Timed)], due: &[f64], streams: usize) -> bool {
    let service: f64 = answered.iter().map(|(_, timed)| timed.first + timed.next.iter().sum::<f64>()).sum();
    let span = due.last().copied().unwrap_or(0.0);
    !answered.is_empty() && service / answered.len() as f64 * due.len() as f64 >= span * streams as f64
}

/// The clock on the wall.
struct Running(Instant);

impl Clock for Running {
    fn now(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn wait_until(&self, then: f64) {
        let left = then - self.now();
        if left > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(left));
        }
    }
}

/// A process with the artifact loaded.
struct Stream<'b> {
    artifact: &'b Artifact,
    bench: &'b Bench,
    open: Streaming,
    loaded_in: f64,
    loaded: Option<u64>,
}

impl<'b> Stream<'b> {
    fn open(artifact: &'b Artifact, bench: &'b Bench) -> Result<Stream<'b>> {
        let start = Instant::now();
        let open = artifact.streaming()?;
        let loaded_in = start.elapsed().as_secs_f64();
        let [_, loaded] = resident(open.process());
        Ok(Stream { artifact, bench, open, loaded_in, loaded })
    }

    fn process(&self) -> u32 {
        self.open.process()
    }

    /// A request that does not count. One that fails ends it all: no other would be answered.
    fn warm(&mut self, at: usize) -> Result<()> {
        let Request { prompt, answer } = self.bench.requests[at % self.bench.requests.len()];
        self.open.timed(&self.bench.prompt(at, prompt), answer).map(|_| ())
    }
}

impl Server for Stream<'_> {
    fn answer(&mut self, at: usize) -> Result<Timed> {
        let Request { prompt, answer } = self.bench.requests[at];
        let times = self.open.timed(&self.bench.prompt(at, prompt), answer);
        match times {
            Ok(times) => {
                let (first, next) = times.split_first().ok_or(Error::EmptyPrompt)?;
                Ok(Timed { first: f64::from(*first), next: next.iter().map(|time| f64::from(*time)).collect() })
            }
            Err(error) => {
                // A dead process answers nothing more; another takes its place, for the next request.
                if !matches!(error, Error::Engine { .. })
                    && let Ok(open) = self.artifact.streaming()
                {
                    self.open = open;
                }
                Err(error)
            }
        }
    }
}
