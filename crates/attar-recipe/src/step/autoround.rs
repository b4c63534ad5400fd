//! The step `autoround`: a unit is a block.
//!
//! The calibration windows go through the float model and the quantized one side by side.

use std::{collections::BTreeMap, sync::Arc};

use attar_compress::learn::{AutoRound, Task};
use attar_graph::{BlockId, Graph, SourceWeights, Values};
use attar_tensor::{Digest, Source};

use super::{
    codes::{Live, refused},
    kind::{PlannedTensor, Step, StepError, StepKind},
    pupils::{Pupil, check_text, gradient_memory, install, pupils, weights_key},
};
use crate::{
    Result,
    model::{Float, Working},
    session::Session,
    settings::of,
    walk::{Side, Visitor, Walk, Windows, first_key, lane_values},
};

pub(super) static AUTOROUND: StepKind = StepKind {
    name: "autoround",
    about: "Let the rounding and the scales of quantized weights learn, block by block",
    schema: of::<AutoRound>,
    build: |section| Ok(Box::new(section.finish::<AutoRound>(&["kind".into()])?)),
    folder: None,
    is_verb: false,
    looks_inside: true,
    needs_tokens: false,
    predicts: false,
};

impl Step for AutoRound {
    fn kind(&self) -> &'static StepKind {
        &AUTOROUND
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> std::result::Result<Vec<PlannedTensor>, StepError> {
        self.check().map_err(refused)?;
        let pupils = pupils(&self.select, model)?;
        check_text("autoround", model)?;
        // Two streams, before and behind the block.
        let streams = 4 * model.tokens * model.token_bytes()[1] + gradient_memory(model, self.batch);
        Ok(pupils.iter().map(|pupil| pupil.planned(streams + memory(&pupils, pupil))).collect())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> std::result::Result<Vec<Digest>, StepError> {
        let pupils = pupils(&self.select, model)?;
        let (graph, float) = (model.graph.clone(), model.float.clone());
        let windows = session.calibration.expect("planned");
        let (live, below) = (Live::over(&model.source), SourceWeights(float.source.clone()));
        let sides = vec![Side { graph: &float.graph, weights: &below }, Side { graph: &graph, weights: &live }];
        let mut learning = Learning {
            settings: self,
            graph: &graph,
            source: model.source.clone(),
            float: &float,
            session,
            live: &live,
            pupils: &pupils,
            inputs: lane_values(&graph, windows, self.batch)?,
            used: Vec::new(),
        };
        let settings = serde_json::to_vec(self).expect("settings are JSON");
        let key = Digest::of_parts([b"autoround 1".as_slice(), first_key(&graph, windows).as_bytes(), &settings]);
        let count = pupils.iter().map(|pupil| pupil.block).max().map_or(0, |block| block.index() + 1);
        session.observer.stage(&format!("{}: autoround", model.title), (count * self.iterations) as u64);
        Walk::new(key, sides, session).by(self.batch).visit(count, &mut learning, &|block| {
            session.observer.advance(((block.index() + 1) * self.iterations) as u64, graph.block_name(block));
        })?;
        let used = learning.used;
        install(model, &pupils, live.into_blobs())?;
        Ok(used)
    }
}

/// What a block takes that learns: its weights as they are, were and become, their moments and gradients.
fn memory(pupils: &[Pupil], of: &Pupil) -> u64 {
    32 * pupils.iter().filter(|p| p.block == of.block).map(Pupil::weights).sum::<u64>()
}

/// The sides of the walk: the float model, which says what each block should give, and the quantized one, which says what
/// each block gets.
const FLOAT: usize = 0;
const QUANTIZED: usize = 1;

struct Learning<'a> {
    settings: &'a AutoRound,
    graph: &'a Graph,
    source: Arc<dyn Source>,
    float: &'a Float,
    session: &'a Session<'a>,
    live: &'a Live,
    pupils: &'a [Pupil],
    /// What enters the graph, by lane.
    inputs: Vec<Values>,
    used: Vec<Digest>,
}

impl Visitor for Learning<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        let mut parts = vec![*before, Digest::of(self.graph.block_name(block).as_bytes())];
        parts.push(weights_key(self.graph, &*self.source, std::iter::once(block))?);
        parts.push(weights_key(&self.float.graph, &*self.float.source, std::iter::once(block))?);
        parts.extend(self.pupils_of(block).map(|pupil| Digest::of(pupil.name.as_bytes())));
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        self.pupils_of(block).map(|pupil| unit(key, pupil)).collect()
    }

    fn take(&mut self, block: BlockId, _: &Digest, blobs: &[Digest]) -> Result<()> {
        self.pupils_of(block).zip(blobs).for_each(|(pupil, blob)| self.place(pupil, *blob));
        Ok(())
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        let entering = windows.values(QUANTIZED, &self.inputs);
        windows.leave(FLOAT)?;
        let made = self.graph.leaving(block);
        let mut wanted = windows.values(FLOAT, &self.inputs);
        wanted.iter_mut().for_each(|lane| lane.retain(|id, _| made.contains(id)));
        self.learn(block, key, &entering, &wanted)
    }
}

/// The key of a weight that learned in the block of that key.
fn unit(block: &Digest, pupil: &Pupil) -> Digest {
    Digest::of_parts([block.as_bytes().as_slice(), pupil.name.as_bytes()])
}

impl<'a> Learning<'a> {
    fn pupils_of(&self, block: BlockId) -> impl Iterator<Item = &'a Pupil> + use<'a> {
        self.pupils.iter().filter(move |pupil| pupil.block == block)
    }

    fn place(&mut self, pupil: &Pupil, blob: Digest) {
        self.live.take(&pupil.name, &blob, pupil.scheme, pupil.dims, self.session);
        self.used.push(blob);
    }

    fn learn(&mut self, block: BlockId, key: &Digest, entering: &[Values], wanted: &[Values]) -> Result<()> {
        let (mut originals, mut learned) = (BTreeMap::new(), BTreeMap::new());
        for pupil in self.pupils_of(block) {
            let (one, original) = pupil.learned(&*self.source, self.float)?;
            learned.insert(pupil.name.clone(), one);
            originals.insert(pupil.name.clone(), original);
        }
        let task = Task { graph: self.graph, block, below: self.live, entering, wanted };
        let (observer, iterations) = (self.session.observer, self.settings.iterations);
        let name = self.graph.block_name(block);
        let lesson = self.settings.teach(&task, &mut learned, &mut |iteration| {
            observer.advance((block.index() * iterations + iteration) as u64, name);
            Ok(())
        })?;
        let said = format!("{name}: error {:.4}, before {:.4}", lesson.after, lesson.before);
        observer.advance(((block.index() + 1) * iterations) as u64, &said);
        for pupil in self.pupils_of(block) {
            let blob = pupil.keep(&learned[&pupil.name], &originals[&pupil.name], unit(key, pupil), self.session)?;
            self.place(pupil, blob);
        }
        Ok(())
    }
}
