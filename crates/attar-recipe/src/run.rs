//! A recipe, done: claim the output, lock the inputs, run the steps, write and verify, measure, judge, report.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
};

use attar_eval::{Evaluation, Logits, Measurements, Mode, OnnxRuntime, Outcome, Reference, Runner, Status, Window};
use attar_export::{Artifact, Input};
use attar_model::Model;
use attar_tensor::{Digest, Journal, Store};
use serde::Serialize;

use crate::{
    Error, Eval, Export, Observer, Recipe, Report, Result, RunnerKind,
    lock::{self, Lock, LockMode},
    model::Working,
    output::Output,
    plan::{bits, folder, open, placed, refused},
    report::{self, ArtifactReport, ModelReport, TensorReport, VariantReport},
};

const TOOL: &str = concat!("attar ", env!("CARGO_PKG_VERSION"));

/// The real engines of this machine.
#[derive(Clone, Debug, Default)]
pub struct Engines {
    /// The shared library of ONNX Runtime.
    pub onnxruntime: Option<PathBuf>,
    /// Where it was looked for.
    pub looked: Vec<PathBuf>,
    /// An executable that serves engines: ourselves.
    pub host: PathBuf,
}

impl Engines {
    /// The error for an ONNX Runtime that is not here.
    pub fn onnxruntime_missing(&self) -> attar_eval::Error {
        attar_eval::Error::EngineMissing { looked: self.looked.clone() }
    }
}

/// How to run.
pub struct Request<'a> {
    /// What to do about the lock file.
    pub lock: LockMode,
    /// What the machine has.
    pub engines: &'a Engines,
    /// Who hears of progress.
    pub observer: &'a dyn Observer,
}

/// What units of work need while they run.
pub struct Session<'a> {
    pub(crate) store: &'a Store,
    pub(crate) journal: &'a Journal,
    pub(crate) observer: &'a dyn Observer,
    /// The windows that activations are seen on, if the recipe has such.
    pub(crate) calibration: Option<&'a [Vec<u32>]>,
}

impl Session<'_> {
    /// The blob of a unit that is done, if it is there and whole.
    pub(crate) fn done(&self, key: &Digest) -> Result<Option<Digest>> {
        match self.journal.get(key) {
            Some(blob) if self.store.verify(&blob)? => Ok(Some(blob)),
            _ => Ok(None),
        }
    }

    /// The blob of a unit: from the store if it is there and whole, or else made now.
    pub(crate) fn unit(&self, key: Digest, make: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Digest> {
        if let Some(blob) = self.done(&key)? {
            return Ok(blob);
        }
        let blob = self.store.put(make)?;
        self.journal.record(key, blob)?;
        Ok(blob)
    }

    pub(crate) fn check_interrupt(&self) -> Result<()> {
        if self.observer.interrupted() { Err(Error::interrupted()) } else { Ok(()) }
    }
}

/// A variant whose steps are done and whose artifacts are written.
struct Made {
    name: String,
    model: Model,
    working: Working,
    artifacts: Vec<(String, Artifact, u64)>,
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
    let observer = request.observer;
    check_needs(recipe, request.engines)?;
    let base = open(recipe)?;
    let output = Output::claim(recipe.output(), &recipe.owner())?;
    let lock = lock_inputs(recipe, &base, observer)?;
    lock.apply(request.lock, &Lock::path(&recipe.document.path))?;
    output.withdraw_promises()?;
    let store = Store::open(&recipe.head.store.clone().unwrap_or_else(|| output.store()))?;
    let journal = Journal::open(&store.root().join("journal"))?;
    let calibration = calibration(recipe, &base)?;
    let session = Session { store: &store, journal: &journal, observer, calibration: calibration.as_deref() };

