//! Calibration windows on their way through a model whose weights stay as they are.

use std::{collections::BTreeMap, sync::Arc};

use attar_graph::{BlockId, Graph, Inputs, Origin, SourceWeights, Stream};
use attar_tensor::{Digest, Source, safetensors::Shards};

use super::{
    calibrated::{LANE, first_key, read_activations, write_activations},
    kind::StepError,
};
use crate::session::Session;

/// The windows, at some block. What enters a block is a blob of the store; only the latest is kept.
pub(super) struct Passage<'a> {
    graph: &'a Graph,
    weights: SourceWeights,
    session: &'a Session<'a>,
    /// Of all that decides what enters the next block.
    key: Digest,
    /// Made when a block must be looked into.
    stream: Option<Stream<'a>>,
    entering: Option<Digest>,
}

impl<'a> Passage<'a> {
    /// In front of the first block.
    pub(super) fn new(graph: &'a Graph, source: Arc<dyn Source>, session: &'a Session<'a>) -> Passage<'a> {
        let first = first_key(graph, session.calibration.unwrap_or_default());
        let key = Digest::of_parts([b"passage 1".as_slice(), first.as_bytes()]);
        Passage { graph, weights: SourceWeights(source), session, key, stream: None, entering: None }
    }

    /// The digest of all that decides what `block`, the next one, computes.
    pub(super) fn block_key(&self, block: BlockId) -> Result<Digest, StepError> {
        let mut parts = vec![self.key, Digest::of(self.graph.block_name(block).as_bytes())];
        for id in self.graph.nodes_of(block).flat_map(|node| &node.inputs) {
            if let Origin::Weight(expr) = &self.graph.get(*id).origin {
                parts.push(expr.digest(&*self.weights.0)?);
            }
        }
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    /// Goes past `block` without looking into it, as far as the store lets it. What is missing is computed when a later
    /// block is looked into.
    pub(super) fn skip(&mut self, block: BlockId) -> Result<(), StepError> {
        let key = self.block_key(block)?;
        match self.session.done(&leaving(&key))? {
            Some(blob) => (self.stream, self.entering) = (None, Some(blob)),
            None if self.stream.is_some() || self.entering.is_some() => {
                self.at(block)?;
                return self.leave(block);
            }
            None => {}
        }
        self.key = key;
        Ok(())
    }

    /// The windows in front of `block`, and the weights.
    pub(super) fn at(&mut self, block: BlockId) -> Result<(&mut Stream<'a>, &SourceWeights), StepError> {
        if self.stream.is_none() {
            self.stream = Some(self.start(block)?);
        }
        Ok((self.stream.as_mut().expect("made above"), &self.weights))
    }

    fn start(&self, block: BlockId) -> Result<Stream<'a>, StepError> {
        let windows = self.session.calibration.unwrap_or_default();
        let length = windows.first().map_or(1, Vec::len).max(1);
        let mut lanes = Vec::new();
        for lane in windows.chunks((LANE / length).max(1)) {
            let lane: Vec<&[u32]> = lane.iter().map(Vec::as_slice).collect();
            lanes.push(Inputs::tokens(&lane, 0)?);
        }
        let count = lanes.len();
        let mut stream = Stream::new(self.graph, lanes);
        if let Some(blob) = self.entering {
            let entering = Shards::open(&[self.session.store.path(&blob)], &BTreeMap::new())?;
            stream.restore(block, read_activations(&entering, count)?);
        }
        while stream.block() != block {
            self.session.check_interrupt()?;
            stream.leave(&self.weights)?;
        }
        Ok(stream)
    }

    /// Goes on from `block`, which was looked into, to the next.
    pub(super) fn leave(&mut self, block: BlockId) -> Result<(), StepError> {
        let key = self.block_key(block)?;
        let stream = self.stream.as_mut().expect("`at` made it");
        stream.leave(&self.weights)?;
        let entering = stream.entering();
        let blob = self.session.unit(leaving(&key), |to| write_activations(&entering, to))?;
        if let Some(before) = self.entering.replace(blob).filter(|before| *before != blob) {
            crate::output::remove(&self.session.store.path(&before))?;
        }
        self.key = key;
        Ok(())
    }
}

/// The unit that stores what a block hands on.
fn leaving(block: &Digest) -> Digest {
    Digest::of_parts([block.as_bytes().as_slice(), b"leaving"])
}
