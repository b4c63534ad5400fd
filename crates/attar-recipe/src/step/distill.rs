//! The step `distill`: a float model learns from a teacher, or from text.
//!
//! What the teacher says is computed once ([`super::lessons`]). Every few steps all that learns is a blob of the store, with the
//! losses so far, and so are the best weights on the held-out windows: a killed run takes up from there and ends with the same bytes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use attar_compress::{
    TrainingWindows,
    learn::{Batch, Distill, Measured, Plain, ROWS, Student, Tied, map},
};
use attar_graph::{BlockId, Cached, Graph, SourceWeights};
use attar_model::Model;
use attar_tensor::{Digest, Encoding};
use candle_core::Tensor;

use super::{
    adapted::Adapted,
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    lessons::{Lessons, Meeting, Teaching, meetings, pairs},
    local::{self, Stage},
    plain::{self, PlainTrainable},
    student,
    trainable::{check_matches_float, gradient_memory, weights_key},
};
use crate::{
    Error, ErrorKind,
    model::{Adapters, Float, Working},
    plot::{Line, Mark, Plot},
    report::{DistillReport, MeasuredPoint},
    session::Session,
    settings::of,
    shape, tokens,
    walk::{self, Latest, first_key, read_lanes, write_parts},
};

pub(super) static DISTILL: StepKind = StepKind {
    name: "distill",
    about: "Train a float model towards a teacher, or on a text",
    schema: of::<Distill>,
    build: |section| Ok(Box::new(section.finish::<Distill>(&["kind".into()])?)),
    folder: Some("distilled"),
    is_verb: true,
    examples: &[
        "attar distill smaller --teacher model --train text.txt --length 128 --steps 4 --out student",
        "attar distill model --labels 1 --kl 0 --train text.txt --samples 8 --length 64 --out own",
    ],
    looks_inside: true,
    trains: true,
    needs_tokens: true,
    predicts: false,
};

/// Training steps between two blobs.
const STEPS_KEPT: usize = 16;

/// Bytes of activations that are kept rather than computed twice.
const KEPT_INSIDE: u64 = 384 << 20;

/// The unit of the losses on the way.
const TRACE: &str = "trace";

/// Batches that the first maps between hidden states are fitted on, at most.
const MAPPED: usize = 8;

/// The loss on the first batches may have risen by so much at the end: others were learned from since.
const RISEN: f64 = 1.1;

/// Points of the loss on the training text that a report has at most.
const POINTS: usize = 50;

