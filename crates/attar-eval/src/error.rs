//! What keeps a model from being measured.

use std::{path::PathBuf, time::Duration};

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
    /// A setting that cannot be.
    #[error("`{key} = {found}` cannot be: {wanted}")]
    Setting {
        /// Its name.
        key: &'static str,
        /// Its value.
        found: usize,
        /// What could be.
        wanted: String,
    },
    /// BOS was asked for.
    #[error("`bos = true`, but the model has no begin-of-text token")]
    NoBos,
    /// Two models that cannot be compared.
    #[error("{first} logits a token in one model, {second} in the other")]
    Vocabularies {
        /// Of one.
        first: usize,
        /// Of the other.
        second: usize,
    },
    /// A token that logits do not have.
    #[error("token {token} of the text, in a vocabulary of {vocabulary}")]
    Token {
        /// From the tokenizer.
        token: u32,
        /// Of the logits.
        vocabulary: usize,
    },
    /// Nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// No engine.
    #[error("onnxruntime is not installed here")]
    EngineMissing {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
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
    #[error("onnxruntime, {doing}: {message}")]
    Engine {
        /// What it was asked for.
        doing: &'static str,
        /// What it said.
        message: String,
    },
    /// The engine's process ended.
    #[error("the process of onnxruntime ended, {doing}: {status}{}", said(stderr))]
    EngineDied {
        /// What it was asked for.
        doing: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it wrote there.
        stderr: String,
    },
    /// The engine's process did not answer.
    #[error("onnxruntime gave no answer in {} s, {doing}{}", waited.as_secs_f64(), said(stderr))]
    EngineTimeout {
        /// What it was asked for.
        doing: &'static str,
        /// For so long.
        waited: Duration,
        /// The end of what it wrote there.
        stderr: String,
    },
    /// The engine's process answered something else.
    #[error("the process of onnxruntime does not speak our protocol, {doing}: {found}{}", said(stderr))]
    Protocol {
        /// What it was asked for.
        doing: &'static str,
        /// What came.
        found: String,
        /// The end of what it wrote there.
        stderr: String,
    },
    /// A gate's metric without an eval, or without a name.
    #[error("`metric = \"{found}\"` is not `EVAL/METRIC`")]
    GateMetric {
        /// As written.
        found: String,
    },
    /// No bound, or several.
    #[error("a gate has one of `at_most`, `at_least` and `drop_at_most`; this one has {}", given(found))]
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
    #[error("`drop_at_most` has no meaning for `{metric}`")]
    NoDrop {
        /// The metric.
        metric: &'static str,
    },
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!("; it said: {text}"),
    }
}

fn given(found: &[&str]) -> String {
    match found {
        [] => "none".into(),
        all => all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and "),
    }
}

impl Error {
    /// The setting of the task that cannot be, if it is one.
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Error::Setting { key, .. } => Some(key),
            Error::NoBos => Some("bos"),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Model(error) => error.hint(),
            Error::Graph(attar_graph::Error::Tensor(error)) => error.hint(),
            Error::NoBos => Some("leave `bos` out, or name the token as `bos_token_id` in config.json".into()),
            Error::TooShort { .. } => Some("give more text, or put BOS in front of each document with `bos = true`".into()),
            Error::Vocabularies { .. } => Some("compare models of one tokenizer".into()),
            Error::Token { .. } => Some("the tokenizer and the weights come from different models".into()),
            Error::EngineMissing { looked } => {
                let looked: Vec<String> = looked.iter().map(|path| format!("`{}`", path.display())).collect();
                let looked = if looked.is_empty() { "nowhere".into() } else { looked.join(", ") };
                Some(format!("`pip install onnxruntime` into a virtual environment and name its folder; looked in {looked}"))
            }
            Error::EngineTimeout { .. } => Some("allow more time, or measure fewer tokens".into()),
            Error::NoDrop { .. } => Some("bound it with `at_most` or `at_least`".into()),
            Error::GateBound { found } if found.len() > 1 => Some("write a gate for each bound".into()),
            Error::GateMetric { .. } => Some("for example `metric = \"shakespeare/perplexity\"`".into()),
            Error::UnknownMetric { nearest, known, .. } => Some(format!("{}known: {}", did_you_mean(nearest), known.join(", "))),
            Error::UnknownEval { nearest, known, .. } => Some(format!("{}known: {}", did_you_mean(nearest), known.join(", "))),
            _ => None,
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("did you mean `{name}`? ")).unwrap_or_default()
}
