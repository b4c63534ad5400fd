//! The first stage of `distill`: block after block learns to leave the residual stream as the teacher's does, given what enters it in the
//! student.

use std::{collections::BTreeMap, sync::Arc};

use attar_compress::learn::{Differentiable, Distill, Plain};
use attar_graph::{BlockId, Graph, SourceWeights, ValueId, Values};
use attar_tensor::{Digest, Source, safetensors::Shards};
use candle_core::Tensor;

use super::{kind::StepError, plain::PlainTrainable, renewed::Renewed, trainable::weights_key, transformed::write_tensors};
use crate::{
    Error, Result,
    model::Float,
    session::Session,
    walk::{Side, Visitor, Walk, Windows, block_key, first_key, lane_values},
    walker::Walker,
};

pub(super) static WALKER: Walker = Walker {
    name: "distill-local",
    doing: "match block by block",
    example: "[[step]]\nkind = \"prune\"\nmlp = 192\n[[step]]\nkind = \"distill\"\nlocal = 1\nbatch = 2\nsteps = 2\n",
};

/// By block of the student, the residual stream behind it, and behind the teacher's block of that number.
pub(super) type Pairs = BTreeMap<BlockId, [ValueId; 2]>;

/// Whether blocks can be matched: there are as many, with streams of one width.
pub(super) fn check(pairs: &Pairs, student: &Graph, teacher: &Graph) -> Result<(), StepError> {
    let refused = |message: String| {
        let hint = "leave `local` out, and let `hidden` count instead".to_owned();
        Err(StepError { key: Some("local".into()), error: Error::recipe(message).hint(hint) })
    };
    let [own, other] = [student, teacher].map(Graph::block_count);
    if own != other {
        return refused(format!("the student has {own} blocks and the teacher {other}: they cannot be matched one by one"));
    }
    let width = |graph: &Graph, id: ValueId| graph.fact(id).width().unwrap_or(0);
    match pairs.values().map(|[own, other]| [width(student, *own), width(teacher, *other)]).find(|[own, other]| own != other) {
        Some([own, other]) => refused(format!(
            "the student's residual stream has {own} channels and the teacher's {other}: they cannot be compared"
        )),
        None => Ok(()),
    }
}

/// What the stage needs.
pub(super) struct Stage<'a> {
    pub(super) settings: &'a Distill,
    /// The student, and its weights.
    pub(super) graph: &'a Graph,
    pub(super) source: &'a Arc<dyn Source>,
    pub(super) teacher: &'a Float,
    pub(super) plain: &'a [PlainTrainable],
    pub(super) pairs: &'a Pairs,
    pub(super) title: &'a str,
    pub(super) session: &'a Session<'a>,
}

impl Stage<'_> {
    /// Trains every block on some windows. Returns what weights learned, by canonical name.
    pub(super) fn run(&self, windows: &[Vec<u32>]) -> Result<BTreeMap<String, Vec<f32>>, StepError> {
        let renewed = Renewed::over(self.source);
        let teacher = SourceWeights(self.teacher.source.clone());
        let own = Side { graph: self.graph, weights: &renewed };
        let float = Side { graph: &self.teacher.graph, weights: &teacher };
        let settings = serde_json::to_vec(self.settings).expect("settings are JSON");
        let text = [self.graph, &self.teacher.graph].map(|graph| first_key(graph, windows));
        let weights = weights_key(&self.teacher.graph, &*self.teacher.source, self.teacher.graph.blocks())?;
        let zeros: String = self.plain.iter().filter(|one| one.zeros).map(|one| format!(" {}", one.name)).collect();
        let parts =
            [b"local 1".as_slice(), &settings, text[0].as_bytes(), text[1].as_bytes(), weights.as_bytes(), zeros.as_bytes()];
        let inputs = lane_values(self.graph, windows, self.settings.batch)?;
        let count = self.pairs.keys().last().map_or(0, |block| block.index() + 1);
        let mut matching = Matching { stage: self, renewed: &renewed, inputs, found: BTreeMap::new() };
        let walk = Walk::new(&WALKER, self.title, Digest::of_parts(parts), vec![own, float], self.session);
        walk.over(windows).by(self.settings.batch).visit(count, &mut matching)?;
        Ok(matching.found)
    }
}

/// The sides of the walk.
const OWN: usize = 0;
const TEACHER: usize = 1;

struct Matching<'a> {
    stage: &'a Stage<'a>,
    renewed: &'a Renewed,
    /// What the caller gives, batch by batch.
    inputs: Vec<Values>,
    found: BTreeMap<String, Vec<f32>>,
}

impl Matching<'_> {
    fn of_block(&self, block: BlockId) -> impl Iterator<Item = &PlainTrainable> {
        let pairs = self.stage.pairs;
        self.stage.plain.iter().filter(move |one| one.block == block && one.tied.is_empty() && pairs.contains_key(&block))
    }
}

impl Visitor for Matching<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
        block_key(before, self.stage.graph, block, &**self.stage.source, [])
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        if self.of_block(block).next().is_some() { vec![*key] } else { Vec::new() }
    }

    fn take(&mut self, block: BlockId, key: &Digest, blobs: &[Digest]) -> Result<()> {
        let names: Vec<String> = self.of_block(block).map(|one| one.name.clone()).collect();
        for blob in blobs {
            let path = self.stage.session.store.open(blob)?;
            let stored = Shards::open(std::slice::from_ref(&path), &BTreeMap::new())?;
            for name in &names {
                let tensor = stored_as(name, key);
                self.found.insert(name.clone(), stored.whole(&tensor)?);
                self.renewed.take(name, &tensor, path.clone());
            }
        }
        Ok(())
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
        let Some([unit]) = self.units(block, key).first_chunk().copied() else { return Ok(()) };
        let Stage { settings, graph, source, session, .. } = self.stage;
        let [value, wanted] = self.stage.pairs[&block];
        let entering = windows.values(OWN, &self.inputs);
        let mut targets: Vec<Tensor> = Vec::new();
        windows.reach(TEACHER, wanted, &mut |_, x| {
            targets.push(x.clone());
            Ok(())
        })?;
        let mut plain: BTreeMap<String, Plain> = BTreeMap::new();
        for one in self.of_block(block) {
            plain.insert(one.name.clone(), one.learned(&***source).map_err(|failed| failed.error)?);
        }
        let (below, batches) = (SourceWeights((*source).clone()), entering.len());
        let steps = settings.local * batches;
        for step in 0..steps {
            session.check_interrupt()?;
            let at = step % batches;
            let learned = plain.iter().map(|(name, one)| Ok((name.clone(), one.tensor()?)));
            let learned = learned.collect::<attar_compress::Result<BTreeMap<String, Tensor>>>()?;
            let differentiable = Differentiable { graph, block, learned: &learned, below: &below };
            let loss = settings.local_step(&differentiable, &mut plain, &entering[at], (value, &targets[at]), [step, steps])?;
            windows.tell(0, &format!("relative error {loss:.4}"));
        }
        let values: Vec<(String, Vec<usize>, Vec<f32>)> =
            plain.iter().map(|(name, one)| (stored_as(name, key), one.dims().to_vec(), one.values())).collect();
        let tensors: Vec<(String, &[usize], &[f32])> =
            values.iter().map(|(name, dims, values)| (name.clone(), dims.as_slice(), values.as_slice())).collect();
        let blob = session.unit(unit, |to| write_tensors(to, &tensors))?;
        self.take(block, key, &[blob])
    }
}

/// What the tensor of a weight is called in the unit with `key`.
fn stored_as(name: &str, key: &Digest) -> String {
    format!("{name}/{}", key.short())
}
