//! The step `recover`: a unit is a run of training steps.
//!
//! Every few steps all that learns, moments included, is a blob of the store, so that a killed run takes up from there
//! and ends with the same bytes.

use std::collections::BTreeMap;

use attar_compress::learn::{Learned, Method, Plain, ROWS, Recover, Student};
use attar_graph::{BlockId, Cached, Graph, SourceWeights, Values};
use attar_tensor::{Blobs, Digest};
use candle_core::Tensor;

use super::{
    adapted::Adapted,
    codes::{Live, refused},
    kind::{PlannedTensor, Step, StepError, StepKind},
    plain::{self, PlainTrainable},
    trainable::{Trainable, check_matches_float, gradient_memory, install, note_coded, trainable, weights_key},
};
use crate::{
    Error,
    model::{Adapters, Float, Working},
    session::Session,
    settings::of,
    shape,
    walk::{self, Latest, Side, Walk, block_key, first_key, lane_values, read_lanes, write_lanes},
    walker::Walker,
};

pub(super) static RECOVER: StepKind = StepKind {
    name: "recover",
    about: "Train quantized weights towards the float model, end to end",
    schema: of::<Recover>,
    build: |section| Ok(Box::new(section.finish::<Recover>(&["kind".into()])?)),
    folder: None,
    is_verb: false,
    examples: &[],
    looks_inside: true,
    trains: false,
    needs_tokens: true,
    predicts: false,
};

pub(super) static WALKER: Walker = Walker {
    name: "recover",
    doing: "run the float model",
    example: "[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\n[[step]]\nkind = \"recover\"\nepochs = 2\nnorms = true\n",
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

    fn needs_text(&self) -> bool {
        true
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        self.check().map_err(refused)?;
        note_coded(self.kind().name, model);
        let learners = Learners::of(self, model)?;
        walk::plan(model, 1);
        // All that learns with two moments, and again while it is stored; what enters every block; both heads; logits.
        let [_, between] = model.token_bytes();
        let entered = (self.batch * model.window * model.graph.block_count()) as u64 * between;
        let head = shape::head_numbers(&model.graph);
        let logits = 6 * ROWS as u64 * shape::output_width(&model.graph);
        let memory = 24 * learners.numbers()
            + 2 * model.tokens * between
            + entered
            + 4 * (2 * head + logits)
            + gradient_memory(model, (self.batch * model.window) as u64);
        let Learners { graph, trainable, plain, adapters } = learners;
        let planned =
            trainable.iter().map(|trained| trained.planned(memory)).chain(plain.iter().map(|plain| plain.planned(memory)));
        let planned = planned.collect();
        (model.graph, model.adapters) = (graph, adapters);
        plain::place(&mut model.graph, &plain);
        Ok(planned)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let learners = Learners::of(self, model)?;
        let float = model.float.clone();
        let training = Training { settings: self, model, float: &float, learners: &learners, session };
        let key = training.key()?;
        let part = |name: &str| Digest::of_parts([key.as_bytes().as_slice(), name.as_bytes()]);
        let mut done: Vec<Option<Digest>> =
            learners.trainable.iter().map(|trained| session.done(&part(&trained.name))).collect::<Result<_, Error>>()?;
        if !learners.plain.is_empty() {
            done.push(session.done(&part(plain::UNIT))?);
        }
        let mut blobs: Vec<Digest> = match done.into_iter().collect() {
            Some(done) => done,
            None => training.train(&part)?,
        };
        let mut quantized = Blobs::default();
        let Learners { graph, trainable, plain, adapters } = learners;
        for (trained, blob) in trainable.iter().zip(&blobs) {
            quantized.insert(&trained.name, session.store, blob, trained.scheme, trained.dims)?;
        }
        (model.graph, model.adapters) = (graph, adapters);
        let kept = install(model, &trainable, &blobs, quantized, session)?;
        if let Some(blob) = blobs.get(trainable.len()) {
            plain::install(model, &plain, &part(plain::UNIT), session.store.open(blob)?)?;
        }
        blobs.extend(kept);
        Ok(blobs)
    }
}