    let mut used = BTreeSet::new();
    let mut made = Vec::new();
    for variant in &recipe.variants {
        let mut working = Working::new(if variant.name.is_empty() { "model" } else { &variant.name }, &base);
        for (key, step) in &variant.steps {
            used.extend(step.run(&mut working, &session).map_err(|e| placed(recipe, key, step.kind().name, e))?);
        }
        let model = base.with(working.graph.clone(), working.source.clone());
        let mut artifacts = Vec::new();
        for export in &recipe.exports {
            session.check_interrupt()?;
            let folder = folder(recipe, &variant.name, &export.folder);
            let (artifact, verified) = write_artifact(recipe, export, &folder, &base, &working, &output, observer)?;
            artifacts.push((folder, artifact, verified));
        }
        made.push(Made { name: variant.name.clone(), model, working, artifacts });
    }
    let evals = measure(recipe, request.engines, &base, &made, &output, &session, &mut used)?;
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
        store.collect_garbage(&used)?;
        if !recipe.head.keep_store {
            drop((store, journal));
            output.forget_state()?;
        }
    }
    Ok(report)
}

fn calibration(recipe: &Recipe, base: &Model) -> Result<Option<Vec<Vec<u32>>>> {
    let Some(calibration) = recipe.calibration() else { return Ok(None) };
    let windows = calibration.windows(&base.tokenizer()?, &base.config);
    windows.map(Some).map_err(|e| recipe.document.place(e.into(), "data.calibration"))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("reports are JSON");
    text.push(b'\n');
    text
}

/// What a run cannot end well without is known before hours of work, not after.
fn check_needs(recipe: &Recipe, engines: &Engines) -> Result<()> {
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

/// The file in which an artifact describes itself.
const ARTIFACT: &str = "artifact.json";

/// An artifact beside the digest of all that decides it.
#[derive(Serialize, serde::Deserialize)]
struct Described {
    key: Digest,
    verified_weights: u64,
    #[serde(flatten)]
    artifact: Artifact,
}

fn write_artifact(
    recipe: &Recipe,
    export: &Export,
    folder: &str,
    base: &Model,
    working: &Working,
    output: &Output,
    observer: &dyn Observer,
) -> Result<(Artifact, u64)> {
    let key = artifact_key(export, base, working)?;
    if let Some(there) = read_artifact(&output.root().join(folder), &key) {
        return Ok((there.artifact, there.verified_weights));
    }
    let partial = output.unfinished()?;
    let input = Input { graph: &working.graph, source: &*working.source };
    observer.stage(&format!("{}: write {}", working.title, export.target.name()), 0);
    let mut artifact = export
        .target
        .write(&input, &export.options, &partial, &mut |done, total| {
            if done == 0 {
                observer.stage(&format!("{}: write {}", working.title, export.target.name()), total);
            }
            observer.advance(done, "");
        })
        .map_err(|e| input_or_refused(recipe, export, e))?;
    observer.stage(&format!("{}: verify {}", working.title, export.target.name()), 0);
    let originals: BTreeMap<&str, _> = base.graph.weights().map(|(_, v, expr)| (v.name.as_str(), expr)).collect();
    let original = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| match originals.get(name) {
        Some(expr) => expr.read(&*base.source, rows, out).map(|()| true),
        None => Ok(false),
    };
    let verification = export.target.verify(&input, &artifact, &partial, Some(&original))?;
    artifact.record(&verification);
    side_files(base, &partial)?;
    let described = Described { key, verified_weights: verification.weights, artifact };
    let path = partial.join(ARTIFACT);
    std::fs::write(&path, json(&described)).map_err(|source| attar_tensor::Error::Io { action: "write", path, source })?;
    output.publish(folder)?;
    Ok((described.artifact, described.verified_weights))
}

fn input_or_refused(recipe: &Recipe, export: &Export, error: attar_export::Error) -> Error {
    match &error {
        attar_export::Error::Weight { .. } | attar_export::Error::Node { .. } => refused(recipe, &export.key, error),
        _ => error.into(),
    }
}

fn artifact_key(export: &Export, base: &Model, working: &Working) -> Result<Digest> {
    let mut text = format!("{TOOL} {} {}\n{}\n{}", export.target.name(), serde_json::json!(export.options), working.graph, base.config.json);
    let mut seen = BTreeMap::new();
    for (_, _, expr) in working.graph.weights() {
        if !seen.contains_key(&expr.to_string()) {
            seen.insert(expr.to_string(), expr.digest(&*working.source)?);
        }
    }
    seen.iter().for_each(|(expr, digest)| text += &format!("\n{expr} {digest}"));
    Ok(Digest::of(text.as_bytes()))
}

/// The artifact in `folder`, if it is of that key and every byte is what it should be.
fn read_artifact(folder: &Path, key: &Digest) -> Option<Described> {
    let described: Described = serde_json::from_slice(&std::fs::read(folder.join(ARTIFACT)).ok()?).ok()?;
    let whole = described.artifact.files.iter().all(|f| Digest::of_file(&folder.join(&f.name)).is_ok_and(|d| d == f.digest));
    (described.key == *key && whole).then_some(described)
}

/// What a runtime wants beside the weights: configuration and tokenizer.
fn side_files(base: &Model, folder: &Path) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| attar_tensor::Error::Io { action: "write", path, source })
    };
    write("config.json", &json(&base.config.json))?;
    for name in ["tokenizer.json", "generation_config.json", "tokenizer_config.json"] {
        let from = base.path.join(name);
        if base.path.is_dir() && from.exists() {
            write(name, &std::fs::read(&from).map_err(|source| attar_tensor::Error::Io { action: "read", path: from, source })?)?;
        } else if name == "tokenizer.json" && base.path.is_file() {
            write(name, base.tokenizer()?.to_json()?.as_bytes())?;
        }
    }
    Ok(())
}

