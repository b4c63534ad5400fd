//! Quantizing with activations: block by block, and within a block input by input.
//!
//! What a linear layer reads is computed through all weights that were quantized before it, its second moments are
//! summed over the calibration windows, its weights are quantized, and the windows go on through the result.

use std::sync::Arc;

use attar_compress::{Assignment, Drift, Hessian, Losses, Needs, Seen};
use attar_graph::{BlockId, Graph, Node, Op, SourceWeights, ValueId};
use attar_tensor::{Digest, Source};

use super::{
    codes::{self, Live, Lossy},
    kind::StepError,
};
use crate::{
    Error,
    model::Working,
    session::Session,
    walk::{Side, Visitor, Walk, Windows, block_key, first_key},
    walker::Walker,
};

pub(super) static WALKER: Walker = Walker {
    name: "calibrated",
    doing: "quantize, calibrated",
    example: "[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\nalgorithm = \"gptaq\"\n",
};

/// The sides of the walk: the model as far as it is quantized, and the float model if an algorithm wants to see how far the
/// quantized one has moved.
const QUANTIZED: usize = 0;
const FLOAT: usize = 1;

/// The weights of one block that are to be quantized, by the value that they read, in running order.
struct Stage<'a> {
    input: ValueId,
    assignments: Vec<&'a Assignment>,
}

impl Stage<'_> {
    /// Whether some of its weights want to see how far that has moved.
    fn drifts(&self) -> bool {
        self.assignments.iter().any(|assignment| assignment.algorithm.needs() == Needs::Drift)
    }

    /// Whether some of its weights want to see what they are multiplied with.
    fn sees(&self) -> bool {
        self.assignments.iter().any(|assignment| assignment.algorithm.needs() != Needs::Nothing)
    }
}

pub(super) fn run(assignments: &[Assignment], model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
    let graph = model.graph.clone();
    check(model, assignments)?;
    let live = Live::over(&model.source);
    let stages: Vec<Vec<Stage<'_>>> =
        graph.blocks().map(|block| stages(&graph, block, assignments)).collect::<Result<_, StepError>>()?;
    let count = stages.iter().rposition(|stages| !stages.is_empty()).map_or(0, |at| at + 1);
    let float = (model.float.graph.clone(), SourceWeights(model.float.source.clone()));
    let mut sides = vec![Side { graph: &graph, weights: &live }];
    if stages.iter().flatten().any(Stage::drifts) {
        sides.push(Side { graph: &float.0, weights: &float.1 });
    }
    let first = first_key(&graph, session.calibration.unwrap_or_default());
    let mut quantizing = Quantizing {
        graph: &graph,
        source: model.source.clone(),
        session,
        live: &live,
        stages,
        used: Vec::new(),
        losses: Vec::new(),
    };
    Walk::new(&WALKER, &model.title, first, sides, session).visit(count, &mut quantizing)?;
    let (used, losses) = (quantizing.used, quantizing.losses);
    codes::install(model, assignments, live.into_blobs(), losses)?;
    Ok(used)
}

/// Whether every weight that wants to see activations has any. Nothing is read.
pub(super) fn check(model: &Working, assignments: &[Assignment]) -> Result<(), StepError> {
    let graph = &model.graph;
    if assignments.iter().all(|a| a.algorithm.needs() == Needs::Nothing) {
        return Ok(());
    }
    if !model.matches_float() && assignments.iter().any(|a| a.algorithm.needs() == Needs::Drift) {
        let hint = "put the step `activations` after this one".to_owned();
        let error = Error::recipe("the algorithm looks at the float model, which has no integer activations").hint(hint);
        return Err(StepError { key: Some("algorithm".into()), error });
    }
    graph.blocks().try_for_each(|block| stages(graph, block, assignments).map(drop))
}

/// Bytes of what the layers of the float model read, `inputs` wide: it waits for that of the quantized one.
pub(super) fn drift_memory(model: &Working, inputs: usize) -> u64 {
    4 * model.tokens * inputs as u64
}

/// How many models the windows of `assignments` go through.
pub(super) fn sides(assignments: &[Assignment]) -> u64 {
    let needs = |needs: Needs| assignments.iter().any(|assignment| assignment.algorithm.needs() == needs);
    match (needs(Needs::Drift), assignments.iter().all(|assignment| assignment.algorithm.needs() == Needs::Nothing)) {
        (true, _) => 2,
        (false, nothing) => u64::from(!nothing),
    }
}

/// The weights of a block that are to be quantized, by what they read.
fn stages<'a>(graph: &Graph, block: BlockId, assignments: &'a [Assignment]) -> Result<Vec<Stage<'a>>, StepError> {
    let mut stages: Vec<Stage<'a>> = Vec::new();
    for node in graph.nodes_of(block) {
        let Some(assignment) = assignments.iter().find(|a| is_decided_by(a, node)) else { continue };
        if node.op != Op::Linear && assignment.algorithm.needs() != Needs::Nothing {
            let error = Error::recipe(format!("`{}` is a table that is looked up in: it has no inputs to see", assignment.name))
                .hint("leave it out of `select`, or give it `algorithm = \"rtn\"` by an override".to_owned());
            return Err(StepError { key: Some("algorithm".into()), error });
        }
        match stages.iter_mut().find(|stage| stage.input == node.inputs[0]) {
            Some(stage) => stage.assignments.push(assignment),
            None => stages.push(Stage { input: node.inputs[0], assignments: vec![assignment] }),
        }
    }
    Ok(stages)
}