impl Step for Distill {
    fn kind(&self) -> &'static StepKind {
        &DISTILL
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn checkpoints(&self) -> Vec<(String, PathBuf)> {
        self.teacher.iter().map(|path| ("teacher".to_owned(), path.clone())).collect()
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        self.check().map_err(refused)?;
        if model.training.is_none() && !model.calibrated {
            let hint = "add `[data.train]` with the `path` of a text".to_owned();
            return Err(Error::recipe("`distill` trains on text, and the recipe has none").hint(hint).into());
        }
        let mut planned = self.student.as_ref().map_or_else(|| Ok(Vec::new()), |shape| student::plan(shape, model))?;
        let learners = self.learners(model)?;
        let teacher = self.teacher(model)?;
        if self.teacher.is_none() && self.labels == 0.0 && teacher.graph == model.graph {
            let hint = "name a `teacher`, or remove something by `prune` first, or learn from the text by `labels`".to_owned();
            let error = Error::recipe("the teacher is the model itself, which has nothing to learn from it").hint(hint);
            return Err(error.into());
        }
        if self.hidden > 0.0 {
            meetings(&learners.graph, &teacher.graph)?;
        }
        if self.local > 0 {
            local::check(&pairs(&learners.graph, &teacher.graph)?, &learners.graph, &teacher.graph)?;
            walk::plan(model, 2);
        }
        let memory = self.memory(model, &teacher, &learners.plain);
        planned.extend(learners.plain.iter().map(|plain| plain.planned(memory)));
        let Learners { graph, plain, adapters } = learners;
        (model.graph, model.adapters) = (graph, adapters);
        plain::place(&mut model.graph, &plain);
        if model.adapters.is_none() {
            model.float.graph = model.graph.clone();
        }
        Ok(planned)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let mut used = self.student.as_ref().map_or_else(|| Ok(Vec::new()), |shape| student::make(shape, model, session))?;
        let (learners, teacher) = (self.learners(model)?, self.teacher(model)?);
        let text = self.text(session)?;
        let Learners { graph, plain, .. } = &learners;
        let training = Training { settings: self, model, graph, teacher: &teacher, plain, text: &text, session };
        let key = training.key()?;
        let part = |name: &str| Digest::of_parts([key.as_bytes().as_slice(), name.as_bytes()]);
        let blobs = match (session.done(&part(plain::UNIT))?, session.done(&part(TRACE))?) {
            (Some(learned), Some(trace)) => [learned, trace],
            _ => training.train(&part)?,
        };
        let trace = Trace::read(&read_lanes(&session.store.open(&blobs[1])?, 1)?[0]);
        used.extend(training.teaching().kept_tops()?);
        let report = training.report(&trace);
        if report.best_step == Some(0) {
            let hint = "lower `learning_rate`, or train longer";
            session.observer.note(&format!(
                "note: nothing that was learned did better on the held-out text, and the weights stay as they were: {hint}"
            ));
        }
        let Learners { graph, plain, adapters } = learners;
        (model.graph, model.adapters) = (graph, adapters);
        plain::install(model, &plain, &part(plain::UNIT), session.store.open(&blobs[0])?)?;
        if model.adapters.is_none() {
            model.float = Float { graph: model.graph.clone(), source: model.source.clone() };
        }
        DISTILL.leave(model, vec![("loss.svg".to_owned(), report.plot().svg().into_bytes().into())]);
        model.findings.push(report);
        used.extend(blobs);
        Ok(used)
    }
}

/// What learns.
struct Learners {
    /// The student: the model, with adapters where these learn.
    graph: Graph,
    plain: Vec<PlainTrainable>,
    adapters: Option<Adapters>,
}

/// What a step of this kind asks of a model; settings themselves are in `attar_compress::learn`.
trait Asked {
    fn learners(&self, model: &Working) -> Result<Learners, StepError>;
    fn teacher(&self, model: &Working) -> Result<Float, StepError>;
    fn text(&self, session: &Session<'_>) -> Result<TrainingWindows, StepError>;
    fn memory(&self, model: &Working, teacher: &Float, plain: &[PlainTrainable]) -> u64;
    fn states_memory(&self, model: &Working, teacher: &Float, length: usize) -> u64;
    fn inside(&self, model: &Working, length: usize) -> u64;
    fn keeps(&self, model: &Working, length: usize) -> bool;
}

impl Asked for Distill {
    /// The weights that learn, or the adapters next to them. Codes do not learn here.
    fn learners(&self, model: &Working) -> Result<Learners, StepError> {
        if let Some(rank) = self.rank {
            let Adapted { graph, factors, adapters } = Adapted::of(&self.selected(), rank, "rank", model)?;
            return Ok(Learners { graph, plain: factors, adapters: Some(adapters) });
        }
        check_matches_float(model)?;
        let codes = model.graph.weights().find(|(_, value, _)| matches!(value.fact.encoding, Encoding::Quantized(_)));
        if let Some((_, value, _)) = codes {
            let message = format!("`{}` is quantized to {}, and `distill` trains float weights", value.name, value.fact.encoding);
            let hint = "give a `rank`: adapters learn next to codes; or let `recover` train these, or put `distill` before the step that \
                        quantizes"
                .to_owned();
            return Err(StepError { key: Some("kind".into()), error: Error::recipe(message).hint(hint) });
        }
        let plain = plain::weights(&self.selected(), self.dtype.map(Into::into), &model.graph, &model.zeros)?;
        Ok(Learners { graph: model.graph.clone(), plain, adapters: None })
    }

