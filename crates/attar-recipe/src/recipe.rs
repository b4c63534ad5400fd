//! The recipe as typed settings.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use attar_eval::{DEFAULT_TASK, DEVICE, Engine, Gate, Mode, Settings, TASKS};
use attar_export::{Format, TARGETS, Target};
use attar_model::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, Result,
    document::{self, Document, Section, fields},
    extras::numbered,
    output::{Output, PROMISED},
    runner::RunnerKind,
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
    pub(crate) model: ModelSetting,
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

/// Texts that steps read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// Text for steps that observe activations.
    #[serde(default)]
    pub(crate) calibration: Option<attar_compress::Calibration>,
}

fn yes() -> bool {
    true
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
    pub(crate) key: String,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Export({} to {})", self.target.name, self.folder)
    }
}

/// The part of `[[export]]` that every target has.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ExportHead {
    /// Folder below the output folder (and the variant's folder). Defaults to the target's name.
    #[serde(default)]
    folder: Option<String>,
}

/// `[[eval]]`.
#[derive(Debug)]
pub struct Eval {
    /// First part of its metrics' names.
    pub name: String,
    /// Who runs the model.
    pub runners: Vec<(RunnerKind, Mode)>,
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
    /// For real engines: `exact` keeps activations in f32, `default` uses the engine's default settings.
    #[serde(default = "exact_only")]
    pub(crate) modes: Vec<Mode>,
    /// Whether the run fails if a runner is not installed. A gate on an eval that did not run fails in either case.
    #[serde(default = "yes")]
    pub(crate) required: bool,
}

fn reference_only() -> Vec<RunnerKind> {
    vec![RunnerKind::Reference]
}

fn exact_only() -> Vec<Mode> {
    vec![Mode::Exact]
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
        root.check_table("model", &ModelSetting::KEYS)?;
        let shared = steps(root.take_tables("step")?)?;
        let mut variants = Vec::new();
        for section in root.take_tables("variant")? {
            variants.push(variant(section, &shared)?);
        }
        if variants.is_empty() {
            variants.push(Variant { name: String::new(), steps: shared });
        }
        let exports = root.take_tables("export")?.into_iter().map(export).collect::<Result<Vec<_>>>()?;
        let evals = root.take_tables("eval")?.into_iter().map(eval).collect::<Result<Vec<_>>>()?;
        let gates =
            root.take_tables("gate")?.into_iter().map(|section| section.finish::<Gate>(&[])).collect::<Result<Vec<_>>>()?;
        let lists = ["step", "variant", "export", "eval", "gate"].map(String::from);
        let head: Head = root.finish(&lists)?;
        let recipe = Recipe { head, variants, exports, evals, gates, document: document.clone() };
        recipe.check()?;
        Ok(recipe)
    }

    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Recipe> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::recipe(format!("cannot read the recipe `{}`", path.display())).because(&e))?;
        Recipe::parse(path, &text)
    }

    /// Output folder: artifacts, reports, and the store unless `store` is set.
    pub fn output(&self) -> &Path {
        &self.head.output
    }

    /// The text that activations are seen on.
    pub(crate) fn calibration(&self) -> Option<&attar_compress::Calibration> {
        self.head.data.calibration.as_ref()
    }

    /// The checkpoint.
    pub fn model(&self) -> &Path {
        &self.head.model.path
    }

    /// Opens the model; a failure points at `model`.
    pub(crate) fn open_model(&self) -> Result<Model> {
        Model::open_with(self.model(), &self.head.model.options()).map_err(|e| self.document.place(e.into(), "model"))
    }

    /// The windows of the calibration text, if there is such.
    pub(crate) fn windows(&self, base: &Model) -> Result<Option<Vec<Vec<u32>>>> {
        let Some(calibration) = self.calibration() else { return Ok(None) };
        let windows = calibration.windows(&base.tokenizer()?, &base.config);
        windows.map(Some).map_err(|e| self.document.place(e.into(), "data.calibration"))
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
        self.document.place(Error { kind: ErrorKind::Recipe, ..Error::from(error) }, &export.key)
    }

    /// Everything that decides the result, with every default filled in.
    pub fn settings(&self) -> serde_json::Value {
        let steps = |variant: &Variant| -> Vec<serde_json::Value> {
            variant.steps.iter().map(|(_, s)| serde_json::json!({ "kind": s.kind().name, "settings": s.settings() })).collect()
        };
        serde_json::json!({
            "recipe": self.head.recipe,
            "model": self.head.model,
            "calibration": self.head.data.calibration,
            "variants": self.variants.iter().map(|v| serde_json::json!({ "name": v.name, "steps": steps(v) })).collect::<Vec<_>>(),
            "exports": self.exports.iter().map(|e| serde_json::json!({ "target": e.target.name, "folder": e.folder, "options": e.format.options() })).collect::<Vec<_>>(),
            "evals": self.evals.iter().map(|e| serde_json::json!({ "name": e.name, "task": e.task.task().name, "runners": e.runners, "required": e.required, "settings": e.task.settings() })).collect::<Vec<_>>(),
            "gates": self.gates,
        })
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
        self.check_names("variant", self.variants.iter().map(|v| v.name.as_str()))?;
        self.check_names("eval", self.evals.iter().map(|e| e.name.as_str()))?;
        self.check_folders()?;
        self.check_files()?;
        for (i, gate) in self.gates.iter().enumerate() {
            self.check_gate(i, gate)?;
        }
        for eval in &self.evals {
            self.check_runners(eval)?;
        }
        Ok(())
    }

    /// An engine opens what is exported to one of its targets, and computes in the modes that it has.
    fn check_runners(&self, eval: &Eval) -> Result<()> {
        for (runner, mode) in &eval.runners {
            let Some(engine) = runner.engine() else { continue };
            let opens = |target: &str| engine.opens.iter().any(|opens| opens.target == target);
            if !self.exports.iter().any(|export| opens(export.target.name)) {
                let targets: Vec<String> = engine.opens.iter().map(|opens| format!("`target = \"{}\"`", opens.target)).collect();
                let error = Error::recipe(format!("eval `{}` runs {runner}, and nothing is exported to it", eval.name))
                    .hint(format!("add `[[export]]` with {}", targets.join(" or ")));
                return Err(self.document.place(error, &eval.key));
            }
            if !engine.modes.contains(mode) {
                let error = Error::recipe(format!("eval `{}`: {runner} has no mode `{mode}`", eval.name));
                return Err(self.document.place(error, &format!("{}.modes", eval.key)));
            }
        }
        Ok(())
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

    /// Whether a step of it predicts the metrics of a device.
    fn predicts(&self) -> bool {
        self.variants.iter().flat_map(|variant| &variant.steps).any(|(_, step)| step.kind().predicts)
    }

    /// Files that steps read, each with its place in the recipe.
    pub(crate) fn step_files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let steps = self.variants.iter().flat_map(|variant| &variant.steps);
        steps.flat_map(|(key, step)| step.files().into_iter().map(move |(setting, file)| (format!("{key}.{setting}"), file)))
    }

    /// A run would read what it is about to write.
    fn check_files(&self) -> Result<()> {
        let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let output = whole(&self.head.output);
        match self.step_files().find(|(_, file)| whole(file).starts_with(&output)) {
            None => Ok(()),
            Some((key, file)) => {
                let error = Error::recipe(format!("`{}` is in the output folder of this recipe", file.display()))
                    .hint("copy it elsewhere, or give the recipe another `output`".to_owned());
                Err(self.document.place(error, &key))
            }
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

    fn check_gate(&self, index: usize, gate: &Gate) -> Result<()> {
        let key = |name: &str| format!("gate[{index}].{name}");
        let mut evals: Vec<_> = self.evals.iter().map(|e| (e.name.as_str(), Some(e.task.task()))).collect();
        evals.extend(self.predicts().then_some((DEVICE, None)));
        if let Err(e) = gate.check(&evals) {
            let hint = e.hint();
            let error = Error::recipe(format!("gate {}: {e}", index + 1)).hint(hint);
            return Err(self.document.place(error, &key("metric")));
        }
        if let Some(variant) = &gate.variant
            && !self.variants.iter().any(|v| v.name == *variant)
        {
            let nearest = attar_tensor::nearest(variant, self.variants.iter().map(|v| v.name.as_str()));
            let hint = nearest.map(|n| format!("did you mean `{n}`?"));
            let error = Error::recipe(format!("gate {}: no variant is named `{variant}`", index + 1)).hint(hint);
            return Err(self.document.place(error, &key("variant")));
        }
        let Some(eval) = self.evals.iter().find(|e| e.name == gate.eval) else {
            // Predictions for a device have no runner.
            return Ok(());
        };
        let runs = eval.runners.iter().any(|(runner, mode)| {
            runner.name() == gate.runner && (*runner == RunnerKind::Reference || gate.mode.is_none_or(|m| m == *mode))
        });
        if !runs {
            let hint = format!("add it to `runners` or `modes` of the eval `{}`", eval.name);
            let error =
                Error::recipe(format!("gate {}: eval `{}` is not run by `{}`", index + 1, eval.name, gate.runner)).hint(hint);
            return Err(self.document.place(error, &key("runner")));
        }
        Ok(())
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
            let key = section.key.clone();
            Ok((key, std::sync::Arc::from((kind.build)(section)?)))
        })
        .collect()
}

