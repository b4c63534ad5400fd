//! The step `autoround`: a unit is a block.
//!
//! Two streams of activations go through the model side by side: one through the float model, which says what each
//! block should give, and one through the quantized model, which says what each block gets. Both are stored together
//! after every block, so that a killed run takes up where it was, with the very numbers that it had.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
};

use attar_compress::learn::{AutoRound, Task};
use attar_graph::{BlockId, Graph, Mode, SourceWeights, ValueId, Values, Weights};
use attar_tensor::{Digest, Source, safetensors::Shards};
use candle_core::Tensor;

use super::{
    calibrated::{Live, first_key, read_activations, write_activations},
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    pupils::{Pupil, batches, check_text, gradient_memory, install, pupils, weights_key},
};
use crate::{
    model::{Float, Working},
    session::Session,
    settings::of,
};

pub(super) static AUTOROUND: StepKind = StepKind {
    name: "autoround",
    about: "Optimize the rounding and the scales of quantized weights, block by block (AutoRound)",
    schema: of::<AutoRound>,
    build: |section| Ok(Box::new(section.finish::<AutoRound>(&["kind".into()])?)),
    folder: None,
    looks_inside: true,
    predicts: false,
};

impl Step for AutoRound {
    fn kind(&self) -> &'static StepKind {
        &AUTOROUND
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        self.check().map_err(refused)?;
        let pupils = pupils(&self.select, model)?;
        check_text("autoround", model)?;
        // Two streams, before and behind the block.
        let streams = 4 * model.tokens * model.token_bytes()[1] + gradient_memory(model, self.batch);
        Ok(pupils.iter().map(|pupil| pupil.planned(streams + memory(&pupils, pupil))).collect())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let pupils = pupils(&self.select, model)?;
        let float = model.float.clone();
        let graph = model.graph.clone();
        let windows = session.calibration.expect("planned");
        let settings = serde_json::to_vec(self).expect("settings are JSON");
        let first = first_key(&graph, windows);
        let live = Live { below: SourceWeights(model.source.clone()), blobs: RwLock::default() };
        let mut walk = Walk {
            settings: self,
            graph: &graph,
            source: model.source.clone(),
            float,
            session,
            live: &live,
            key: Digest::of_parts([b"autoround 1".as_slice(), first.as_bytes(), &settings]),
            streams: None,
            entering: None,
            used: Vec::new(),
        };
        let last = pupils.iter().map(|pupil| pupil.block).max().map_or(0, |block| block.index() + 1);
        session.observer.stage(&format!("{}: autoround", model.title), (last * self.iterations) as u64);
        for block in graph.blocks().take(last) {
            session.check_interrupt()?;
            let here: Vec<&Pupil> = pupils.iter().filter(|pupil| pupil.block == block).collect();
            walk.block(block, &here, block.index() + 1 < last)?;
            session.observer.advance(((block.index() + 1) * self.iterations) as u64, graph.block_name(block));
        }
        let used = walk.used;
        let blobs = live.blobs.into_inner().expect("no panic holds this lock");
        install(model, &pupils, blobs)?;
        Ok(used)
    }
}

/// What a block takes that learns: its weights as they are, were and become, their moments and gradients.
fn memory(pupils: &[Pupil], of: &Pupil) -> u64 {
    32 * pupils.iter().filter(|p| p.block == of.block).map(Pupil::weights).sum::<u64>()
}

/// What enters a block: through the float model and through the quantized one, a lane each.
struct Streams {
    block: BlockId,
    float: Vec<Values>,
    quantized: Vec<Values>,
}

struct Walk<'a> {
    settings: &'a AutoRound,
    graph: &'a Graph,
    source: Arc<dyn Source>,
    float: Float,
    session: &'a Session<'a>,
    live: &'a Live,
    /// Of all that was decided so far.
    key: Digest,
    streams: Option<Streams>,
    /// The blob of the activations that enter the next block.
    entering: Option<Digest>,
    used: Vec<Digest>,
}