/// Whether a weight is quantized where `node` reads it. A table that is also the head has inputs to see only there.
fn is_decided_by(assignment: &Assignment, node: &Node) -> bool {
    let sees = assignment.algorithm.needs() != Needs::Nothing;
    let reads = node.inputs.get(1).is_some_and(|id| assignment.is_of(*id));
    match assignment.tied.is_empty() || !sees {
        true => node.inputs.get(1) == Some(&assignment.id),
        false => reads && node.op == Op::Linear,
    }
}

struct Quantizing<'a> {
    graph: &'a Graph,
    source: Arc<dyn Source>,
    session: &'a Session<'a>,
    live: &'a Live,
    /// By block.
    stages: Vec<Vec<Stage<'a>>>,
    used: Vec<Digest>,
    losses: Vec<(String, Losses)>,
}

impl Visitor for Quantizing<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> crate::Result<Digest> {
        let assigned = self.assignments(block).map(|a| codes::key(a, &*self.source)).collect::<crate::Result<Vec<_>>>()?;
        block_key(before, self.graph, block, &*self.source, assigned)
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        self.assignments(block).map(|assignment| unit(key, assignment)).collect()
    }

    fn take(&mut self, block: BlockId, _: &Digest, blobs: &[Digest]) -> crate::Result<()> {
        let taken: Vec<(&Assignment, Digest)> = self.assignments(block).zip(blobs.iter().copied()).collect();
        taken.into_iter().try_for_each(|(assignment, blob)| self.place(assignment, blob))
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> crate::Result<()> {
        (0..self.stages[block.index()].len()).try_for_each(|at| self.stage(block, at, key, windows))
    }
}

/// The key of a quantized weight in the block of that key.
fn unit(block: &Digest, assignment: &Assignment) -> Digest {
    Digest::of_parts([block.as_bytes().as_slice(), assignment.name.as_bytes()])
}

impl<'a> Quantizing<'a> {
    fn assignments(&self, block: BlockId) -> impl Iterator<Item = &'a Assignment> {
        self.stages[block.index()].iter().flat_map(|stage| stage.assignments.iter().copied())
    }

    fn place(&mut self, assignment: &Assignment, blob: Digest) -> crate::Result<()> {
        for name in assignment.names() {
            self.live.take(name, &blob, assignment.scheme, assignment.dims, self.session)?;
        }
        let (found, kept) = codes::losses(&Lossy::of(assignment, &*self.source, &blob), assignment.lost, self.session)?;
        self.losses.push((assignment.name.clone(), found));
        self.used.extend([blob, kept]);
        Ok(())
    }

    fn stage(&mut self, block: BlockId, at: usize, key: &Digest, windows: &mut Windows<'_>) -> crate::Result<()> {
        self.session.check_interrupt()?;
        let stage = &self.stages[block.index()][at];
        let (hessian, drift) = if stage.sees() { self.statistics(block, stage, windows)? } else { (None, None) };
        let (input, assignments) = (stage.input, stage.assignments.clone());
        for assignment in assignments {
            windows.tell(0, &assignment.name);
            let seen = Seen { hessian: hessian.as_ref(), drift: drift.as_ref() };
            let make = |to: &mut dyn std::io::Write| codes::quantize(assignment, &*self.source, seen, to, &|_| {});
            let blob = self.session.unit(unit(key, assignment), make)?;
            self.place(assignment, blob)?;
        }
        if let Some(share) = hessian.as_ref().and_then(Hessian::raised_damping) {
            let value = &self.graph.get(input).name;
            let note =
                format!("`{value}`: second moments are not positive definite; their damping was raised to {share} of their mean");
            self.session.observer.note(&note);
        }
        Ok(())
    }

    /// What a stage's weights want to have seen.
    fn statistics(
        &self,
        block: BlockId,
        stage: &Stage<'_>,
        windows: &mut Windows<'_>,
    ) -> crate::Result<(Option<Hessian>, Option<Drift>)> {
        let inputs = stage.assignments[0].dims[1];
        let (mut hessian, mut drift) = (Hessian::new(inputs), None);
        let mut of_float = Vec::new();
        if stage.drifts() {
            drift = Some(Drift::new(inputs));
            windows.reach(FLOAT, stage.input, &mut |_, x| {
                of_float.push(x.clone());
                Ok(())
            })?;
        }
        windows.reach(QUANTIZED, stage.input, &mut |lane, x| {
            if let Some(drift) = &mut drift {
                drift.add(&of_float[lane], x)?;
            }
            Ok(hessian.add(x)?)
        })?;
        let value = &self.graph.get(stage.input).name;
        if !hessian.is_finite() {
            let block = self.graph.block_name(block).into();
            return Err(attar_compress::Error::Activations { block, value: value.clone() }.into());
        }
        if let dead @ 1.. = hessian.dead() {
            let note = format!("`{value}`: {dead} of {inputs} inputs are always zero; their weights are rounded to nearest");
            self.session.observer.note(&note);
        }
        Ok((Some(hessian), drift))
    }
}
