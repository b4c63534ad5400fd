//! `attar bench ARTIFACT`: latencies under load, in the real engine.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use attar_eval::{
    Artifact, Bench as Asked, Engine, Latencies, Mode, Scenario,
    bench::{Machine, Percentiles, Ratio, Request},
};
use attar_recipe::{Error, Existing, Observer, bytes};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;

use super::{
    Verb, draw, path, path_argument,
    written::{chosen, device, mode, runner_flags},
};
use crate::{environment::Environment, printer::Printer, progress::Bars};

pub(super) struct Bench;

impl Verb for Bench {
    fn name(&self) -> &'static str {
        "bench"
    }

    fn command(&self) -> Command {
        let number = |name: &'static str, value: &'static str, default: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name(value).default_value(default).value_parser(value_parser!(usize)).help(help)
        };
        let command = Command::new("bench")
            .about("Measure how fast a written artifact is in its real engine: latencies under load, throughput, memory")
            .long_about("Measure how fast a written artifact is in its real engine: latencies under load, throughput, memory.\n\nOne stream sends its next request when it has its answer; `--streams` runs several, each in a process of its own with the artifact loaded; with `--rate`, requests come at random and wait for a free stream. Times count from when a request is due, in seconds; each percentile stands with the interval that holds it with 95% confidence. Answers are greedy and go on to their full length. `--compare` measures several artifacts by turns.\n\nThe engine runs in its default mode unless `--mode exact` is given.")
            .arg(path_argument("ARTIFACT", "The folder of an artifact"))
            .arg(number("streams", "N", "1", "Processes that answer").value_parser(positive))
            .arg(Arg::new("rate").long("rate").value_name("R").value_parser(rate).help("Requests per second, at random; without it, a stream sends its next request when it has its answer"))
            .arg(number("prompt-tokens", "P", "128", "Tokens of each prompt").value_parser(positive))
            .arg(number("answer-tokens", "A", "32", "Tokens of each answer").value_parser(positive))
            .arg(Arg::new("lengths").long("lengths").value_name("FILE").value_parser(value_parser!(PathBuf)).help("Tokens of prompt and answer of each request, as two numbers a line; requests beyond begin again at its start").conflicts_with_all(["prompt-tokens", "answer-tokens"]))
            .arg(number("requests", "K", "50", "Requests that count").value_parser(positive))
            .arg(number("warm-up", "N", "2", "Requests of each stream before, which do not count"))
            .arg(Arg::new("threads").long("threads").value_name("N").value_parser(positive).help("Threads of each engine [default: the engine's choice]"))
            .arg(number("timeout", "SECONDS", "600", "A request that takes longer has failed").value_parser(positive))
            .arg(Arg::new("seed").long("seed").value_name("N").default_value("0").value_parser(value_parser!(u64)).help("Where the random numbers of `--rate` start"))
            .arg(Arg::new("compare").long("compare").value_name("ARTIFACT").num_args(1..).action(ArgAction::Append).value_parser(value_parser!(PathBuf)).conflicts_with_all(["streams", "rate"]).help("Measure these as well, by turns, and how their times are to the first one's"));
        runner_flags(command)
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar bench int4 --requests 4 --prompt-tokens 16 --answer-tokens 4"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let first = path(arguments, "artifact");
        let others = arguments.get_many::<PathBuf>("compare").into_iter().flatten();
        let paths: Vec<&Path> = std::iter::once(first).chain(others.map(PathBuf::as_path)).collect();
        let asked = asked(arguments, &Existing::open(first)?)?;
        let mut subjects = Vec::new();
        for path in paths {
            subjects.push(subject(path, &asked.requests, arguments, environment)?);
        }
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

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected a whole number of 1 or more".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected a number above 0".into())
}

/// An artifact in its engine.
struct Subject<'a> {
    path: &'a Path,
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

fn subject<'a>(
    path: &'a Path,
    requests: &[Request],
    arguments: &ArgMatches,
    environment: &Environment,
) -> Result<Subject<'a>, Error> {
    let Some(engine) = chosen(path, arguments)? else {
        let message = format!("`{}` is no artifact that an engine opens", path.display());
        return Err(Error::recipe(message).hint("export it first: `attar export --target onnx`".to_owned()));
    };
    Existing::check_whole(path)?;
    let existing = Existing::open(path)?;
    let longest = requests.iter().map(|request| request.prompt + request.answer).max().unwrap_or(0);
    if let Some(context) = existing.config.context.filter(|context| longest > *context) {
        let message = format!("prompt and answer have {longest} tokens, and the model's context is {context}");
        return Err(Error::recipe(message).hint("ask for fewer with `--prompt-tokens` or `--answer-tokens`".to_owned()));
    }
    let mode = match arguments.contains_id("mode") && arguments.value_source("mode").is_some() {
        true => mode(arguments, engine)?,
        false => Mode::Default,
    };
    let mut artifact = existing.run_by(engine, mode, &environment.engines())?.on(device(arguments))?;
    artifact.threads = arguments.get_one::<usize>("threads").copied();
    artifact.timeout = Duration::from_secs(*arguments.get_one::<usize>("timeout").expect("it has a default") as u64);
    Ok(Subject { path, engine, artifact })
}

fn asked(arguments: &ArgMatches, first: &Existing) -> Result<Asked, Error> {
    let number = |name: &str| *arguments.get_one::<usize>(name).expect("it has a default");
    let lengths = match arguments.get_one::<PathBuf>("lengths") {
        Some(path) => lengths(path)?,
        None => vec![Request { prompt: number("prompt-tokens"), answer: number("answer-tokens") }],
    };
    let streams = number("streams");
    let scenario = match (arguments.get_one::<f64>("rate"), streams) {
        (Some(rate), streams) => Scenario::Server { rate: *rate, streams },
        (None, 1) => Scenario::SingleStream,
        (None, streams) => Scenario::MultiStream { streams },
    };
    let requests = lengths.iter().copied().cycle().take(number("requests")).collect();
    let text = first.tokenizer()?.encode(attar_eval::PROMPTS).map_err(attar_eval::Error::from)?;
    let seed = *arguments.get_one::<u64>("seed").expect("it has a default");
    Ok(Asked { scenario, requests, warm_up: number("warm-up"), text, seed })
}

/// Two numbers a line.
fn lengths(path: &Path) -> Result<Vec<Request>, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::input(format!("cannot read `{}`", path.display())).because(&e))?;
    let mut requests = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let numbers: Vec<Option<usize>> =
            line.split([',', ' ', '\t']).filter(|word| !word.is_empty()).map(|word| positive(word).ok()).collect();
        match numbers[..] {
            [Some(prompt), Some(answer)] => requests.push(Request { prompt, answer }),
            _ => {
                let message = format!("`{}`, line {}: expected tokens of a prompt and of its answer", path.display(), at + 1);
                return Err(Error::input(message));
            }
        }
    }
    match requests.is_empty() {
        true => Err(Error::input(format!("`{}` has no lengths", path.display()))),
        false => Ok(requests),
    }
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
