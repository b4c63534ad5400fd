//! The recipe as typed settings.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use attar_compress::TextSource;
use attar_eval::{Against, Bound, DEFAULT_TASK, DEVICE, Engine, Gate, Mode, PREDICTED, PRESETS, Settings, TASKS, WrittenGate};
use attar_export::{Format, TARGETS, Target};
use attar_model::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, Result,
    baseline::Baseline,
    data::Data,
    document::{self, Document, Section, fields},
    extras::numbered,
    files::name_of,
    lock::Lock,
    output::{Output, PROMISED, STATE, STORE},
    predict::{Predict, Wanted},
    profile::{For, Profile},
    runner::RunnerKind,
    settings::of,
    source::ModelSetting,
    step::{STEPS, Step, StepError, StepKind},
};

/// The settings at the top of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Head {
    /// Version of the recipe format: 1.
    pub(crate) recipe: u32,
    /// The checkpoint: a Hugging Face folder, a GGUF file or a folder that attar wrote, relative to the current folder,
    /// like every path. Or a table `[model]` with `path` and `ignore`.
    #[serde(default)]
    pub(crate) model: Option<ModelSetting>,
    /// In place of `model`: the folder of an artifact that exists already, such as one that `attar export` wrote. Real
    /// engines measure it as it is.
    #[serde(default)]
    pub(crate) artifact: Option<PathBuf>,
    /// The checkpoint that evals compare with, written like `model`, or `false` for none. By default `model` as it is before its steps; an
    /// `artifact` is compared with nothing.
    #[serde(default)]
    pub(crate) baseline: Option<Baseline>,
    /// Output folder: artifacts, reports, and the store unless `store` is set.
    pub(crate) output: PathBuf,
    /// Where finished units of work are cached; `OUTPUT/.attar/store` by default. Recipes can share a store by naming
    /// it.
    #[serde(default)]
    pub(crate) store: Option<PathBuf>,
    /// Texts that steps read.
    #[serde(default)]
    pub(crate) data: Data,
    /// Keep the store after a finished run, so that the next run reuses everything that has not changed.
    #[serde(default = "yes")]
    pub(crate) keep_store: bool,
}

fn yes() -> bool {
    true
}

/// What a recipe is about.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// A checkpoint, which steps change, exports write and evals measure.
    Model(&'a ModelSetting),
    /// An artifact that exists, which evals measure.
    Artifact(&'a Path),
}

/// What evals compare with.
#[derive(Clone, Copy)]
pub(crate) enum Compared<'a> {
    /// The model before its steps.
    WithItself,
    /// Another checkpoint.
    With(&'a ModelSetting),
    WithNothing,
}

/// A recipe.
#[derive(Debug)]
pub struct Recipe {
    pub(crate) document: Document,
    pub(crate) head: Head,
    /// What is made: one variant without a name, if the recipe lists none.
    pub variants: Vec<Variant>,
    /// Artifacts to write for each variant.
    pub exports: Vec<Export>,
    /// What to measure on each variant.
    pub evals: Vec<Eval>,
    /// What compilers of vendors are asked.
    pub(crate) predictions: Vec<Wanted>,
    pub(crate) gates: Vec<Gate>,
}

/// One way through the steps.
#[derive(Debug)]
pub struct Variant {
    /// Empty for the only one.
    pub name: String,
    /// The recipe's steps, then its own, each with its place in the recipe.
    pub(crate) steps: Vec<(String, std::sync::Arc<dyn Step>)>,
}

impl Variant {
    /// For progress and messages.
    pub(crate) fn title(&self) -> &str {
        if self.name.is_empty() { "model" } else { &self.name }
    }

    /// The kinds of the steps that leave folders, and the folders.
    fn folders(&self) -> Vec<(&'static str, String)> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for (_, step) in &self.steps {
            let kind = step.kind();
            let earlier = found.iter().filter(|(other, _)| *other == kind.name).count();
            found.extend(kind.folder.map(|name| (kind.name, numbered(name, earlier))));
        }
        found
    }
}

/// `[[export]]`.
#[derive(Clone)]
pub struct Export {
    /// How.
    pub target: &'static Target,
    /// Where, under the output folder and the variant's name.
    pub folder: String,
    /// In which form.
    pub format: std::sync::Arc<dyn Format>,
    /// For which device, if it is for one.
    pub profile: Option<&'static Profile>,
    /// The only variant that is written; every one, without a name.
    pub variant: Option<String>,
    pub(crate) key: String,
}

impl<'a> Subject<'a> {
    /// Where it is.
    pub(crate) fn path(self) -> &'a Path {
        match self {
            Subject::Model(model) => &model.path,
            Subject::Artifact(path) => path,
        }
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Export({} to {})", self.target.name, self.folder)
    }
}

/// The part of `[[export]]` that every target has.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ExportHead {
    /// Folder below the output folder (and the variant's folder). Defaults to the name of the device, or of the target.
    #[serde(default)]
    folder: Option<String>,
    /// The device that it is for: chooses target and options, and refuses weights that the device does not take.
    #[serde(default, rename = "for")]
    profile: Option<For>,
    /// The variant to write; every one, if not given.
    #[serde(default)]
    variant: Option<String>,
}

/// `[[eval]]`.
#[derive(Debug)]
pub struct Eval {
    /// First part of its metrics' names.
    pub name: String,
    /// Who runs the model.
    pub runners: Vec<(RunnerKind, Mode)>,
    /// The device of its engines; each engine's default if not given.
    pub device: Option<String>,
    /// Whether a runner that is not there is a failure.
    pub required: bool,
    /// What is measured, and on what.
    pub task: Box<dyn Settings>,
    pub(crate) key: String,
}

