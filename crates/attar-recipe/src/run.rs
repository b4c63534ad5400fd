//! A recipe, done: claim the output, lock the inputs, run the steps, write and verify, measure, judge, report.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use attar_eval::{Evaluation, Status, Verdict};
use attar_model::Model;
use attar_tensor::{Digest, Keep};

use crate::{
    Engines, Error, Observer, Plan, PlannedVariant, Recipe, Report, Result, Variant,
    extras::WrittenFolder,
    json::{TOOL, json},
    lock::{self, Lock, LockMode},
    made::Made,
    manifest::Manifest,
    measure::measure,
    model::Working,
    needs::check_needs,
    output::Output,
    plan::plan,
    publish,
    report::{self, ModelReport},
    session::{Session, Workspace},
};

/// How to run.
pub struct Request<'a> {
    /// What to do about the lock file.
    pub lock: LockMode,
    /// What the machine has.
    pub engines: &'a Engines,
    /// Receives progress.
    pub observer: &'a dyn Observer,
    /// Bytes of memory that the run may take.
    pub max_memory: Option<u64>,
}

/// Runs a recipe to its report. A failed gate is no error: [`Report::passed`] tells.
pub fn run(recipe: &Recipe, request: &Request<'_>) -> Result<Report> {
    let planned = plan_within(recipe, request)?;
    let base = recipe.open_model()?;
    let lock = lock_inputs(recipe, &base, request)?;
    let output = claim_output(recipe)?;
    let workspace = Workspace::open(recipe.store(&output), recipe.windows(&base)?)?;
    let session = workspace.session(&base, request.observer);
    let mut used = BTreeSet::new();
    let (made, folders) = make_variants(recipe, &planned, &output, &session, &mut used)?;
    let evals = measure_variants(recipe, request, &made, &output, &session, &mut used)?;
    let gates = judge(recipe, &evals);
    let report = Report {
        report: report::FORMAT,
        tool: TOOL.into(),
        recipe: recipe.owner(),
        recipe_digest: lock.recipe,
        passed: gates.iter().all(|verdict| verdict.status == Status::Passed),
        variants: made.iter().map(Made::report).collect(),
        model: describe_model(planned),
        evals,
        gates,
    };
    keep_promises(&report, &Manifest::of(recipe.owner(), &lock, &report.model, &made, &folders), &output)?;
    clean_up(recipe, workspace, &used, &output)?;
    Ok(report)
}

/// What cannot end well is known before hours of work, not after.
fn plan_within(recipe: &Recipe, request: &Request<'_>) -> Result<Plan> {
    let planned = plan(recipe, request.engines)?;
    planned.check_memory(request.max_memory)?;
    check_needs(recipe, request.engines)?;
    Ok(planned)
}

/// Digests every file that the run reads, and does with the lock file what is asked for.
fn lock_inputs(recipe: &Recipe, base: &Model, request: &Request<'_>) -> Result<Lock> {
    let files = input_files(recipe, base);
    let length = |file: &Path| std::fs::metadata(file).map_or(0, |m| m.len());
    request.observer.stage("digest inputs", files.iter().map(|f| length(f)).sum());
    let (mut inputs, mut done) = (Vec::new(), 0);
    for file in &files {
        inputs.push(lock::Input::of(file)?);
        done += length(file);
        request.observer.advance(done, &file.display().to_string());
        if request.observer.interrupted() {
            return Err(Error::interrupted());
        }
    }
    let settings = recipe.settings().to_string();
    let lock = Lock { lock: 1, tool: TOOL.into(), recipe: Digest::of(settings.as_bytes()), inputs };
    lock.apply(request.lock, &Lock::path(&recipe.document.path))?;
    Ok(lock)
}

fn input_files(recipe: &Recipe, base: &Model) -> BTreeSet<PathBuf> {
    let mut files: BTreeSet<PathBuf> = base.files.iter().cloned().collect();
    files.extend(recipe.calibration().map(|c| c.path.clone()));
    files.extend(recipe.step_files().map(|(_, file)| file));
    files.extend(recipe.evals.iter().flat_map(|e| e.task.files()).filter(|f| f.exists()));
    files
}

