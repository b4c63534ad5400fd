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
    trainable::{Trainable, gradient_memory, install, note_coded, trainable, weights_key},
};
use crate::{
    Result,
    model::{Float, Working},
    session::Session,
    settings::of,
    walk::{self, Side, Visitor, Walk, Windows, first_key, lane_values},
    walker::Walker,
};

pub(super) static AUTOROUND: StepKind = StepKind {
    name: "autoround",
    about: "Train the rounding and the scales of quantized weights, block by block",
    schema: of::<AutoRound>,
    build: |section| Ok(Box::new(section.finish::<AutoRound>(&["kind".into()])?)),
    folder: None,
    is_verb: false,
    examples: &[],
    looks_inside: true,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

pub(super) static WALKER: Walker = Walker {
    name: "autoround",
    doing: "autoround",
    example: "[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\n[[step]]\nkind = \"autoround\"\niterations = 1\n",
};

impl Step for AutoRound {
    fn kind(&self) -> &'static StepKind {
        &AUTOROUND
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn needs_text(&self) -> bool {
        true
    }

    fn plan(&self, model: &mut Working) -> std::result::Result<Vec<PlannedTensor>, StepError> {
        self.check().map_err(refused)?;
        note_coded(self.kind().name, model);
        let trainable = trainable(&self.select, model)?;
        walk::plan(model, 2);
        let gradients = gradient_memory(model, (self.batch * model.window) as u64);
        Ok(trainable.iter().map(|trained| trained.planned(gradients + memory(&trainable, trained))).collect())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> std::result::Result<Vec<Digest>, StepError> {
        let trainable = trainable(&self.select, model)?;
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
            trainable: &trainable,
            inputs: lane_values(&graph, windows, self.batch)?,
            used: Vec::new(),
        };
        let settings = serde_json::to_vec(self).expect("settings are JSON");
        let key = Digest::of_parts([b"autoround 2".as_slice(), first_key(&graph, windows).as_bytes(), &settings]);
        let count = trainable.iter().map(|trained| trained.block).max().map_or(0, |block| block.index() + 1);
        let walk = Walk::new(&WALKER, &model.title, key, sides, session).by(self.batch).in_parts(self.iterations);
        walk.visit(count, &mut learning)?;
        let mut used = learning.used;
        used.extend(install(model, &trainable, &used, live.into_blobs(), session)?);
        Ok(used)
    }
}

/// Bytes of a block in training: its weights as they are, were and become, their moments and gradients.
fn memory(trainable: &[Trainable], of: &Trainable) -> u64 {
    32 * trainable.iter().filter(|p| p.block == of.block).map(Trainable::weights).sum::<u64>()
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
    trainable: &'a [Trainable],
    /// What enters the graph, by lane.
    inputs: Vec<Values>,
    used: Vec<Digest>,
}

impl Visitor for Learning<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        let mut parts = vec![*before, Digest::of(self.graph.block_name(block).as_bytes())];
        parts.push(weights_key(self.graph, &*self.source, std::iter::once(block))?);
        parts.push(weights_key(&self.float.graph, &*self.float.source, std::iter::once(block))?);
        parts.extend(self.trainable_in(block).map(Trainable::key));
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        self.trainable_in(block).map(|trained| unit(key, trained)).collect()
    }

    fn take(&mut self, block: BlockId, _: &Digest, blobs: &[Digest]) -> Result<()> {
        self.trainable_in(block).zip(blobs).try_for_each(|(trained, blob)| self.place(trained, *blob))
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        let entering = windows.values(QUANTIZED, &self.inputs);
        windows.leave(FLOAT)?;
        let made = self.graph.leaving(block);
        let mut wanted = windows.values(FLOAT, &self.inputs);
        wanted.iter_mut().for_each(|lane| lane.retain(|id, _| made.contains(id)));
        self.learn(block, key, windows, [&entering, &wanted])
    }
}

/// The key of a weight that learned in the block of that key.
fn unit(block: &Digest, trained: &Trainable) -> Digest {
    Digest::of_parts([block.as_bytes().as_slice(), trained.name.as_bytes()])
}

impl<'a> Learning<'a> {
    fn trainable_in(&self, block: BlockId) -> impl Iterator<Item = &'a Trainable> + use<'a> {
        self.trainable.iter().filter(move |trained| trained.block == block)
    }

    fn place(&mut self, trained: &Trainable, blob: Digest) -> Result<()> {
        self.live.take(&trained.name, &blob, trained.scheme, trained.dims, self.session)?;
        self.used.push(blob);
        Ok(())
    }

    fn learn(&mut self, block: BlockId, key: &Digest, windows: &Windows<'_>, [entering, wanted]: [&[Values]; 2]) -> Result<()> {
        let (mut originals, mut learned) = (BTreeMap::new(), BTreeMap::new());
        for trained in self.trainable_in(block) {
            let (one, original) = trained.learned(&*self.source, self.float)?;
            learned.insert(trained.name.clone(), one);
            originals.insert(trained.name.clone(), original);
        }
        let task = Task { graph: self.graph, block, below: self.live, entering, wanted };
        let name = self.graph.block_name(block);
        let progress = self.settings.optimize(&task, &mut learned, &mut |iteration| {
            windows.tell(iteration as u64, name);
            Ok(())
        })?;
        let said = format!("{name}: error {:.4}, before {:.4}", progress.after, progress.before);
        windows.tell(self.settings.iterations as u64, &said);
        for trained in self.trainable_in(block) {
            let blob = trained.keep(&learned[&trained.name], &originals[&trained.name], unit(key, trained), self.session)?;
            self.place(trained, blob)?;
        }
        Ok(())
    }
}
