//! `attar bench ARTIFACT`: latencies under load, in the real engine.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_eval::{
    Artifact, Engine, Language, Latencies, Load, Mode,
    bench::{Machine, Percentiles, Ratio},
    task,
};
use attar_model::Tokenizer;
use attar_recipe::{Error, Existing, Observer, bytes};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;

use super::{
    Verb, draw, path, path_argument,
    written::{Chosen, device, mode, runner_flags},
};
use crate::{environment::Environment, printer::Printer, progress::Bars, settings};

pub(super) struct Bench;

impl Verb for Bench {
    fn name(&self) -> &'static str {
        "bench"
    }

    fn command(&self) -> Command {
        let command = Command::new("bench")
            .about("Measure how fast a written artifact is in its real engine: latencies under load, throughput, memory")
            .long_about("Measure how fast a written artifact is in its real engine: latencies under load, throughput, memory.\n\nOne stream sends its next request when it has its answer; `--streams` runs several, each in a process of its own with the artifact loaded; with `--rate`, requests come at random and wait for a free stream. Times count from when a request is due, in seconds; each percentile stands with the interval that holds it with 95% confidence. Answers are greedy and go on to their full length. `--compare` measures several artifacts by turns.\n\nThe engine runs in its default mode unless `--mode exact` is given.")
            .arg(path_argument("ARTIFACT", "The folder of an artifact"))
            .arg(Arg::new("compare").long("compare").value_name("ARTIFACT").num_args(1..).action(ArgAction::Append).value_parser(value_parser!(PathBuf)).conflicts_with_all(["streams", "rate"]).help("Measure these as well, by turns, and how their times are to the first one's"));
        settings::flags(runner_flags(command), &schema())
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar bench onnx --requests 4 --prompt-tokens 16 --answer-tokens 4"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let first = path(arguments, "artifact");
        let others = arguments.get_many::<PathBuf>("compare").into_iter().flatten();
        let paths: Vec<&Path> = std::iter::once(first).chain(others.map(PathBuf::as_path)).collect();
        let table = serde_json::to_value(settings::table(&schema(), arguments)).expect("flags are plain values");
        let settings = (task("latency")?.parse)(table).map_err(|e| Error::recipe(format!("`--{}`: {}", e.key, e.message)))?;
        let load = settings.load().expect("it is the task that has one");
        let mut subjects = Vec::new();
        for path in paths {
            subjects.push(subject(path, load, arguments, environment)?);
        }
        let existing = Existing::open(&subjects[0].chosen.path)?;
        let asked = load.bench(&language(&existing, &existing.tokenizer()?))?;
        let artifacts: Vec<Artifact> = subjects.iter().map(|subject| subject.artifact.clone()).collect();
        let bars = Bars::new(printer);
        bars.stage("requests", asked.requests.len() as u64);
        let progress = |done: u64, _: u64| bars.advance(done, "");
        let measured: Vec<(Latencies, Option<Ratio>)> = match &artifacts[..] {
            [only] => vec![(asked.run(only, &progress)?, None)],
            several => {
                asked.compare(several, &progress)?.into_iter().map(|(latencies, ratio)| (latencies, Some(ratio))).collect()
            }
        };
        drop(bars);
        let all: Vec<Measured<'_>> = subjects.iter().zip(measured).map(|(subject, found)| subject.measured(found)).collect();
        let unanswered = all.iter().find(|one| one.latencies.failed == one.latencies.requests);
        show(&all, printer);
        match unanswered {
            None => Ok(ExitCode::SUCCESS),
            Some(one) => {
                let why = one.latencies.failure.clone().unwrap_or_default();
                Err(Error::input(format!("{} answered no request: {why}", one.engine)))
            }
        }
    }
}

/// The settings of the task `latency`.
fn schema() -> serde_json::Value {
    (task("latency").expect("it is there").schema)()
}

/// An artifact in its engine.
struct Subject<'a> {
    path: &'a Path,
    chosen: Chosen,
    engine: &'static Engine,
    artifact: Artifact,
}

/// What was measured of it.
#[derive(Serialize)]
struct Measured<'a> {
    artifact: &'a Path,
    engine: &'static str,
    version: String,
    mode: Mode,
    device: String,
    #[serde(flatten)]
    latencies: Latencies,
    /// To the first artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
    machine: Machine,
}

fn language<'a>(existing: &'a Existing, tokenizer: &'a Tokenizer) -> Language<'a> {
    Language { tokenizer, config: &existing.config, chat: None }
}