impl Eval {
    /// The engines among its runners, each once.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &'static Engine> {
        let mut engines: Vec<&'static Engine> = self.runners.iter().filter_map(|(runner, _)| runner.engine()).collect();
        engines.dedup_by_key(|engine| engine.name);
        engines.into_iter()
    }
}

/// The part of `[[eval]]` that every task has.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct EvalHead {
    /// Prefix of the metrics' names: `NAME/perplexity`.
    pub(crate) name: String,
    /// Who runs the model: `reference` is our own graph on the weights as they will be written, the others are real
    /// engines on the written artifact.
    #[serde(default = "reference_only")]
    pub(crate) runners: Vec<RunnerKind>,
    /// For real engines: `exact` keeps activations in f32, `default` uses the engine's default settings. Without it, both:
    /// what a user of the engine gets is what it does by default.
    #[serde(default)]
    pub(crate) modes: Option<Vec<Mode>>,
    /// For real engines: the device to run on, by the engine's own name for it, such as `GPU`. Defaults to the CPU.
    #[serde(default)]
    pub(crate) device: Option<String>,
    /// Whether the run fails if a runner is not installed. A gate on an eval that did not run fails in either case.
    #[serde(default = "yes")]
    pub(crate) required: bool,
}

fn reference_only() -> Vec<RunnerKind> {
    vec![RunnerKind::Reference]
}

/// The part of `[[variant]]` that is not its steps.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct VariantHead {
    /// Name of the variant, and of its folder.
    pub(crate) name: String,
}

impl Recipe {
    /// From the text of a file.
    pub fn parse(path: &Path, text: &str) -> Result<Recipe> {
        let (document, root) = document::parse(path.into(), text)?;
        let mut root = Section::root(&document, root);
        let lists = ["step", "variant", "export", "eval", "predict", "gate"].map(String::from);
        root.check_known(&[&of::<Head>()], &lists)?;
        let shared = steps(root.take_tables("step")?)?;
        let mut variants = Vec::new();
        for section in root.take_tables("variant")? {
            variants.push(variant(section, &shared)?);
        }
        let artifact = root.has("artifact");
        if variants.is_empty() && !(artifact && shared.is_empty()) {
            variants.push(Variant { name: String::new(), steps: shared });
        }
        let exports = root.take_tables("export")?.into_iter().map(export).collect::<Result<Vec<_>>>()?;
        let evals = root.take_tables("eval")?.into_iter().map(eval).collect::<Result<Vec<_>>>()?;
        let predictions = root.take_tables("predict")?.into_iter().map(Predict::of).collect::<Result<Vec<_>>>()?;
        let gates = root.take_tables("gate")?.into_iter().map(gate).collect::<Result<Vec<_>>>()?;
        let mut head: Head = root.finish(&lists)?;
        if variants.iter().flat_map(|variant| &variant.steps).any(|(_, step)| step.needs_text()) {
            head.data.calibration.get_or_insert_default();
        }
        let recipe = Recipe { head, variants, exports, evals, predictions, gates, document: document.clone() };
        recipe.check()?;
        Ok(recipe)
    }

    /// The name of its file; of a command that stands for a recipe, `attar` and the verb.
    pub(crate) fn name(&self) -> String {
        let title = self.document.path.to_string_lossy();
        match title.strip_prefix("attar ").and_then(|rest| rest.split(' ').next()) {
            Some(verb) => format!("attar {verb}"),
            None => name_of(&self.document.path),
        }
    }

    /// Output folder: artifacts, reports, and the store unless `store` is set.
    pub fn output(&self) -> &Path {
        &self.head.output
    }

    /// Texts that steps read.
    pub(crate) fn data(&self) -> &Data {
        &self.head.data
    }

    /// Whether steps read texts.
    pub(crate) fn has_texts(&self) -> bool {
        self.calibration().is_some() || self.training().is_some()
    }

    /// The text that activations are seen on.
    pub(crate) fn calibration(&self) -> Option<&attar_compress::Calibration> {
        self.head.data.calibration.as_ref()
    }

    /// The text that models are trained on, if it is one of its own.
    pub(crate) fn training(&self) -> Option<&attar_compress::TrainingText> {
        self.head.data.train.as_ref()
    }

