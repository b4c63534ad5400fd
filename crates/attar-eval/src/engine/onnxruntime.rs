//! ONNX Runtime, through its C library: a decoder with its cache of keys and values, or an encoder.

use std::{error::Error as _, ops::Range};

use ort::{
    session::{SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynValue, Outlet, Tensor},
};

use super::kind::{Engine, Failure, Home, Load, Mode, Opens, Package, Session, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "onnxruntime",
    title: "ONNX Runtime",
    home: Home::Wheel(Package {
        name: "onnxruntime",
        module: "onnxruntime",
        folder: "capi",
        library: "onnxruntime",
        needs: &[],
        installer: None,
    }),
    pins: include_str!("../../engines/onnxruntime.txt"),
    opens: &[Opens { target: "onnx", file: "model.onnx" }, Opens { target: "onnx-genai", file: "model.onnx" }],
    modes: &[Mode::Exact, Mode::Default],
    devices: &["CPU"],
    worker: Worker::Library(|load| Ok(Box::new(Model::open(load)?))),
};

/// Inputs of earlier keys and values begin so, and the outputs that replace them so.
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// Level 1 keeps f32 activations where the engine fuses `DequantizeLinear` and a product into `MatMulNBits`; by default
/// they become int8. A `MatMulNBits` in the file has a level of its own, in its `accuracy_level`, in both modes.
const EXACT: (&str, &str) = ("session.qdq_matmulnbits_accuracy_level", "1");

/// Why the engine did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The engine says so.
    #[error("{0}")]
    Engine(#[from] ort::Error),
    /// The file that should be its library.
    #[error("{}{}", .0, because(.0))]
    Library(#[from] ort::LoadDynamicError),
    /// Settings are refused together with the half-built session.
    #[error("{0}")]
    Settings(String),
    /// A model whose inputs or outputs are not those of our exports.
    #[error("the model's {what} `{name}` is {found}, expected {wanted}")]
    Model { what: &'static str, name: String, found: String, wanted: &'static str },
    /// A device that the library has no provider for.
    #[error("no device is named `{0}`")]
    Device(String),
    /// Rows before any token.
    #[error("no tokens have run")]
    NothingFed,
    /// A request out of range.
    #[error("rows {rows:?} were asked for, the output has {length}")]
    Rows { rows: Range<usize>, length: usize },
}

/// What the operating system says, which `ort` leaves out.
fn because(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => error.source().map(|why| format!(": {why}")).unwrap_or_default(),
        _ => String::new(),
    }
}

struct Model {
    inner: ort::session::Session,
    past: Vec<Past>,
    length: usize,
    /// Tokens of the last run.
    fed: usize,
    /// Of the last run, without keys and values.
    outputs: Vec<(String, DynValue)>,
}

/// Keys or values of one layer.
struct Past {
    input: String,
    output: String,
    /// The shape before the first token: `[batch, heads, 0, head size]`.
    empty: [i64; 4],
    value: DynValue,
}

impl Model {
    fn open(load: &Load) -> Result<Model, Error> {
        if !ENGINE.devices.contains(&load.device.as_str()) {
            return Err(Error::Device(load.device.clone()));
        }
        let environment = ort::init_from(&load.library)?.build()?;
        let settings = |error: ort::Error<_>| Error::Settings(error.to_string());
        let mut builder = ort::session::Session::builder(&environment)?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(settings)?;
        if load.mode == Mode::Exact {
            builder = builder.with_config_entry(EXACT.0, EXACT.1).map_err(settings)?;
        }
        if let Some(threads) = load.threads {
            builder = builder.with_intra_threads(threads).map_err(settings)?;
        }
        let inner = builder.commit_from_file(&load.model)?;
        let pasts = inner.inputs().iter().filter(|input| input.name().starts_with(PAST));
        let past = pasts.map(Past::of).collect::<Result<Vec<Past>, Error>>()?;
        Ok(Model { inner, past, length: 0, fed: 0, outputs: Vec::new() })
    }

