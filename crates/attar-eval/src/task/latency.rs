//! How fast an artifact answers in its engine: see [`crate::bench`]. The only task whose numbers are other ones in each run.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use attar_model::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::kind::{Against, Better, Column, Digits, Language, Load, Metric, Prepared, ReadsFiles, Task, parse, read, schema};
use crate::{
    Error, PROMPTS, Result,
    bench::{Bench, Request, Scenario},
    runner::Output,
};

pub(super) static TASK: Task = Task {
    name: "latency",
    about: "how fast an artifact answers in its engine, and in how much memory",
    output: Output::Logits,
    timed: true,
    metrics: METRICS,
    schema: schema::<Latency>,
    parse: parse::<Latency>,
    counted: "requests",
    count: "/requests",
    parts: None,
};

/// A time, a size or a number.
const fn less(name: &'static str, about: &'static str, unit: &'static str, at: &'static str, column: Option<Column>) -> Metric {
    Metric {
        name,
        about,
        unit,
        better: Better::Lower,
        against: Against::Nothing,
        at,
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column,
    }
}

/// A column of milliseconds.
const fn shown(head: &'static str) -> Option<Column> {
    Some(Column { head, digits: Digits::Thousandths(2) })
}

static METRICS: &[Metric] = &[
    less("ttft-p50", "median time to the first token", "s", "/ttft/p50", shown("ttft p50, ms")),
    less("ttft-p90", "90th percentile of the time to the first token", "s", "/ttft/p90", None),
    less("ttft-p99", "99th percentile of the time to the first token", "s", "/ttft/p99", shown("ttft p99, ms")),
    less("tpot-p50", "median time between tokens", "s", "/tpot/p50", shown("tpot p50, ms")),
    less("tpot-p90", "90th percentile of the time between tokens", "s", "/tpot/p90", None),
    less("tpot-p99", "99th percentile of the time between tokens", "s", "/tpot/p99", shown("tpot p99, ms")),
    less("e2e-p50", "median time of a whole answer", "s", "/e2e/p50", None),
    less("e2e-p90", "90th percentile of the time of a whole answer", "s", "/e2e/p90", None),
    less("e2e-p99", "99th percentile of the time of a whole answer", "s", "/e2e/p99", None),
    Metric {
        better: Better::Higher,
        column: Some(Column { head: "tokens/s", digits: Digits::Fixed(1) }),
        ..less("tokens-per-second", "tokens written in a second, by all streams together", "1/s", "/tokens_per_second", None)
    },
    less("load-seconds", "time to load the artifact", "s", "/load_seconds", None),
    less("peak-memory", "peak resident memory of the engine's processes", "bytes", "/memory/peak", None),
    less(
        "joules-per-token",
        "energy per token that was written, the idle machine's included; not measured where nothing counts it",
        "J",
        "/energy/joules_per_token",
        None,
    ),
    less(
        "joules-per-token-above-idle",
        "energy per token beyond what the idle machine uses; not measured where nothing counts it",
        "J",
        "/energy/joules_per_token_above_idle",
        None,
    ),
    less("failed", "requests that were not answered", "", "/failed", Some(Column { head: "failed", digits: Digits::Fixed(0) })),
];

/// Requests to an artifact in its engine, and how they come. Prompts are cut from attar's own; answers are greedy and go on to their full length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Latency {
    /// Tokens of each prompt.
    #[serde(default = "prompt_tokens")]
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    #[serde(default = "answer_tokens")]
    pub answer_tokens: usize,
    /// Tokens of prompt and answer of each request, as two numbers a line, in place of `prompt_tokens` and `answer_tokens`; requests beyond begin again at the
    /// file's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<PathBuf>,
    /// Requests that count.
    #[serde(default = "requests")]
    pub requests: usize,
    /// Requests of each stream before, which do not count.
    #[serde(default = "warm_up")]
    pub warm_up: usize,
    /// Processes that answer, each with the artifact loaded.
    #[serde(default = "streams")]
    pub streams: usize,
    /// Requests per second, which come at random and wait for a free stream. Without it, a stream sends its next request when it has its answer.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Threads of each engine; the engine decides if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_threads: Option<usize>,
    /// Processors that each engine's threads are bound to, such as `0-3` or `0,2`; the system decides if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processors: Option<String>,
    /// Seconds after which a request has failed.
    #[serde(default = "timeout")]
    pub timeout: u64,
    /// Where the random numbers of `rate` start.
    #[serde(default)]
    pub seed: u64,
    /// A command that prints the joules which a meter has counted so far. Without it, the machine's own counters (powercap), where they count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<String>,
}

/// A number: what JSON has no word for, such as infinity, comes as `null`.
fn given<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<f64>, D::Error> {
    f64::deserialize(from).map(Some)
}

const fn prompt_tokens() -> usize {
    128
}

const fn answer_tokens() -> usize {
    32
}

const fn requests() -> usize {
    50
}

const fn warm_up() -> usize {
    2
}

const fn streams() -> usize {
    1
}

const fn timeout() -> u64 {
    600
}