fn claim_output(recipe: &Recipe) -> Result<Output> {
    let output = Output::claim(recipe.output(), &recipe.owner())?;
    output.withdraw_promises()?;
    Ok(output)
}

/// Every variant, made and written, and the extra folders of their steps.
fn make_variants(
    recipe: &Recipe,
    planned: &Plan,
    output: &Output,
    session: &Session<'_>,
    used: &mut BTreeSet<Digest>,
) -> Result<(Vec<Made>, Vec<WrittenFolder>)> {
    let (mut made, mut folders) = (Vec::new(), Vec::new());
    for (variant, planned) in recipe.variants.iter().zip(&planned.variants) {
        let working = run_steps(recipe, variant, planned, session, used)?;
        folders.extend(publish::extras(recipe, variant, &working, output)?);
        let artifacts = publish::artifacts(recipe, variant, &working, output, session)?;
        let model = session.base.with(working.graph.clone(), working.source.clone());
        made.push(Made { name: variant.name.clone(), model, working, artifacts });
    }
    Ok((made, folders))
}

/// The model after all steps of a variant.
fn run_steps(
    recipe: &Recipe,
    variant: &Variant,
    planned: &PlannedVariant,
    session: &Session<'_>,
    used: &mut BTreeSet<Digest>,
) -> Result<Working> {
    let mut working = Working::new(variant.title(), session.base, recipe.calibration());
    working.kept = planned.kept.clone();
    for (at, (key, step)) in variant.steps.iter().enumerate() {
        working.kept.at(at);
        used.extend(step.run(&mut working, session).map_err(|e| recipe.failed_step(key, step.kind(), e))?);
    }
    Ok(working)
}

/// What runners measure, then what compilers predict.
fn measure_variants(
    recipe: &Recipe,
    request: &Request<'_>,
    made: &[Made],
    output: &Output,
    session: &Session<'_>,
    used: &mut BTreeSet<Digest>,
) -> Result<Vec<Evaluation>> {
    let mut evals = measure(recipe, request.engines, session.base, made, output, session, used)?;
    evals.extend(made.iter().filter_map(Made::prediction));
    Ok(evals)
}

fn judge(recipe: &Recipe, evals: &[Evaluation]) -> Vec<Verdict> {
    recipe.gates.iter().flat_map(|gate| gate.judge(evals)).collect()
}

fn describe_model(planned: Plan) -> ModelReport {
    let (path, architecture, parameters) = (planned.model, planned.architecture, planned.parameters);
    let tensors = planned.read.ignored.iter().map(|tensor| format!("`{tensor}`, by `ignore`"));
    let tokenizer = planned.read.no_tokenizer.map(|reason| format!("a tokenizer: {reason}"));
    let left_out = tensors.chain(tokenizer.filter(|_| Path::new(&path).is_file())).collect();
    ModelReport { path, architecture, parameters, left_out }
}

fn keep_promises(report: &Report, manifest: &Manifest<'_>, output: &Output) -> Result<()> {
    output.write("report.json", &json(report))?;
    output.write("report.md", report.markdown().as_bytes())?;
    // Last: a folder with a manifest is a finished one.
    output.write("manifest.json", &json(manifest))
}

/// A store that only this run knows keeps what was used, or nothing.
fn clean_up(recipe: &Recipe, workspace: Workspace, used: &BTreeSet<Digest>, output: &Output) -> Result<()> {
    if recipe.head.store.is_some() {
        return Ok(());
    }
    workspace.store.collect_garbage(Keep::Only(used), false)?;
    // Another recipe may have named this store as its own.
    if recipe.head.keep_store || !workspace.store.leases()?.is_empty() {
        return Ok(());
    }
    drop(workspace);
    output.forget_state()
}
