//! What a task is: the contract behind [`super::TASKS`].
//!
//! A task reads data ([`Settings`]), asks a model for one [`Output`] of windows of tokens ([`Prepared`]), and makes
//! [`Measurements`] of it, in a shape of its own. Its [`Metric`]s say where in that shape the numbers are, so that gates,
//! reports and caches need to know no task.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use attar_model::{ChatTemplate, Config, Tokenizer};
pub use attar_settings::Invalid;
pub(super) use attar_settings::schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Bench, Error, Estimate, Generation, Result,
    runner::{Output, Progress, Rows, Window},
};

/// A way to measure a model.
pub struct Task {
    /// The name in recipes and on the command line.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// What it asks of a model.
    pub output: Output,
    /// Whether it takes times: then its numbers are other ones in each run, and are kept out of caches and reports.
    pub timed: bool,
    /// What it yields, in the order of tables.
    pub metrics: &'static [Metric],
    /// JSON Schema of its settings, without definitions of its own.
    pub schema: fn() -> Value,
    /// Settings from a table that follows the schema.
    pub parse: fn(Value) -> std::result::Result<Box<dyn Settings>, Invalid>,
    /// Which of its tokens, texts or pairs [`Task::count`] counts, for people.
    pub counted: &'static str,
    /// Where the measurements hold that count.
    pub count: &'static str,
    /// Where the measurements hold a list of what was measured on each part of the data, in the same shape with a `name`, for tasks that
    /// have such.
    pub parts: Option<&'static str>,
}

/// One number of [`Measurements`].
pub struct Metric {
    /// The name that gates use.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The unit; empty for plain numbers.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
    /// What it is held against, without which it is not measured.
    pub against: Against,
    /// Where in the measurements it is, as a JSON pointer to a number or to an [`Estimate`].
    pub at: &'static str,
    /// Where the same number of the base is, if it is measured.
    pub base: Option<&'static str>,
    /// The share that was lost against the base, for metrics that have one.
    pub loss: Option<fn(&Measurements) -> Option<Estimate>>,
    /// The value for perfect answers, of which the base gives the same.
    pub perfect: f64,
    /// The value for random answers of that width (the vocabulary's, or an embedding's), if theory gives one.
    pub random: Option<fn(usize) -> f64>,
    /// Its column in tables, if it has one.
    pub column: Option<Column>,
}

/// A column of a table.
pub struct Column {
    /// The heading.
    pub head: &'static str,
    /// How numbers are written.
    pub digits: Digits,
}

/// How a table writes numbers.
#[derive(Clone, Copy)]
pub enum Digits {
    /// With so many digits after the point.
    Fixed(usize),
    /// The same of a thousand times the number, such as seconds in milliseconds.
    Thousandths(usize),
    /// As a power of ten, with one digit after the point.
    Exponent,
}

/// What a number is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// Nothing: it says something of the model alone.
    Nothing,
    /// [`Sides::base`].
    Base,
    /// [`Sides::sibling`].
    Sibling,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The smaller.
    Lower,
    /// The larger.
    Higher,
}

impl Task {
    /// The metric of that name.
    pub fn metric(&self, name: &str) -> Result<&'static Metric> {
        self.metrics.iter().find(|metric| metric.name == name).ok_or_else(|| Error::UnknownMetric {
            found: name.into(),
            nearest: attar_tensor::nearest(name, self.metrics.iter().map(|metric| metric.name)).map(Into::into),
            known: self.metrics.iter().map(|metric| metric.name).collect(),
        })
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({})", self.name)
    }
}

/// A task with its settings.
pub trait Settings: fmt::Debug + Send + Sync {
    /// The task.
    fn task(&self) -> &'static Task;
    /// The settings, with every default filled in.
    fn settings(&self) -> Value;
    /// The files that it reads.
    fn files(&self) -> Vec<PathBuf>;
    /// Whether a model of that configuration can be measured so. No file is read.
    fn check(&self, config: &Config) -> Result<()>;
    /// Number of tokens in the longest window there can be, if the settings limit it.
    fn longest(&self) -> Option<usize>;
    /// What is asked of an engine, for tasks that take times; they are not prepared.
    fn load(&self) -> Option<&dyn Load>;
    /// Reads the files and makes windows of them.
    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>>;
}

/// Requests to an engine, for tasks that take times.
pub trait Load {
    /// The requests, for a model.
    ///
    /// # Errors
    /// If a setting is out of range, or a file cannot be read.
    fn bench(&self, language: &Language<'_>) -> Result<Bench>;
    /// Threads of each engine; the engine decides if not given.
    fn threads(&self) -> Option<usize>;
    /// Processors that the threads of each engine are bound to; the system decides if none is given.
    fn processors(&self) -> Vec<usize>;
    /// How long a request may take.
    fn timeout(&self) -> Duration;
}

/// How a model reads texts.
#[derive(Clone, Copy)]
pub struct Language<'a> {
    /// Makes tokens of them.
    pub tokenizer: &'a Tokenizer,
    /// What the model says of itself.
    pub config: &'a Config,
    /// Makes texts of dialogues, if the model has a form for them.
    pub chat: Option<&'a ChatTemplate>,
}

