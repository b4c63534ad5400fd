//! Logits of windows, many at a time: the weights of a block are read once for all windows of a pass.

use std::{collections::BTreeMap, ops::Range};

use attar_graph::{Graph, Inputs, Mode, Node, Op, Run, State, Weights, kernel};
use candle_core::Tensor;

use super::{
    LANE,
    kept::Kept,
    longest_short,
    tree::{Tree, batches},
};
use crate::{
    Result, Window,
    runner::{Progress, Rows},
};

/// Bytes of activations, and of keys and values of stems, that wait between blocks. More windows than fit are run in several passes, each of
/// which reads all weights once.
const WAITING: usize = 256 << 20;

/// Rows of logits that are computed together for windows that score a few each.
const TOGETHER: usize = 256;

/// Windows that run together, as a batch of one length: those without a stem are equally long, others are padded behind.
struct Lane {
    stem: Option<usize>,
    windows: Vec<usize>,
}

/// Lanes that go through the blocks together.
struct Pass {
    windows: Range<usize>,
    /// The stems that its lanes stand on, in order.
    stems: Vec<usize>,
    lanes: Vec<Lane>,
    /// That run, without padding.
    tokens: usize,
}

/// Passes that run when rows of one of their windows are asked for.
pub(super) struct Passes<'r> {
    graph: &'r Graph,
    weights: &'r dyn Weights,
    head: Kept<'r>,
    windows: &'r [Window],
    tree: Tree,
    passes: Vec<Pass>,
    progress: Progress<'r>,
    /// What stems left that the last pass stood on.
    states: BTreeMap<usize, State>,
    current: Option<(usize, Run<'r>)>,
    /// Logits of a lane of the current pass, from a position of its windows on, relative to the stem.
    logits: Option<(usize, usize, Tensor)>,
}

impl<'r> Passes<'r> {
    pub(super) fn new(graph: &'r Graph, weights: &'r dyn Weights, windows: &'r [Window], progress: Progress<'r>) -> Passes<'r> {
        let tree = Tree::of(windows, longest_short(graph).unwrap_or(usize::MAX));
        let passes = passes(windows, &tree, Costs::of(graph));
        let head = Kept::new(weights, usize::MAX);
        Passes { graph, weights, head, windows, tree, passes, progress, states: BTreeMap::new(), current: None, logits: None }
    }

    fn run(&mut self, pass: usize) -> Result<()> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != pass) {
            (self.current, self.logits) = (None, None);
            self.current = Some((pass, self.advanced(pass)?));
        }
        Ok(())
    }

    fn advanced(&mut self, pass: usize) -> Result<Run<'r>> {
        let tokens = |passes: &[Pass]| passes.iter().map(|pass| pass.tokens as u64).sum::<u64>();
        let (before, mine, all) = (tokens(&self.passes[..pass]), self.passes[pass].tokens as u64, tokens(&self.passes));
        self.states.retain(|stem, _| self.passes[pass].stems.contains(stem));
        let mut left: Vec<usize> =
            self.passes[pass].stems.iter().copied().filter(|stem| !self.states.contains_key(stem)).collect();
        while !left.is_empty() {
            // Those whose own stem has run.
            let stem = |stem: &usize| self.tree.stems[*stem].stem;
            let (now, later): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|s| stem(s).is_none_or(|on| self.states.contains_key(&on)));
            for on in now.chunk_by(|a, b| stem(a) == stem(b)) {
                let states = self.run_stems(stem(&on[0]), on)?;
                self.states.extend(states);
            }
            left = later;
        }
        let lanes = self.passes[pass].lanes.iter().map(|lane| {
            let rest = |window: &usize| &self.windows[*window].tokens[self.tree.leaves[*window].from..];
            self.inputs(lane.stem, &lane.windows.iter().map(rest).collect::<Vec<_>>())
        });
        let mut run = Run::new(self.graph, self.weights, Mode::Inference, lanes.collect::<Result<_>>()?);
        // What is left of windows behind stems is short.
        if !self.passes[pass].stems.is_empty() {
            run = run.joining();
        }
        let progress = self.progress;
        run.advance_to_last_block(|done, blocks| {
            let ahead = blocks as u64 - 1;
            progress(before * ahead + mine * done as u64, all * ahead);
        })?;
        Ok(run)
    }

    /// The states that stems leave which stand on the same one.
    fn run_stems(&self, on: Option<usize>, stems: &[usize]) -> Result<Vec<(usize, State)>> {
        let tokens = |stem: usize| &self.windows[self.tree.stems[stem].window].tokens[self.tree.stems[stem].tokens.clone()];
        let lengths: Vec<usize> = stems.iter().map(|stem| tokens(*stem).len()).collect();
        let batches = batches(&lengths, LANE);
        let lanes = batches.iter().map(|batch| {
            let mut inputs = self.inputs(on, &batch.iter().map(|at| tokens(stems[*at])).collect::<Vec<_>>())?;
            inputs.state = Some(inputs.state.take().unwrap_or_default().growing());
            Ok(inputs)
        });
        let mut run = Run::new(self.graph, self.weights, Mode::Inference, lanes.collect::<Result<_>>()?).joining();
        run.advance_to_last_block(|_, _| {})?;
        let mut states = Vec::with_capacity(stems.len());
        for (lane, batch) in batches.iter().enumerate() {
            let state = run.take_state(lane).expect("a lane that was given a state leaves one");
            for (at, member) in batch.iter().enumerate() {
                let stem = stems[*member];
                states.push((stem, state.begin(at, self.tree.stems[stem].tokens.end, 1)?));
            }
        }
        Ok(states)
    }

    /// Texts behind a stem as one batch, padded with any token: what is behind a position does not count in a decoder.
    fn inputs(&self, stem: Option<usize>, texts: &[&[u32]]) -> Result<Inputs> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let padded: Vec<Vec<u32>> = texts.iter().map(|text| [text, &vec![0; longest - text.len()][..]].concat()).collect();
        let past = stem.map_or(0, |stem| self.tree.stems[stem].tokens.end);
        let mut inputs = Inputs::tokens(&padded.iter().map(Vec::as_slice).collect::<Vec<_>>(), past)?;
        inputs.state = stem.map(|stem| self.states[&stem].begin(0, past, texts.len())).transpose()?;
        Ok(inputs)
    }

    /// Pass, lane, and place in the lane.
    fn place(&self, window: usize) -> (usize, usize, usize) {
        let pass = self.passes.partition_point(|pass| pass.windows.end <= window);
        let mut lanes = self.passes[pass].lanes.iter().enumerate();
        let place = lanes.find_map(|(at, lane)| Some((at, lane.windows.iter().position(|other| *other == window)?)));
        let (lane, at) = place.expect("a pass runs all of its windows");
        (pass, lane, at)
    }

    /// What counts in any window of a lane, if that is little, relative to the stem.
    fn little(&self, lane: &Lane) -> Option<Range<usize>> {
        let scored = |window: &usize| {
            let (Range { start, end }, from) = (self.windows[*window].scored.clone(), self.tree.leaves[*window].from);
            start - from..end - from
        };
        let all = lane.windows.iter().map(scored).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))?;
        (lane.windows.len() > 1 && all.len() * lane.windows.len() <= TOGETHER).then_some(all)
    }
}

