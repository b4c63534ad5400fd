//! `[[predict]]`: what a vendor's compiler predicts for a device, of the artifacts of a run.

use std::fmt;

use attar_eval::{Ask, COMPILERS, Engine, compiler};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result, document::Section};

/// A prediction that a recipe asks for. It belongs to the eval `device`, and its compiler is the runner: a gate on `device/latency` with
/// `runner = "openvino-npu"` judges it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Predict {
    /// The vendor's compiler.
    #[schemars(schema_with = "compilers")]
    compiler: String,
    /// The device to compile for, by the compiler's own name for it. Defaults to its first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Tokens of the longest prompt.
    #[serde(default = "long_prompt")]
    prompt: usize,
    /// Tokens of the longest answer.
    #[serde(default = "long_answer")]
    answer: usize,
    /// Whether the run fails if the compiler is not installed. A gate on a prediction that was not made fails in either case.
    #[serde(default = "yes")]
    pub(crate) required: bool,
}

/// OpenVINO GenAI's default on NPUs, as the next.
fn long_prompt() -> usize {
    1024
}

fn long_answer() -> usize {
    128
}

fn yes() -> bool {
    true
}

fn compilers(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<&str> = COMPILERS.iter().map(|compiler| compiler.name).collect();
    schemars::json_schema!({ "type": "string", "enum": names, "description": "The vendor's compiler." })
}

/// What is asked, and its place.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) predict: Predict,
    pub(crate) compiler: &'static Engine,
    pub(crate) key: String,
}

impl Predict {
    /// A table `[[predict]]`: its compiler and its device exist, and its lengths are not 0.
    pub(crate) fn of(section: Section<'_, '_>) -> Result<Wanted> {
        let key = section.key.clone();
        let document = section.document;
        let predict: Predict = section.finish(&[])?;
        let place = |error: attar_eval::Error, name: &str| {
            document.place(Error { kind: ErrorKind::Recipe, ..error.into() }, &format!("{key}.{name}"))
        };
        let compiler = compiler(&predict.compiler).map_err(|error| place(error, "compiler"))?;
        if let Some(device) = &predict.device {
            compiler.device(device).map_err(|error| place(error, "device"))?;
        }
        for (name, found) in [("prompt", predict.prompt), ("answer", predict.answer)] {
            if found == 0 {
                let error = Error::recipe(format!("`{name}` is 0")).hint("leave it out for its default".to_owned());
                return Err(document.place(error, &format!("{key}.{name}")));
            }
        }
        Ok(Wanted { predict, compiler, key })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Predict { prompt, answer, .. } = self.predict;
        write!(f, "{} for {}, prompts of {prompt} and answers of {answer} tokens", self.compiler.name, self.device())
    }
}

impl Wanted {
    /// What the compiler is asked.
    pub(crate) fn ask(&self) -> Ask {
        Ask { prompt: self.predict.prompt, answer: self.predict.answer }
    }

    /// The device that is compiled for.
    pub(crate) fn device(&self) -> &str {
        self.predict.device.as_deref().unwrap_or(self.compiler.devices[0])
    }
}

/// What to know where a model's texts are shorter than what is asked for.
pub fn beyond(Ask { prompt, answer }: Ask, context: Option<usize>) -> Option<String> {
    let context = context.filter(|context| prompt.saturating_add(answer) > *context)?;
    Some(format!("prompt and answer are longer than the {context} tokens of the model's context"))
}