    fn run(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let after = self.length + tokens.len();
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = Vec::new();
        for input in self.inner.inputs() {
            let numbers: Vec<i64> = match input.name() {
                "input_ids" => tokens.iter().map(|token| i64::from(*token)).collect(),
                "position_ids" => (self.length as i64..after as i64).collect(),
                "attention_mask" => vec![1; after],
                "token_type_ids" => vec![0; tokens.len()],
                _ => continue,
            };
            inputs.push((input.name().into(), Tensor::from_array(([1, numbers.len()], numbers))?.into()));
        }
        inputs.extend(self.past.iter().map(|past| (past.input.clone(), (&past.value).into())));
        let outputs = self.inner.run(inputs)?;
        let outputs: Vec<(String, DynValue)> = outputs.into_iter().map(|(name, value)| (name.into(), value)).collect();
        (self.length, self.fed) = (after, tokens.len());
        self.keep(outputs);
        Ok(())
    }

    fn keep(&mut self, outputs: Vec<(String, DynValue)>) {
        self.outputs.clear();
        for (name, value) in outputs {
            match self.past.iter_mut().find(|past| past.output == name) {
                Some(past) => past.value = value,
                None => self.outputs.push((name, value)),
            }
        }
    }

    fn part(&self, output: &str, rows: Range<usize>) -> Result<(&[f32], usize), Error> {
        let (name, value) = self.outputs.iter().find(|(name, _)| name == output).ok_or(Error::NothingFed)?;
        let (shape, values) = value.try_extract_tensor::<f32>()?;
        let (length, width) = match shape[..] {
            [1, width] => (1, width as usize),
            [1, length, width] => (length as usize, width as usize),
            _ => {
                let found = format!("{shape:?}");
                return Err(Error::Model {
                    what: "output",
                    name: name.clone(),
                    found,
                    wanted: "[1, width] or [1, tokens, width]",
                });
            }
        };
        // A model that returns the last token's row alone has it where the last token is.
        let rows = if length == 1 && rows == (self.fed.saturating_sub(1)..self.fed) { 0..1 } else { rows };
        if rows.start > rows.end || rows.end > length {
            return Err(Error::Rows { rows, length });
        }
        Ok((&values[rows.start * width..rows.end * width], width))
    }
}

impl Session for Model {
    fn outputs(&self) -> Vec<String> {
        let names = self.inner.outputs().iter().map(|output| output.name().to_owned());
        names.filter(|name| !name.starts_with(PRESENT)).collect()
    }

    fn feed(&mut self, tokens: &[u32], afresh: bool) -> Result<(), Failure> {
        if afresh {
            self.length = 0;
            self.past.iter_mut().try_for_each(Past::clear)?;
        }
        Ok(self.run(tokens)?)
    }

    fn rewinds(&self) -> bool {
        true
    }

    fn rewind(&mut self, length: usize) -> Result<(), Failure> {
        if length > self.length {
            return Err(format!("{length} tokens should stay of {}", self.length).into());
        }
        self.past.iter_mut().try_for_each(|past| past.cut(length))?;
        self.length = length;
        Ok(())
    }

    fn rows(&mut self, output: &str, rows: Range<usize>) -> Result<(&[f32], usize), Failure> {
        Ok(self.part(output, rows)?)
    }
}

impl Past {
    fn of(input: &Outlet) -> Result<Past, Error> {
        let shape: Vec<i64> = input.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
        let empty = match shape[..] {
            [_, heads, _, head] if heads > 0 && head > 0 => [1, heads, 0, head],
            _ => {
                let (name, found) = (input.name().into(), format!("{shape:?}"));
                return Err(Error::Model {
                    what: "input",
                    name,
                    found,
                    wanted: "[batch, heads, past, head size] with fixed heads and head size",
                });
            }
        };
        let output = input.name().replacen(PAST, PRESENT, 1);
        Ok(Past { input: input.name().into(), output, empty, value: nothing(empty)? })
    }

    /// Keeps the first `length` positions.
    fn cut(&mut self, length: usize) -> Result<(), Error> {
        let (shape, values) = self.value.try_extract_tensor::<f32>()?;
        let [_, heads, positions, head] = shape[..] else { unreachable!("the input had four dimensions") };
        let (positions, head) = (positions as usize * head as usize, head as usize);
        // Chunks of no length are no chunks.
        let kept: Vec<f32> = values.chunks(positions.max(1)).flat_map(|values| values[..length * head].iter().copied()).collect();
        self.value = Tensor::from_array(([1, heads, length as i64, head as i64], kept))?.into_dyn();
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.value = nothing(self.empty)?;
        Ok(())
    }
}

fn nothing(shape: [i64; 4]) -> Result<DynValue, Error> {
    Ok(Tensor::from_array((shape, Vec::<f32>::new()))?.into_dyn())
}