    /// The teacher. Its next-token distributions must be over the same tokens.
    fn teacher(&self, model: &Working) -> Result<Float, StepError> {
        let refused = |message: String, hint: &str| {
            Err(StepError { key: Some("teacher".into()), error: Error::recipe(message).hint(hint.to_owned()) })
        };
        let failed = |e: attar_model::Error| StepError { key: Some("teacher".into()), error: e.into() };
        let opened = self.teacher.as_ref().map(|path| Model::open(path).map_err(failed)).transpose()?;
        let teacher = match &opened {
            Some(opened) => Float { graph: opened.graph.clone(), source: opened.source.clone() },
            None => model.opened.clone(),
        };
        if !shape::predicts_tokens(&teacher.graph) {
            return refused(format!("`{}` predicts no tokens: it is an encoder", teacher.graph.name()), "choose a decoder");
        }
        let [own, other] = [&model.graph, &teacher.graph].map(shape::output_width);
        if own != other {
            let hint = "a teacher has the vocabulary of its student: choose a model of the same family";
            return refused(format!("the teacher has logits for {other} tokens, and the model for {own}"), hint);
        }
        if let Some(top) = self.teacher_top.filter(|top| *top as u64 > other) {
            let error = Error::recipe(format!("{top} tokens of a vocabulary of {other}"));
            let error = error.hint("leave `teacher_top` out: then every token counts".to_owned());
            return Err(StepError { key: Some("teacher_top".into()), error });
        }
        if let Some(opened) = opened {
            let (own, other) = (model.checkpoint.tokenizer().map_err(failed)?, opened.tokenizer().map_err(failed)?);
            if let Some(difference) = tokens::difference(&own, &other).or_else(|| tokens::other_tokens(&own, &other)) {
                let hint = "a teacher has the tokenizer of its student: choose a model of the same family";
                return refused(format!("the teacher has another tokenizer: {difference}"), hint);
            }
        }
        Ok(teacher)
    }

    /// The windows that are used, those to train on in whole batches.
    fn text(&self, session: &Session<'_>) -> Result<TrainingWindows, StepError> {
        let mut text = match (session.training, session.calibration) {
            (Some(training), _) => training.clone(),
            (None, calibration) => TrainingWindows { train: calibration.unwrap_or_default().to_vec(), held_out: Vec::new() },
        };
        let batches = text.train.len() / self.batch;
        if batches == 0 {
            let (found, length) = (text.train.len(), text.train.first().map_or(0, Vec::len));
            let message = format!(
                "the text has {} tokens to train on, {found} windows of {length}, and a batch takes {}: {} windows",
                found * length,
                self.batch * length,
                self.batch
            );
            let hint = "give more text, or shorter windows, or lower `batch`".to_owned();
            return Err(StepError { key: Some("batch".into()), error: Error::recipe(message).hint(hint) });
        }
        let used = self.steps(batches).saturating_mul(self.accumulate).min(batches);
        text.train.truncate(used * self.batch);
        Ok(text)
    }

    /// Bytes: values, moments and gradients of all that learns, and a block of them as tensors; what enters every block of the
    /// student and the last one of the teacher; both heads; logits; the inside of one block.
    fn memory(&self, model: &Working, teacher: &Float, plain: &[PlainTrainable]) -> u64 {
        let (windows, held_out, length) = match &model.training {
            Some(text) => (text.most_windows() + text.most_held_out(), text.most_held_out(), text.length),
            None => (model.tokens as usize / model.window.max(1), 0, model.window),
        };
        let steps = self.steps.map_or(windows, |steps| steps.saturating_mul(self.accumulate * self.batch).min(windows));
        // Where hidden states count, the teacher comes to its last block at every step, and only held-out windows wait there.
        let asked = match (self.kl == 0.0, self.hidden > 0.0) {
            (true, _) => 0,
            (false, true) => held_out,
            (false, false) => steps,
        };
        let tokens = (asked * length) as u64;
        let learned: u64 = plain.iter().map(PlainTrainable::numbers).sum();
        let [_, between] = model.token_bytes();
        let entered = (self.batch * length * model.graph.block_count()) as u64 * between;
        let heads = shape::head_numbers(&model.graph) + shape::head_numbers(&teacher.graph);
        let logits = 6 * ROWS as u64 * shape::output_width(&model.graph);
        // On its way to its last block, the teacher has twice as much as what enters that, and the student is not there yet.
        let walked = walk::memory(&teacher.graph, tokens, 1);
        let training = 16 * learned
            + 12 * shape::largest_block(&model.graph)
            + walked / 2
            + entered
            + 4 * (heads + logits)
            + self.inside(model, length)
            + self.states_memory(model, teacher, length)
            + 12 * tokens * self.teacher_top.unwrap_or(0) as u64;
        training.max(walked + 4 * shape::largest_block(&teacher.graph))
    }

