//! Windows of text on their way through the blocks of a model: the one resumable walk of all steps that look at activations.
//!
//! A walk visits block after block. Of every block it knows the digest of all that decides what is found there, so that a
//! finished block is taken from the store, and what leaves the block is a blob of the store, too: a killed run takes up at the
//! block it was in, with the very numbers that it had. Only the latest of these blobs is kept, and none when the walk is over.
//!
//! What is found in a block, and what decides it, is the [`Visitor`]'s business. A walk may have several *sides*: the same
//! windows through the quantized and the float model, block by block together. Who walks is a [`Walker`]
//! that the session knows: one of [`crate::step::WALKERS`], and the tests of resuming run over all of them.
//!
//! ```text
//! block 0: units done                            take the units
//! block 1: units done, what leaves it stored     take the units
//! block 2: a unit is missing                     restore the windows, visit
//! block 3: a unit is missing                     go on, store what enters, drop the blob before, visit
//! ```

use std::collections::BTreeMap;

use attar_graph::{BlockId, Graph, Inputs, Origin, Stream, ValueId, Values, Weights, kernel::instruction_set};
use attar_tensor::{
    Digest, Dtype, Source,
    safetensors::{Entry, Shards, Writer},
};
use candle_core::{Device, Tensor};

use crate::{Observer, Result, model::Working, session::Session, shape, walker::Walker};

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

/// A walk that has not begun.
pub(crate) struct Walk<'a> {
    session: &'a Session<'a>,
    /// For progress.
    title: String,
    /// Of all that decides what the windows are and what is looked for.
    key: Digest,
    sides: Vec<Side<'a>>,
    windows: &'a [Vec<u32>],
    /// Windows that go through a block together.
    together: usize,
    /// How many parts of a block progress counts.
    parts: u64,
}

impl<'a> Walk<'a> {
    /// The calibration windows in front of the first block of the model `title`; `key` is the digest of all that decides what
    /// they are and what is looked for. The first side is the model whose blocks are counted.
    ///
    /// # Panics
    /// If `walker` is not registered, or the sides differ in their blocks.
    pub(crate) fn new(
        walker: &'static Walker,
        title: &str,
        key: Digest,
        sides: Vec<Side<'a>>,
        session: &'a Session<'a>,
    ) -> Walk<'a> {
        let registered = session.walkers.iter().any(|known| std::ptr::eq(*known, walker));
        assert!(registered, "`{}` is a line in WALKERS: the tests of resuming run over all walkers", walker.name);
        let blocks = |side: &Side<'_>| side.graph.block_count();
        assert!(sides.iter().all(|side| blocks(side) == blocks(&sides[0])), "no step moves work to another block");
        let title = format!("{title}: {}", walker.doing);
        let walk = Walk { session, title, key, sides, windows: &[], together: 1, parts: 1 };
        walk.over(session.calibration.unwrap_or_default())
    }

    /// With other windows.
    pub(crate) fn over(self, windows: &'a [Vec<u32>]) -> Walk<'a> {
        Walk { windows, together: windows_together(windows), ..self }
    }

    /// With so many windows going through a block together.
    pub(crate) fn by(self, together: usize) -> Walk<'a> {
        Walk { together: together.max(1), ..self }
    }

    /// With progress that counts so many parts of a block.
    pub(crate) fn in_parts(self, parts: usize) -> Walk<'a> {
        Walk { parts: parts.max(1) as u64, ..self }
    }

    /// Visits the first `count` blocks, those that are done by taking what was found.
    pub(crate) fn visit(self, count: usize, visitor: &mut dyn Visitor) -> Result<()> {
        let (session, parts) = (self.session, self.parts);
        let mut passage = self.passage(count, &|before, block| visitor.key(before, block))?;
        for (block, key) in passage.blocks.clone() {
            session.check_interrupt()?;
            let units = visitor.units(block, &key).iter().map(|unit| session.done(unit)).collect::<Result<Option<Vec<_>>>>()?;
            match units {
                Some(blobs) => visitor.take(block, &key, &blobs)?,
                None => {
                    let windows = passage.go_to(block.index())?;
                    visitor.visit(block, &key, windows)?;
                    windows.tell(parts, "");
                }
            }
        }
        passage.entering.discard(session)
    }

    /// Takes the windows through the first `count` blocks. What enters the block after them stays in the store until the
    /// caller discards it.
    pub(crate) fn arrive(self, count: usize, key: &dyn Fn(&Digest, BlockId) -> Result<Digest>) -> Result<(Windows<'a>, Latest)> {
        let mut passage = self.passage(count, key)?;
        passage.go_to(count)?;
        Ok((passage.windows.expect("just there"), passage.entering))
    }

    fn passage(self, count: usize, key: &dyn Fn(&Digest, BlockId) -> Result<Digest>) -> Result<Passage<'a>> {
        let mut before = self.key;
        let mut blocks = Vec::new();
        for block in self.sides[0].graph.blocks().take(count) {
            before = key(&before, block)?;
            blocks.push((block, before));
        }
        self.session.observer.stage(&self.title, count as u64 * self.parts);
        Ok(Passage { walk: self, blocks, windows: None, entering: Latest::default() })
    }
}

