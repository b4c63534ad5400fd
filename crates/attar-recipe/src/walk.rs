//! Calibration windows on their way through the blocks of a model: the one resumable walk of all steps that look at activations.
//!
//! A walk visits block after block. Of every block it knows the digest of all that decides what is found there, so that a
//! finished block is taken from the store, and what leaves the block is a blob of the store, too: a killed run takes up at the
//! block it was in, with the very numbers that it had. Only the latest of these blobs is kept.
//!
//! What is found in a block, and what decides it, is the [`Visitor`]'s business. A walk may have several *sides*: the same
//! windows through the quantized and the float model, block by block together.
//!
//! ```text
//! block 0: units done, what leaves it stored     take the units
//! block 1: units done, what leaves it stored     take the units; the windows enter block 2 from the store
//! block 2: a unit is missing                     restore the windows, visit, store what leaves the block, drop the blob before
//! ```

use std::collections::BTreeMap;

use attar_graph::{BlockId, Graph, Inputs, Origin, Stream, ValueId, Values, Weights, kernel::instruction_set};
use attar_tensor::{
    Digest, Dtype, Source,
    safetensors::{Entry, Shards, Writer},
};
use candle_core::{Device, Tensor};

use crate::{Result, session::Session};

/// Tokens that go through a block together.
const LANE: usize = 2048;

/// What is done at every block of a walk.
pub(crate) trait Visitor {
    /// The digest of all that decides what is found in `block`, where `before` is that of all earlier blocks.
    fn key(&self, before: &Digest, block: BlockId) -> Result<Digest>;

    /// The keys of what is found in a block, a unit each; `key` is the block's.
    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest>;

    /// Takes what was found in a block earlier: the blobs of its units, in their order.
    fn take(&mut self, block: BlockId, key: &Digest, blobs: &[Digest]) -> Result<()>;

    /// Makes the units of a block and takes them. The windows are in front of the block.
    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()>;
}

/// A model that the windows go through.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) weights: &'a dyn Weights,
}

/// A walk that stands in front of some block.
pub(crate) struct Walk<'a> {
    session: &'a Session<'a>,
    sides: Vec<Side<'a>>,
    /// Windows that go through a block together.
    together: usize,
    /// Of all that was decided in the blocks before.
    key: Digest,
    /// Made when a block must be visited.
    windows: Option<Windows<'a>>,
    /// The blob of what enters the block.
    entering: Latest,
}

impl<'a> Walk<'a> {
    /// The calibration windows in front of the first block; `key` is the digest of all that decides what they are and what is
    /// looked for. The first side is the model whose blocks are counted.
    pub(crate) fn new(key: Digest, sides: Vec<Side<'a>>, session: &'a Session<'a>) -> Walk<'a> {
        let together = windows_together(session.calibration.unwrap_or_default());
        Walk { session, sides, together, key, windows: None, entering: Latest::default() }
    }

    /// With so many windows going through a block together.
    pub(crate) fn by(self, together: usize) -> Walk<'a> {
        Walk { together: together.max(1), ..self }
    }

    /// Visits the first `count` blocks. After each, `done` is called.
    pub(crate) fn visit(&mut self, count: usize, visitor: &mut dyn Visitor, done: &dyn Fn(BlockId)) -> Result<()> {
        let graph = self.sides[0].graph;
        for block in graph.blocks().take(count) {
            self.session.check_interrupt()?;
            self.block(block, block.index() + 1 < count, visitor)?;
            done(block);
        }
        Ok(())
    }

    /// `more` blocks want what leaves this one.
    fn block(&mut self, block: BlockId, more: bool, visitor: &mut dyn Visitor) -> Result<()> {
        let key = visitor.key(&self.key, block)?;
        let units = visitor.units(block, &key).iter().map(|unit| self.session.done(unit)).collect::<Result<Option<Vec<_>>>>()?;
        if let Some(blobs) = &units {
            visitor.take(block, &key, blobs)?;
        }
        let stored = if more && units.is_some() { self.session.done(&leaving(&key))? } else { None };
        match (units, stored) {
            (Some(_), _) if !more => {}
            (Some(_), Some(blob)) => (self.windows, self.entering) = (None, Latest(Some(blob))),
            // Should a later block be visited, the windows come here from the first block.
            (Some(_), None) if self.windows.is_none() && self.entering.is_none() => {}
            (units, _) => {
                let mut windows = self.start(block)?;
                if units.is_none() {
                    visitor.visit(block, &key, &mut windows)?;
                }
                if more {
                    self.leave(&key, &mut windows)?;
                }
                self.windows = Some(windows);
            }
        }
        self.key = key;
        Ok(())
    }

