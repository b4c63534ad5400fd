//! A change of the text of a recipe: what it does, and what it takes.

use toml_edit::DocumentMut;

use super::edit;

/// The most that a way takes.
pub(super) const TRAINING: u8 = 2;

pub(super) const BITS: &str = "nothing else";
pub(super) const LOOKS: &str = "calibration: one pass of the text through two models";
pub(super) const TRAINS: &str = "training: some passes of the text, with gradients";

/// A part of a recipe that changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// The step of a key.
    Step(String),
    /// A step of that kind, with nothing but defaults, which is new.
    New(&'static str),
    /// `[data.calibration]`.
    Calibration,
}

impl Part {
    pub(super) fn told(&self, document: &mut DocumentMut) -> Option<String> {
        match self {
            Part::Step(key) => edit::told(document, key),
            Part::New(kind) => Some(format!("# behind it\n[[step]]\nkind = \"{kind}\"\n")),
            Part::Calibration => Some(format!("[data.calibration]\n{}", document["data"]["calibration"])),
        }
    }
}

/// A change of the text, and what it does.
pub(super) struct Change<'k> {
    pub(super) what: String,
    /// What it leaves of the noise of rounding, or of what a smaller shape lost.
    pub(super) noise: f64,
    pub(super) bytes: f64,
    pub(super) cost: &'static str,
    pub(super) effort: u8,
    /// Which of the two.
    pub(super) of_shape: bool,
    pub(super) make: Edit<'k>,
}

/// Changes the text of a recipe, if it is written so that it can be.
pub(super) type Edit<'k> = Box<dyn Fn(&mut DocumentMut) -> Option<Part> + 'k>;