/// A walk on its way.
struct Passage<'a> {
    walk: Walk<'a>,
    /// With the digest of all that is decided up to the end of each.
    blocks: Vec<(BlockId, Digest)>,
    /// Made when a block must be visited.
    windows: Option<Windows<'a>>,
    /// The blob of what enters the block where the windows are.
    entering: Latest,
}

impl<'a> Passage<'a> {
    fn name(&self, block: BlockId) -> &'a str {
        self.walk.sides[0].graph.block_name(block)
    }

    /// The windows in front of block `at`: at hand, or from the store, or through the blocks between.
    fn go_to(&mut self, at: usize) -> Result<&mut Windows<'a>> {
        let here = self.windows.as_ref().map_or(0, |windows| windows.at.index());
        if let Some((there, blob)) = self.nearest(here, at)? {
            let mut windows = self.walk.start()?;
            windows.restore(there, read_lanes(&self.walk.session.store.open(&blob)?, windows.lanes * windows.sides.len())?);
            self.entering.replace(blob, self.walk.session)?;
            self.windows = Some(windows);
        } else if self.windows.is_none() {
            self.windows = Some(self.walk.start()?);
        }
        for before in 0..at {
            let (block, key) = self.blocks[before];
            if self.windows.as_ref().is_some_and(|windows| windows.at == block) {
                self.leave(block, &key)?;
            }
        }
        let windows = self.windows.as_mut().expect("made above");
        windows.tell(0, "");
        Ok(windows)
    }

    /// The last block after `here` and up to `at` of which the store has what enters it.
    fn nearest(&self, here: usize, at: usize) -> Result<Option<(BlockId, Digest)>> {
        for (block, key) in self.blocks[here..at].iter().rev() {
            if let Some(blob) = self.walk.session.done(&leaving(key))? {
                return Ok(Some((BlockId::after(*block), blob)));
            }
        }
        Ok(None)
    }

    /// Goes on to the next block, and stores what enters it.
    fn leave(&mut self, block: BlockId, key: &Digest) -> Result<()> {
        self.walk.session.check_interrupt()?;
        let name = self.name(block);
        let windows = self.windows.as_mut().expect("somebody leaves");
        windows.tell(0, name);
        for side in 0..windows.sides.len() {
            if windows.streams[side].block() == block {
                windows.leave(side)?;
            }
        }
        windows.at = BlockId::after(block);
        let entering: Vec<_> = windows.streams.iter().flat_map(Stream::entering).collect();
        let blob = self.walk.session.unit(leaving(key), |to| write_lanes(&entering, to))?;
        self.entering.replace(blob, self.walk.session)
    }
}