    /// Bytes of hidden states: those of the teacher on the batches of a step, gradients of the student's, a block of the teacher, and maps with
    /// their moments.
    fn states_memory(&self, model: &Working, teacher: &Float, length: usize) -> u64 {
        if self.hidden == 0.0 {
            return 0;
        }
        let widths = [&model.graph, &teacher.graph].map(shape::residual_width);
        let (blocks, tokens) = (model.graph.block_count() as u64, (self.batch * length) as u64);
        let maps = if widths[0] == widths[1] { 0 } else { 16 * blocks * widths[0] * widths[1] };
        4 * blocks * tokens * (widths[0] + self.accumulate.max(MAPPED) as u64 * widths[1])
            + 4 * shape::largest_block(&teacher.graph)
            + maps
    }

    /// Bytes of what is inside of blocks for the backward pass.
    fn inside(&self, model: &Working, length: usize) -> u64 {
        let block = gradient_memory(model, (self.batch * length) as u64);
        if self.keeps(model, length) { block.saturating_mul(model.graph.block_count() as u64) } else { block }
    }

    /// Whether what is inside of all blocks is kept. It depends on the model and the settings alone, so that results do, too.
    fn keeps(&self, model: &Working, length: usize) -> bool {
        let block = gradient_memory(model, (self.batch * length) as u64);
        block.saturating_mul(model.graph.block_count() as u64) <= KEPT_INSIDE
    }
}

struct Training<'a> {
    settings: &'a Distill,
    model: &'a Working,
    /// The student's.
    graph: &'a Graph,
    teacher: &'a Float,
    plain: &'a [PlainTrainable],
    text: &'a TrainingWindows,
    session: &'a Session<'a>,
}

/// The losses so far.
#[derive(Default)]
struct Trace {
    /// Of every step, on its batches.
    losses: Vec<f32>,
    /// After so many steps, on the held-out windows.
    held_out: Vec<(usize, Measured)>,
}

impl Trace {
    /// Under names of their own, those that there are.
    fn parts(&self) -> Vec<(&'static str, Vec<f32>)> {
        let held_out = self.held_out.iter().flat_map(|(step, found)| [*step as f32, found.kl as f32, found.labels as f32]);
        let parts = [("losses", self.losses.clone()), ("held_out", held_out.collect())];
        parts.into_iter().filter(|(_, values)| !values.is_empty()).collect()
    }

    fn read(tensors: &BTreeMap<String, Tensor>) -> Trace {
        let part = |name: &str| tensors.get(name).and_then(|tensor| tensor.to_vec1::<f32>().ok()).unwrap_or_default();
        let point = |of: &[f32]| (of[0] as usize, Measured { kl: of[1].into(), labels: of[2].into() });
        Trace { losses: part("losses"), held_out: part("held_out").chunks_exact(3).map(point).collect() }
    }

    /// The first of the best measurements.
    fn best(&self, settings: &Distill) -> Option<usize> {
        let losses = self.held_out.iter().enumerate().map(|(at, (_, found))| (at, settings.loss(*found)));
        losses.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    }

    /// After how many steps the best measurement was.
    fn best_step(&self, settings: &Distill) -> Option<usize> {
        self.best(settings).map(|at| self.held_out[at].0)
    }