    /// What the recipe is about.
    pub(crate) fn subject(&self) -> Subject<'_> {
        match (&self.head.model, &self.head.artifact) {
            (Some(model), None) => Subject::Model(model),
            (_, artifact) => Subject::Artifact(artifact.as_deref().expect("one of both: checked when parsed")),
        }
    }

    /// What evals compare with.
    pub(crate) fn compared(&self) -> Compared<'_> {
        match (&self.head.baseline, self.subject()) {
            (Some(Baseline::Checkpoint(path)), _) => Compared::With(path),
            (None, Subject::Model(_)) => Compared::WithItself,
            (None, Subject::Artifact(_)) | (Some(Baseline::Nothing), _) => Compared::WithNothing,
        }
    }

    /// Opens a checkpoint; a failure points at `key`.
    pub(crate) fn open_checkpoint(&self, checkpoint: &ModelSetting, key: &str) -> Result<Model> {
        Model::open_with(&checkpoint.path, &checkpoint.options()).map_err(|e| self.document.place(e.into(), key))
    }

    /// Whether a model of that configuration can see the texts so. They are not read.
    pub(crate) fn check_texts(&self, config: &attar_model::Config) -> Result<()> {
        let refused = |text: &str, e: attar_compress::Error| {
            let key = format!("data.{text}.{}", e.key().unwrap_or_default());
            self.document.place(Error { kind: ErrorKind::Recipe, ..e.into() }, &key)
        };
        self.calibration().map_or(Ok(()), |text| text.check(config)).map_err(|e| refused("calibration", e))?;
        self.training().map_or(Ok(()), |text| text.check(config)).map_err(|e| refused("train", e))
    }

    /// Where finished units of work are kept.
    pub(crate) fn store(&self, output: &Output) -> PathBuf {
        self.head.store.clone().unwrap_or_else(|| output.store())
    }

    /// The folder of an artifact, relative to the output folder.
    pub(crate) fn folder(&self, variant: &str, folder: &str) -> String {
        let only = self.variants.len() == 1 && variant.is_empty();
        if only { folder.into() } else { format!("{variant}/{folder}") }
    }

    /// Why the step at `key` failed, at the setting that it is about.
    pub(crate) fn failed_step(&self, key: &str, kind: &StepKind, failure: StepError) -> Error {
        let Some(setting) = failure.key else { return failure.error };
        let number = key.trim_end_matches(']').rsplit('[').next().and_then(|n| n.parse::<usize>().ok()).map_or(0, |n| n + 1);
        let mut error = failure.error;
        let subject = setting.split('[').next().unwrap_or_default();
        let title = format!("step {number} (`{}`): `{subject}` cannot be used", kind.name);
        let detail = std::mem::replace(&mut error.message, title);
        error.causes.insert(0, detail);
        self.document.place(error, &format!("{key}.{setting}"))
    }

    /// What a target refuses is the recipe's fault.
    pub(crate) fn refused_export(&self, export: &Export, error: attar_export::Error) -> Error {
        let option = if let attar_export::Error::Option { key, .. } = &error { Some(*key) } else { None };
        let error = Error { kind: ErrorKind::Recipe, ..Error::from(error) };
        match option {
            Some(option) if !export.key.is_empty() => self.document.place(error, &format!("{}.{option}", export.key)),
            _ => self.at_export(export, error),
        }
    }

    /// `error` at an export, if the recipe has it.
    pub(crate) fn at_export(&self, export: &Export, error: Error) -> Error {
        if export.key.is_empty() { error } else { self.document.place(error, &export.key) }
    }

    /// Everything that decides the result, with every default filled in.
    pub fn settings(&self) -> serde_json::Value {
        let steps = |variant: &Variant| -> Vec<serde_json::Value> {
            variant.steps.iter().map(|(_, s)| serde_json::json!({ "kind": s.kind().name, "settings": s.settings() })).collect()
        };
        let mut settings = serde_json::json!({
            "recipe": self.head.recipe,
            "model": self.head.model,
            "calibration": self.head.data.calibration,
            "variants": self.variants.iter().map(|v| serde_json::json!({ "name": v.name, "steps": steps(v) })).collect::<Vec<_>>(),
            "exports": self.exports.iter().map(Export::settings).collect::<Vec<_>>(),
            "evals": self.evals.iter().map(|e| serde_json::json!({ "name": e.name, "task": e.task.task().name, "runners": e.runners, "required": e.required, "settings": e.task.settings() })).collect::<Vec<_>>(),
            "gates": self.gates,
        });
        let predictions: Vec<&Predict> = self.predictions.iter().map(|asked| &asked.predict).collect();
        // Recipes without these keys keep their digests.
        let more = [
            ("artifact", serde_json::json!(self.head.artifact)),
            ("baseline", serde_json::json!(self.head.baseline)),
            ("training", serde_json::json!(self.training())),
            ("predictions", serde_json::json!((!predictions.is_empty()).then_some(predictions))),
        ];
        for (key, value) in more.into_iter().filter(|(_, value)| !value.is_null()) {
            settings[key] = value;
        }
        settings
    }

    /// Who the output folder belongs to.
    pub(crate) fn owner(&self) -> String {
        self.document.path.display().to_string()
    }

    fn check(&self) -> Result<()> {
        if self.head.recipe != 1 {
            let error = Error::recipe(format!("recipe format {} is not known", self.head.recipe))
                .hint("this attar reads format 1".to_owned());
            return Err(self.document.place(error, "recipe"));
        }
        self.check_subject()?;
        self.check_paths()?;
        self.check_names("variant", self.variants.iter().map(|v| v.name.as_str()))?;
        self.check_names("eval", self.evals.iter().map(|e| e.name.as_str()))?;
        self.check_folders()?;
        for export in &self.exports {
            if let Some(variant) = &export.variant {
                self.check_variant("an export", variant, &format!("{}.variant", export.key))?;
            }
        }
        for (i, gate) in self.gates.iter().enumerate() {
            self.check_gate(i, gate)?;
        }
        for eval in &self.evals {
            self.check_runners(eval)?;
        }
        match self.subject() {
            Subject::Model(_) => self.predictions.iter().try_for_each(|asked| {
                self.check_exported(asked.compiler, "a prediction").map_err(|e| self.document.place(e, &asked.key))
            }),
            Subject::Artifact(_) => Ok(()),
        }
    }

    /// A recipe is about a model or an artifact, and nothing is made of an artifact.
    fn check_subject(&self) -> Result<()> {
        let refused =
            |message: &str, hint: &str, key: &str| Err(self.document.place(Error::recipe(message).hint(hint.to_owned()), key));
        match (&self.head.model, &self.head.artifact) {
            (None, None) => refused("the recipe has no `model`", "`model` is a checkpoint, `artifact` a folder to measure", ""),
            (Some(_), Some(_)) => refused("`model` and `artifact` exclude each other", "leave one of them out", "artifact"),
            (Some(_), None) => Ok(()),
            (None, Some(_)) => {
                let steps = self.variants.iter().flat_map(|variant| &variant.steps).map(|(key, _)| key.clone());
                let variants = (!self.variants.is_empty()).then(|| "variant[0]".to_owned());
                match steps.chain(variants).chain(self.exports.iter().map(|export| export.key.clone())).next() {
                    None => Ok(()),
                    Some(key) => {
                        let hint = "name the checkpoint that it was made from as `model` to change or export that";
                        refused("an `artifact` is measured as it is: it has no steps, variants and exports", hint, &key)
                    }
                }
            }
        }
    }

    /// Every path that the recipe names, with its place.
    fn paths(&self) -> Vec<(String, PathBuf)> {
        let written = [("output", Some(&self.head.output)), ("store", self.head.store.as_ref())];
        let written = written.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path?.clone())));
        written.chain(self.inputs()).collect()
    }

    /// Every path that the recipe reads, with its place.
    fn inputs(&self) -> Vec<(String, PathBuf)> {
        let head = &self.head;
        let baseline = match &head.baseline {
            Some(Baseline::Checkpoint(checkpoint)) => Some(&checkpoint.path),
            Some(Baseline::Nothing) | None => None,
        };
        let named = [
            ("model", head.model.as_ref().map(|model| &model.path)),
            ("artifact", head.artifact.as_ref()),
            ("baseline", baseline),
        ];
        let texts = [
            ("data.calibration.path", self.calibration().and_then(|text| text.path.as_ref())),
            ("data.train.path", self.training().map(|text| &text.path)),
        ];
        let mut paths: Vec<(String, PathBuf)> =
            named.into_iter().chain(texts).filter_map(|(key, path)| Some((key.to_owned(), path?.clone()))).collect();
        let sources = self.calibration().into_iter().flat_map(|text| &text.sources).enumerate();
        let path =
            |(at, source): (usize, &TextSource)| Some((format!("data.calibration.sources[{at}].path"), source.path.clone()?));
        paths.extend(sources.filter_map(path));
        paths.extend(self.step_files());
        paths.extend(self.step_checkpoints());
        let of_eval = |eval: &Eval| eval.task.files().into_iter().map(|file| (format!("{}.data", eval.key), file)).collect();
        paths.extend(self.evals.iter().flat_map(|eval| -> Vec<_> { of_eval(eval) }));
        paths
    }

    fn check_paths(&self) -> Result<()> {
        let Some((key, _)) = self.paths().into_iter().find(|(_, path)| path.as_os_str().is_empty()) else { return Ok(()) };
        let name = key.rsplit('.').next().unwrap_or(&key);
        let error = Error::recipe(format!("`{name}` is empty")).hint("write a path in quotes, such as `\"out\"`".to_owned());
        Err(self.document.place(error, &key))
    }

    /// An engine opens what is exported to one of its targets, and computes in the modes and on the devices that it has.
    fn check_runners(&self, eval: &Eval) -> Result<()> {
        if eval.device.is_some() && eval.engines().next().is_none() {
            let error = Error::recipe(format!("eval `{}`: `device` is for engines, and only the reference runs", eval.name))
                .hint("leave `device` out, or name an engine in `runners`".to_owned());
            return Err(self.document.place(error, &format!("{}.device", eval.key)));
        }
        for (runner, mode) in &eval.runners {
            if eval.task.task().timed && runner.engine().is_none() {
                let error =
                    Error::recipe(format!("eval `{}`: times are those of an engine, and the reference is none", eval.name))
                        .hint("name one that opens an export, such as `runners = [\"onnxruntime\"]`".to_owned());
                return Err(self.document.place(error, &format!("{}.runners", eval.key)));
            }
            match (runner.engine(), self.subject()) {
                (Some(engine), subject) => self.check_engine(eval, engine, *mode, subject)?,
                (None, Subject::Model(_)) => {}
                (None, Subject::Artifact(_)) => {
                    let error = Error::recipe(format!("eval `{}`: the reference cannot open an artifact", eval.name))
                        .hint("name an engine that opens it, such as `runners = [\"onnxruntime\"]`".to_owned());
                    return Err(self.document.place(error, &format!("{}.runners", eval.key)));
                }
            }
            let task = eval.task.task();
            if !task.metrics.iter().any(|metric| self.compares(metric.against, *runner)) {
                let message = format!("eval `{}`: `{}` compares with a baseline, and there is none", eval.name, task.name);
                let error = Error::recipe(message).hint(NO_BASELINE.to_owned());
                return Err(self.document.place(error, &format!("{}.task", eval.key)));
            }
        }
        Ok(())
    }

    fn check_engine(&self, eval: &Eval, engine: &Engine, mode: Mode, subject: Subject<'_>) -> Result<()> {
        let measured = self.exported(engine);
        if let Subject::Model(_) = subject {
            self.check_exported(engine, &format!("eval `{}`", eval.name)).map_err(|e| self.document.place(e, &eval.key))?;
        }
        if let Some(export) = measured.filter(|export| !export.format.returns_all() && !eval.task.task().timed) {
            let message =
                format!("eval `{}` needs the logits of all tokens, and `{}` returns the last", eval.name, export.folder);
            let error = Error::recipe(message).hint("set `logits = \"all\"`, or measure it in another recipe".to_owned());
            return Err(self.document.place(error, &format!("{}.logits", export.key)));
        }
        if !engine.modes.contains(&mode) {
            let error = Error::recipe(format!("eval `{}`: {} has no mode `{mode}`", eval.name, engine.name));
            let error = error.hint("leave `modes` out, or measure it in another eval".to_owned());
            return Err(self.document.place(error, &format!("{}.modes", eval.key)));
        }
        let device = eval.device.as_deref().map(|device| engine.device(device));
        let found = device.transpose().map(|_| ());
        found.map_err(|e| {
            let error = Error { kind: ErrorKind::Recipe, ..e.into() };
            self.document.place(error, &format!("{}.device", eval.key))
        })
    }

    /// The exports of a variant.
    pub(crate) fn exports_of(&self, variant: &Variant) -> impl Iterator<Item = &Export> {
        self.exports.iter().filter(move |export| export.variant.as_ref().is_none_or(|only| *only == variant.name))
    }

    /// The export that an engine opens: of its targets, the first that there is.
    fn exported(&self, engine: &Engine) -> Option<&Export> {
        let of = |target: &str| self.exports.iter().find(|export| export.target.name == target);
        engine.opens.iter().find_map(|opens| of(opens.target))
    }

    /// Fails if nothing is exported to an engine that `what` runs.
    pub(crate) fn check_exported(&self, engine: &Engine, what: &str) -> Result<()> {
        if self.exported(engine).is_some() {
            return Ok(());
        }
        let targets: Vec<String> = engine.opens.iter().map(|opens| format!("`target = \"{}\"`", opens.target)).collect();
        Err(Error::recipe(format!("{what} runs {}, and nothing is exported to it", engine.name))
            .hint(format!("add `[[export]]` with {}", targets.join(" or "))))
    }

    /// Whether what a number is held against is there when `runner` measures it.
    fn compares(&self, against: Against, runner: RunnerKind) -> bool {
        match against {
            Against::Nothing => true,
            Against::Base => !matches!(self.compared(), Compared::WithNothing),
            Against::Sibling => runner.engine().is_some() && matches!(self.subject(), Subject::Model(_)),
        }
    }

    fn check_names<'a>(&self, what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut seen = BTreeSet::new();
        for (i, name) in names.enumerate() {
            let usable = is_name(name) || (name.is_empty() && what == "variant" && self.variants.len() == 1);
            if !usable || !seen.insert(name) {
                let problem = if usable { "is there twice" } else { "is not a name" };
                let error = Error::recipe(format!("{what} {}: `{name}` {problem}", i + 1))
                    .hint("names are unique and made of letters, digits, `-`, `_` and inner dots".to_owned());
                return Err(self.document.place(error, &format!("{what}[{i}].name")));
            }
        }
        Ok(())
    }

    /// What is no mistake, and may not be meant.
    pub(crate) fn notes(&self) -> Vec<String> {
        let eval = |gate: &Gate| self.evals.iter().find(|eval| eval.name == gate.eval);
        let mut notes: Vec<String> = self.gates.iter().filter_map(|gate| gate.note(eval(gate)?.task.task())).collect();
        let leaves = |variant: &Variant| !variant.folders().is_empty();
        let measured = !self.evals.is_empty() || !self.predictions.is_empty();
        if self.exports.is_empty() && !measured && !self.variants.iter().any(leaves) {
            notes.push("a run leaves nothing but its report: the recipe has no `[[export]]` and no `[[eval]]`".into());
        }
        notes
    }

    /// Whether a step or a compiler of it predicts the metrics of a device.
    fn predicts(&self) -> bool {
        let by_steps = self.variants.iter().flat_map(|variant| &variant.steps).any(|(_, step)| step.kind().predicts);
        by_steps || !self.predictions.is_empty()
    }

    /// Files that steps read, each with its place in the recipe.
    pub(crate) fn step_files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let steps = self.variants.iter().flat_map(|variant| &variant.steps);
        steps.flat_map(|(key, step)| step.files().into_iter().map(move |(setting, file)| (format!("{key}.{setting}"), file)))
    }

    /// Checkpoints that steps read, each with its place in the recipe.
    pub(crate) fn step_checkpoints(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let steps = self.variants.iter().flat_map(|variant| &variant.steps);
        steps
            .flat_map(|(key, step)| step.checkpoints().into_iter().map(move |(setting, path)| (format!("{key}.{setting}"), path)))
    }

    /// A run writes nothing where it reads, neither folder nor lock file, and the store is nowhere that is written. Links and
    /// `..` are followed.
    pub(crate) fn check_places(&self) -> Result<()> {
        let refused =
            |message: String, hint: &str, key: &str| Err(self.document.place(Error::recipe(message).hint(hint.to_owned()), key));
        let (output, lock) = (whole(&self.head.output), whole(&Lock::path(&self.document.path)));
        let written = [("output", Some(&self.head.output)), ("store", self.head.store.as_ref())];
        for (key, input) in self.inputs() {
            let shown = input.display();
            let (named, behind) = (in_place(&input), whole(&input));
            if named.starts_with(&output) || behind.starts_with(&output) {
                let message = format!("`{shown}` is in the output folder of this recipe");
                return refused(message, "copy it elsewhere, or give the recipe another `output`", &key);
            }
            let store = self.head.store.as_deref().map(whole);
            if store.is_some_and(|store| named.starts_with(&store) || behind.starts_with(&store)) {
                return refused(format!("`{shown}` is in the store of this recipe"), "name a folder of its own", "store");
            }
            if behind == lock {
                let message = format!("`{shown}` is the lock file of this recipe, which a run writes");
                return refused(message, "give one of them another name", &key);
            }
            let within = |path: &&PathBuf| whole(path).starts_with(&behind);
            if let Some((place, _)) = written.iter().find(|(_, path)| path.as_ref().is_some_and(within)) {
                let message = format!("`{place}` is in `{shown}`, which this recipe reads");
                return refused(message, "name a folder of its own", place);
            }
        }
        let Some(store) = self.head.store.as_deref().map(whole) else { return Ok(()) };
        let hint = "name a folder of its own, or leave `store` out: it is then `OUTPUT/.attar/store`";
        if store.starts_with(&output) && store != output.join(STATE).join(STORE) {
            return refused("the store is in the output folder of this recipe".into(), hint, "store");
        }
        if output.starts_with(&store) {
            return refused("the output folder is in the store".into(), hint, "store");
        }
        Ok(())
    }

    /// A further file that a run is to write is none that it reads, and none of those that it writes itself.
    ///
    /// # Errors
    /// If it is.
    pub fn check_apart(&self, file: &Path, flag: &str) -> Result<()> {
        let (there, shown) = (whole(file), file.display());
        let refused =
            |what: String| Err(Error::recipe(format!("`{flag} {shown}` is {what}")).hint("name another file".to_owned()));
        if there.is_dir() {
            return refused("a folder".into());
        }
        if let Some((_, input)) = self.inputs().into_iter().find(|(_, input)| there.starts_with(whole(input))) {
            return refused(format!("in `{}`, which this recipe reads", input.display()));
        }
        let store = self.head.store.as_deref().map(whole);
        if there.starts_with(whole(&self.head.output)) || store.is_some_and(|store| there.starts_with(store)) {
            return refused("in the output folder or the store of this recipe".into());
        }
        match [&self.document.path, &Lock::path(&self.document.path)].iter().any(|own| whole(own) == there) {
            true => refused("this recipe or its lock file".into()),
            false => Ok(()),
        }
    }

    fn check_folders(&self) -> Result<()> {
        let taken_by_steps: Vec<_> = self.variants.iter().flat_map(Variant::folders).collect();
        for (i, export) in self.exports.iter().enumerate() {
            let folder = &export.folder;
            let usable = if folder == "." { self.variants.len() == 1 } else { folder.split('/').all(is_name) };
            let taken = self.exports[..i].iter().find(|other| within(folder, &other.folder) || within(&other.folder, folder));
            let step = taken_by_steps.iter().find(|(_, name)| within(folder, name));
            let (problem, hint) = match taken {
                _ if let Some((kind, _)) = step => {
                    (format!("`{folder}` is the folder of a step `{kind}`"), "give the export another `folder`")
                }
                _ if !usable => (
                    format!("`{folder}` cannot be the folder of an export"),
                    "letters, digits, `-`, `_` and inner dots make a name; `.` is for a single variant, and the report's names are taken",
                ),
                Some(other) => (
                    format!("two exports would share a folder: `{}` and `{folder}`", other.folder),
                    "give each export a `folder` of its own",
                ),
                None => continue,
            };
            let error = Error::recipe(problem).hint(hint.to_owned());
            return Err(self.document.place(error, &format!("{}.folder", export.key)));
        }
        Ok(())
    }

    /// There is a variant of that name.
    fn check_variant(&self, what: &str, name: &str, key: &str) -> Result<()> {
        if self.variants.iter().any(|variant| variant.name == name) {
            return Ok(());
        }
        let nearest = attar_tensor::nearest(name, self.variants.iter().map(|variant| variant.name.as_str()));
        let hint = nearest.map(|nearest| format!("did you mean `{nearest}`?"));
        Err(self.document.place(Error::recipe(format!("{what}: no variant is named `{name}`")).hint(hint), key))
    }

    fn check_gate(&self, index: usize, gate: &Gate) -> Result<()> {
        let key = |name: &str| format!("gate[{index}].{name}");
        let mut evals: Vec<_> = self.evals.iter().map(|e| (e.name.as_str(), Some(e.task.task()))).collect();
        evals.extend(self.predicts().then_some((DEVICE, None)));
        if let Err(e) = gate.check(&evals) {
            let hint = e.hint();
            let error = Error::recipe(format!("gate {}: {e}", index + 1)).hint(hint);
            return Err(self.document.place(error, &key(e.key().unwrap_or("metric"))));
        }
        if let Some(variant) = &gate.variant {
            self.check_variant(&format!("gate {}", index + 1), variant, &key("variant"))?;
        }
        match self.evals.iter().find(|e| e.name == gate.eval) {
            Some(eval) => self.check_measured(index, gate, eval),
            None => self.check_predicted(index, gate),
        }
    }

    /// Some runner of the eval measures what the gate is about.
    fn check_measured(&self, index: usize, gate: &Gate, eval: &Eval) -> Result<()> {
        let refused = |message: String, hint: String, name: &str| {
            let error = Error::recipe(format!("gate {}: {message}", index + 1)).hint(hint);
            Err(self.document.place(error, &format!("gate[{index}].{name}")))
        };
        let Some((runner, _)) = eval.runners.iter().find(|(runner, _)| runner.name() == gate.runner) else {
            let message = format!("eval `{}` is not run by `{}`", eval.name, gate.runner);
            return refused(message, format!("add it to `runners` of the eval `{}`", eval.name), "runner");
        };
        let in_mode = |mode: Mode| eval.runners.iter().any(|(other, measured)| other == runner && *measured == mode);
        match gate.mode {
            Some(_) if runner.engine().is_none() => {
                return refused("the reference has no modes".into(), "leave `mode` out".into(), "mode");
            }
            Some(mode) if !in_mode(mode) => {
                let message = format!("eval `{}` is not run by `{}` in mode `{mode}`", eval.name, gate.runner);
                return refused(message, format!("add it to `modes` of the eval `{}`", eval.name), "mode");
            }
            _ => {}
        }
        if eval.task.task().timed && gate.confidence.is_some() {
            let hint = "leave `confidence` out; `measured.json` has the intervals of percentiles".to_owned();
            return refused("times have no standard error, so no gate can be sure of them".into(), hint, "confidence");
        }
        let metric = eval.task.task().metric(&gate.metric)?;
        let (against, key) = match gate.bound {
            Bound::WorseAtMost(_) | Bound::DropAtMost(_) => (Against::Base, gate.bound.key()),
            Bound::AtMost(_) | Bound::AtLeast(_) => (metric.against, "metric"),
        };
        match against {
            _ if self.compares(against, *runner) => Ok(()),
            Against::Sibling if runner.engine().is_none() => {
                let message =
                    format!("`{}` compares an engine with the reference, and this gate judges the reference", metric.name);
                refused(message, "name the engine as `runner`".into(), key)
            }
            Against::Sibling => {
                let message = format!("`{}` compares with the reference, which cannot open an artifact", metric.name);
                refused(message, "measure it in a recipe that makes the artifact".into(), key)
            }
            Against::Base | Against::Nothing => {
                let message = format!("`{}` compares with a baseline, and there is none", gate.metric);
                refused(message, NO_BASELINE.into(), key)
            }
        }
    }

    /// Some step of the variants predicts what the gate is about.
    fn check_predicted(&self, index: usize, gate: &Gate) -> Result<()> {
        let refused = |message: String, name: &str, hint: &str| {
            let error = Error::recipe(format!("gate {}: {message}", index + 1)).hint(hint.to_owned());
            Err(self.document.place(error, &format!("gate[{index}].{name}")))
        };
        if gate.runner != PREDICTED && !self.predictions.iter().any(|asked| asked.compiler.name == gate.runner) {
            let hint = "leave `runner` out, or name the compiler of a `[[predict]]`";
            return refused(format!("`{}` predicts nothing for a device", gate.runner), "runner", hint);
        }
        if gate.mode.is_some() {
            return refused("a prediction for a device has no modes".into(), "mode", "leave `mode` out");
        }
        if gate.confidence.is_some() {
            let hint = "leave `confidence` out";
            return refused("what is predicted or computed for a device has no standard error".into(), "confidence", hint);
        }
        let predicts = |variant: &Variant| variant.steps.iter().any(|(_, step)| step.kind().predicts);
        match &gate.variant {
            Some(name)
                if gate.runner == PREDICTED
                    && !self.variants.iter().any(|variant| variant.name == *name && predicts(variant)) =>
            {
                refused(format!("no step of the variant `{name}` predicts for a device"), "variant", "add a step `compile` to it")
            }
            _ => Ok(()),
        }
    }
}

