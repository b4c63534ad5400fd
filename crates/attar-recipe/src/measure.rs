//! Measurements: each is a unit of work, and runs of the reference are shared between those that need them.

use std::{collections::BTreeSet, path::Path};

use attar_eval::{
    Artifact, Engine, Evaluation, Measurements, Mode, Outcome, Output as Asked, Prepared, Reference, Rows, Runner, Sides, Window,
};
use attar_graph::kernel::instruction_set;
use attar_model::Model;
use attar_tensor::Digest;

use crate::{
    Engines, Error, Eval, Observer, Recipe, Result, RunnerKind,
    json::{TOOL, json},
    made::{Made, Written},
    output::Output,
    session::Session,
};

/// Version of what decides a measurement's key.
const KEY: u32 = 2;

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
        let place = |error: Error| recipe.document.place(error, &eval.key);
        let tokenizer = base.tokenizer().map_err(|e| place(e.into()))?;
        let prepared = eval.task.prepare(&tokenizer, &base.config).map_err(|e| place(e.into()))?;
        let asked = Question { eval, base, prepared: &*prepared, engines, output };
        let base_runner = Reference::new(base);
        let mut untouched = Started::new(&base_runner, &asked, format!("untouched: {}", eval.name), session.observer);
        for variant in made {
            let reference = Reference::new(&variant.model);
            let title = format!("{}: {}", variant.working.title, eval.name);
            let mut reference = Started::new(&reference, &asked, title, session.observer);
            for (runner, mode) in &eval.runners {
                session.check_interrupt()?;
                let outcome = match asked.run_by(*runner, *mode, variant) {
                    Err(missing) => Outcome::Skipped { reason: missing.to_string() },
                    Ok(engine) => {
                        let blob = session.unit(asked.key(engine.as_ref(), variant)?, |to| {
                            let measured = asked.measure(&mut untouched, &mut reference, engine.as_ref(), session.observer)?;
                            to.write_all(&json(&measured)).map_err(|e| attar_tensor::Error::from(e).into())
                        })?;
                        used.insert(blob);
                        Outcome::Measured(read_measurements(&session.store.open(&blob)?)?)
                    }
                };
                evaluations.push(asked.evaluation(*runner, *mode, variant, outcome));
            }
        }
        note_missing(eval, engines, session.observer);
    }
    Ok(evaluations)
}

/// Says which engines an eval wanted and this machine does not have.
fn note_missing(eval: &Eval, engines: &Engines, observer: &dyn Observer) {
    for engine in eval.engines() {
        if let Err(missing) = engines.find(engine) {
            let hint = missing.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            observer.note(&format!("eval `{}` was not run by {}: {missing}{hint}", eval.name, engine.name));
        }
    }
}

fn read_measurements(path: &Path) -> Result<Measurements> {
    let text = std::fs::read(path).map_err(|source| attar_tensor::Error::Io { action: "read", path: path.into(), source })?;
    serde_json::from_slice(&text).map_err(|e| Error::input("a measurement in the store cannot be read").because(&e))
}

/// One eval, of which every variant and every runner is asked.
struct Question<'a> {
    eval: &'a Eval,
    base: &'a Model,
    prepared: &'a dyn Prepared,
    engines: &'a Engines,
    output: &'a Output,
}