impl<'a> Walk<'a> {
    /// The windows in front of the first block.
    fn start(&self) -> Result<Windows<'a>> {
        let lanes = || lanes(self.windows, self.together);
        let streams = self.sides.iter().map(|side| Ok(Stream::new(side.graph, lanes()?))).collect::<Result<Vec<_>>>()?;
        let (sides, lanes) = (self.sides.clone(), lanes()?.len());
        Ok(Windows { sides, streams, lanes, at: BlockId::FIRST, parts: self.parts, observer: self.session.observer })
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
    parts: u64,
    observer: &'a dyn Observer,
}

impl Windows<'_> {
    /// Says how many parts of the block are done, and what is being worked on.
    pub(crate) fn tell(&self, done: u64, what: &str) {
        self.observer.advance(self.at.index() as u64 * self.parts + done, what);
    }

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
        self.at = block;
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

/// While planning: the step walks the calibration windows through `sides` models.
pub(crate) fn plan(model: &mut Working, sides: u64) {
    model.walking = model.walking.max(memory(&model.graph, model.tokens, sides));
}

/// Bytes that windows take on their way: on every side at most four values as wide as the residual stream for every token.
pub(crate) fn memory(graph: &Graph, tokens: u64, sides: u64) -> u64 {
    tokens.saturating_mul(4 * 4 * sides * shape::residual_width(graph))
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

/// Numbers by lane and name, as a file like those of [`write_lanes`]. They are not copied.
pub(crate) fn write_parts(parts: &[(usize, &str, &[f32])], to: &mut dyn std::io::Write) -> Result<()> {
    let entry = |(lane, name, values): &(usize, &str, &[f32])| Entry {
        name: format!("{lane} {name}"),
        dtype: Dtype::F32,
        dims: vec![values.len()],
    };
    let entries: Vec<Entry> = parts.iter().map(entry).collect();
    let failed = attar_tensor::Error::from;
    let mut writer = Writer::new(to, &entries, &BTreeMap::new()).map_err(failed)?;
    let mut bytes = Vec::new();
    for piece in parts.iter().flat_map(|(.., values)| values.chunks(PIECE)) {
        bytes.clear();
        Dtype::F32.encode(piece, &mut bytes);
        writer.append(&bytes).map_err(failed)?;
    }
    writer.finish();
    Ok(())
}

/// Numbers that are written together.
const PIECE: usize = 1 << 16;

/// What [`write_lanes`] or [`write_parts`] wrote.
pub(crate) fn read_lanes(path: &std::path::Path, lanes: usize) -> Result<Vec<BTreeMap<String, Tensor>>> {
    let from = Shards::open(&[path.to_owned()], &BTreeMap::new())?;
    let mut all = vec![BTreeMap::new(); lanes];
    for (name, info) in from.tensors() {
        let Some((lane, value)) = name.split_once(' ') else { continue };
        let tensor = Tensor::from_vec(from.whole(name)?, info.dims.as_slice(), &Device::Cpu).map_err(attar_graph::Error::from)?;
        if let Some(lane) = lane.parse::<usize>().ok().and_then(|lane| all.get_mut(lane)) {
            lane.insert(value.into(), tensor);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Mutex};

    use attar_graph::SourceWeights;
    use attar_model::Model;

    use super::*;
    use crate::{
        Error, Silent,
        inputs::Inputs,
        session::{Texts, Workspace},
    };

    static WALKER: Walker = Walker { name: "test", doing: "summing", example: "" };
    static WALKERS: &[&Walker] = &[&WALKER];

    fn open(folder: &Path) -> Workspace {
        let texts = Texts { calibration: Some(windows()), ..Texts::default() };
        Workspace::open(folder.into(), WALKERS, Inputs::default()).unwrap().reading(texts)
    }

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
            let sides = vec![Side { graph, weights: &weights }];
            let walk = Walk::new(&WALKER, "model", first, sides, self.session).by(4);
            let done = walk.visit(graph.block_count() - 1, &mut self);
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
        let [whole, killed] = folders.each_ref().map(|folder| open(folder.path()));
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

    /// Which of the blocks of a walk the store has the leaving activations of.
    fn stored(session: &Session<'_>, keys: &[Digest]) -> Vec<bool> {
        keys.iter().map(|key| session.done(&leaving(key)).unwrap().is_some()).collect()
    }

    #[test]
    fn only_the_latest_activations_are_kept_and_none_after_the_walk() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let workspace = open(folder.path());
        let session = workspace.session(&model, &Silent);
        let last = model.graph.block_count() - 2;
        let (killed, _) = Summing { killed_in: Some(last), ..Summing::new(&model, &session) }.walk();
        assert!(killed.is_err());
        let (done, walked) = Summing::new(&model, &session).walk();
        assert_eq!(walked.visited, [last], "the blob that enters the last block was there");
        done.unwrap();
        assert_eq!(stored(&session, &walked.keys), vec![false; last + 1]);

        let (killed, _) = Summing { killed_in: Some(last), changed: Some(last), ..Summing::new(&model, &session) }.walk();
        assert!(killed.is_err());
        let kept: Vec<bool> = (0..=last).map(|block| block + 1 == last).collect();
        assert_eq!(stored(&session, &walked.keys), kept, "what enters the block of the kill, and nothing else");
    }

    #[test]
    fn windows_that_arrive_pass_no_block_twice() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let workspace = open(folder.path());
        let (graph, weights) = (&model.graph, SourceWeights(model.source.clone()));
        let arrive = |observer: &dyn Observer| {
            let session = workspace.session(&model, observer);
            let key = |before: &Digest, block| block_key(before, graph, block, &*model.source, []);
            let sides = vec![Side { graph, weights: &weights }];
            let walk = Walk::new(&WALKER, "model", first_key(graph, &windows()), sides, &session).by(4);
            let (windows, entering) = walk.arrive(3, &key)?;
            Ok((format!("{:?}", windows.values(0, &[Values::new(), Values::new()])), *entering.blob().unwrap()))
        };
        let at = |block| Stopping { at: block, passed: Mutex::default() };
        let stopped = at(1);
        let interrupted: Result<_> = arrive(&stopped);
        assert!(interrupted.is_err());
        assert_eq!(*stopped.passed.lock().unwrap(), [0, 1]);
        let resumed = at(u64::MAX);
        let found = arrive(&resumed).unwrap();
        assert_eq!(*resumed.passed.lock().unwrap(), [2, 3], "blocks 0 and 1 are in the store");

        let other = tempfile::tempdir().unwrap();
        let whole = open(other.path());
        let session = whole.session(&model, &Silent);
        let sides = vec![Side { graph, weights: &weights }];
        let walk = Walk::new(&WALKER, "model", first_key(graph, &windows()), sides, &session).by(4);
        let key = |before: &Digest, block| block_key(before, graph, block, &*model.source, []);
        let (_, entering) = walk.arrive(3, &key).unwrap();
        assert_eq!(*entering.blob().unwrap(), found.1, "the same numbers");
    }

    /// Interrupts at a block, and notes which blocks it hears of.
    struct Stopping {
        at: u64,
        passed: Mutex<Vec<u64>>,
    }

    impl Observer for Stopping {
        fn stage(&self, _: &str, _: u64) {}
        fn advance(&self, done: u64, _: &str) {
            let mut passed = self.passed.lock().unwrap();
            if passed.last() != Some(&done) {
                passed.push(done);
            }
        }
        fn note(&self, _: &str) {}
        fn interrupted(&self) -> bool {
            self.passed.lock().unwrap().last().is_some_and(|done| *done >= self.at)
        }
    }

    #[test]
    fn a_block_whose_activations_are_gone_is_reached_from_the_first() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let workspace = open(folder.path());
        let session = workspace.session(&model, &Silent);
        let (_, wanted) = Summing::new(&model, &session).walk();
        let (done, again) = Summing { changed: Some(1), ..Summing::new(&model, &session) }.walk();
        done.unwrap();
        assert_eq!(again.visited, [1], "only the block whose unit is missing is visited");
        assert_eq!(again.sums, wanted.sums);
    }
}
