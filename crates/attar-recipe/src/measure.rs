//! Measurements: each is a unit of work, and runs of the reference are shared between those that need them.

use std::{collections::BTreeSet, path::Path};

use attar_eval::{
    Artifact, Asked, DEFAULT_TASK, DEVICE, Engine, Evaluation, Language, Measurements, Mode, Outcome, Prepared, Reference, Rows,
    Runner, Sides, Window,
};
use attar_graph::kernel::instruction_set;
use attar_model::Model;
use attar_tensor::Digest;

use crate::{
    Engines, Error, Eval, Existing, Observer, Recipe, Result, RunnerKind,
    json::TOOL,
    made::{Made, Written},
    opened::{Measured, Opened},
    output::Output,
    overlap::{self, Known},
    predict::{Wanted, beyond},
    session::Session,
};

/// Version of what decides a measurement's key.
const KEY: u32 = 2;

/// What is measured.
pub(crate) struct Subject<'a> {
    /// The name of a variant, if it is one and has such.
    variant: Option<&'a str>,
    /// For progress.
    title: &'a str,
    /// What the reference runs; nothing but engines runs an artifact that was there before.
    model: Option<&'a Model>,
    artifact: Folders<'a>,
}

/// Where engines find what they open.
enum Folders<'a> {
    /// In the output folder.
    Written(&'a Path, &'a [Written]),
    /// Where it was before.
    Existing(&'a Existing),
    Nowhere,
}

impl<'a> Subject<'a> {
    /// A variant, with what was written of it in `output`.
    pub(crate) fn made(made: &'a Made, output: &'a Output) -> Subject<'a> {
        let variant = (!made.name.is_empty()).then_some(&*made.name);
        let artifact = Folders::Written(output.root(), &made.artifacts);
        Subject { variant, title: &made.working.title, model: Some(&made.model), artifact }
    }

    /// What a recipe without steps and exports is about.
    pub(crate) fn opened(opened: &'a Opened) -> Subject<'a> {
        let (model, artifact) = match &opened.subject {
            Measured::Model(model) => (Some(model), Folders::Nowhere),
            Measured::Artifact(existing) => (None, Folders::Existing(existing)),
        };
        Subject { variant: None, title: "model", model, artifact }
    }

    /// Whether it has an artifact that an engine opens. A variant that is not exported to it has none.
    fn opens(&self, engine: &Engine) -> bool {
        match self.artifact {
            Folders::Written(_, written) => opened_by(written, engine).is_some(),
            Folders::Existing(_) | Folders::Nowhere => true,
        }
    }

    /// Its artifact in an engine.
    fn run_by(
        &self,
        engine: &'static Engine,
        mode: Mode,
        device: Option<&str>,
        engines: &Engines,
    ) -> attar_eval::Result<Artifact> {
        let artifact = match self.artifact {
            Folders::Written(root, written) => {
                let folder = root.join(&opened_by(written, engine).expect(OPENS).folder);
                Artifact::new(engines.find(engine)?, folder, mode, &engines.host)
            }
            Folders::Existing(existing) => existing.run_by(engine, mode, engines)?,
            Folders::Nowhere => unreachable!("a recipe that runs an engine has an artifact for it: checked when parsed"),
        };
        artifact.on(device)
    }

    /// The files that an engine opens, with their digests.
    fn files(&self, engine: &Engine) -> Result<Vec<(String, Digest)>> {
        match self.artifact {
            Folders::Written(_, written) => {
                let files = &opened_by(written, engine).expect(OPENS).artifact.files;
                Ok(files.iter().map(|file| (file.name.clone(), file.digest)).collect())
            }
            Folders::Existing(existing) => existing.digests(),
            Folders::Nowhere => Ok(Vec::new()),
        }
    }
}

/// The artifact that an engine opens: of its targets, the first that there is.
fn opened_by<'m>(written: &'m [Written], engine: &Engine) -> Option<&'m Written> {
    let of = |target: &str| written.iter().find(|written| written.artifact.target == target);
    engine.opens.iter().find_map(|opens| of(opens.target))
}

/// Why a subject has what an engine opens.
const OPENS: &str = "only subjects that an engine opens are asked about: `Subject::opens`";

