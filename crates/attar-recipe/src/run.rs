//! A recipe, done: claim the output, lock the inputs, run the steps, write and verify, measure, judge, report.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use attar_eval::{DEVICE, Evaluation, Outcome, PREDICTED, Status};
use attar_export::Artifact;
use attar_model::Model;
use attar_tensor::{Digest, FolderStore, Keep, Store};
use serde::Serialize;

use crate::{
    Engines, Error, Observer, Recipe, Report, Result, RunnerKind, adapters,
    artifact::write_artifact,
    beside::{self, WrittenFolder},
    lock::{self, Lock, LockMode},
    measure::measure,
    model::Working,
    output::Output,
    plan::{bits, folder, open, placed},
    report::{self, ActivationReport, ArtifactReport, ModelReport, TensorReport, VariantReport},
    session::Session,
};

pub(crate) const TOOL: &str = concat!("attar ", env!("CARGO_PKG_VERSION"));

/// How to run.
pub struct Request<'a> {
    /// What to do about the lock file.
    pub lock: LockMode,
    /// What the machine has.
    pub engines: &'a Engines,
    /// Who hears of progress.
    pub observer: &'a dyn Observer,
    /// Bytes of memory that the run may take.
    pub max_memory: Option<u64>,
}

/// A variant whose steps are done and whose artifacts are written.
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) working: Working,
    /// Folder, description, and how many weights were verified.
    pub(crate) artifacts: Vec<(String, Artifact, u64)>,
}

/// `manifest.json`: what the output folder holds and what it was made of.
#[derive(Serialize)]
struct Manifest<'a> {
    manifest: u32,
    tool: &'static str,
    recipe: String,
    recipe_digest: Digest,
    model: &'a ModelReport,
    inputs: &'a [lock::Input],
    artifacts: Vec<ManifestArtifact<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    folders: Vec<WrittenFolder>,
}

#[derive(Serialize)]
struct ManifestArtifact<'a> {
    variant: &'a str,
    folder: &'a str,
    #[serde(flatten)]
    artifact: &'a Artifact,
}

/// Runs a recipe to its report. A failed gate is no error: [`Report::passed`] tells.
pub fn run(recipe: &Recipe, request: &Request<'_>) -> Result<Report> {
    let planned = crate::plan(recipe, request.engines)?;
    planned.check_memory(request.max_memory)?;
    let observer = request.observer;
    check_needs(recipe, request.engines)?;
    let base = open(recipe)?;
    let lock = lock_inputs(recipe, &base, observer)?;
    lock.apply(request.lock, &Lock::path(&recipe.document.path))?;
    let output = Output::claim(recipe.output(), &recipe.owner())?;
    output.withdraw_promises()?;
    let store = FolderStore::open(&recipe.head.store.clone().unwrap_or_else(|| output.store()))?;
    let calibration = calibration(recipe, &base)?;
    let session = Session { store: &store, observer, base: &base, calibration: calibration.as_deref() };

    let mut used = BTreeSet::new();
    let (mut made, mut folders) = (Vec::new(), Vec::new());
    for variant in &recipe.variants {
        let mut working =
            Working::new(if variant.name.is_empty() { "model" } else { &variant.name }, &base, recipe.calibration());
        for (key, step) in &variant.steps {
            used.extend(step.run(&mut working, &session).map_err(|e| placed(recipe, key, step.kind().name, e))?);
        }
        folders.extend(beside::write(recipe, &variant.name, &working.folders, &output)?);
        let model = base.with(working.graph.clone(), working.source.clone());
        let mut artifacts = Vec::new();
        for export in &recipe.exports {
            session.check_interrupt()?;
            let folder = folder(recipe, &variant.name, &export.folder);
            let (artifact, verified) = write_artifact(recipe, export, &folder, &base, &working, &output, observer)?;
            artifacts.push((folder, artifact, verified));
        }
        if let Some(beside) = &working.adapters {
            let folder = folder(recipe, &variant.name, adapters::FOLDER);
            let (artifact, verified) = adapters::write(beside, &folder, &base, &working, &output)?;
            artifacts.push((folder, artifact, verified));
        }
        made.push(Made { name: variant.name.clone(), model, working, artifacts });
    }
    let mut evals = measure(recipe, request.engines, &base, &made, &output, &session, &mut used)?;
    evals.extend(made.iter().flat_map(predictions));
    let gates = recipe.gates.iter().flat_map(|gate| gate.judge(&evals)).collect::<Vec<_>>();
    let model = ModelReport { path: planned.model, architecture: planned.architecture, parameters: planned.parameters };
    let manifest = Manifest {
        manifest: 1,
        tool: TOOL,
        recipe: recipe.owner(),
        recipe_digest: lock.recipe,
        model: &model,
        inputs: &lock.inputs,
        artifacts: made
            .iter()
            .flat_map(|m| m.artifacts.iter().map(|(folder, artifact, _)| ManifestArtifact { variant: &m.name, folder, artifact }))
            .collect(),
        folders,
    };
    let manifest = json(&manifest);
    let report = Report {
        report: report::FORMAT,
        tool: TOOL.into(),
        recipe: recipe.owner(),
        recipe_digest: lock.recipe,
        passed: gates.iter().all(|verdict| verdict.status == Status::Passed),
        variants: made.iter().map(variant_report).collect(),
        model,
        evals,
        gates,
    };
    output.write("report.json", &json(&report))?;
    output.write("report.md", report.markdown().as_bytes())?;
    // Last: a folder with a manifest is a finished one.
    output.write("manifest.json", &manifest)?;
    if recipe.head.store.is_none() {
        store.collect_garbage(Keep::Only(&used), false)?;
        if !recipe.head.keep_store && store.leases()?.is_empty() {
            drop(store);
            output.forget_state()?;
        }
    }
    Ok(report)
}

pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("reports are JSON");
    text.push(b'\n');
    text
}

pub(crate) fn calibration(recipe: &Recipe, base: &Model) -> Result<Option<Vec<Vec<u32>>>> {
    let Some(calibration) = recipe.calibration() else { return Ok(None) };
    let windows = calibration.windows(&base.tokenizer()?, &base.config);
    windows.map(Some).map_err(|e| recipe.document.place(e.into(), "data.calibration"))
}

/// What a run cannot end well without is known before hours of work, not after.
pub(crate) fn check_needs(recipe: &Recipe, engines: &Engines) -> Result<()> {
    if let Some(calibration) = recipe.calibration()
        && let Err(e) = std::fs::File::open(&calibration.path)
    {
        let error = Error::input(format!("cannot read the calibration text `{}`", calibration.path.display())).because(&e);
        return Err(recipe.document.place(error, "data.calibration.path"));
    }
    for eval in &recipe.evals {
        for file in eval.task.files() {
            if let Err(e) = std::fs::File::open(&file) {
                let error = Error::input(format!("eval `{}` cannot read `{}`", eval.name, file.display())).because(&e);
                return Err(recipe.document.place(error, &format!("{}.data", eval.key)));
            }
        }
        let wants_engine = eval.required && eval.runners.iter().any(|(runner, _)| *runner == RunnerKind::OnnxRuntime);
        let judged = recipe.gates.iter().any(|gate| gate.eval == eval.name && gate.runner == "onnxruntime");
        // A gate will say so in the report instead.
        if wants_engine && engines.onnxruntime.is_none() && !judged {
            let error = Error::from(engines.onnxruntime_missing());
            return Err(recipe.document.place(error, &format!("{}.runners", eval.key)));
        }
    }
    Ok(())
}

fn lock_inputs(recipe: &Recipe, base: &Model, observer: &dyn Observer) -> Result<Lock> {
    let mut files: BTreeSet<PathBuf> = base.files.iter().cloned().collect();
    files.extend(recipe.calibration().map(|c| c.path.clone()));
    files.extend(recipe.step_files().map(|(_, file)| file));
    files.extend(recipe.evals.iter().flat_map(|e| e.task.files()).filter(|f| f.exists()));
    let length = |file: &Path| std::fs::metadata(file).map_or(0, |m| m.len());
    observer.stage("digest inputs", files.iter().map(|f| length(f)).sum());
    let mut inputs = Vec::new();
    let mut done = 0;
    for file in &files {
        inputs.push(lock::Input::of(file)?);
        done += length(file);
        observer.advance(done, &file.display().to_string());
        if observer.interrupted() {
            return Err(Error::interrupted());
        }
    }
    let settings = recipe.settings().to_string();
    Ok(Lock { lock: 1, tool: TOOL.into(), recipe: Digest::of(settings.as_bytes()), inputs })
}

/// What compilers foretell of a variant; of several devices, of the first.
fn predictions(made: &Made) -> Option<Evaluation> {
    let prediction = made.working.compilations.first()?.prediction.clone();
    Some(Evaluation {
        eval: DEVICE.into(),
        variant: (!made.name.is_empty()).then(|| made.name.clone()),
        runner: PREDICTED.into(),
        mode: None,
        outcome: Outcome::Predicted(prediction),
    })
}

fn worst_first(activations: &[ActivationReport]) -> Vec<ActivationReport> {
    let mut all = activations.to_vec();
    let snr = |activation: &ActivationReport| activation.snr_db.unwrap_or(f64::INFINITY);
    all.sort_by(|a, b| snr(a).total_cmp(&snr(b)));
    all
}

fn variant_report(made: &Made) -> VariantReport {
    let (bits_per_weight, quantized_bits_per_weight) = bits(&made.working);
    let weights = made.working.graph.weights().filter_map(|(_, value, _)| {
        let damage = made.working.damage.get(&value.name)?;
        let dims = value.fact.constant_dims()?;
        let snr = damage.snr_db();
        Some(TensorReport {
            name: value.name.clone(),
            encoding: value.fact.encoding.to_string(),
            bits_per_weight: value.fact.encoding.true_bits([dims[0], dims[1]]) as f64 / (dims[0] * dims[1]) as f64,
            snr_db: snr.is_finite().then_some(snr),
            dims,
        })
    });
    let artifacts = made.artifacts.iter().map(|(folder, artifact, verified)| ArtifactReport {
        target: artifact.target.clone(),
        folder: folder.clone(),
        bytes: artifact.files.iter().map(|f| f.bytes).sum(),
        digest: Digest::of(&json(&artifact.files)),
        totals: artifact.totals.clone(),
        verified_weights: *verified,
    });
    VariantReport {
        name: made.name.clone(),
        bits_per_weight,
        quantized_bits_per_weight,
        transforms: made.working.transforms.clone(),
        tensors: weights.collect(),
        allocations: made.working.allocations.clone(),
        activations: worst_first(&made.working.activations),
        fusions: made.working.fusions.clone(),
        compilations: made.working.compilations.iter().map(|c| c.report.clone()).collect(),
        tilings: made.working.tilings.clone(),
        simulations: made.working.simulations.clone(),
        placements: made.working.placements.clone(),
        artifacts: artifacts.collect(),
    }
}