impl Rows for Passes<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        let (pass, lane, at) = self.place(window);
        self.run(pass)?;
        let (_, run) = self.current.as_ref().expect("the pass has run");
        let from = self.tree.leaves[window].from;
        let wanted = positions.start - from..positions.end - from;
        let little = self.little(&self.passes[pass].lanes[lane]).filter(|all| all.start <= wanted.start && wanted.end <= all.end);
        let logits = match little {
            None => run.last_block(&self.head, lane, at..at + 1, wanted)?,
            Some(all) => {
                if self.logits.as_ref().is_none_or(|(of, _, _)| *of != lane) {
                    let members = self.passes[pass].lanes[lane].windows.len();
                    self.logits = Some((lane, all.start, run.last_block(&self.head, lane, 0..members, all)?));
                }
                let (_, start, logits) = self.logits.as_ref().expect("just computed");
                logits.narrow(0, at, 1)?.narrow(1, wanted.start - start, wanted.len())?.contiguous()?
            }
        };
        out.clear();
        kernel::with_f32(&logits, |logits| out.extend_from_slice(logits))?;
        Ok(logits.dim(2)?)
    }
}

/// What a token takes while a pass runs.
#[derive(Clone, Copy)]
struct Costs {
    /// Bytes that wait for the last block.
    waiting: usize,
    /// Bytes of all values of a block, which are in memory where lanes are joined.
    joined: usize,
    /// Bytes of keys and values.
    cached: usize,
}

impl Costs {
    fn of(graph: &Graph) -> Costs {
        let last = graph.blocks().last();
        let live = last.map(|block| graph.live_into(block)).unwrap_or_default();
        let waiting = live.into_iter().filter_map(|id| graph.fact(id).width()).map(|width| width * size_of::<f32>()).sum();
        let width = |node: &Node| node.outputs.iter().filter_map(|id| graph.fact(*id).width()).sum::<usize>() * size_of::<f32>();
        let block = |block| graph.nodes_of(block).map(width).sum();
        let joined = graph.blocks().filter(|block| Some(*block) != last).map(block).max().unwrap_or(0);
        Costs { waiting, joined, cached: cached(graph) }
    }
}

