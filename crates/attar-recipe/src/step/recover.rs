//! The step `recover`: a unit is a run of training steps.
//!
//! Every few steps all that learns, moments included, is a blob of the store, so that a killed run takes up from there
//! and ends with the same bytes.

use std::{collections::BTreeMap, sync::RwLock};

use attar_compress::learn::{Learned, Method, Plain, ROWS, Recover, Student, Teacher, with_adapters};
use attar_graph::{BlockId, Cached, Graph, SourceWeights, Values};
use attar_tensor::{Blobs, Digest, safetensors::Shards};
use candle_core::Tensor;

use super::{
    calibrated::{Live, first_key, read_activations, write_activations},
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    plain::{self, PlainPupil},
    pupils::{Pupil, batches, check_beside_float, check_text, gradient_memory, install, pupils, weights_key},
};
use crate::{
    Error,
    model::{Adapters, Float, Working},
    session::Session,
    settings::of,
};

pub(super) static RECOVER: StepKind = StepKind {
    name: "recover",
    about: "Distill the float model into the quantized weights, end to end",
    schema: of::<Recover>,
    build: |section| Ok(Box::new(section.finish::<Recover>(&["kind".into()])?)),
    folder: None,
    looks_inside: true,
    predicts: false,
};

/// Training steps between two blobs.
const STEPS_KEPT: usize = 8;

impl Step for Recover {
    fn kind(&self) -> &'static StepKind {
        &RECOVER
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        self.check().map_err(refused)?;
        let learners = Learners::of(self, model)?;
        check_text("recover", model)?;
        // All that learns with two moments, and again while it is stored; what enters every block; both heads; logits.
        let [_, between] = model.token_bytes();
        let entered = (self.batch * model.window * model.graph.block_count()) as u64 * between;
        let dims = |name: &str| model.graph.find(name).and_then(|id| model.graph.fact(id).constant_dims()).unwrap_or_default();
        let head: u64 = dims("lm_head").iter().product::<usize>() as u64;
        let logits = 6 * ROWS as u64 * dims("lm_head").first().copied().unwrap_or(0) as u64;
        let memory = 24 * learners.numbers()
            + 2 * model.tokens * between
            + entered
            + 4 * (2 * head + logits)
            + gradient_memory(model, self.batch);
        let Learners { graph, pupils, plain, adapters } = learners;
        let planned = pupils.iter().map(|pupil| pupil.planned(memory)).chain(plain.iter().map(|plain| plain.planned(memory)));
        let planned = planned.collect();
        (model.graph, model.adapters) = (graph, adapters);
        plain::place(&mut model.graph, &plain);
        Ok(planned)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let learners = Learners::of(self, model)?;
        let float = model.float.clone();
        let school = School { settings: self, model, float: &float, learners: &learners, session };
        let key = school.key()?;
        let part = |name: &str| Digest::of_parts([key.as_bytes().as_slice(), name.as_bytes()]);
        let mut done: Vec<Option<Digest>> =
            learners.pupils.iter().map(|pupil| session.done(&part(&pupil.name))).collect::<Result<_, Error>>()?;
        if !learners.plain.is_empty() {
            done.push(session.done(&part(plain::UNIT))?);
        }
        let blobs: Vec<Digest> = match done.into_iter().collect() {
            Some(done) => done,
            None => school.teach(&part)?,
        };
        let mut quantized = Blobs::default();
        let Learners { graph, pupils, plain, adapters } = learners;
        for (pupil, blob) in pupils.iter().zip(&blobs) {
            quantized.insert(&pupil.name, session.store, blob, pupil.scheme, pupil.dims);
        }
        (model.graph, model.adapters) = (graph, adapters);
        install(model, &pupils, quantized)?;
        if let Some(blob) = blobs.get(pupils.len()) {
            plain::install(model, &plain, &part(plain::UNIT), session.store.path(blob))?;
        }
        Ok(blobs)
    }
}

/// What is trained.
struct Learners {
    /// The model, with adapters where such are to stay beside the codes.
    graph: Graph,
    /// Weights whose codes learn.
    pupils: Vec<Pupil>,
    /// What has no codes.
    plain: Vec<PlainPupil>,
    adapters: Option<Adapters>,
}

impl Learners {
    fn of(settings: &Recover, model: &Working) -> Result<Learners, StepError> {
        check_beside_float(model)?;
        let pupils = if settings.weights_learn() { pupils(&settings.select, model)? } else { Vec::new() };
        if settings.exports_adapters() {
            return Learners::beside(settings, model, &pupils);
        }
        let plain = if settings.norms_learn() { plain::norms(&model.graph) } else { Vec::new() };
        Ok(Learners { graph: model.graph.clone(), pupils, plain, adapters: None })
    }