/// A task whose data is read: questions, and how answers are scored.
pub trait Prepared: fmt::Debug + Send + Sync {
    /// The windows that a model is run on.
    fn windows(&self) -> &[Window];

    /// How answers are written, for tasks that ask for those.
    fn generation(&self) -> Option<&Generation> {
        None
    }

    /// What else than the windows decides scores, such as reference scores; part of the key of cached measurements.
    fn key(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Scores a model's answers. `progress` counts windows.
    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements>;

    /// The row of the output that a perfect model gives.
    fn perfect(&self, window: usize, position: usize, width: usize) -> Vec<f32>;

    /// The answer that a perfect model writes.
    fn perfect_answer(&self, _window: usize) -> Vec<u32> {
        Vec::new()
    }
}

/// The runs that a score compares, all on the same windows.
pub struct Sides<'a> {
    /// The model that is measured.
    pub model: &'a mut dyn Rows,
    /// The model that it was made from.
    pub base: Option<&'a mut dyn Rows>,
    /// Another run of the same artifact: the reference's, where the model is run by an engine.
    pub sibling: Option<&'a mut dyn Rows>,
}

/// What messages call [`Sides::model`], [`Sides::base`] and [`Sides::sibling`].
pub(super) const SIDES: [&str; 3] = ["the measured model", "the baseline", "the reference's run"];

/// What a task measured, in the task's own shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measurements(Value);

impl Measurements {
    /// From a task's own type.
    ///
    /// # Panics
    /// If the type is not plain data.
    pub fn of(scores: &impl Serialize) -> Measurements {
        Measurements(serde_json::to_value(scores).expect("scores are numbers with names"))
    }

    /// As a task's own type, if it is of that task.
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_value(self.0.clone()).ok()
    }

    /// The number, or the [`Estimate`], at a JSON pointer, if it was measured.
    pub fn estimate(&self, pointer: &str) -> Option<Estimate> {
        let found = self.0.pointer(pointer)?;
        match found {
            Value::Object(_) => serde_json::from_value(found.clone()).ok(),
            // JSON has no way to write what is not a number but `null`.
            _ => Some(Estimate { value: found.as_f64().unwrap_or(f64::NAN), standard_error: None }),
        }
    }

    /// What was measured on each part of the data, with its name.
    pub fn parts(&self, task: &Task) -> Vec<(String, Measurements)> {
        let found = task.parts.and_then(|parts| self.0.pointer(parts)).and_then(Value::as_array);
        let named = |part: &Value| Some((part["name"].as_str()?.to_owned(), Measurements(part.clone())));
        found.into_iter().flatten().filter_map(named).collect()
    }

    /// The number at a JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<f64> {
        self.estimate(pointer).map(|estimate| estimate.value)
    }
}

/// What was lost of a base's number by a model that has `own`, as a share; `change` is the paired difference of both, if there is one.
pub(super) fn lost(measurements: &Measurements, own: &str, base: &str, change: Option<&str>) -> Option<Estimate> {
    let base = measurements.number(base)?;
    let error = change.and_then(|change| measurements.estimate(change)?.standard_error);
    Some(Estimate { value: 1.0 - measurements.number(own)? / base, standard_error: error.map(|error| error / base) })
}

impl Metric {
    /// Its value, if it was measured.
    pub fn value(&self, measurements: &Measurements) -> Option<f64> {
        measurements.number(self.at)
    }
}

/// Settings of a task that reads files: what differs between tasks. The rest of [`Settings`] is the same for all.
pub(super) trait ReadsFiles: fmt::Debug + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// See [`Settings::task`].
    const TASK: &'static Task;
    /// See [`Settings::files`].
    fn files(&self) -> Vec<PathBuf>;
    /// See [`Settings::check`].
    fn check(&self, config: &Config) -> Result<()>;
    /// See [`Settings::longest`].
    fn longest(&self) -> Option<usize>;
    /// See [`Settings::load`].
    fn load(&self) -> Option<&dyn Load> {
        None
    }
    /// See [`Settings::prepare`].
    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>>;
}

impl<T: ReadsFiles> Settings for T {
    fn task(&self) -> &'static Task {
        T::TASK
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<PathBuf> {
        ReadsFiles::files(self)
    }

    fn check(&self, config: &Config) -> Result<()> {
        ReadsFiles::check(self, config)
    }

    fn longest(&self) -> Option<usize> {
        ReadsFiles::longest(self)
    }

    fn load(&self) -> Option<&dyn Load> {
        ReadsFiles::load(self)
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        ReadsFiles::prepare(self, language)
    }
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    attar_tensor::read_text(path).map_err(|source| Error::Read { path: path.into(), source })
}

/// [`Task::parse`] for settings of type `T`.
pub(super) fn parse<T: ReadsFiles>(table: Value) -> std::result::Result<Box<dyn Settings>, Invalid> {
    attar_settings::parse::<T>(table).map(|settings| Box::new(settings) as Box<dyn Settings>)
}