    /// The windows in front of `block`: at hand, from the store, or else through all blocks before.
    fn start(&mut self, block: BlockId) -> Result<Windows<'a>> {
        if let Some(windows) = self.windows.take() {
            return Ok(windows);
        }
        let lanes = || lanes(self.session.calibration.unwrap_or_default(), self.together);
        let streams = self.sides.iter().map(|side| Ok(Stream::new(side.graph, lanes()?))).collect::<Result<Vec<_>>>()?;
        let mut windows = Windows { sides: self.sides.clone(), streams, lanes: lanes()?.len(), at: block };
        if let Some(blob) = self.entering.blob() {
            windows.restore(block, read_lanes(&self.session.store.open(blob)?, windows.lanes * self.sides.len())?);
        }
        while windows.streams.iter().any(|stream| stream.block() != block) {
            self.session.check_interrupt()?;
            (0..self.sides.len()).try_for_each(|side| windows.leave(side))?;
        }
        Ok(windows)
    }

    /// Goes on to the next block, and stores what enters it.
    fn leave(&mut self, key: &Digest, windows: &mut Windows<'a>) -> Result<()> {
        for side in 0..windows.sides.len() {
            if windows.streams[side].block() == windows.at {
                windows.leave(side)?;
            }
        }
        windows.at = BlockId::after(windows.at);
        let entering: Vec<_> = windows.streams.iter().flat_map(Stream::entering).collect();
        let blob = self.session.unit(leaving(key), |to| write_lanes(&entering, to))?;
        self.entering.replace(blob, self.session)
    }
}

/// The windows of a walk, at some block. Sides are numbered as they were given.
pub(crate) struct Windows<'a> {
    sides: Vec<Side<'a>>,
    streams: Vec<Stream<'a>>,
    /// How many there are on every side.
    lanes: usize,
    /// The block that is visited.
    at: BlockId,
}

impl Windows<'_> {
    /// Computes a value of the block on one side, and shows it lane by lane.
    pub(crate) fn reach(
        &mut self,
        side: usize,
        value: ValueId,
        each: &mut dyn FnMut(usize, &Tensor) -> attar_graph::Result<()>,
    ) -> Result<()> {
        Ok(self.streams[side].reach(self.sides[side].weights, value, each)?)
    }

    /// Goes on to the next block on one side, ahead of the others.
    pub(crate) fn leave(&mut self, side: usize) -> Result<()> {
        Ok(self.streams[side].leave(self.sides[side].weights)?)
    }

    /// What enters the block on one side, inputs of the graph included, lane by lane.
    pub(crate) fn values(&self, side: usize, inputs: &[Values]) -> Vec<Values> {
        let graph = self.sides[side].graph;
        let by_id = |lane: BTreeMap<String, Tensor>| lane.into_iter().filter_map(|(name, t)| Some((graph.find(&name)?, t)));
        let lanes = self.streams[side].entering().into_iter().zip(inputs);
        lanes.map(|(lane, inputs)| inputs.clone().into_iter().chain(by_id(lane)).collect()).collect()
    }

    fn restore(&mut self, block: BlockId, mut stored: Vec<BTreeMap<String, Tensor>>) {
        for stream in &mut self.streams {
            let later = stored.split_off(self.lanes.min(stored.len()));
            stream.restore(block, std::mem::replace(&mut stored, later));
        }
    }
}

/// The unit that stores what leaves a block.
fn leaving(block: &Digest) -> Digest {
    Digest::of_parts([block.as_bytes().as_slice(), b"leaving"])
}

/// The latest of blobs of which each makes the one before it worthless.
#[derive(Default)]
pub(crate) struct Latest(Option<Digest>);

impl Latest {
    pub(crate) fn of(blob: Option<Digest>) -> Latest {
        Latest(blob)
    }

    pub(crate) fn blob(&self) -> Option<&Digest> {
        self.0.as_ref()
    }

    fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Keeps `blob`, and lets go of the one before.
    pub(crate) fn replace(&mut self, blob: Digest, session: &Session<'_>) -> Result<()> {
        match self.0.replace(blob).filter(|before| *before != blob) {
            Some(before) => session.discard(&before),
            None => Ok(()),
        }
    }

    /// Lets go of the last one, too.
    pub(crate) fn discard(self, session: &Session<'_>) -> Result<()> {
        self.0.map_or(Ok(()), |blob| session.discard(&blob))
    }
}