    /// Adapters of `pupils`, whose codes stay.
    fn beside(settings: &Recover, model: &Working, pupils: &[Pupil]) -> Result<Learners, StepError> {
        let refused = |message: String, hint: &str| {
            let error = Error::recipe(message).hint(hint.to_owned());
            Err(StepError { key: Some("adapters".into()), error })
        };
        if let Some(turned) = pupils.iter().find(|pupil| !pupil.is_of_checkpoint()) {
            let message = format!("`{}` was transformed: its adapter would fit no other copy of the checkpoint", turned.name);
            return refused(message, "leave out the steps that transform weights, or merge the adapters");
        }
        let foreign = |pupil: &&Pupil| attar_model::module(&model.graph, attar_model::Naming::HuggingFace, &pupil.name).is_none();
        if let Some(foreign) = pupils.iter().find(foreign) {
            let message = format!("`{}` has no name that PEFT knows", foreign.name);
            return refused(message, "leave it out of `select`");
        }
        let weights: Vec<String> = pupils.iter().map(|pupil| pupil.name.clone()).collect();
        let names: Vec<&str> = weights.iter().map(String::as_str).collect();
        let graph = with_adapters(&model.graph, &names, settings.rank)?;
        let plain = plain::adapters(&graph, pupils);
        Ok(Learners { graph, pupils: Vec::new(), plain, adapters: Some(Adapters { rank: settings.rank, weights }) })
    }

    /// Numbers that learn.
    fn numbers(&self) -> u64 {
        self.pupils.iter().map(Pupil::weights).chain(self.plain.iter().map(PlainPupil::numbers)).sum()
    }
}

struct School<'a> {
    settings: &'a Recover,
    model: &'a Working,
    float: &'a Float,
    learners: &'a Learners,
    session: &'a Session<'a>,
}

