//! What an engine is: the contract behind [`super::ENGINES`].
//!
//! An engine is somebody else's runtime. It is described by data (names, the package that holds it, the targets it opens,
//! its modes and devices) and by the [`Worker`] that runs it: a process that speaks [`super::protocol`] over its standard
//! streams. Nothing else in the project knows one engine from another.

use std::{fmt, ops::Range, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A runtime that opens what an export target writes.
pub struct Engine {
    /// The name in recipes, gates and flags, in lowercase.
    pub name: &'static str,
    /// The name its makers use.
    pub title: &'static str,
    /// Where it is installed.
    pub home: Home,
    /// The requirements file of the environment that it is tested in: pins, a line each. A program has none.
    pub pins: &'static str,
    /// What it opens.
    pub opens: &'static [Opens],
    /// How exactly it can compute; a compiler has none.
    pub modes: &'static [Mode],
    /// Devices it can run on, by the engine's own names; the first is the default.
    pub devices: &'static [&'static str],
    /// The process that runs it.
    pub worker: Worker,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({})", self.name)
    }
}

impl Engine {
    /// The version of its package that attar is tested with; none of what the machine has anyway.
    pub fn tested(&self) -> Option<&'static str> {
        let Home::Wheel(package) = &self.home else { return None };
        let pin = self.pins.lines().find_map(|line| line.strip_prefix(package.name)?.strip_prefix("=="));
        Some(pin.expect("an engine pins its package").trim())
    }

    /// What a path to it may be, in words.
    pub fn place(&self) -> &'static str {
        match self.home {
            Home::Wheel(_) => "a virtual environment, its Python, or the library",
            Home::Program(_) => "the program, or its folder",
        }
    }

    /// Its device of that name, whatever the case of its letters.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn device(&self, name: &str) -> crate::Result<&'static str> {
        self.devices.iter().copied().find(|device| device.eq_ignore_ascii_case(name)).ok_or_else(|| Error::UnknownDevice {
            found: name.into(),
            engine: self.name,
            known: self.devices.to_vec(),
        })
    }
}

/// Where an engine is installed.
pub enum Home {
    /// In a Python environment.
    Wheel(Package),
    /// On the search path.
    Program(Program),
}

impl Home {
    /// What to do where it is absent, in words.
    pub(super) fn way_in(&self) -> String {
        match self {
            Home::Wheel(package) => format!("{}; name its environment in", package.way_in()),
            Home::Program(program) => format!("{}; name it in", program.way_in),
        }
    }
}

/// A program that machines have.
pub struct Program {
    /// Its names on the search path, the first that is there counts.
    pub names: &'static [&'static str],
    /// The variable by which other tools find it.
    pub variable: &'static str,
    /// What to do where it is absent.
    pub way_in: &'static str,
}

/// A Python package with a shared library in it.
pub struct Package {
    /// The name on PyPI.
    pub name: &'static str,
    /// The name of its folder in `site-packages`.
    pub module: &'static str,
    /// The folder of its libraries, inside the package's folder.
    pub folder: &'static str,
    /// The library's file name up to the extension and without `lib`.
    pub library: &'static str,
    /// Folders in `site-packages` of other packages that decide its results.
    pub needs: &'static [&'static str],
    /// What installs it and is not `pip install` of its name.
    pub installer: Option<&'static str>,
}

impl Package {
    fn way_in(&self) -> String {
        match self.installer {
            Some(installer) => format!("`{installer}` in a checkout of attar installs it"),
            None => format!("`pip install {}` into a virtual environment", self.name),
        }
    }
}

/// An export target that an engine opens.
pub struct Opens {
    /// The target's name.
    pub target: &'static str,
    /// The file of the artifact that is loaded.
    pub file: &'static str,
}

/// The process that holds an engine.
pub enum Worker {
    /// This executable, which loads the engine's library at run time.
    Library(fn(&Load) -> Result<Box<dyn Session>, Failure>),
    /// For the Python interpreter of the environment that holds the package: the class `Session` that `worker.py` describes.
    Python(&'static str),
}

/// How exactly an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Activations stay f32 wherever the engine has the choice.
    Exact,
    /// The engine's own defaults, which may round activations.
    Default,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Exact => "exact",
            Mode::Default => "default",
        })
    }
}

/// What a worker is asked to load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Load {
    /// The engine's shared library, or its program.
    pub library: PathBuf,
    /// The artifact's file, one of [`Opens::file`].
    pub model: PathBuf,
    /// How exactly to compute.
    pub mode: Mode,
    /// One of [`Engine::devices`].
    pub device: String,
    /// Threads per operator; the engine decides if not given.
    pub threads: Option<usize>,
    /// For compilers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

/// What a compiler is to predict for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Tokens of the longest prompt.
    pub prompt: usize,
    /// Tokens of the longest answer.
    pub answer: usize,
}

/// Why a worker could not do what it was asked. It travels to the parent as text.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A model that is open in a worker.
pub trait Session {
    /// Names of the model's outputs, without those that carry keys and values to the next call.
    fn outputs(&self) -> Vec<String>;

    /// Runs tokens, after those fed before or as a new sequence.
    fn feed(&mut self, tokens: &[u32], afresh: bool) -> Result<(), Failure>;

    /// Whether [`Session::rewind`] works.
    fn rewinds(&self) -> bool {
        false
    }

    /// Forgets all tokens of the sequence behind the first `length`.
    fn rewind(&mut self, _length: usize) -> Result<(), Failure> {
        Err("the engine cannot forget a part of what it read".into())
    }

    /// Rows of an output for the tokens fed last, and the width of a row. An output without a dimension for tokens has
    /// one row.
    fn rows(&mut self, output: &str, rows: Range<usize>) -> Result<(&[f32], usize), Failure>;
}