impl Walk<'_> {
    fn block(&mut self, block: BlockId, pupils: &[&Pupil], more: bool) -> Result<(), StepError> {
        let key = self.block_key(block, pupils)?;
        let part = |name: &str| Digest::of_parts([key.as_bytes().as_slice(), name.as_bytes()]);
        let leaving = if more { self.session.done(&part("leaving"))? } else { None };
        let mut done = Vec::new();
        for pupil in pupils {
            done.extend(self.session.done(&part(&pupil.name))?.map(|blob| (*pupil, blob)));
        }
        if done.len() == pupils.len() && (leaving.is_some() || !more || self.streams.is_none()) {
            done.into_iter().for_each(|(pupil, blob)| self.take(pupil, blob));
            (self.streams, self.entering, self.key) = (None, leaving, key);
            return Ok(());
        }
        let streams = self.start(block)?;
        let float = leave(&self.float.graph, &SourceWeights(self.float.source.clone()), block, &streams.float)?;
        if !pupils.is_empty() {
            self.teach(block, pupils, &streams.quantized, &float, &part)?;
        }
        if more {
            let quantized = leave(self.graph, self.live, block, &streams.quantized)?;
            let next = Streams { block: BlockId::after(block), float, quantized };
            self.keep(&next, part("leaving"))?;
            self.streams = Some(next);
        }
        self.key = key;
        Ok(())
    }

    fn block_key(&self, block: BlockId, pupils: &[&Pupil]) -> Result<Digest, StepError> {
        let mut parts = vec![self.key, Digest::of(self.graph.block_name(block).as_bytes())];
        parts.push(weights_key(self.graph, &*self.source, std::iter::once(block))?);
        parts.push(weights_key(&self.float.graph, &*self.float.source, std::iter::once(block))?);
        parts.extend(pupils.iter().map(|pupil| Digest::of(pupil.name.as_bytes())));
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    fn take(&mut self, pupil: &Pupil, blob: Digest) {
        let mut blobs = self.live.blobs.write().expect("no panic holds this lock");
        blobs.insert(&pupil.name, self.session.store, &blob, pupil.scheme, pupil.dims);
        self.used.push(blob);
    }

    /// Both streams at the start of `block`: at hand, from the store, or else through all blocks before.
    fn start(&mut self, block: BlockId) -> Result<Streams, StepError> {
        if let Some(streams) = self.streams.take() {
            return Ok(streams);
        }
        let lanes = batches(self.graph, self.session, self.settings.batch)?;
        let mut streams = Streams { block: BlockId::FIRST, float: lanes.clone(), quantized: lanes };
        if let Some(blob) = self.entering {
            let count = streams.float.len();
            let stored = Shards::open(&[self.session.store.path(&blob)], &BTreeMap::new())?;
            let mut both = read_activations(&stored, 2 * count)?;
            let quantized = both.split_off(count);
            restore(&self.float.graph, &mut streams.float, both);
            restore(self.graph, &mut streams.quantized, quantized);
            streams.block = block;
        }
        while streams.block != block {
            self.session.check_interrupt()?;
            let below = SourceWeights(self.float.source.clone());
            streams.float = leave(&self.float.graph, &below, streams.block, &streams.float)?;
            streams.quantized = leave(self.graph, self.live, streams.block, &streams.quantized)?;
            streams.block = BlockId::after(streams.block);
        }
        Ok(streams)
    }

    fn teach(
        &mut self,
        block: BlockId,
        pupils: &[&Pupil],
        entering: &[Values],
        wanted: &[Values],
        part: &dyn Fn(&str) -> Digest,
    ) -> Result<(), StepError> {
        let (mut originals, mut learned) = (BTreeMap::new(), BTreeMap::new());
        for pupil in pupils {
            let (one, original) = pupil.learned(&*self.source, &self.float)?;
            learned.insert(pupil.name.clone(), one);
            originals.insert(pupil.name.clone(), original);
        }
        let made = self.graph.leaving(block);
        let wanted: Vec<Values> = wanted
            .iter()
            .map(|lane| lane.iter().filter(|(id, _)| made.contains(id)).map(|(id, t)| (*id, t.clone())).collect())
            .collect();
        let task = Task { graph: self.graph, block, below: self.live, entering, wanted: &wanted };
        let (observer, iterations) = (self.session.observer, self.settings.iterations);
        let name = self.graph.block_name(block);
        let lesson = self.settings.teach(&task, &mut learned, &mut |iteration| {
            observer.advance((block.index() * iterations + iteration) as u64, name);
            Ok(())
        })?;
        let said = format!("{name}: error {:.4}, before {:.4}", lesson.after, lesson.before);
        observer.advance(((block.index() + 1) * iterations) as u64, &said);
        for pupil in pupils {
            let blob = pupil.keep(&learned[&pupil.name], &originals[&pupil.name], part(&pupil.name), self.session)?;
            self.take(pupil, blob);
        }
        Ok(())
    }

    /// Stores what enters the next block, and lets go of what entered this one.
    fn keep(&mut self, streams: &Streams, key: Digest) -> Result<(), StepError> {
        let named = |graph: &Graph, lanes: &[Values]| -> Vec<BTreeMap<String, Tensor>> {
            let computed = |id: &ValueId| matches!(graph.get(*id).origin, attar_graph::Origin::Node(_));
            let name = |(id, t): (&ValueId, &Tensor)| computed(id).then(|| (graph.get(*id).name.clone(), t.clone()));
            lanes.iter().map(|lane| lane.iter().filter_map(name).collect()).collect()
        };
        let mut both = named(&self.float.graph, &streams.float);
        both.extend(named(self.graph, &streams.quantized));
        let blob = self.session.unit(key, |to| write_activations(&both, to))?;
        if let Some(before) = self.entering.replace(blob).filter(|before| *before != blob) {
            crate::output::remove(&self.session.store.path(&before))?;
        }
        Ok(())
    }
}

/// What enters the next block, lane by lane.
fn leave(graph: &Graph, weights: &dyn Weights, block: BlockId, entering: &[Values]) -> Result<Vec<Values>, StepError> {
    let cached = attar_graph::Cached::new(weights);
    let lane = |lane: &Values| {
        let mut left = graph.evaluate_block(block, &cached, Mode::Inference, lane)?;
        left.extend(lane.iter().filter(|(id, _)| graph.is_read_after(**id, block)).map(|(id, t)| (*id, t.clone())));
        Ok(left)
    };
    entering.iter().map(lane).collect()
}

fn restore(graph: &Graph, lanes: &mut [Values], stored: Vec<BTreeMap<String, Tensor>>) {
    for (lane, stored) in lanes.iter_mut().zip(stored) {
        lane.extend(stored.into_iter().filter_map(|(name, tensor)| Some((graph.find(&name)?, tensor))));
    }
}