    /// Whether the last measurements were all no better than one before.
    fn is_over(&self, settings: &Distill) -> bool {
        let behind = self.best(settings).map_or(0, |at| self.held_out.len() - 1 - at);
        settings.patience > 0 && behind >= settings.patience
    }
}

/// A run of training, at some step.
struct Course<'a> {
    student: Student<'a>,
    trace: Trace,
    /// Everything, every few steps.
    kept: Latest,
    /// The best weights on the held-out windows.
    best: Latest,
}

type Part<'p> = &'p dyn Fn(&str) -> Digest;

impl<'a> Training<'a> {
    fn key(&self) -> Result<Digest, StepError> {
        let mut settings = self.settings.settings();
        // The weights of the teacher count, not its place.
        settings["teacher"] = serde_json::Value::Null;
        let settings = settings.to_string();
        let train = first_key(self.graph, &self.text.train);
        let held_out = walk::token_bytes(&self.text.held_out);
        let student = weights_key(&self.model.graph, &*self.model.source, self.model.graph.blocks())?;
        let teacher = weights_key(&self.teacher.graph, &*self.teacher.source, self.teacher.graph.blocks())?;
        let graph = self.teacher.graph.to_string();
        let zeros: String = self.model.zeros.iter().map(|name| format!(" {name}")).collect();
        let parts = [
            b"distill 2".as_slice(),
            settings.as_bytes(),
            train.as_bytes(),
            &held_out,
            student.as_bytes(),
            graph.as_bytes(),
            teacher.as_bytes(),
        ];
        Ok(Digest::of_parts(parts.into_iter().chain((!zeros.is_empty()).then_some(zeros.as_bytes()))))
    }