/// What decides the activations that enter the first block. Matrix kernels differ by instruction set in their last bits.
pub(crate) fn first_key(graph: &Graph, windows: &[Vec<u32>]) -> Digest {
    let graph = graph.to_string();
    Digest::of_parts([b"calibrated 1".as_slice(), instruction_set().as_bytes(), graph.as_bytes(), &token_bytes(windows)])
}

/// The windows as bytes, for keys.
pub(crate) fn token_bytes(windows: &[Vec<u32>]) -> Vec<u8> {
    windows.iter().flat_map(|w| w.iter().copied().chain([u32::MAX]).flat_map(u32::to_le_bytes)).collect()
}

/// The key of a block that its weights and `more` decide. Weights that `source` does not have yet are what the walk looks for.
pub(crate) fn block_key(
    before: &Digest,
    graph: &Graph,
    block: BlockId,
    source: &dyn Source,
    more: impl IntoIterator<Item = Digest>,
) -> Result<Digest> {
    let mut parts = vec![*before, Digest::of(graph.block_name(block).as_bytes())];
    for id in graph.nodes_of(block).flat_map(|node| &node.inputs) {
        if let Origin::Weight(expr) = &graph.get(*id).origin
            && source.info(expr.tensor_name()).is_ok()
        {
            parts.push(expr.digest(source)?);
        }
    }
    parts.extend(more);
    Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
}

/// So many of these windows make a lane.
pub(crate) fn windows_together(windows: &[Vec<u32>]) -> usize {
    let length = windows.first().map_or(1, Vec::len).max(1);
    (LANE / length).max(1)
}

/// The windows as what enters a graph, `together` in a lane. The last lane may have fewer.
pub(crate) fn lanes(windows: &[Vec<u32>], together: usize) -> Result<Vec<Inputs>> {
    let lane = |lane: &[Vec<u32>]| Ok(Inputs::tokens(&lane.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0)?);
    windows.chunks(together.max(1)).map(lane).collect()
}

/// The same by the values of `graph`.
pub(crate) fn lane_values(graph: &Graph, windows: &[Vec<u32>], together: usize) -> Result<Vec<Values>> {
    Ok(lanes(windows, together)?.iter().map(|lane| lane.of(graph)).collect())
}

/// Tensors of f32, by lane and name, as a file.
pub(crate) fn write_lanes(lanes: &[BTreeMap<String, Tensor>], to: &mut dyn std::io::Write) -> Result<()> {
    let entry = |lane: usize, name: &str, t: &Tensor| Entry {
        name: format!("{lane} {name}"),
        dtype: Dtype::F32,
        dims: t.dims().to_vec(),
    };
    let named = lanes.iter().enumerate().flat_map(|(lane, values)| values.iter().map(move |(name, t)| (lane, name, t)));
    let entries: Vec<Entry> = named.map(|(lane, name, t)| entry(lane, name, t)).collect();
    let failed = attar_tensor::Error::from;
    let mut writer = Writer::new(to, &entries, &BTreeMap::new()).map_err(failed)?;
    for tensor in lanes.iter().flat_map(BTreeMap::values) {
        let mut bytes = Vec::new();
        attar_graph::kernel::with_f32(tensor, |values| Dtype::F32.encode(values, &mut bytes))
            .map_err(attar_graph::Error::from)?;
        writer.append(&bytes).map_err(failed)?;
    }
    writer.finish();
    Ok(())
}