fn variant(mut section: Section<'_, '_>, shared: &[(String, std::sync::Arc<dyn Step>)]) -> Result<Variant> {
    let own = steps(section.take_tables("step")?)?;
    let head: VariantHead = section.finish(&["step".into()])?;
    Ok(Variant { name: head.name, steps: shared.iter().cloned().chain(own).collect() })
}

fn export(mut section: Section<'_, '_>) -> Result<Export> {
    let known: Vec<_> = TARGETS.iter().map(|target| (target.name, *target)).collect();
    let target = section.take_word("target", None, &known)?;
    let key = section.key.clone();
    let head: ExportHead = section.take_part()?;
    let format = section.finish_as(&(target.schema)(), &["target".into(), "folder".into()], target.parse)?;
    Ok(Export { target, folder: head.folder.unwrap_or_else(|| target.name.into()), format: format.into(), key })
}

fn eval(mut section: Section<'_, '_>) -> Result<Eval> {
    let known: Vec<_> = TASKS.iter().map(|task| (task.name, *task)).collect();
    let kind = section.take_word("task", Some(DEFAULT_TASK), &known)?;
    let key = section.key.clone();
    let head: EvalHead = section.take_part()?;
    let mut also = fields::<EvalHead>();
    also.push("task".into());
    let task = section.finish_as(&(kind.schema)(), &also, kind.parse)?;
    let runners = head
        .runners
        .iter()
        .flat_map(|runner| match runner {
            RunnerKind::Reference => vec![(RunnerKind::Reference, Mode::Exact)],
            RunnerKind::Engine(_) => head.modes.iter().map(|mode| (*runner, *mode)).collect(),
        })
        .collect();
    Ok(Eval { name: head.name, runners, required: head.required, task, key })
}
