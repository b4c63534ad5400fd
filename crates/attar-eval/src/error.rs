//! What keeps a model from being measured.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::engine::Looked;

/// The result of measuring.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be measured or judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model.
    #[error(transparent)]
    Model(#[from] attar_model::Error),
    /// Running its graph.
    #[error(transparent)]
    Graph(#[from] attar_graph::Error),
    /// candle, outside any node.
    #[error(transparent)]
    Kernel(#[from] candle_core::Error),
    /// A text that cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A text without text, or one that becomes no tokens.
    #[error("`{}` has no text to measure", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
    },
    /// Less text than it takes to predict one token.
    #[error("`{}` has no window of 2 tokens: {tokens} in {documents} document(s)", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// In all documents.
        tokens: usize,
        /// That are not empty.
        documents: usize,
    },
    /// A file of pairs without enough of them.
    #[error("`{}` has {pairs} pair(s) with a score, expected 2 or more", path.display())]
    NoPairs {
        /// The file.
        path: PathBuf,
        /// Pairs that have a score.
        pairs: usize,
    },
    /// A line that is no pair.
    #[error("`{}`, line {line}: expected a number and two sentences, found {fields} field(s)", path.display())]
    Pair {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// Fields on the line.
        fields: usize,
    },
    /// A record of a file that is not what its task asks for.
    #[error("`{}`, {unit} {number}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is counted: lines, or records of a list.
        unit: &'static str,
        /// From 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file with fewer records than asked for.
    #[error("`{}` has {found} record(s), and {wanted} or more are needed", path.display())]
    FewRecords {
        /// The file.
        path: PathBuf,
        /// There are.
        found: usize,
        /// There should be.
        wanted: usize,
    },
    /// A template, an expression or a pattern that is none.
    #[error("`{key}` cannot be used: {reason}")]
    Template {
        /// The setting.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Dialogues for a model that has no form for them.
    #[error("the model has no chat template")]
    NoChat {
        /// The setting that asks for one.
        key: &'static str,
    },
    /// Processors that a process cannot be bound to.
    #[error("the engine cannot be bound to the processors {}", numbers(wanted))]
    Processors {
        /// Their numbers.
        wanted: Vec<usize>,
        /// What the system says.
        source: std::io::Error,
    },
    /// One of several texts that cannot be.
    #[error("text `{name}`: {found}")]
    Text {
        /// The name that settings give it.
        name: String,
        /// What is wrong.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// A setting out of range.
    #[error("`{key} = {found}`: {wanted}")]
    Setting {
        /// Its name.
        key: &'static str,
        /// Its value.
        found: usize,
        /// What was expected.
        wanted: String,
    },
    /// BOS was asked for.
    #[error("`bos = true`, but the model has no begin-of-text token")]
    NoBos,
    /// Two models that cannot be compared.
    #[error("one model has {first} logits per token, the other {second}")]
    Vocabularies {
        /// The size of one vocabulary.
        first: usize,
        /// The size of the other.
        second: usize,
    },
    /// Two models whose embeddings cannot be compared.
    #[error("one model's embedding has {first} values, the other's {second}")]
    Widths {
        /// The width of one.
        first: usize,
        /// The width of the other.
        second: usize,
    },
    /// A task or verb that needs an output which the model does not have.
    #[error("the model has no output `{wanted}`; it has {}", listed(found))]
    NoOutput {
        /// The output that was asked for.
        wanted: &'static str,
        /// The outputs that there are.
        found: Vec<String>,
    },
    /// An output of a model that is no number: nothing can be said of it, and nothing compared with it.
    #[error("the output of {whose} is {value} at token {position} of text window {window}")]
    NotFinite {
        /// Which of the models.
        whose: &'static str,
        /// The first such value.
        value: f32,
        /// Of the windows that were asked for, from 0.
        window: usize,
        /// Within the window, from 0.
        position: usize,
    },
    /// A likeliest token that there is not.
    #[error("the logits after {tokens} token(s) are not finite: no token is the likeliest")]
    NoChoice {
        /// That were run.
        tokens: usize,
    },
    /// A token that logits do not have.
    #[error("token {token} of the text is outside the model's vocabulary of {vocabulary}")]
    Token {
        /// From the tokenizer.
        token: u32,
        /// Of the logits.
        vocabulary: usize,
    },
    /// An answer of a run that gives rows.
    #[error("text window {window} was not asked for an answer")]
    NoAnswers {
        /// The window.
        window: usize,
    },
    /// Rows of a run that gives answers.
    #[error("text window {window} was asked for an answer, not for rows")]
    NoRows {
        /// The window.
        window: usize,
    },
    /// Nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// An engine that is nowhere on this machine.
    #[error("{title} is not installed")]
    EngineMissing {
        /// The engine, by the name its makers use.
        title: &'static str,
        /// What installs it, in words.
        way_in: String,
        /// Where it was looked for.
        looked: Vec<Looked>,
    },
    /// A file that an engine needs.
    #[error("`{}`, {what}, does not exist", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// What it would be.
        what: &'static str,
    },
    /// The process that would hold the engine.
    #[error("cannot start `{}` as the engine's process", host.display())]
    EngineStart {
        /// The executable.
        host: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The engine's own answer.
    #[error("{title} failed at {doing}: {message}")]
    Engine {
        /// The engine.
        title: String,
        /// What it was asked for.
        doing: &'static str,
        /// What it said.
        message: String,
    },
    /// The engine's process ended.
    #[error("the process of {title} ended while {doing}: {status}{}", said(stderr))]
    EngineDied {
        /// The engine.
        title: String,
        /// What it was asked for.
        doing: &'static str,
        /// How it ended.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// The engine's process did not answer.
    #[error("{title} gave no answer in {} s while {doing}{}", waited.as_secs_f64(), said(stderr))]
    EngineTimeout {
        /// The engine.
        title: String,
        /// What it was asked for.
        doing: &'static str,
        /// The time limit.
        waited: Duration,
        /// The end of its standard error.
        stderr: String,
    },
    /// The engine's process answered something else.
    #[error("the process of {title} did not follow the protocol while {doing}: {found}{}", said(stderr))]
    Protocol {
        /// The engine.
        title: String,
        /// What it was asked for.
        doing: &'static str,
        /// The answer.
        found: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A name that no engine has.
    #[error("no engine is named `{found}`")]
    UnknownEngine {
        /// As written.
        found: String,
        /// The closest there is.
        nearest: Option<String>,
        /// All there are.
        known: Vec<&'static str>,
    },
    /// A device that an engine does not have.
    #[error("{engine} has no device `{found}`")]
    UnknownDevice {
        /// As written.
        found: String,
        /// The engine's name.
        engine: &'static str,
        /// All that it has.
        known: Vec<&'static str>,
    },
    /// A name that no task has.
    #[error("no task is named `{found}`")]
    UnknownTask {
        /// As written.
        found: String,
        /// The closest there is.
        nearest: Option<String>,
        /// All there are.
        known: Vec<&'static str>,
    },
    /// A gate's metric without an eval, or without a name.
    #[error("`metric = \"{found}\"` is not `EVAL/METRIC`")]
    GateMetric {
        /// As written.
        found: String,
    },
    /// No bound, or several.
    #[error("a gate has exactly one of `at_most`, `at_least`, `worse_at_most` and `drop_at_most`; this one has {}", given(found))]
    GateBound {
        /// Those that are given.
        found: Vec<&'static str>,
    },
    /// A bound that is no number, or a negative drop.
    #[error("`{key} = {found}` is not a bound")]
    GateLimit {
        /// Which bound.
        key: &'static str,
        /// As written.
        found: String,
    },
    /// A metric that no task has.
    #[error("no metric is named `{found}`")]
    UnknownMetric {
        /// As written.
        found: String,
        /// The closest there is.
        nearest: Option<String>,
        /// All there are.
        known: Vec<&'static str>,
    },
    /// An eval that the recipe does not have.
    #[error("no eval is named `{found}`")]
    UnknownEval {
        /// As written.
        found: String,
        /// The closest there is.
        nearest: Option<String>,
        /// All there are.
        known: Vec<String>,
    },
    /// A metric that has no relative loss.
    #[error("`{key}` has no meaning for `{metric}`")]
    NoLoss {
        /// The key in the recipe.
        key: &'static str,
        /// The metric.
        metric: &'static str,
    },
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!("; its last words: {text}"),
    }
}

/// Numbers, for people.
fn numbers(all: &[usize]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        all => all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Which places were searched in vain, and which were not given.
fn searched(looked: &[Looked]) -> String {
    let (given, unset): (Vec<&Looked>, Vec<&Looked>) = looked.iter().partition(|looked| looked.path.is_some());
    let given: Vec<String> = given
        .iter()
        .map(|looked| format!("`{}` ({})", looked.path.as_deref().unwrap_or(Path::new("")).display(), looked.name))
        .collect();
    let unset: Vec<&str> = unset.iter().map(|looked| looked.name.as_str()).collect();
    let have = if given.len() == 1 { "does not have it" } else { "do not have it" };
    let are = if unset.len() == 1 { "is unset" } else { "are unset" };
    match (given.is_empty(), unset.is_empty()) {
        (true, _) => format!("{} {are}", and(&unset)),
        (false, true) => format!("{} {have}", and(&given)),
        (false, false) => format!("{} {have}; {} {are}", and(&given), and(&unset)),
    }
}

fn and<T: AsRef<str>>(words: &[T]) -> String {
    match words {
        [] => String::new(),
        [one] => one.as_ref().into(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", most.join(", "), last.as_ref())
        }
    }
}

fn given(found: &[&str]) -> String {
    match found {
        [] => "none".into(),
        all => all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and "),
    }
}

impl Error {
    /// The setting of the task, or of the gate, that is wrong, if one is.
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Error::Setting { key, .. }
            | Error::GateLimit { key, .. }
            | Error::NoLoss { key, .. }
            | Error::Template { key, .. }
            | Error::NoChat { key } => Some(key),
            Error::NoBos => Some("bos"),
            Error::Text { .. } => Some("texts"),
            Error::GateMetric { .. } | Error::UnknownMetric { .. } | Error::UnknownEval { .. } => Some("metric"),
            Error::GateBound { found } => found.last().copied(),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Model(error) => error.hint(),
            Error::Graph(attar_graph::Error::Tensor(error)) => error.hint(),
            Error::Text { wanted, .. } => Some(wanted.clone()),
            Error::NoBos => Some("leave `bos` out, or name the token as `bos_token_id` in config.json".into()),
            Error::TooShort { .. } => Some("give more text, or put BOS in front of each document with `bos = true`".into()),
            Error::NoChat { .. } => Some("with `chat = false` prompts are given as they are".into()),
            Error::Vocabularies { .. } => Some("compare models of one tokenizer".into()),
            Error::NotFinite { .. } | Error::NoChoice { .. } => Some(
                "weights, scales or settings make numbers overflow; measure the checkpoint itself to see whether it does".into(),
            ),
            Error::Token { .. } => Some("the tokenizer and the weights come from different models".into()),
            Error::NoOutput { found, .. } => Some(match found.iter().any(|output| output == "logits") {
                true => "a decoder is measured by tasks on logits, such as `perplexity`".into(),
                false => "an encoder is measured by tasks on embeddings, such as `embedding-drift`".into(),
            }),
            Error::EngineMissing { way_in, looked, .. } => Some(format!(
                "{way_in} {}; {}",
                looked.iter().map(|looked| looked.name.as_str()).find(|name| *name != "VIRTUAL_ENV").unwrap_or("VIRTUAL_ENV"),
                searched(looked),
            )),
            Error::EngineTimeout { .. } => Some("allow more time, or measure fewer tokens".into()),
            Error::NoLoss { .. } => Some("bound it with `at_most` or `at_least`".into()),
            Error::GateBound { found } if found.len() > 1 => Some("write a gate for each bound".into()),
            Error::GateMetric { .. } => Some("for example `metric = \"shakespeare/perplexity\"`".into()),
            Error::UnknownMetric { nearest, known, .. } => Some(format!("{}known: {}", did_you_mean(nearest), known.join(", "))),
            Error::UnknownEngine { nearest, known, .. } | Error::UnknownTask { nearest, known, .. } => {
                Some(format!("{}known: {}", did_you_mean(nearest), known.join(", ")))
            }
            Error::UnknownDevice { known, .. } => Some(format!("known: {}", known.join(", "))),
            Error::UnknownEval { nearest, known, .. } => Some(format!("{}known: {}", did_you_mean(nearest), known.join(", "))),
            _ => None,
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("did you mean `{name}`? ")).unwrap_or_default()
}