impl ReadsFiles for Latency {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        self.lengths.iter().cloned().collect()
    }

    fn check(&self, config: &Config) -> Result<()> {
        let counts = [
            ("prompt_tokens", self.prompt_tokens),
            ("answer_tokens", self.answer_tokens),
            ("requests", self.requests),
            ("streams", self.streams),
            ("engine_threads", self.engine_threads.unwrap_or(1)),
            ("timeout", self.timeout as usize),
        ];
        if let Some((key, found)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::Setting { key, found, wanted: "expected 1 or more".into() });
        }
        let bounds = [
            ("requests", self.requests, 1_000_000),
            ("warm_up", self.warm_up, 1_000_000),
            ("streams", self.streams, 256),
            ("engine_threads", self.engine_threads.unwrap_or(1), 1024),
        ];
        if let Some((key, found, most)) = bounds.into_iter().find(|(_, found, most)| found > most) {
            return Err(Error::Setting { key, found, wanted: format!("expected at most {most}") });
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return Err(Error::Template { key: "rate", reason: "expected a number above 0".into() });
        }
        if let Some(rate) = self.rate.filter(|rate| self.requests as f64 / rate > LONGEST) {
            let reason = format!("{} requests at a rate of {rate} take longer than a day", self.requests);
            return Err(Error::Template { key: "rate", reason });
        }
        self.processors.as_deref().map_or(Ok(()), |text| processors(text).map(drop))?;
        let longest = Request { prompt: self.prompt_tokens, answer: self.answer_tokens };
        if self.lengths.is_none() { fits(longest, config) } else { Ok(()) }
    }

    fn longest(&self) -> Option<usize> {
        None
    }

    fn load(&self) -> Option<&dyn Load> {
        Some(self)
    }

    fn prepare(&self, _: &Language<'_>) -> Result<Box<dyn Prepared>> {
        unreachable!("what has a load is measured by `bench`")
    }
}

/// Seconds that requests may take to come.
const LONGEST: f64 = 86_400.0;

/// Processors beyond which no machine has any.
const MOST_PROCESSORS: usize = 1024;

/// Numbers and ranges of numbers, such as `0-3,6`.
fn processors(text: &str) -> Result<Vec<usize>> {
    let wrong =
        || Error::Template { key: "processors", reason: format!("`{text}`: expected numbers and ranges such as `0-3,6`") };
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < MOST_PROCESSORS).ok_or_else(wrong);
    let mut found = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        found.extend(first..=last);
    }
    Ok(found)
}

/// Whether a model has room for a request.
fn fits(request: Request, config: &Config) -> Result<()> {
    let Request { prompt, answer } = request;
    match config.context {
        Some(context) if prompt.saturating_add(answer) > context => Err(Error::Setting {
            key: "prompt_tokens",
            found: prompt,
            wanted: format!("with {answer} tokens of an answer that is more than the model's context of {context}"),
        }),
        _ => Ok(()),
    }
}

impl Load for Latency {
    fn bench(&self, language: &Language<'_>) -> Result<Bench> {
        ReadsFiles::check(self, language.config)?;
        let lengths = match &self.lengths {
            Some(path) => lengths(path)?,
            None => vec![Request { prompt: self.prompt_tokens, answer: self.answer_tokens }],
        };
        lengths.iter().try_for_each(|request| fits(*request, language.config))?;
        let scenario = match (self.rate, self.streams) {
            (Some(rate), streams) => Scenario::Server { rate, streams },
            (None, 1) => Scenario::SingleStream,
            (None, streams) => Scenario::MultiStream { streams },
        };
        let requests = lengths.iter().copied().cycle().take(self.requests).collect();
        let text = language.tokenizer.encode(PROMPTS)?;
        Ok(Bench { scenario, requests, warm_up: self.warm_up, text, seed: self.seed, meter: self.meter.clone() })
    }

    fn threads(&self) -> Option<usize> {
        self.engine_threads
    }

    fn processors(&self) -> Vec<usize> {
        self.processors.as_deref().and_then(|text| processors(text).ok()).unwrap_or_default()
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Two numbers a line.
fn lengths(path: &Path) -> Result<Vec<Request>> {
    let text = read(path)?;
    let mut requests = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let words = line.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        let numbers: Vec<Option<usize>> = words.map(|word| word.parse().ok().filter(|number| *number > 0)).collect();
        match numbers[..] {
            [Some(prompt), Some(answer)] => requests.push(Request { prompt, answer }),
            _ => {
                let reason = "expected two numbers above 0: tokens of a prompt and of its answer".to_owned();
                return Err(Error::Record { path: path.into(), unit: "line", number: at + 1, reason });
            }
        }
    }
    match requests.is_empty() {
        true => Err(Error::FewRecords { path: path.into(), found: 0, wanted: 1 }),
        false => Ok(requests),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_numbers_and_ranges() {
        assert_eq!(processors("0-3, 6").expect("a list"), [0, 1, 2, 3, 6]);
        for wrong in ["", "a", "3-1", "1-", "-1", "0-99999", "1,,2"] {
            assert!(processors(wrong).is_err(), "{wrong}");
        }
    }
}
