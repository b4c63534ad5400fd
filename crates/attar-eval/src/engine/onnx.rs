//! A decoder in ONNX Runtime, with its cache of keys and values.

use std::{error::Error as _, ops::Range, path::Path};

use ort::{
    session::{SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynValue, Outlet, Tensor},
};

/// Inputs of earlier keys and values begin so, and the outputs that replace them so.
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// Why the engine did not do what it was asked to. Travels as text.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The engine says so.
    #[error("{0}")]
    Engine(#[from] ort::Error),
    /// What was named as its library.
    #[error("{}{}", .0, because(.0))]
    Library(#[from] ort::LoadDynamicError),
    /// Settings are refused together with the half-built session.
    #[error("{0}")]
    Settings(String),
    /// A model that is no decoder of ours.
    #[error("the model's {what} `{name}` is {found}, {wanted} was expected")]
    Model { what: &'static str, name: String, found: String, wanted: &'static str },
    /// A request out of order.
    #[error("no model is open")]
    NotOpen,
    /// A request out of range.
    #[error("rows {rows:?} of {length} were asked for")]
    Rows { rows: Range<usize>, length: usize },
}

/// What the operating system says, which `ort` leaves out.
fn because(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => error.source().map(|why| format!(": {why}")).unwrap_or_default(),
        _ => String::new(),
    }
}

pub(super) struct Session {
    inner: ort::session::Session,
    past: Vec<Past>,
    length: usize,
    logits: Option<DynValue>,
}

/// Keys or values of one layer.
struct Past {
    input: String,
    output: String,
    /// Of one token: `[batch, heads, no token yet, head]`.
    empty: [i64; 4],
    value: DynValue,
}

impl Session {
    pub(super) fn open(library: &Path, model: &Path, exact: bool, threads: Option<usize>) -> Result<Session, Error> {
        let environment = ort::init_from(library)?.build()?;
        let settings = |error: ort::Error<_>| Error::Settings(error.to_string());
        let mut builder = ort::session::Session::builder(&environment)?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(settings)?;
        if exact {
            builder = builder.with_config_entry("session.qdq_matmulnbits_accuracy_level", "1").map_err(settings)?;
        }
        if let Some(threads) = threads {
            builder = builder.with_intra_threads(threads).map_err(settings)?;
        }
        let inner = builder.commit_from_file(model)?;
        let pasts = inner.inputs().iter().filter(|input| input.name().starts_with(PAST));
        let past = pasts.map(Past::of).collect::<Result<Vec<Past>, Error>>()?;
        Ok(Session { inner, past, length: 0, logits: None })
    }

    pub(super) fn feed(&mut self, tokens: &[u32], afresh: bool) -> Result<(), Error> {
        if afresh {
            self.length = 0;
            self.past.iter_mut().try_for_each(Past::clear)?;
        }
        let all = self.length + tokens.len();
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = Vec::new();
        for input in self.inner.inputs() {
            let numbers: Vec<i64> = match input.name() {
                "input_ids" => tokens.iter().map(|token| i64::from(*token)).collect(),
                "position_ids" => (self.length as i64..all as i64).collect(),
                "attention_mask" => vec![1; all],
                _ => continue,
            };
            inputs.push((input.name().into(), Tensor::from_array(([1, numbers.len()], numbers))?.into()));
        }
        inputs.extend(self.past.iter().map(|past| (past.input.clone(), (&past.value).into())));
        let outputs = self.inner.run(inputs)?;
        let outputs: Vec<(String, DynValue)> = outputs.into_iter().map(|(name, value)| (name.into(), value)).collect();
        self.length = all;
        self.keep(outputs);
        Ok(())
    }

    fn keep(&mut self, outputs: Vec<(String, DynValue)>) {
        for (name, value) in outputs {
            if name == "logits" {
                self.logits = Some(value);
            } else if let Some(past) = self.past.iter_mut().find(|past| past.output == name) {
                past.value = value;
            }
        }
    }

    /// Logits `[rows, vocabulary]` of the tokens fed last, and the vocabulary.
    pub(super) fn rows(&self, rows: Range<usize>) -> Result<(&[f32], usize), Error> {
        let logits = self.logits.as_ref().ok_or(Error::NotOpen)?;
        let (shape, values) = logits.try_extract_tensor::<f32>()?;
        let [1, length, vocabulary] = shape[..] else {
            let found = format!("{shape:?}");
            return Err(Error::Model { what: "output", name: "logits".into(), found, wanted: "[1, tokens, vocabulary]" });
        };
        let (length, vocabulary) = (length as usize, vocabulary as usize);
        if rows.start > rows.end || rows.end > length {
            return Err(Error::Rows { rows, length });
        }
        Ok((&values[rows.start * vocabulary..rows.end * vocabulary], vocabulary))
    }
}

impl Past {
    fn of(input: &Outlet) -> Result<Past, Error> {
        let shape: Vec<i64> = input.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
        let empty = match shape[..] {
            [_, heads, _, head] if heads > 0 && head > 0 => [1, heads, 0, head],
            _ => {
                let (name, found) = (input.name().into(), format!("{shape:?}"));
                return Err(Error::Model { what: "input", name, found, wanted: "[batch, a number, past, a number]" });
            }
        };
        let output = input.name().replacen(PAST, PRESENT, 1);
        Ok(Past { input: input.name().into(), output, empty, value: nothing(empty)? })
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.value = nothing(self.empty)?;
        Ok(())
    }
}

fn nothing(shape: [i64; 4]) -> Result<DynValue, Error> {
    Ok(Tensor::from_array((shape, Vec::<f32>::new()))?.into_dyn())
}