/// What [`write_lanes`] wrote.
pub(crate) fn read_lanes(path: &std::path::Path, lanes: usize) -> Result<Vec<BTreeMap<String, Tensor>>> {
    let from = Shards::open(&[path.to_owned()], &BTreeMap::new())?;
    let mut all = vec![BTreeMap::new(); lanes];
    for (name, info) in from.tensors() {
        let Some((lane, value)) = name.split_once(' ') else { continue };
        let mut values = vec![0.0; info.elements()];
        from.read(name, 0..info.matrix()[0], &mut values)?;
        let tensor = Tensor::from_vec(values, info.dims.as_slice(), &Device::Cpu).map_err(attar_graph::Error::from)?;
        if let Some(lane) = lane.parse::<usize>().ok().and_then(|lane| all.get_mut(lane)) {
            lane.insert(value.into(), tensor);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use attar_graph::SourceWeights;
    use attar_model::Model;

    use super::*;
    use crate::{Error, Silent, session::Workspace};

    fn model() -> Model {
        Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m")).unwrap()
    }

    fn windows() -> Vec<Vec<u32>> {
        (0..6u32).map(|window| (0..16).map(|at| (window * 131 + at * 17) % 1000).collect()).collect()
    }

    /// Sums what every block makes; a unit is the sum as text.
    struct Summing<'a> {
        model: &'a Model,
        session: &'a Session<'a>,
        /// Part of the unit keys of this block and of no other.
        changed: Option<usize>,
        /// Stops in this block.
        killed_in: Option<usize>,
        visited: Vec<usize>,
        sums: Vec<String>,
        keys: Vec<Digest>,
    }

    impl<'a> Summing<'a> {
        fn new(model: &'a Model, session: &'a Session<'a>) -> Summing<'a> {
            Summing { model, session, changed: None, killed_in: None, visited: vec![], sums: vec![], keys: vec![] }
        }

        fn walk(mut self) -> (Result<()>, Summing<'a>) {
            let graph = &self.model.graph;
            let weights = SourceWeights(self.model.source.clone());
            let first = first_key(graph, self.session.calibration.unwrap());
            let mut walk = Walk::new(first, vec![Side { graph, weights: &weights }], self.session).by(4);
            let done = walk.visit(graph.block_count() - 1, &mut self, &|_| {});
            (done, self)
        }
    }

    impl Visitor for Summing<'_> {
        fn key(&self, before: &Digest, block: BlockId) -> Result<Digest> {
            block_key(before, &self.model.graph, block, &*self.model.source, [])
        }

        fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
            let what: &[u8] = if self.changed == Some(block.index()) { b"another sum" } else { b"sum" };
            vec![Digest::of_parts([key.as_bytes().as_slice(), what])]
        }

        fn take(&mut self, _: BlockId, key: &Digest, blobs: &[Digest]) -> Result<()> {
            self.keys.push(*key);
            self.sums.push(std::fs::read_to_string(self.session.store.open(&blobs[0]).unwrap()).unwrap());
            Ok(())
        }

        fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> Result<()> {
            self.visited.push(block.index());
            if self.killed_in == Some(block.index()) {
                return Err(Error::interrupted());
            }
            let last = self.model.graph.nodes_of(block).last().unwrap().output();
            let mut sums = Vec::new();
            windows.reach(0, last, &mut |lane, x| {
                sums.push((lane, x.sum_all()?.to_scalar::<f32>()?.to_bits()));
                Ok(())
            })?;
            let unit = self.units(block, key)[0];
            let text = format!("{sums:?}");
            let blob =
                self.session.unit(unit, |to| to.write_all(text.as_bytes()).map_err(|e| attar_tensor::Error::from(e).into()))?;
            self.take(block, key, &[blob])
        }
    }

    #[test]
    fn a_walk_that_was_killed_takes_up_at_its_block_with_the_same_numbers() {
        let (model, folders) = (model(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
        let [whole, killed] = folders.each_ref().map(|folder| Workspace::open(folder.path().into(), Some(windows())).unwrap());
        let session = whole.session(&model, &Silent);
        let (done, wanted) = Summing::new(&model, &session).walk();
        done.unwrap();
        assert_eq!(wanted.visited, (0..model.graph.block_count() - 1).collect::<Vec<_>>());

        let session = killed.session(&model, &Silent);
        let first = Summing { killed_in: Some(2), ..Summing::new(&model, &session) };
        assert!(first.walk().0.is_err());
        let (done, resumed) = Summing::new(&model, &session).walk();
        done.unwrap();
        assert_eq!(resumed.visited, wanted.visited[2..]);
        assert_eq!(resumed.sums, wanted.sums);
    }

    #[test]
    fn only_the_latest_activations_are_kept() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let workspace = Workspace::open(folder.path().into(), Some(windows())).unwrap();
        let session = workspace.session(&model, &Silent);
        let (done, walked) = Summing::new(&model, &session).walk();
        done.unwrap();
        let (last, before) = walked.keys.split_last().unwrap();
        let kept: Vec<bool> = before.iter().map(|key| session.done(&leaving(key)).unwrap().is_some()).collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), 1);
        assert_eq!(kept.last(), Some(&true), "the blob that enters the last block is the latest");
        assert!(session.done(&leaving(last)).unwrap().is_none(), "nobody wants what leaves the last block");
    }

    #[test]
    fn a_block_whose_activations_are_gone_is_reached_from_the_first() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let workspace = Workspace::open(folder.path().into(), Some(windows())).unwrap();
        let session = workspace.session(&model, &Silent);
        let (_, wanted) = Summing::new(&model, &session).walk();
        let (done, again) = Summing { changed: Some(1), ..Summing::new(&model, &session) }.walk();
        done.unwrap();
        assert_eq!(again.visited, [1], "only the block whose unit is missing is visited");
        assert_eq!(again.sums, wanted.sums);
    }
}