impl Question<'_> {
    fn output(&self) -> Asked {
        self.eval.task.task().output
    }

    /// The variant's artifact in the engine, if the runner is one; an error if that is not installed.
    fn run_by(&self, runner: RunnerKind, mode: Mode, variant: &Made) -> attar_eval::Result<Option<Artifact>> {
        let Some(engine) = runner.engine() else { return Ok(None) };
        let installation = self.engines.find(engine)?;
        let folder = self.output.root().join(&written(variant, engine).folder);
        Ok(Some(Artifact::new(installation, folder, mode, &self.engines.host)))
    }

    fn measure(
        &self,
        untouched: &mut Started<'_>,
        reference: &mut Started<'_>,
        engine: Option<&Artifact>,
        observer: &dyn Observer,
    ) -> Result<Measurements> {
        let title = format!("{} by {}", reference.title, engine.map_or(RunnerKind::Reference.name(), |engine| engine.name()));
        let (base, own) = (untouched.rows()?, reference.rows()?);
        let windows = self.prepared.windows();
        observer.stage(&title, windows.len() as u64);
        let scored = |done: u64, _: u64| observer.advance(done, "");
        Ok(match engine {
            None => self.prepared.score(&mut Sides { model: own, base: Some(base), sibling: None }, &scored)?,
            Some(engine) => {
                let mut rows = engine.start(self.output(), windows, &|_, _| {})?;
                self.prepared.score(&mut Sides { model: &mut *rows, base: Some(base), sibling: Some(own) }, &scored)?
            }
        })
    }

    /// All that decides a measurement. Matrix kernels differ by instruction set in their last bits, so that counts too.
    fn key(&self, engine: Option<&Artifact>, variant: &Made) -> Result<Digest> {
        let mut text = format!("{TOOL} eval {KEY} {} {}\n", self.eval.task.task().name, instruction_set());
        for model in [self.base, &variant.model] {
            text += &model.graph.to_string();
            for (_, _, expr) in model.graph.weights() {
                text += &format!("{}\n", expr.digest(&*model.source)?);
            }
        }
        if let Some(Artifact { installation, mode, device, .. }) = engine {
            text += &format!("{} {} {}\n", installation.engine.name, installation.version, installation.digest()?);
            text += &format!("{mode} {device}\n");
            let files = &written(variant, installation.engine).artifact.files;
            files.iter().for_each(|file| text += &format!("{} {}\n", file.name, file.digest));
        }
        let tokens: Vec<u8> = self.prepared.windows().iter().flat_map(words).flat_map(u32::to_le_bytes).collect();
        Ok(Digest::of_parts([text.as_bytes(), &tokens, &self.prepared.key()]))
    }

    fn evaluation(&self, runner: RunnerKind, mode: Mode, variant: &Made, outcome: Outcome) -> Evaluation {
        Evaluation {
            eval: self.eval.name.clone(),
            task: self.eval.task.task().name.into(),
            variant: (!variant.name.is_empty()).then(|| variant.name.clone()),
            runner: runner.to_string(),
            mode: runner.engine().map(|_| mode),
            outcome,
        }
    }
}

/// A window as numbers.
fn words(window: &Window) -> impl Iterator<Item = u32> {
    let head = [window.scored.start as u32, window.scored.end as u32, window.tokens.len() as u32];
    head.into_iter().chain(window.tokens.iter().copied())
}

/// The artifact of a variant that an engine opens.
fn written<'m>(variant: &'m Made, engine: &Engine) -> &'m Written {
    let written =
        variant.artifacts.iter().find(|written| engine.opens.iter().any(|opens| opens.target == written.artifact.target));
    written.expect("a recipe that runs an engine exports to it: checked when parsed")
}

/// A run of the reference that begins when it is first needed and then serves every comparison.
struct Started<'r> {
    runner: &'r Reference<'r>,
    output: Asked,
    windows: &'r [Window],
    title: String,
    observer: &'r dyn Observer,
    rows: Option<Box<dyn Rows + 'r>>,
}

impl<'r> Started<'r> {
    fn new(runner: &'r Reference<'r>, asked: &Question<'r>, title: String, observer: &'r dyn Observer) -> Started<'r> {
        Started { runner, output: asked.output(), windows: asked.prepared.windows(), title, observer, rows: None }
    }

    fn rows(&mut self) -> Result<&mut (dyn Rows + 'r)> {
        if self.rows.is_none() {
            let observer = self.observer;
            observer.stage(&self.title, 0);
            // Whatever the runner counts while it starts is not windows.
            self.rows = Some(self.runner.start(self.output, self.windows, &|_, _| {})?);
        }
        Ok(&mut **self.rows.as_mut().expect("just started"))
    }
}