/// What is trained.
struct Learners {
    /// The model, with adapters where such are to stay next to the codes.
    graph: Graph,
    /// Weights whose codes learn.
    trainable: Vec<Trainable>,
    /// What has no codes.
    plain: Vec<PlainTrainable>,
    adapters: Option<Adapters>,
}

impl Learners {
    fn of(settings: &Recover, model: &Working) -> Result<Learners, StepError> {
        check_matches_float(model)?;
        if settings.exports_adapters() {
            let Adapted { graph, factors, adapters } = Adapted::of(&settings.select, settings.rank, "adapters", model)?;
            return Ok(Learners { graph, trainable: Vec::new(), plain: factors, adapters: Some(adapters) });
        }
        let trainable = if settings.weights_learn() { trainable(&settings.select, model)? } else { Vec::new() };
        let plain = if settings.norms_learn() { plain::norms(&model.graph) } else { Vec::new() };
        Ok(Learners { graph: model.graph.clone(), trainable, plain, adapters: None })
    }

    /// Numbers that learn.
    fn numbers(&self) -> u64 {
        self.trainable.iter().map(Trainable::weights).chain(self.plain.iter().map(PlainTrainable::numbers)).sum()
    }
}

struct Training<'a> {
    settings: &'a Recover,
    model: &'a Working,
    float: &'a Float,
    learners: &'a Learners,
    session: &'a Session<'a>,
}