/// What to do where something is to be compared.
const NO_BASELINE: &str = "name the checkpoint to compare with as `baseline`";

/// The path from the root of the file system: links are followed as far as it exists, and nothing of it is `..`.
fn whole(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let mut whole = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            part => {
                whole.push(part);
                whole = whole.canonicalize().unwrap_or(whole);
            }
        }
    }
    whole
}

/// The same of a name itself: where it stands, not what a link leads to.
fn in_place(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => whole(&Path::new(".").join(parent)).join(name),
        _ => whole(path),
    }
}

/// Names of folders, too; not those of the files that a run writes next to them.
fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.chars().all(fine) && !text.starts_with('.') && !text.ends_with('.') && !PROMISED.contains(&text)
}

/// Whether `folder` is `other` or is inside it. The output folder itself may hold other folders.
fn within(folder: &str, other: &str) -> bool {
    folder.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn steps(sections: Vec<Section<'_, '_>>) -> Result<Vec<(String, std::sync::Arc<dyn Step>)>> {
    let known: Vec<_> = STEPS.iter().map(|kind| (kind.name, *kind)).collect();
    sections
        .into_iter()
        .map(|mut section| {
            let kind = section.take_word("kind", None, &known)?;
            section.check_known(&[&(kind.schema)()], &["kind".into()])?;
            let key = section.key.clone();
            Ok((key, std::sync::Arc::from((kind.build)(section)?)))
        })
        .collect()
}

fn variant(mut section: Section<'_, '_>, shared: &[(String, std::sync::Arc<dyn Step>)]) -> Result<Variant> {
    section.check_known(&[&of::<VariantHead>()], &["step".into()])?;
    let own = steps(section.take_tables("step")?)?;
    let head: VariantHead = section.finish(&["step".into()])?;
    Ok(Variant { name: head.name, steps: shared.iter().cloned().chain(own).collect() })
}

fn export(mut section: Section<'_, '_>) -> Result<Export> {
    let known: Vec<_> = TARGETS.iter().map(|target| (target.name, *target)).collect();
    let key = section.key.clone();
    let head: ExportHead = section.take_part()?;
    let profile = head.profile.map(|For(profile)| profile);
    let target = section.take_word("target", profile.map(Profile::target), &known)?;
    if let Some(profile) = profile.filter(|profile| profile.target() != target.name) {
        let error = Error::recipe(format!("`{}` takes target `{}`, not `{}`", profile.name, profile.target(), target.name));
        return Err(section.place(error.hint("leave `target` out".to_owned()), "target"));
    }
    let also = ["target", "folder", "for", "variant"].map(String::from);
    let complete = |given| match profile {
        Some(profile) => profile.complete(given),
        None => given,
    };
    let format = section.finish_as(&(target.schema)(), &also, |given| (target.parse)(complete(given)))?;
    let folder = head.folder.unwrap_or_else(|| profile.map_or(target.name, |profile| profile.name).into());
    Ok(Export { target, folder, format: format.into(), profile, variant: head.variant, key })
}

impl Export {
    /// All that decides what is written.
    fn settings(&self) -> serde_json::Value {
        let mut all = serde_json::json!({ "target": self.target.name, "folder": self.folder, "options": self.format.options() });
        if let Some(variant) = &self.variant {
            all["variant"] = variant.as_str().into();
        }
        all
    }

    /// With a device's own target and options.
    fn of(profile: &'static Profile) -> Result<Export> {
        let target = attar_export::target(profile.target())?;
        let format = (target.parse)(profile.complete(serde_json::json!({}))).map_err(|invalid| Error::recipe(invalid.message))?;
        let (folder, key) = (profile.name.into(), String::new());
        Ok(Export { target, folder, format: format.into(), profile: Some(profile), variant: None, key })
    }
}

impl Recipe {
    /// The recipe with one more export, for a device.
    ///
    /// # Errors
    /// If no device has that name.
    pub fn with_export_for(mut self, device: &str) -> Result<Recipe> {
        let profile = Profile::named(device).ok_or_else(|| Error::recipe(format!("no device is named `{device}`")))?;
        self.exports.push(Export::of(profile)?);
        Ok(self)
    }
}

fn eval(mut section: Section<'_, '_>) -> Result<Eval> {
    let tasks = TASKS.iter().map(|task| (task.name, (*task, None)));
    let presets = PRESETS.iter().map(|preset| (preset.name, (preset.task, Some(&preset.settings))));
    let known: Vec<_> = tasks.chain(presets).collect();
    let (kind, preset) = section.take_word("task", Some(DEFAULT_TASK), &known)?;
    section.check_known(&[&of::<EvalHead>(), &(kind.schema)()], &["task".into()])?;
    let key = section.key.clone();
    let head: EvalHead = section.take_part()?;
    check_list(&section, "runners", head.runners.iter().map(|runner| runner.name()))?;
    if let Some(modes) = &head.modes {
        let modes: Vec<String> = modes.iter().map(ToString::to_string).collect();
        check_list(&section, "modes", modes.iter().map(String::as_str))?;
    }
    let mut also = fields::<EvalHead>();
    also.push("task".into());
    let parse = |table| (kind.parse)(with_defaults(table, preset));
    let task = section.finish_as(&(kind.schema)(), &also, parse)?;
    let runners = head
        .runners
        .iter()
        .flat_map(|runner| match runner {
            RunnerKind::Reference => vec![(RunnerKind::Reference, Mode::Exact)],
            RunnerKind::Engine(engine) => {
                // What takes times is about what users get.
                let own = if kind.timed { &[Mode::Default] } else { engine.modes };
                let modes = head.modes.as_deref().unwrap_or(own);
                modes.iter().map(|mode| (*runner, *mode)).collect()
            }
        })
        .collect();
    Ok(Eval { name: head.name, runners, device: head.device, required: head.required, task, key })
}

/// A table with those settings of a preset that it does not have.
fn with_defaults(mut table: serde_json::Value, preset: Option<&serde_json::Value>) -> serde_json::Value {
    for (key, value) in preset.and_then(serde_json::Value::as_object).into_iter().flatten() {
        if let Some(table) = table.as_object_mut() {
            table.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    table
}

/// A list with something in it, and nothing twice.
fn check_list<'a>(section: &Section<'_, '_>, name: &str, words: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (at, word) in words.enumerate() {
        if !seen.insert(word) {
            let error = Error::recipe(format!("{}, `{name}`: `{word}` is there twice", section.title));
            return Err(section.place(error, &format!("{name}[{at}]")));
        }
    }
    if seen.is_empty() {
        let error = Error::recipe(format!("{}, `{name}`: the list is empty", section.title))
            .hint(format!("leave `{name}` out for its default"));
        return Err(section.place(error, name));
    }
    Ok(())
}

fn gate(section: Section<'_, '_>) -> Result<Gate> {
    let (document, title, at, header) = (section.document, section.title.clone(), section.key.clone(), section.header());
    Gate::try_from(section.finish::<WrittenGate>(&[])?).map_err(|e| {
        let error = Error::recipe(format!("{title}: {e}")).hint(e.hint());
        match e.key() {
            Some(key) => document.place(error, &format!("{at}.{key}")),
            None => document.at(error, header),
        }
    })
}