    fn teaching(&self) -> Teaching<'a> {
        let Training { settings, model, graph, teacher, text, session, .. } = *self;
        Teaching { settings, teacher, graph, text, title: &model.title, session }
    }

    /// The blobs of what was learned, and of the losses on the way.
    fn train(&self, part: Part<'_>) -> Result<[Digest; 2], StepError> {
        let (settings, session) = (self.settings, self.session);
        let student = SourceWeights(self.model.source.clone());
        let teacher = SourceWeights(self.teacher.source.clone());
        let teaching = self.teaching();
        let (lessons, reached) = teaching.lessons(&teacher)?;
        let meetings = if settings.hidden > 0.0 { meetings(self.graph, &self.teacher.graph)? } else { Vec::new() };
        let heads = [Cached::new(&student), Cached::new(&teacher)];
        let batches = self.text.train.len() / settings.batch;
        let steps = settings.steps(batches);
        let matched = if settings.local > 0 { self.matched()? } else { BTreeMap::new() };
        session.observer.stage(&format!("{}: distill", self.model.title), steps as u64);
        let mut course = self.begin(&student, steps, &meetings, matched, part)?;
        if course.trace.losses.is_empty() && course.trace.held_out.is_empty() {
            self.measure(&mut course, &lessons, &heads, part)?;
        }
        let (every, started, first) = (settings.evaluated_every(steps), Instant::now(), course.trace.losses.len());
        while course.trace.losses.len() < steps && !course.trace.is_over(settings) {
            session.check_interrupt()?;
            let step = course.trace.losses.len();
            let meet = |at: usize| Ok((at, teaching.meet(&meetings, &lessons.inputs[at], &teacher)?));
            if step == 0 && !meetings.is_empty() {
                let first = (0..batches.min(MAPPED)).map(meet).collect::<crate::Result<Vec<_>>>()?;
                let first = first.iter().map(|(at, met)| teaching.batch(&lessons, *at, met.as_ref(), &heads[1]));
                settings.begin_maps(&mut course.student, &first.collect::<Vec<_>>())?;
            }
            let taken = (step * settings.accumulate..).take(settings.accumulate).map(|at| meet(at % batches));
            let taken = taken.collect::<crate::Result<Vec<_>>>()?;
            let taken = taken.iter().map(|(at, met)| teaching.batch(&lessons, *at, met.as_ref(), &heads[1]));
            let taken: Vec<Batch<'_>> = taken.collect();
            let loss = settings.step(&mut course.student, &taken, &heads[0], [step, steps]).map_err(diverged)?;
            course.trace.losses.push(loss as f32);
            let done = step + 1;
            let tokens = (done - first) * settings.accumulate * settings.batch * self.length();
            let speed = tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);
            let held_out =
                course.trace.held_out.last().map_or(String::new(), |(_, found)| format!(", held-out KL {:.4}", found.kl));
            session.observer.advance(done as u64, &format!("loss {loss:.4}{held_out}, {speed:.0} tokens/s"));
            if done.is_multiple_of(every) || done == steps {
                self.measure(&mut course, &lessons, &heads, part)?;
            }
            if done.is_multiple_of(STEPS_KEPT) && done < steps {
                let blob = session.unit(part(&format!("step {done}")), |to| self.write_state(&course, to))?;
                course.kept.replace(blob, session)?;
            }
        }
        if self.text.held_out.is_empty() {
            self.check_first(&course, &lessons, &heads, &meetings)?;
        }
        let learned = self.finish(&course, part)?;
        let trace = session.unit(part(TRACE), |to| {
            let parts = course.trace.parts();
            write_parts(&parts.iter().map(|(name, values)| (0, *name, &values[..])).collect::<Vec<_>>(), to)
        })?;
        course.kept.discard(session)?;
        reached.discard(session)?;
        Ok([learned, trace])
    }

    /// Where nothing is held out, fails if the first step's batches are worse at the end than they were before it.
    fn check_first(
        &self,
        course: &Course<'_>,
        lessons: &Lessons,
        heads: &[Cached<'_>; 2],
        meetings: &[Meeting],
    ) -> Result<(), StepError> {
        let (teaching, teacher) = (self.teaching(), SourceWeights(self.teacher.source.clone()));
        let (count, first) = (self.settings.accumulate, f64::from(course.trace.losses[0]));
        let batches = self.text.train.len() / self.settings.batch;
        let mut last = 0.0;
        for at in 0..count {
            let met = teaching.meet(meetings, &lessons.inputs[at % batches], &teacher)?;
            let found = teaching.batch(lessons, at % batches, met.as_ref(), &heads[1]).measure(&course.student, &heads[0])?;
            last += self.settings.loss(found) / count as f64;
        }
        if last <= RISEN * first {
            return Ok(());
        }
        let message = format!(
            "the loss on the first text rose from {first:.4} to {last:.4}, and no held-out text tells where to stop: nothing is kept"
        );
        let hint = "lower `learning_rate` or raise `warmup`, or keep windows aside by `held_out` of `[data.train]`".to_owned();
        Err(StepError { key: Some("learning_rate".into()), error: Error::recipe(message).hint(hint) })
    }

    /// What every weight learned in the first stage.
    fn matched(&self) -> Result<BTreeMap<String, Vec<f32>>, StepError> {
        let pairs = pairs(self.graph, &self.teacher.graph)?;
        let stage = Stage {
            settings: self.settings,
            graph: self.graph,
            source: &self.model.source,
            teacher: self.teacher,
            plain: self.plain,
            pairs: &pairs,
            title: &self.model.title,
            session: self.session,
        };
        stage.run(&self.text.train)
    }

    /// Tokens of a window.
    fn length(&self) -> usize {
        self.text.train[0].len()
    }

    /// The student at the last step that the store knows, or at the first.
    fn begin<'s>(
        &'s self,
        below: &'s SourceWeights,
        steps: usize,
        meetings: &[Meeting],
        mut matched: BTreeMap<String, Vec<f32>>,
        part: Part<'_>,
    ) -> Result<Course<'s>, StepError> {
        let graph = self.graph;
        let mut plain: BTreeMap<BlockId, BTreeMap<String, Plain>> = BTreeMap::new();
        for trained in self.plain {
            let start = trained.learned(&*self.model.source)?;
            let start = match matched.remove(&trained.name) {
                Some(values) => start.at(values),
                None => start,
            };
            plain.entry(trained.block).or_default().insert(trained.name.clone(), start);
        }
        let keeps = self.settings.keeps(self.model, self.length());
        let tied = self.plain.iter().flat_map(|one| {
            let to = (one.block, one.name.clone());
            one.tied.iter().map(move |(block, id)| Tied { weight: (*block, graph.get(*id).name.clone()), to: to.clone() })
        });
        let maps = BTreeMap::new();
        let student = Student { graph, below, learned: BTreeMap::new(), plain, tied: tied.collect(), maps, keeps };
        let mut course = Course { student, trace: Trace::default(), kept: Latest::default(), best: Latest::default() };
        for step in (1..steps).rev().filter(|step| step.is_multiple_of(STEPS_KEPT)) {
            let Some(blob) = self.session.done(&part(&format!("step {step}")))? else { continue };
            let blocks = graph.block_count();
            let mut states = read_lanes(&self.session.store.open(&blob)?, self.plain.len() + 1 + blocks)?;
            let maps = states.split_off(self.plain.len() + 1);
            let trace = Trace::read(&states.pop().unwrap_or_default());
            let best = trace.best_step(self.settings);
            let best = best.map(|step| self.session.done(&part(&format!("best {step}")))).transpose()?;
            let Some(best) = best.map_or(Some(None), |blob| blob.map(Some)) else { continue };
            for (trained, state) in self.plain.iter().zip(states) {
                let one = course.student.plain.get_mut(&trained.block).and_then(|block| block.get_mut(&trained.name));
                one.expect("made above").restore(&state)?;
            }
            for meeting in meetings {
                let state = &maps[meeting.student.index()];
                if !state.is_empty() {
                    let mut map = map(meeting.map(graph, &self.teacher.graph), Vec::new());
                    map.restore(state)?;
                    course.student.maps.insert(meeting.student, map);
                }
            }
            course = Course { trace, kept: Latest::of(Some(blob)), best: Latest::of(best), ..course };
            break;
        }
        Ok(course)
    }

    fn write_state(&self, course: &Course<'_>, to: &mut dyn std::io::Write) -> crate::Result<()> {
        let trace = course.trace.parts();
        let learned = self.plain.iter().map(|one| &course.student.plain[&one.block][&one.name]).enumerate();
        let learned = learned.flat_map(|(at, one)| one.parts().map(|(name, values)| (at, name, values)));
        let trace = trace.iter().map(|(name, values)| (self.plain.len(), *name, &values[..]));
        let behind = self.plain.len() + 1;
        let maps = course.student.maps.iter();
        let maps = maps.flat_map(|(block, map)| map.parts().map(|(name, values)| (behind + block.index(), name, values)));
        write_parts(&learned.chain(trace).chain(maps).collect::<Vec<_>>(), to)
    }

    /// Measures the student on the held-out windows, if there are such, and keeps it if it is the best.
    fn measure(
        &self,
        course: &mut Course<'_>,
        lessons: &Lessons,
        heads: &[Cached<'_>; 2],
        part: Part<'_>,
    ) -> Result<(), StepError> {
        let (size, mut found, mut windows) = (self.settings.batch, Measured::default(), 0.0);
        for at in self.text.train.len() / size..lessons.inputs.len() {
            self.session.check_interrupt()?;
            let teaching = self.teaching();
            let batch = teaching.batch(lessons, at, None, &heads[1]);
            let (of_batch, weight) = (batch.measure(&course.student, &heads[0])?, batch.tokens.len() as f64);
            found = Measured { kl: found.kl + weight * of_batch.kl, labels: found.labels + weight * of_batch.labels };
            windows += weight;
        }
        if windows == 0.0 {
            return Ok(());
        }
        let step = course.trace.losses.len();
        // As they are read back.
        let [kl, labels] = [found.kl, found.labels].map(|sum| f64::from((sum / windows) as f32));
        if !(kl.is_finite() && labels.is_finite()) {
            if step == 0 {
                let error = Error::input(
                    "the loss is not finite before the first step: the student or the teacher computes numbers that are not",
                );
                return Err(error.hint("`attar eval` of each tells which; check its checkpoint".to_owned()).into());
            }
            let block = course.student.first_not_finite(&lessons.inputs[self.text.train.len() / size])?;
            let block = self.graph.block_name(block).into();
            return Err(diverged(attar_compress::Error::Diverged { step, block }));
        }
        course.trace.held_out.push((step, Measured { kl, labels }));
        if course.trace.best_step(self.settings) == Some(step) {
            let blob = self.keep(course, part(&format!("best {step}")), part)?;
            course.best.replace(blob, self.session)?;
        }
        Ok(())
    }

    /// Stores the weights as they are, as the unit `unit`.
    fn keep(&self, course: &Course<'_>, unit: Digest, part: Part<'_>) -> Result<Digest, StepError> {
        let learned = self.plain.iter().map(|one| (one, course.student.plain[&one.block][&one.name].values()));
        plain::keep_as(unit, part(plain::UNIT), learned.collect(), self.session)
    }

    /// The blob of the result: the best weights on the held-out windows, or the last ones.
    fn finish(&self, course: &Course<'_>, part: Part<'_>) -> Result<Digest, StepError> {
        let Some(best) = course.best.blob() else { return self.keep(course, part(plain::UNIT), part) };
        let path = self.session.store.open(best)?;
        Ok(self.session.unit(part(plain::UNIT), |to| copy(&path, to))?)
    }

    fn report(&self, trace: &Trace) -> DistillReport {
        let steps = trace.losses.len();
        let every = steps.div_ceil(POINTS).max(1);
        let losses = trace.losses.chunks(every).enumerate();
        let mean = |part: &[f32]| part.iter().map(|loss| f64::from(*loss)).sum::<f64>() / part.len() as f64;
        let of_step = self.settings.accumulate * self.settings.batch * self.length();
        DistillReport {
            teacher: self.settings.teacher.as_ref().map_or_else(|| "model".into(), |path| path.display().to_string()),
            weights: self.plain.iter().map(PlainTrainable::numbers).sum(),
            steps,
            tokens: (steps * of_step) as u64,
            held_out_tokens: self.text.held_out.iter().map(|window| window.len() as u64).sum(),
            best_step: trace.best_step(self.settings),
            losses: losses.map(|(at, part)| (at * every + part.len(), mean(part))).collect(),
            held_out: trace.held_out.iter().map(|(step, m)| MeasuredPoint { step: *step, kl: m.kl, labels: m.labels }).collect(),
        }
    }
}