impl Training<'_> {
    fn key(&self) -> Result<Digest, StepError> {
        let settings = serde_json::to_vec(self.settings).expect("settings are JSON");
        let windows = first_key(&self.model.graph, self.session.calibration.unwrap_or_default());
        let quantized = weights_key(&self.model.graph, &*self.model.source, self.model.graph.blocks())?;
        let float = weights_key(&self.float.graph, &*self.float.source, self.float.graph.blocks())?;
        let zeros: String = self.model.zeros.iter().map(|name| format!(" {name}")).collect();
        let parts = [b"recover 2".as_slice(), &settings, windows.as_bytes(), quantized.as_bytes(), float.as_bytes()];
        Ok(Digest::of_parts(parts.into_iter().chain((!zeros.is_empty()).then_some(zeros.as_bytes()))))
    }

    fn train(&self, part: &dyn Fn(&str) -> Digest) -> Result<Vec<Digest>, StepError> {
        let (graph, session) = (&self.learners.graph, self.session);
        let batches = |graph| lane_values(graph, session.calibration.unwrap_or_default(), self.settings.batch);
        let inputs = batches(graph)?;
        let steps = self.settings.epochs * inputs.len();
        let (float, live) = (SourceWeights(self.float.source.clone()), self.live());
        let (wanted, teacher) = self.wanted(&batches(&self.float.graph)?, &float)?;
        session.observer.stage(&format!("{}: recover", self.model.title), steps as u64);
        let (mut first, mut kept) = (0, Latest::default());
        for step in (1..=steps).rev().filter(|step| step.is_multiple_of(STEPS_KEPT)) {
            if let Some(blob) = session.done(&part(&format!("step {step}")))? {
                (first, kept) = (step, Latest::of(Some(blob)));
                break;
            }
        }
        let mut states = self.states(&kept)?;
        let plain = self.plain(states.split_off(states.len().min(self.learners.trainable.len())))?;
        let mut student = Student {
            graph,
            below: &live,
            learned: self.learned(states)?,
            plain,
            tied: Vec::new(),
            maps: BTreeMap::new(),
            keeps: false,
        };
        let heads = [Cached::new(&live), Cached::new(&float)];
        for step in first..steps {
            session.check_interrupt()?;
            let batch = (step * attar_compress::learn::stride(inputs.len())) % inputs.len();
            let rates = self.settings.rates(step, steps);
            let teacher = (&self.float.graph, &wanted[batch]);
            let loss = Recover::step(&mut student, &inputs[batch], teacher, [&heads[0], &heads[1]], rates)?;
            session.observer.advance(step as u64 + 1, &format!("KL {loss:.4}"));
            if (step + 1).is_multiple_of(STEPS_KEPT) && step + 1 < steps {
                let blob = session.unit(part(&format!("step {}", step + 1)), |to| write_lanes(&self.state(&student)?, to))?;
                kept.replace(blob, session)?;
            }
        }
        let mut blobs = Vec::new();
        for trained in &self.learners.trainable {
            let learned = &student.learned[&trained.block][&trained.name];
            blobs.push(trained.keep(learned, &trained.original(self.float)?, part(&trained.name), session)?);
        }
        let Learners { plain, .. } = self.learners;
        if !plain.is_empty() {
            let learned = plain.iter().map(|one| (one, student.plain[&one.block][&one.name].values()));
            blobs.push(plain::keep(learned.collect(), part(plain::UNIT), session)?);
        }
        kept.discard(session)?;
        teacher.discard(session)?;
        Ok(blobs)
    }

    /// All that learns, a weight each: those with codes in their order, then those without in theirs.
    fn state(&self, student: &Student<'_>) -> Result<Vec<BTreeMap<String, Tensor>>, Error> {
        let Learners { trainable, plain, .. } = self.learners;
        let trainable = trainable.iter().map(|trained| student.learned[&trained.block][&trained.name].state());
        let plain = plain.iter().map(|plain| student.plain[&plain.block][&plain.name].state());
        Ok(trainable.chain(plain).collect::<attar_compress::Result<_>>()?)
    }

    /// What [`Training::state`] gave when `kept` was written; nothing at the start.
    fn states(&self, kept: &Latest) -> Result<Vec<BTreeMap<String, Tensor>>, StepError> {
        let Some(blob) = kept.blob() else { return Ok(Vec::new()) };
        Ok(read_lanes(&self.session.store.open(blob)?, self.learners.trainable.len() + self.learners.plain.len())?)
    }

    fn live(&self) -> Live {
        Live::over(&self.model.source)
    }

    /// What enters the float model's last block, and the blob that holds it while the student learns.
    fn wanted(&self, inputs: &[Values], float: &SourceWeights) -> Result<(Vec<Values>, Latest), StepError> {
        let (graph, session) = (&self.float.graph, self.session);
        let batch = (self.settings.batch as u64).to_le_bytes();
        let first = first_key(graph, session.calibration.unwrap_or_default());
        let key = Digest::of_parts([b"teacher 1".as_slice(), first.as_bytes(), &batch]);
        let block = |before: &Digest, block| block_key(before, graph, block, &*self.float.source, []);
        let sides = vec![Side { graph, weights: float }];
        let walk = Walk::new(&WALKER, &self.model.title, key, sides, session).by(self.settings.batch);
        let last = graph.blocks().last().unwrap_or(BlockId::FIRST);
        let (windows, entering) = walk.arrive(last.index(), &block)?;
        let read = graph.live_into(last);
        let mut wanted = windows.values(0, inputs);
        wanted.iter_mut().for_each(|lane| lane.retain(|id, _| read.contains(id)));
        Ok((wanted, entering))
    }

    /// The weights that learn, as they stood in `states` or else as they were quantized.
    fn learned(&self, states: Vec<BTreeMap<String, Tensor>>) -> Result<BTreeMap<BlockId, BTreeMap<String, Learned>>, StepError> {
        let mut states = states.into_iter();
        let mut learned: BTreeMap<BlockId, BTreeMap<String, Learned>> = BTreeMap::new();
        for (at, trained) in self.learners.trainable.iter().enumerate() {
            let (mut one, _) = trained.learned(&*self.model.source, self.float)?;
            if self.settings.method == Method::Lora {
                one.adapt(self.settings.rank.max(1), at as u64);
            }
            states.next().map_or(Ok(()), |state| one.restore(&state))?;
            learned.entry(trained.block).or_default().insert(trained.name.clone(), one);
        }
        Ok(learned)
    }

    /// What has no codes, as it stood in `states` or else as it starts.
    fn plain(&self, states: Vec<BTreeMap<String, Tensor>>) -> Result<BTreeMap<BlockId, BTreeMap<String, Plain>>, StepError> {
        let mut states = states.into_iter();
        let mut plain: BTreeMap<BlockId, BTreeMap<String, Plain>> = BTreeMap::new();
        for trained in &self.learners.plain {
            let mut one = trained.learned(&*self.model.source)?;
            states.next().map_or(Ok(()), |state| one.restore(&state))?;
            plain.entry(trained.block).or_default().insert(trained.name.clone(), one);
        }
        Ok(plain)
    }
}
