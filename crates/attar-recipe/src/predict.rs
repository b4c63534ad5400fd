//! `[[predict]]`: what a vendor's compiler predicts for a device, of the artifacts of a run.

use attar_eval::{Ask, COMPILERS, DEFAULT_TASK, DEVICE, Engine, Evaluation, Mode, Outcome, compiler};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{Engines, Error, ErrorKind, Existing, Recipe, Result, document::Section, measure::Subject, recipe};

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
    required: bool,
}

/// As OpenVINO GenAI has them on NPUs.
const LONGEST: [usize; 2] = [1024, 128];

fn long_prompt() -> usize {
    LONGEST[0]
}

fn long_answer() -> usize {
    LONGEST[1]
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
pub(crate) struct Asked {
    pub(crate) predict: Predict,
    pub(crate) compiler: &'static Engine,
    key: String,
}

impl Predict {
    /// Of `compiler`, for prompts and answers as long as usual.
    pub(crate) fn of(section: Section<'_, '_>) -> Result<Asked> {
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
        Ok(Asked { predict, compiler, key })
    }
}

impl Asked {
    fn device(&self) -> &str {
        self.predict.device.as_deref().unwrap_or(self.compiler.devices[0])
    }

    /// Fails if the compiler opens nothing that the recipe exports, or measures.
    pub(crate) fn check(&self, recipe: &Recipe) -> Result<()> {
        let place = |error: Error| recipe.document.place(error, &self.key);
        match recipe.subject() {
            recipe::Subject::Model(_) => recipe.check_exported(self.compiler, "a prediction").map_err(place),
            recipe::Subject::Artifact(path) => Existing::check(path, self.compiler).map_err(place),
        }
    }

    /// Fails if the run needs the compiler and it is not here.
    pub(crate) fn check_needs(&self, recipe: &Recipe, engines: &Engines) -> Result<()> {
        let judged = recipe.gates.iter().any(|gate| gate.runner == self.compiler.name);
        match engines.find(self.compiler) {
            Err(error) if self.predict.required && !judged => {
                Err(recipe.document.place(error.into(), &format!("{}.compiler", self.key)))
            }
            _ => Ok(()),
        }
    }

    /// The prediction, if the compiler is here.
    pub(crate) fn evaluate(&self, subject: &Subject<'_>, engines: &Engines) -> Result<Evaluation> {
        let Predict { prompt, answer, .. } = self.predict;
        let outcome = match subject.run_by(self.compiler, Mode::Default, Some(self.device()), engines) {
            Err(missing) => Outcome::Skipped { reason: missing.to_string() },
            Ok(artifact) => Outcome::Predicted(artifact.predict(Ask { prompt, answer })?),
        };
        Ok(Evaluation {
            eval: DEVICE.into(),
            task: DEFAULT_TASK.into(),
            variant: subject.variant.map(Into::into),
            runner: self.compiler.name.into(),
            mode: None,
            device: Some(self.device().into()),
            outcome,
        })
    }
}
