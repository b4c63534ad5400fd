//! Every way a run can end badly, and the exit code each deserves.

use std::{ops::Range, path::PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::{shown, shown_on_a_line};

/// The result of anything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Wrong usage or recipe: 2.
    Recipe,
    /// The model, the data or the machine cannot be used: 3.
    Input,
    /// A bound that the recipe sets is not met: 1, as for a gate.
    Bound,
    /// Somebody asked to stop: 130.
    Interrupted,
}

/// A failure that can be shown: what, because of what, where, and what to do.
#[derive(Debug)]
pub struct Error {
    /// Decides the exit code.
    pub kind: ErrorKind,
    /// What failed.
    pub message: String,
    /// Because of what, outermost first.
    pub causes: Vec<String>,
    /// The place in the recipe.
    pub place: Option<Place>,
    /// The way out.
    pub hint: Option<String>,
}

/// A place in a text.
#[derive(Debug)]
pub struct Place {
    /// The recipe.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Bytes of the text.
    pub span: Range<usize>,
}

impl Error {
    /// A mistake in a recipe or in usage.
    pub fn recipe(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Recipe, message: message.into(), causes: Vec::new(), place: None, hint: None }
    }

    /// A model, data or a machine that cannot be used.
    pub fn input(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Input, ..Error::recipe(message) }
    }

    /// Somebody asked to stop.
    pub fn interrupted() -> Error {
        let hint = "finished work is kept: the same command goes on from here".to_owned();
        Error { kind: ErrorKind::Interrupted, hint: Some(hint), ..Error::recipe("interrupted") }
    }

    /// With a way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Option<String>>) -> Error {
        self.hint = hint.into().or(self.hint);
        self
    }

    /// With its causes.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Error {
        let mut next = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !self.message.contains(&text) && self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    /// With a place.
    #[must_use]
    pub fn at(mut self, path: &std::path::Path, text: &str, span: Range<usize>) -> Error {
        self.place.get_or_insert(Place { path: path.into(), text: text.into(), span });
        self
    }

    /// The process's answer.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Bound => 1,
            ErrorKind::Recipe => 2,
            ErrorKind::Input => 3,
            ErrorKind::Interrupted => 130,
        }
    }

    /// For people.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let (message, causes) = (shown(&self.message), self.causes.iter().map(|cause| shown(cause)));
        let mut title = Level::ERROR
            .primary_title(message)
            .elements(causes.map(|cause| annotate_snippets::Element::from(Level::NOTE.with_name("caused by").message(cause))));
        let path = self.place.as_ref().map(|place| shown_on_a_line(&place.path.display().to_string()));
        if let (Some(place), Some(path)) = (&self.place, &path) {
            let span = place.span.start.min(place.text.len())..place.span.end.min(place.text.len());
            title = title.element(
                Snippet::source(place.text.as_str())
                    .path(path.as_str())
                    .line_start(1)
                    .annotation(AnnotationKind::Primary.span(span)),
            );
        }
        let mut text = renderer.render(&[title]).to_string();
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {}", shown(hint)));
        }
        text
    }

    /// For machines.
    pub fn to_json(&self) -> serde_json::Value {
        let place = self.place.as_ref().map(|place| {
            let (line, column) = line_column(&place.text, place.span.start);
            serde_json::json!({ "path": place.path, "line": line, "column": column })
        });
        serde_json::json!({
            "error": self.message, "causes": self.causes, "place": place, "hint": self.hint, "exit_code": self.exit_code(),
        })
    }
}

/// From 1.
pub(crate) fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1)
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The message is the outermost sentence; its sources become the causes.
fn input_error(error: &dyn std::error::Error, hint: Option<String>) -> Error {
    let mut converted = Error::input(error.to_string()).hint(hint);
    if let Some(source) = error.source() {
        converted = converted.because(source);
    }
    converted
}

impl From<attar_tensor::Error> for Error {
    fn from(error: attar_tensor::Error) -> Error {
        input_error(&error, error.hint())
    }
}

impl From<attar_graph::Error> for Error {
    fn from(error: attar_graph::Error) -> Error {
        let hint = match &error {
            attar_graph::Error::Tensor(tensor) => tensor.hint(),
            _ => None,
        };
        input_error(&error, hint)
    }
}

impl From<attar_model::Error> for Error {
    fn from(error: attar_model::Error) -> Error {
        input_error(&error, error.hint())
    }
}

impl From<attar_export::Error> for Error {
    fn from(error: attar_export::Error) -> Error {
        input_error(&error, error.hint())
    }
}

impl From<attar_eval::Error> for Error {
    fn from(error: attar_eval::Error) -> Error {
        let kind = if error.key().is_some() { ErrorKind::Recipe } else { ErrorKind::Input };
        Error { kind, ..input_error(&error, error.hint()) }
    }
}

impl From<attar_compile::Error> for Error {
    fn from(error: attar_compile::Error) -> Error {
        let kind = if device_key(&error).is_some() { ErrorKind::Recipe } else { ErrorKind::Input };
        Error { kind, ..input_error(&error, error.hint()) }
    }
}

/// The setting that chose a device which there is not or cannot be.
pub(crate) fn device_key(error: &attar_compile::Error) -> Option<&'static str> {
    use attar_compile::Error::{
        Batch, DeviceCannot, DeviceCycle, DeviceKey, DeviceMissing, DevicePair, DeviceRead, DeviceSram, DeviceSyntax,
        DeviceUnknown, DeviceUsable, DeviceValue, Drafts, Encoder, MemoryTooSmall, Verify,
    };
    match error {
        DeviceUnknown { .. } | DeviceRead { .. } | DeviceSyntax { .. } | DeviceCycle { .. } => Some("device"),
        DeviceUsable { .. } | DeviceSram { .. } | DevicePair { .. } | DeviceCannot { .. } => Some("device"),
        Verify { .. } | Drafts { .. } => Some("verify"),
        Batch { .. } => Some("batch"),
        Encoder { setting } => Some(setting),
        DeviceKey { .. } | DeviceValue { .. } | DeviceMissing { .. } | MemoryTooSmall { .. } => Some("set"),
        _ => None,
    }
}

impl From<attar_compress::Error> for Error {
    fn from(error: attar_compress::Error) -> Error {
        input_error(&error, error.hint())
    }
}