fn measure(
    recipe: &Recipe,
    engines: &Engines,
    base: &Model,
    made: &[Made],
    output: &Output,
    session: &Session<'_>,
    used: &mut BTreeSet<Digest>,
) -> Result<Vec<Evaluation>> {
    let mut evaluations = Vec::new();
    for eval in &recipe.evals {
        let windows = eval.task.windows(base).map_err(|e| recipe.document.place(e, &eval.key))?;
        let base_runner = Reference::new(base);
        let mut untouched = Started::new(&base_runner, &windows, format!("untouched: {}", eval.name), session.observer);
        for variant in made {
            let reference = Reference::new(&variant.model);
            let title = format!("{}: {}", variant.working.title, eval.name);
            let mut reference = Started::new(&reference, &windows, title, session.observer);
            for (runner, mode) in &eval.runners {
                session.check_interrupt()?;
                let outcome = if *runner == RunnerKind::OnnxRuntime && engines.onnxruntime.is_none() {
                    Outcome::Skipped { reason: engines.onnxruntime_missing().to_string() }
                } else {
                    let key = eval_key(eval, *runner, *mode, engines, &windows, base, variant)?;
                    let blob = session.unit(key, |to| {
                        let engine = engine(*runner, *mode, engines, variant, output);
                        let measured = measure_one(&windows, &mut untouched, &mut reference, engine.as_ref(), session.observer)?;
                        to.write_all(&json(&measured)).map_err(|e| attar_tensor::Error::from(e).into())
                    })?;
                    used.insert(blob);
                    Outcome::Measured(Box::new(read_measurements(&session.store.path(&blob))?))
                };
                evaluations.push(Evaluation {
                    eval: eval.name.clone(),
                    variant: (!variant.name.is_empty()).then(|| variant.name.clone()),
                    runner: runner.to_string(),
                    mode: (*runner != RunnerKind::Reference).then_some(*mode),
                    outcome,
                });
            }
        }
        if evaluations.iter().any(|e| e.eval == eval.name && matches!(e.outcome, Outcome::Skipped { .. })) {
            let missing = engines.onnxruntime_missing();
            let hint = missing.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            session.observer.note(&format!("eval `{}` was not run by onnxruntime: {missing}{hint}", eval.name));
        }
    }
    Ok(evaluations)
}

fn read_measurements(path: &Path) -> Result<Measurements> {
    let text = std::fs::read(path).map_err(|source| attar_tensor::Error::Io { action: "read", path: path.into(), source })?;
    serde_json::from_slice(&text).map_err(|e| Error::input("a measurement in the store cannot be read").because(&e))
}