fn copy(path: &Path, to: &mut dyn std::io::Write) -> crate::Result<()> {
    let copied = std::fs::File::open(path).and_then(|mut from| std::io::copy(&mut from, to));
    copied.map(drop).map_err(|source| attar_tensor::Error::Io { action: "read", path: path.into(), source }.into())
}

/// A loss that grew out of bounds is the learning rate's fault.
fn diverged(error: attar_compress::Error) -> StepError {
    let key = matches!(error, attar_compress::Error::Diverged { .. }).then(|| "learning_rate".to_owned());
    let kind = if key.is_some() { ErrorKind::Recipe } else { ErrorKind::Input };
    StepError { key, error: Error { kind, ..error.into() } }
}

impl DistillReport {
    /// The losses over the steps.
    fn plot(&self) -> Plot {
        let mark = |x: usize, y: f64| Mark { x: x as f64, y, error: 0.0 };
        let held_out = |name: &str, of: fn(&MeasuredPoint) -> f64| Line {
            name: name.to_owned(),
            marks: self.held_out.iter().map(|point| mark(point.step, of(point))).collect(),
        };
        let training = Line { name: "loss in training".into(), marks: self.losses.iter().map(|(x, y)| mark(*x, *y)).collect() };
        let lines = [training, held_out("held-out KL", |p| p.kl), held_out("held-out cross-entropy", |p| p.labels)];
        let lines = lines.into_iter().filter(|line| !line.marks.is_empty()).collect();
        Plot { title: format!("distillation from {}", self.teacher), x: "steps".into(), y: "nats per token".into(), lines }
    }
}