fn subject<'a>(path: &'a Path, load: &dyn Load, arguments: &ArgMatches, environment: &Environment) -> Result<Subject<'a>, Error> {
    let chosen = Chosen::at(path, arguments)?;
    let Some(engine) = chosen.engine else {
        let message = format!("`{}` is no artifact that an engine opens", path.display());
        return Err(Error::recipe(message).hint("export it first: `attar export --target onnx`".to_owned()));
    };
    Existing::check_whole(&chosen.path)?;
    let existing = Existing::open(&chosen.path)?;
    // Each has a context of its own.
    load.bench(&language(&existing, &existing.tokenizer()?))?;
    let mode = match arguments.contains_id("mode") && arguments.value_source("mode").is_some() {
        true => mode(arguments, engine)?,
        false => Mode::Default,
    };
    let mut artifact = existing.run_by(engine, mode, &environment.engines())?.on(device(arguments))?;
    artifact.threads = load.threads();
    artifact.processors = load.processors();
    artifact.timeout = load.timeout();
    Ok(Subject { path, chosen, engine, artifact })
}

impl Subject<'_> {
    fn measured(&self, (latencies, ratio): (Latencies, Option<Ratio>)) -> Measured<'_> {
        let Artifact { installation, mode, device, .. } = &self.artifact;
        Measured {
            artifact: self.path,
            engine: self.engine.name,
            version: installation.version.clone(),
            mode: *mode,
            device: device.clone(),
            latencies,
            ratio,
            machine: Machine::here(),
        }
    }
}

fn show(all: &[Measured<'_>], printer: &Printer) {
    if printer.json {
        return match all {
            [only] => printer.value(only),
            several => printer.value(&several),
        };
    }
    for one in all {
        let mut rows = Vec::new();
        let Latencies { ttft, tpot, e2e, waited, .. } = &one.latencies;
        let kinds = [("first token", ttft), ("between tokens", tpot), ("whole answer", e2e), ("waiting", waited)];
        let kinds = kinds.into_iter().filter(|(kind, times)| *kind != "waiting" || times.p99 > Some(0.0));
        for (kind, times) in kinds {
            let Percentiles { p50, p90, p99, intervals, .. } = times;
            let cells = [(p50, &intervals.p50), (p90, &intervals.p90), (p99, &intervals.p99)].map(|(p, i)| cell(*p, i));
            rows.push(std::iter::once(kind.to_owned()).chain(cells).collect());
        }
        printer.data(&format!("{}, {} ({}, {})", one.artifact.display(), one.engine, one.mode, one.device));
        printer.data(&draw(&["ms", "p50", "p90", "p99"], &rows));
        let Latencies { requests, failed, failure, tokens_per_second, load_seconds, memory, overload, notes, .. } =
            &one.latencies;
        let mut text = format!("{requests} requests, {failed} failed");
        text += &tokens_per_second.map(|rate| format!("; {rate:.1} tokens/s")).unwrap_or_default();
        text += &format!("; loaded in {load_seconds:.2} s");
        if let Some(energy) = &one.latencies.energy {
            text += &format!("; {:.3} J/token ({:.3} above idle)", energy.joules_per_token, energy.joules_per_token_above_idle);
        }
        if let [first, .., last] = &memory.growth[..] {
            let grown = last.bytes.saturating_sub(first.bytes);
            text += &format!("; {} more with {} tokens read than with {}", bytes(grown), last.tokens, first.tokens);
        }
        text += &memory.peak.map(|peak| format!("; peak memory {}", bytes(peak))).unwrap_or_default();
        if let Some(Ratio { median: Some(median), interval: [low, high], pairs }) = &one.ratio {
            let bound = |bound: &Option<f64>| bound.map_or("-".into(), |x| format!("{x:.3}"));
            text += &format!("; {median:.3} of the first one's time ({} to {}, {pairs} pairs)", bound(low), bound(high));
        }
        printer.data(&text);
        failure.iter().for_each(|failure| printer.note(&format!("note: a request failed: {failure}")));
        if *overload {
            printer.note("note: overload: requests come faster than they are answered, so waits depend on how long one measures");
        }
        notes.iter().for_each(|note| printer.note(&format!("note: {note}")));
    }
}

/// Milliseconds, with where they lie.
fn cell(time: Option<f64>, [low, high]: &[Option<f64>; 2]) -> String {
    let bound = |bound: &Option<f64>| bound.map_or("?".into(), |seconds| format!("{:.2}", 1e3 * seconds));
    time.map_or("-".into(), |seconds| format!("{:.2} ({} to {})", 1e3 * seconds, bound(low), bound(high)))
}