/// A run of the reference that begins when it is first needed and then serves every comparison.
struct Started<'r> {
    runner: &'r Reference<'r>,
    windows: &'r [Window],
    title: String,
    observer: &'r dyn Observer,
    logits: Option<Box<dyn Logits + 'r>>,
}

impl<'r> Started<'r> {
    fn new(runner: &'r Reference<'r>, windows: &'r [Window], title: String, observer: &'r dyn Observer) -> Started<'r> {
        Started { runner, windows, title, observer, logits: None }
    }

    fn logits(&mut self) -> Result<&mut (dyn Logits + 'r)> {
        if self.logits.is_none() {
            let observer = self.observer;
            observer.stage(&self.title, 0);
            // Whatever the runner counts while it starts is not windows.
            self.logits = Some(self.runner.start(self.windows, &|_, _| {})?);
        }
        Ok(&mut **self.logits.as_mut().expect("just started"))
    }
}

/// The engine on the variant's artifact, if the runner is one.
fn engine(runner: RunnerKind, mode: Mode, engines: &Engines, variant: &Made, output: &Output) -> Option<OnnxRuntime> {
    let library = engines.onnxruntime.as_ref().filter(|_| runner == RunnerKind::OnnxRuntime)?;
    let written = variant.artifacts.iter().find(|(_, artifact, _)| artifact.target == "onnx");
    let (folder, ..) = written.expect("a recipe that runs onnxruntime exports to it: checked when parsed");
    Some(OnnxRuntime::new(library, output.root().join(folder), mode, &engines.host))
}

fn measure_one(
    windows: &[Window],
    untouched: &mut Started<'_>,
    reference: &mut Started<'_>,
    engine: Option<&OnnxRuntime>,
    observer: &dyn Observer,
) -> Result<Measurements> {
    let title = format!("{} by {}", reference.title, engine.map_or("reference", |engine| engine.name()));
    let (base, reference_logits) = (untouched.logits()?, reference.logits()?);
    let scored = |done: u64, _: u64| observer.advance(done, "");
    observer.stage(&title, windows.len() as u64);
    match engine {
        None => Ok(attar_eval::compare(windows, base, reference_logits, None, &scored)?),
        Some(engine) => {
            let mut logits = engine.start(windows, &|_, _| {})?;
            Ok(attar_eval::compare(windows, base, &mut *logits, Some(reference_logits), &scored)?)
        }
    }
}

/// All that decides a measurement. Matrix kernels differ by instruction set in their last bits, so that counts too.
fn eval_key(
    eval: &Eval,
    runner: RunnerKind,
    mode: Mode,
    engines: &Engines,
    windows: &[Window],
    base: &Model,
    variant: &Made,
) -> Result<Digest> {
    let mut text = format!("{TOOL} eval {} {runner} {mode} {}\n", eval.task.task().name, instruction_set());
    for model in [base, &variant.model] {
        text += &model.graph.to_string();
        for (_, _, expr) in model.graph.weights() {
            text += &format!("{}\n", expr.digest(&*model.source)?);
        }
    }
    if runner == RunnerKind::OnnxRuntime {
        let library = engines.onnxruntime.as_deref().unwrap_or(Path::new(""));
        text += &format!("{} {}\n", library.display(), Digest::of_file(library)?);
        for (_, artifact, _) in &variant.artifacts {
            artifact.files.iter().for_each(|file| text += &format!("{} {}\n", file.name, file.digest));
        }
    }
    let tokens = windows.iter().flat_map(|w| {
        let scored = [w.scored.start as u32, w.scored.end as u32, w.tokens.len() as u32];
        scored.into_iter().chain(w.tokens.iter().copied()).flat_map(u32::to_le_bytes)
    });
    Ok(Digest::of_parts([text.as_bytes(), &tokens.collect::<Vec<u8>>()]))
}

/// The widest vectors that matrix kernels will use here.
pub(crate) fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "x86-64 avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "x86-64 avx2";
        }
    }
    std::env::consts::ARCH
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
        tensors: weights.collect(),
        artifacts: artifacts.collect(),
    }
}