/// What all measurements of a run have in common.
pub(crate) struct Measuring<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) engines: &'a Engines,
    pub(crate) opened: &'a Opened,
    pub(crate) observer: &'a dyn Observer,
    /// Where measurements are kept, if they are.
    pub(crate) session: Option<&'a Session<'a>>,
}

impl Measuring<'_> {
    /// Measures every subject by every runner of every eval. `used` gets the blobs of the measurements.
    pub(crate) fn measure(&self, subjects: &[Subject<'_>], used: &mut BTreeSet<Digest>) -> Result<Vec<Evaluation>> {
        let mut evaluations = Vec::new();
        for eval in self.recipe.evals.iter().filter(|eval| !eval.task.task().timed) {
            let prepared = self.prepare(eval)?;
            let question = Question { eval, base: self.opened.base(), prepared: &*prepared };
            self.ask(&question, subjects, used, &mut evaluations)?;
            note_missing(eval, self.engines, self.observer);
        }
        Ok(evaluations)
    }

    /// Reads the data of an eval.
    fn prepare(&self, eval: &Eval) -> Result<Box<dyn Prepared>> {
        let place = |error: Error| self.recipe.document.place(error, &eval.key);
        let tokenizer = self.opened.tokenizer().map_err(place)?;
        let chat = self.opened.chat_template().map_err(place)?;
        let language = Language { tokenizer: &tokenizer, config: self.opened.config(), chat: chat.as_ref() };
        eval.task.prepare(&language).map_err(|e| place(e.into()))
    }

    /// Reads the data of all evals, so that what is wrong with it is known before the work, and says which of it was seen in calibration.
    pub(crate) fn overlaps(&self) -> Result<Vec<String>> {
        let known = Known::of(self.session.and_then(|session| session.calibration).unwrap_or_default());
        let mut notes = Vec::new();
        for eval in self.recipe.evals.iter().filter(|eval| !eval.task.task().timed) {
            let prepared = self.prepare(eval)?;
            if let count @ 1.. = known.count(prepared.windows()) {
                notes.push(overlap::note(&eval.name, count, prepared.windows().len()));
            }
        }
        notes.iter().for_each(|note| self.observer.note(&format!("note: {note}")));
        Ok(notes)
    }

    /// Takes the times of every subject in every engine of every eval that asks for them. Nothing of it is kept.
    pub(crate) fn time(&self, subjects: &[Subject<'_>]) -> Result<Vec<Evaluation>> {
        let mut evaluations = Vec::new();
        for (eval, load) in self.recipe.evals.iter().filter_map(|eval| Some((eval, eval.task.load()?))) {
            let place = |error: Error| self.recipe.document.place(error, &eval.key);
            let tokenizer = self.opened.tokenizer().map_err(place)?;
            let language = Language { tokenizer: &tokenizer, config: self.opened.config(), chat: None };
            let bench = load.bench(&language).map_err(|e| place(e.into()))?;
            let runners = || eval.runners.iter().filter_map(|(runner, mode)| Some((*runner, runner.engine()?, *mode)));
            for subject in subjects {
                for (runner, engine, mode) in runners().filter(|(_, engine, _)| subject.opens(engine)) {
                    if self.observer.interrupted() {
                        return Err(Error::interrupted());
                    }
                    let title = format!("{}: {} by {}", subject.title, eval.name, engine.name);
                    self.observer.stage(&title, bench.requests.len() as u64);
                    let outcome = match subject.run_by(engine, mode, eval.device.as_deref(), self.engines) {
                        Err(missing) => Outcome::Skipped { reason: missing.to_string() },
                        Ok(mut artifact) => {
                            artifact.threads = load.threads();
                            artifact.processors = load.processors();
                            artifact.timeout = load.timeout();
                            let measured = bench.run(&artifact, &|done, _| self.observer.advance(done, ""))?;
                            Outcome::Measured(Measurements::of(&measured))
                        }
                    };
                    evaluations.push(evaluation(eval, runner, mode, subject, outcome));
                }
            }
            note_missing(eval, self.engines, self.observer);
        }
        Ok(evaluations)
    }

    /// What compilers of vendors predict of every subject.
    pub(crate) fn predict(&self, subjects: &[Subject<'_>]) -> Result<Vec<Evaluation>> {
        let pairs = subjects.iter().flat_map(|subject| self.recipe.predictions.iter().map(move |wanted| (subject, wanted)));
        let opened = pairs.filter(|(subject, wanted)| subject.opens(wanted.compiler));
        opened.map(|(subject, wanted)| self.prediction(subject, wanted)).collect()
    }

    fn prediction(&self, subject: &Subject<'_>, wanted: &Wanted) -> Result<Evaluation> {
        if self.observer.interrupted() {
            return Err(Error::interrupted());
        }
        self.observer.stage(&format!("{}: compile by {} for {}", subject.title, wanted.compiler.name, wanted.device()), 0);
        let outcome = match subject.run_by(wanted.compiler, Mode::Default, Some(wanted.device()), self.engines) {
            Err(missing) => Outcome::Skipped { reason: missing.to_string() },
            // What a compiler cannot compile is known by that, and the rest of the run is as good as before.
            Ok(artifact) => match artifact.predict(wanted.ask()) {
                Ok(mut prediction) => {
                    prediction.notes.extend(beyond(wanted.ask(), self.opened.config().context));
                    Outcome::Predicted(prediction)
                }
                Err(_) if self.observer.interrupted() => return Err(Error::interrupted()),
                Err(error) => Outcome::Skipped { reason: error.to_string() },
            },
        };
        Ok(Evaluation {
            eval: DEVICE.into(),
            task: DEFAULT_TASK.into(),
            variant: subject.variant.map(Into::into),
            runner: wanted.compiler.name.into(),
            mode: None,
            device: Some(wanted.device().into()),
            outcome,
        })
    }

    fn ask(
        &self,
        asked: &Question<'_>,
        subjects: &[Subject<'_>],
        used: &mut BTreeSet<Digest>,
        evaluations: &mut Vec<Evaluation>,
    ) -> Result<()> {
        let eval = asked.eval;
        let base = asked.base.map(Reference::new);
        let title = format!("baseline: {}", eval.name);
        let mut base = base.as_ref().map(|base| Started::new(base, asked, title, self.observer));
        for subject in subjects {
            let reference = subject.model.map(Reference::new);
            let title = format!("{}: {}", subject.title, eval.name);
            let mut own = reference.as_ref().map(|own| Started::new(own, asked, title.clone(), self.observer));
            for (runner, mode) in
                eval.runners.iter().filter(|(runner, _)| runner.engine().is_none_or(|engine| subject.opens(engine)))
            {
                if self.observer.interrupted() {
                    return Err(Error::interrupted());
                }
                let engine =
                    runner.engine().map(|engine| subject.run_by(engine, *mode, eval.device.as_deref(), self.engines)).transpose();
                let outcome = match engine {
                    Err(missing) => Outcome::Skipped { reason: missing.to_string() },
                    Ok(engine) => {
                        let engine = engine.as_ref();
                        let make = || asked.measure(&title, base.as_mut(), own.as_mut(), engine, self.observer);
                        Outcome::Measured(self.kept(|| asked.key(engine, subject), make, used)?)
                    }
                };
                evaluations.push(evaluation(eval, *runner, *mode, subject, outcome));
            }
        }
        Ok(())
    }

    /// A measurement: from the store if it is there, or else made now, and kept where there is a store.
    fn kept(
        &self,
        key: impl FnOnce() -> Result<Digest>,
        make: impl FnOnce() -> Result<Measurements>,
        used: &mut BTreeSet<Digest>,
    ) -> Result<Measurements> {
        let Some(session) = self.session else { return make() };
        let blob = session.json(key()?, make)?;
        used.insert(blob);
        session.read_json(&blob, "a measurement")
    }
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

/// One eval, of which every subject and every runner is asked.
struct Question<'a> {
    eval: &'a Eval,
    /// What is compared with.
    base: Option<&'a Model>,
    prepared: &'a dyn Prepared,
}

impl Question<'_> {
    fn asked(&self) -> Asked {
        match self.prepared.generation() {
            Some(how) => Asked::Answers(how.clone()),
            None => Asked::Output(self.eval.task.task().output),
        }
    }

    /// `own` is the subject's run by the reference.
    fn measure(
        &self,
        title: &str,
        base: Option<&mut Started<'_>>,
        own: Option<&mut Started<'_>>,
        engine: Option<&Artifact>,
        observer: &dyn Observer,
    ) -> Result<Measurements> {
        let title = format!("{title} by {}", engine.map_or(RunnerKind::Reference.name(), |engine| engine.name()));
        // Spelled out: a mapped option would not shorten the lifetime behind the trait object.
        let base: Option<&mut dyn Rows> = match base {
            Some(base) => Some(base.rows()?),
            None => None,
        };
        let own: Option<&mut dyn Rows> = match own {
            Some(own) => Some(own.rows()?),
            None => None,
        };
        let windows = self.prepared.windows();
        observer.stage(&title, windows.len() as u64);
        let scored = |done: u64, _: u64| observer.advance(done, "");
        Ok(match (engine, own) {
            (None, Some(model)) => self.prepared.score(&mut Sides { model, base, sibling: None }, &scored)?,
            (None, None) => unreachable!("the reference runs models only: checked when parsed"),
            (Some(engine), sibling) => {
                let mut rows = engine.start(self.asked(), windows, &|_, _| {})?;
                self.prepared.score(&mut Sides { model: &mut *rows, base, sibling }, &scored)?
            }
        })
    }

    /// All that decides a measurement. Matrix kernels differ by instruction set in their last bits, so that counts too.
    fn key(&self, engine: Option<&Artifact>, subject: &Subject<'_>) -> Result<Digest> {
        let mut text = format!("{TOOL} eval {KEY} {} {}\n", self.eval.task.task().name, instruction_set());
        for model in [self.base, subject.model] {
            let Some(model) = model else {
                text += "none\n";
                continue;
            };
            text += &model.graph.to_string();
            for (_, _, expr) in model.graph.weights() {
                text += &format!("{}\n", expr.digest(&*model.source)?);
            }
        }
        if let Some(Artifact { installation, mode, device, .. }) = engine {
            text += &format!("{} {} {}\n", installation.engine.name, installation.version, installation.digest()?);
            text += &format!("{mode} {device}\n");
            subject.files(installation.engine)?.iter().for_each(|(name, digest)| text += &format!("{name} {digest}\n"));
        }
        let tokens: Vec<u8> = self.prepared.windows().iter().flat_map(words).flat_map(u32::to_le_bytes).collect();
        Ok(Digest::of_parts([text.as_bytes(), &tokens, &self.prepared.key()]))
    }
}

fn evaluation(eval: &Eval, runner: RunnerKind, mode: Mode, subject: &Subject<'_>, outcome: Outcome) -> Evaluation {
    Evaluation {
        eval: eval.name.clone(),
        task: eval.task.task().name.into(),
        variant: subject.variant.map(Into::into),
        runner: runner.to_string(),
        mode: runner.engine().map(|_| mode),
        device: runner.engine().and(eval.device.clone()),
        outcome,
    }
}

/// A window as numbers.
fn words(window: &Window) -> impl Iterator<Item = u32> {
    let head = [window.scored.start as u32, window.scored.end as u32, window.tokens.len() as u32];
    head.into_iter().chain(window.tokens.iter().copied())
}

/// A run of the reference that begins when it is first needed and then serves every comparison.
struct Started<'r> {
    runner: &'r Reference<'r>,
    asked: Asked,
    windows: &'r [Window],
    title: String,
    observer: &'r dyn Observer,
    rows: Option<Box<dyn Rows + 'r>>,
}

impl<'r> Started<'r> {
    fn new(runner: &'r Reference<'r>, asked: &Question<'r>, title: String, observer: &'r dyn Observer) -> Started<'r> {
        Started { runner, asked: asked.asked(), windows: asked.prepared.windows(), title, observer, rows: None }
    }

    fn rows(&mut self) -> Result<&mut (dyn Rows + 'r)> {
        if self.rows.is_none() {
            let observer = self.observer;
            observer.stage(&self.title, 0);
            // Whatever the runner counts while it starts is not windows.
            self.rows = Some(self.runner.start(self.asked.clone(), self.windows, &|_, _| {})?);
        }
        Ok(&mut **self.rows.as_mut().expect("just started"))
    }
}