/// Bytes of keys and values for a token.
fn cached(graph: &Graph) -> usize {
    let one = |node: &Node| match (&node.op, node.op.fused()) {
        (Op::Cache { .. }, _) => {
            let dims = &graph.fact(node.outputs[0]).dims;
            let size = |at: usize| dims.get(at).and_then(|dim| dim.constant()).unwrap_or(0);
            size(1) * size(3) * size_of::<f32>()
        }
        (_, Some(fused)) => cached(fused.body()),
        _ => 0,
    };
    graph.nodes().iter().map(one).sum()
}

fn passes(windows: &[Window], tree: &Tree, costs: Costs) -> Vec<Pass> {
    let mut passes: Vec<Pass> = Vec::new();
    let mut waiting = usize::MAX;
    for part in groups(windows, tree) {
        let leaf = |window: usize| windows[window].tokens.len() - tree.leaves[window].from;
        let tokens: usize = part.clone().map(leaf).sum();
        let stem = tree.leaves[part.start].stem;
        let known = |stem: &usize| passes.last().is_some_and(|pass: &Pass| pass.stems.contains(stem));
        let new: Vec<usize> = tree.under(stem).filter(|stem| !known(stem)).collect();
        let length = |stems: &[usize]| stems.iter().map(|stem| tree.stems[*stem].tokens.len()).sum::<usize>();
        let per_token = if stem.is_some() { costs.joined } else { costs.waiting };
        let bytes = tokens * per_token + length(&new) * (per_token + costs.cached);
        let fits = waiting.saturating_add(bytes) <= WAITING && !passes.is_empty();
        if !fits {
            passes.push(Pass { windows: part.start..part.start, stems: Vec::new(), lanes: Vec::new(), tokens: 0 });
            waiting = 0;
        }
        let pass = passes.last_mut().expect("there is one");
        let new = if fits { new } else { tree.under(stem).collect() };
        waiting += tokens * per_token + length(&new) * (per_token + costs.cached);
        pass.tokens += tokens + length(&new);
        pass.stems.extend(new);
        pass.stems.sort_unstable();
        pass.windows.end = part.end;
        let lengths: Vec<usize> = part.clone().map(leaf).collect();
        let members = batches(&lengths, LANE).into_iter().map(|batch| batch.into_iter().map(|at| part.start + at).collect());
        pass.lanes.extend(members.map(|windows| Lane { stem, windows }));
    }
    passes
}

/// Neighbours that may share a lane: those on one stem, and those of one length without a stem.
fn groups(windows: &[Window], tree: &Tree) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (at, window) in windows.iter().enumerate() {
        let (stem, length) = (tree.leaves[at].stem, window.tokens.len());
        let alike = |first: usize| tree.leaves[first].stem == stem && (stem.is_some() || windows[first].tokens.len() == length);
        let room = |group: &Range<usize>| stem.is_some() || (group.len() + 1) * length <= LANE;
        match groups.last_mut() {
            Some(group) if alike(group.start) && room(group) => group.end = at + 1,
            _ => groups.push(at..at + 1),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(lengths: &[usize]) -> Vec<Window> {
        lengths.iter().map(|n| Window { tokens: vec![0; *n], scored: 0..n - 1 }).collect()
    }

    #[test]
    fn a_lane_without_a_stem_has_windows_of_one_length_and_not_too_many_tokens() {
        let windows = windows(&[512, 512, 512, 512, 512, 100, 4000, 4000]);
        assert_eq!(groups(&windows, &Tree::of(&windows, usize::MAX)), [0..4, 4..5, 5..6, 6..7, 7..8]);
    }

    #[test]
    fn passes_hold_every_window_once_in_order() {
        let windows = windows(&[512, 512, 512, 512, 512, 100, 4000, 4000]);
        let passes = passes(&windows, &Tree::of(&windows, usize::MAX), Costs { waiting: WAITING / 5000, joined: 0, cached: 0 });
        let covered: Vec<Range<usize>> = passes.iter().map(|pass| pass.windows.clone()).collect();
        assert_eq!(covered, [0..6, 6..7, 7..8]);
        assert_eq!(passes.iter().map(|pass| pass.tokens).collect::<Vec<_>>(), [2660, 4000, 4000]);
    }
}
