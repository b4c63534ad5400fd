//! Measurements: each is a unit of work, and runs of the reference are shared between those that need them.

use std::{collections::BTreeSet, path::Path};

use attar_eval::{Evaluation, Logits, Measurements, Mode, OnnxRuntime, Outcome, Reference, Runner, Window};
use attar_graph::kernel::instruction_set;
use attar_model::Model;
use attar_tensor::Digest;

use crate::{
    Engines, Error, Eval, Observer, Recipe, Result, RunnerKind,
    json::{TOOL, json},
    made::Made,
    output::Output,
    session::Session,
};

/// Measures every variant by every runner of every eval.
pub(crate) fn measure(
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
    let written = variant.artifacts.iter().find(|written| written.artifact.target == "onnx");
    let written = written.expect("a recipe that runs onnxruntime exports to it: checked when parsed");
    Some(OnnxRuntime::new(library, output.root().join(&written.folder), mode, &engines.host))
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
        for written in &variant.artifacts {
            written.artifact.files.iter().for_each(|file| text += &format!("{} {}\n", file.name, file.digest));
        }
    }
    let tokens = windows.iter().flat_map(|w| {
        let scored = [w.scored.start as u32, w.scored.end as u32, w.tokens.len() as u32];
        scored.into_iter().chain(w.tokens.iter().copied()).flat_map(u32::to_le_bytes)
    });
    Ok(Digest::of_parts([text.as_bytes(), &tokens.collect::<Vec<u8>>()]))
}