impl School<'_> {
    fn key(&self) -> Result<Digest, StepError> {
        let settings = serde_json::to_vec(self.settings).expect("settings are JSON");
        let windows = first_key(&self.model.graph, self.session.calibration.unwrap_or_default());
        let quantized = weights_key(&self.model.graph, &*self.model.source, self.model.graph.blocks())?;
        let float = weights_key(&self.float.graph, &*self.float.source, self.float.graph.blocks())?;
        Ok(Digest::of_parts([b"recover 1".as_slice(), &settings, windows.as_bytes(), quantized.as_bytes(), float.as_bytes()]))
    }

    fn teach(&self, part: &dyn Fn(&str) -> Digest) -> Result<Vec<Digest>, StepError> {
        let (graph, session) = (&self.learners.graph, self.session);
        let inputs = batches(graph, session, self.settings.batch)?;
        let steps = self.settings.epochs * inputs.len();
        let (float, live) = (SourceWeights(self.float.source.clone()), self.live());
        let wanted = self.wanted(&batches(&self.float.graph, session, self.settings.batch)?, &float, part("teacher"))?;
        session.observer.stage(&format!("{}: recover", self.model.title), steps as u64);
        let (mut first, mut kept) = (0, None);
        for step in (1..=steps).rev().filter(|step| step.is_multiple_of(STEPS_KEPT)) {
            if let Some(blob) = session.done(&part(&format!("step {step}")))? {
                (first, kept) = (step, Some(blob));
                break;
            }
        }
        let mut states = self.states(kept)?;
        let plain = self.plain(states.split_off(states.len().min(self.learners.pupils.len())))?;
        let mut student = Student { graph, below: &live, learned: self.learned(states)?, plain };
        let heads = [Cached::new(&live), Cached::new(&float)];
        for step in first..steps {
            session.check_interrupt()?;
            let batch = (step * attar_compress::learn::stride(inputs.len())) % inputs.len();
            let rates = self.settings.rates(step, steps);
            let loss = student.step(&inputs[batch], (&self.float.graph, &wanted[batch]), [&heads[0], &heads[1]], rates)?;
            session.observer.advance(step as u64 + 1, &format!("KL {loss:.4}"));
            if (step + 1).is_multiple_of(STEPS_KEPT) && step + 1 < steps {
                let blob =
                    session.unit(part(&format!("step {}", step + 1)), |to| write_activations(&self.state(&student)?, to))?;
                self.drop_blob(kept.replace(blob).filter(|before| *before != blob))?;
            }
        }
        let mut blobs = Vec::new();
        for pupil in &self.learners.pupils {
            let learned = &student.learned[&pupil.block][&pupil.name];
            blobs.push(pupil.keep(learned, &pupil.original(self.float)?, part(&pupil.name), session)?);
        }
        let Learners { plain, .. } = self.learners;
        if !plain.is_empty() {
            let learned = plain.iter().map(|one| (one, student.plain[&one.block][&one.name].values()));
            blobs.push(plain::keep(learned.collect(), part(plain::UNIT), session)?);
        }
        self.drop_blob(kept)?;
        Ok(blobs)
    }

    /// All that learns, a weight each: those with codes in their order, then those without in theirs.
    fn state(&self, student: &Student<'_>) -> Result<Vec<BTreeMap<String, Tensor>>, Error> {
        let Learners { pupils, plain, .. } = self.learners;
        let pupils = pupils.iter().map(|pupil| student.learned[&pupil.block][&pupil.name].state());
        let plain = plain.iter().map(|plain| student.plain[&plain.block][&plain.name].state());
        Ok(pupils.chain(plain).collect::<attar_compress::Result<_>>()?)
    }

    /// What [`School::state`] gave when `kept` was written; nothing at the start.
    fn states(&self, kept: Option<Digest>) -> Result<Vec<BTreeMap<String, Tensor>>, StepError> {
        let Some(blob) = kept else { return Ok(Vec::new()) };
        let stored = Shards::open(&[self.session.store.path(&blob)], &BTreeMap::new())?;
        read_activations(&stored, self.learners.pupils.len() + self.learners.plain.len())
    }

    fn live(&self) -> Live {
        Live { below: SourceWeights(self.model.source.clone()), blobs: RwLock::default() }
    }

    fn drop_blob(&self, blob: Option<Digest>) -> Result<(), StepError> {
        blob.map_or(Ok(()), |blob| Ok(crate::output::remove(&self.session.store.path(&blob))?))
    }

    /// What enters the float model's last block.
    fn wanted(&self, inputs: &[Values], float: &SourceWeights, key: Digest) -> Result<Vec<Values>, StepError> {
        let graph = &self.float.graph;
        let named = |values: &Values| values.iter().map(|(id, t)| (graph.get(*id).name.clone(), t.clone())).collect();
        self.session.observer.stage(&format!("{}: run the float model", self.model.title), inputs.len() as u64);
        let blob = match self.session.done(&key)? {
            Some(blob) => blob,
            None => {
                let teacher = Teacher { graph, weights: float };
                let mut hidden = Vec::new();
                for (at, batch) in inputs.iter().enumerate() {
                    self.session.check_interrupt()?;
                    hidden.push(named(&teacher.hidden(batch)?));
                    self.session.observer.advance(at as u64 + 1, "");
                }
                self.session.unit(key, |to| write_activations(&hidden, to))?
            }
        };
        let stored = Shards::open(&[self.session.store.path(&blob)], &BTreeMap::new())?;
        let found = read_activations(&stored, inputs.len())?;
        let by_id =
            |values: BTreeMap<String, _>| values.into_iter().filter_map(|(name, t)| Some((graph.find(&name)?, t))).collect();
        Ok(found.into_iter().map(by_id).collect())
    }

    /// The weights that learn, as they stood in `states` or else as they were quantized.
    fn learned(&self, states: Vec<BTreeMap<String, Tensor>>) -> Result<BTreeMap<BlockId, BTreeMap<String, Learned>>, StepError> {
        let mut states = states.into_iter();
        let mut learned: BTreeMap<BlockId, BTreeMap<String, Learned>> = BTreeMap::new();
        for (at, pupil) in self.learners.pupils.iter().enumerate() {
            let (mut one, _) = pupil.learned(&*self.model.source, self.float)?;
            if self.settings.method == Method::Lora {
                one.adapt(self.settings.rank.max(1), at as u64);
            }
            states.next().map_or(Ok(()), |state| one.restore(&state))?;
            learned.entry(pupil.block).or_default().insert(pupil.name.clone(), one);
        }
        Ok(learned)
    }

    /// What has no codes, as it stood in `states` or else as it starts.
    fn plain(&self, states: Vec<BTreeMap<String, Tensor>>) -> Result<BTreeMap<BlockId, BTreeMap<String, Plain>>, StepError> {
        let mut states = states.into_iter();
        let mut plain: BTreeMap<BlockId, BTreeMap<String, Plain>> = BTreeMap::new();
        for pupil in &self.learners.plain {
            let mut one = pupil.learned(&*self.model.source)?;
            states.next().map_or(Ok(()), |state| one.restore(&state))?;
            plain.entry(pupil.block).or_default().insert(pupil.name.clone(), one);
        }
        Ok(plain)
    }
}
