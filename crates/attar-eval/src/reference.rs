//! The runner that evaluates the graph itself.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
};

use attar_graph::{Expr, Graph, Inputs, Mode, Node, Op, Run, SourceWeights, State, Weights, integer::IntegerMatrix, kernel};
use attar_model::Model;
use candle_core::Tensor;

use crate::{
    Error, Result,
    runner::{Output, Progress, Rows, Runner, Window, chosen},
};

/// The name of the runner that evaluates the graph.
pub const REFERENCE: &str = "reference";

/// Tokens that run through a block together.
const LANE: usize = 2048;

/// Bytes of activations that wait between blocks. More windows than fit are run in several passes, each of which reads
/// all weights once.
const WAITING: usize = 256 << 20;

/// Bytes of weights that are kept between runs, of tokens or of texts; weights beyond are read again in each run.
const KEPT: usize = 4 << 30;

/// Tokens of a prompt that run together.
const PROMPT: usize = 256;

/// Runs a model by evaluating its graph.
pub struct Reference<'m> {
    model: &'m Model,
    weights: SourceWeights,
}

impl<'m> Reference<'m> {
    /// Of a model.
    pub fn new(model: &'m Model) -> Reference<'m> {
        Reference { model, weights: SourceWeights(model.source.clone()) }
    }
}

/// Names of a graph's outputs.
pub fn outputs(graph: &Graph) -> Vec<String> {
    graph.outputs().iter().map(|id| graph.get(*id).name.clone()).collect()
}

impl Runner for Reference<'_> {
    fn name(&self) -> &str {
        REFERENCE
    }

    fn start<'r>(&'r self, output: Output, windows: &'r [Window], progress: Progress<'r>) -> Result<Box<dyn Rows + 'r>> {
        let graph = &self.model.graph;
        output.of(&outputs(graph))?;
        Ok(match output {
            Output::Logits => Box::new(Passes {
                graph,
                weights: &self.weights,
                head: Kept::new(&self.weights, usize::MAX),
                windows,
                passes: passes(windows, WAITING / bytes_waiting(graph).max(1)),
                progress,
                current: None,
            }),
            Output::Embedding => {
                let weights = Kept::new(&self.weights, KEPT);
                Box::new(Whole { graph, weights, output, windows, lanes: lanes(windows), progress, current: None })
            }
        })
    }

    fn generate(&self, prompt: &[u32], limit: usize, stop: &[u32], each: &mut dyn FnMut(u32)) -> Result<Vec<u32>> {
        Output::Logits.of(&outputs(&self.model.graph))?;
        let weights = Kept::new(&self.weights, KEPT);
        let mut decoder = Decoder::new(&self.model.graph, &weights);
        let mut next = None;
        for part in prompt.chunks(PROMPT) {
            next = Some(decoder.feed(part)?);
        }
        let mut next = next.ok_or(Error::EmptyPrompt)?;
        let mut generated = Vec::new();
        while generated.len() < limit {
            generated.push(next);
            each(next);
            if stop.contains(&next) || generated.len() == limit {
                break;
            }
            next = decoder.feed(&[next])?;
        }
        Ok(generated)
    }
}

struct Decoder<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    /// The longest text that the cached keys of a short one fit.
    longest_short: Option<usize>,
    state: State,
    tokens: Vec<u32>,
}

impl<'a> Decoder<'a> {
    fn new(graph: &'a Graph, weights: &'a dyn Weights) -> Decoder<'a> {
        Decoder { graph, weights, longest_short: longest_short(graph), state: State::default(), tokens: Vec::new() }
    }

    /// Runs tokens after those before, and returns the likeliest next one.
    fn feed(&mut self, tokens: &[u32]) -> Result<u32> {
        let mut past = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        // The rotary positions of all tokens change: what is cached is of no use.
        if self.longest_short.is_some_and(|longest| past <= longest && self.tokens.len() > longest) {
            (past, self.state) = (0, State::default());
        }
        let mut inputs = Inputs::tokens(&[&self.tokens[past..]], past)?;
        inputs.state = Some(std::mem::take(&mut self.state));
        let (outputs, state) = Run::new(self.graph, self.weights, Mode::Inference, vec![inputs]).finish(0)?;
        self.state = state.expect("a lane that was given a state returns it");
        let last = outputs[0].narrow(1, self.tokens.len() - past - 1, 1)?;
        kernel::with_f32(&last, |row| chosen(row, self.tokens.len()))?
    }
}

/// The longest text with the rotary positions of a short one, if those of longer texts are others.
fn longest_short(graph: &Graph) -> Option<usize> {
    let nodes = |node: &'_ Node| node.op.fused().map_or(std::slice::from_ref(node), |fused| fused.body().nodes()).to_vec();
    let longest = |node: &Node| if let Op::Rope(rope) = &node.op { rope.longest_short() } else { None };
    graph.nodes().iter().flat_map(nodes).filter_map(|node| longest(&node)).min()
}

/// Windows that run together: lanes of windows of one length.
struct Pass {
    lanes: Vec<Range<usize>>,
}

impl Pass {
    fn windows(&self) -> Range<usize> {
        self.lanes[0].start..self.lanes[self.lanes.len() - 1].end
    }
}

fn passes(windows: &[Window], most_tokens: usize) -> Vec<Pass> {
    let mut passes: Vec<Pass> = Vec::new();
    let mut waiting = usize::MAX;
    for lane in lanes(windows) {
        let tokens: usize = windows[lane.clone()].iter().map(|window| window.tokens.len()).sum();
        match passes.last_mut() {
            Some(pass) if waiting.saturating_add(tokens) <= most_tokens => pass.lanes.push(lane),
            _ => {
                passes.push(Pass { lanes: vec![lane] });
                waiting = 0;
            }
        }
        waiting += tokens;
    }
    passes
}

fn lanes(windows: &[Window]) -> Vec<Range<usize>> {
    let mut lanes: Vec<Range<usize>> = Vec::new();
    for (at, window) in windows.iter().enumerate() {
        let length = window.tokens.len();
        match lanes.last_mut() {
            Some(lane) if windows[lane.start].tokens.len() == length && (lane.len() + 1) * length <= LANE => lane.end = at + 1,
            _ => lanes.push(at..at + 1),
        }
    }
    lanes
}

/// Bytes per token of what waits for the last block.
fn bytes_waiting(graph: &Graph) -> usize {
    let last = graph.blocks().last();
    let live = last.map(|block| graph.live_into(block)).unwrap_or_default();
    live.into_iter().filter_map(|id| graph.fact(id).width()).map(|width| width * size_of::<f32>()).sum()
}

/// Passes that run when rows of one of their windows are asked for.
struct Passes<'r> {
    graph: &'r Graph,
    weights: &'r dyn Weights,
    head: Kept<'r>,
    windows: &'r [Window],
    passes: Vec<Pass>,
    progress: Progress<'r>,
    current: Option<(usize, Run<'r>)>,
}

impl<'r> Passes<'r> {
    fn run(&mut self, pass: usize) -> Result<&Run<'r>> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != pass) {
            self.current = None;
            let run = self.advanced(pass)?;
            self.current = Some((pass, run));
        }
        let (_, run) = self.current.as_ref().expect("it was just made");
        Ok(run)
    }

    fn advanced(&self, pass: usize) -> Result<Run<'r>> {
        let tokens = |windows: Range<usize>| self.windows[windows].iter().map(|w| w.tokens.len() as u64).sum::<u64>();
        let (before, mine, all) = {
            let mine = self.passes[pass].windows();
            (tokens(0..mine.start), tokens(mine), tokens(0..self.windows.len()))
        };
        let lanes = self.passes[pass].lanes.iter().map(|lane| {
            let windows: Vec<&[u32]> = self.windows[lane.clone()].iter().map(|window| window.tokens.as_slice()).collect();
            Inputs::tokens(&windows, 0)
        });
        let lanes = lanes.collect::<attar_graph::Result<Vec<Inputs>>>()?;
        let mut run = Run::new(self.graph, self.weights, Mode::Inference, lanes);
        let progress = self.progress;
        run.advance_to_last_block(|done, blocks| {
            let ahead = blocks as u64 - 1;
            progress(before * ahead + mine * done as u64, all * ahead);
        })?;
        Ok(run)
    }

    /// Pass, lane, and place in the lane.
    fn place(&self, window: usize) -> (usize, usize, usize) {
        let pass = self.passes.partition_point(|pass| pass.windows().end <= window);
        let lanes = &self.passes[pass].lanes;
        let lane = lanes.partition_point(|lane| lane.end <= window);
        (pass, lane, window - lanes[lane].start)
    }
}

impl Rows for Passes<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        let (pass, lane, at) = self.place(window);
        self.run(pass)?;
        let (_, run) = self.current.as_ref().expect("the pass has run");
        let logits = run.last_block(&self.head, lane, at..at + 1, positions)?;
        out.clear();
        kernel::with_f32(&logits, |logits| out.extend_from_slice(logits))?;
        Ok(logits.dim(2)?)
    }
}

/// Lanes that run as a whole, each when a row of one of its windows is asked for.
struct Whole<'r> {
    graph: &'r Graph,
    weights: Kept<'r>,
    output: Output,
    windows: &'r [Window],
    lanes: Vec<Range<usize>>,
    progress: Progress<'r>,
    current: Option<(usize, Tensor)>,
}

impl Whole<'_> {
    /// The output of a lane's windows: `[windows, width]`.
    fn run(&self, lane: usize) -> Result<Tensor> {
        let windows: Vec<&[u32]> = self.windows[self.lanes[lane].clone()].iter().map(|window| window.tokens.as_slice()).collect();
        let inputs = Inputs::tokens(&windows, 0)?;
        let (outputs, _) = Run::new(self.graph, &self.weights, Mode::Inference, vec![inputs]).finish(0)?;
        let at = outputs_at(self.graph, self.output);
        (self.progress)(self.lanes[lane].end as u64, self.windows.len() as u64);
        Ok(outputs[at].clone())
    }
}

/// Where the output is among a graph's.
fn outputs_at(graph: &Graph, output: Output) -> usize {
    outputs(graph).iter().position(|name| name == output.name()).expect("it was asked for at the start")
}

impl Rows for Whole<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        let lane = self.lanes.partition_point(|lane| lane.end <= window);
        if self.current.as_ref().is_none_or(|(current, _)| *current != lane) {
            self.current = Some((lane, self.run(lane)?));
        }
        let (_, embeddings) = self.current.as_ref().expect("it was just made");
        let row = embeddings.narrow(0, window - self.lanes[lane].start, 1)?;
        let width = row.dim(row.rank() - 1)?;
        out.clear();
        kernel::with_f32(&row, |row| out.extend_from_slice(&row[positions.start * width..positions.end * width]))?;
        Ok(width)
    }
}

/// Weights that are read once and kept, as far as there is room.
struct Kept<'w> {
    below: &'w dyn Weights,
    kept: Mutex<Room>,
}

struct Room {
    bytes: usize,
    tensors: HashMap<String, Tensor>,
    integers: HashMap<String, Option<Arc<IntegerMatrix>>>,
}

impl<'w> Kept<'w> {
    fn new(below: &'w dyn Weights, bytes: usize) -> Kept<'w> {
        Kept { below, kept: Mutex::new(Room { bytes, tensors: HashMap::new(), integers: HashMap::new() }) }
    }
}

impl Weights for Kept<'_> {
    fn whole(&self, name: &str, expr: &Expr) -> attar_graph::Result<Tensor> {
        let mut room = self.kept.lock().expect("no panic holds this lock");
        if let Some(tensor) = room.tensors.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = self.below.whole(name, expr)?;
        let bytes = tensor.elem_count() * size_of::<f32>();
        if bytes <= room.bytes {
            room.bytes -= bytes;
            room.tensors.insert(name.into(), tensor.clone());
        }
        Ok(tensor)
    }

    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> attar_graph::Result<Tensor> {
        self.below.rows(name, expr, rows)
    }

    fn integers(&self, name: &str, expr: &Expr) -> attar_graph::Result<Option<Arc<IntegerMatrix>>> {
        let mut room = self.kept.lock().expect("no panic holds this lock");
        if let Some(known) = room.integers.get(name) {
            return Ok(known.clone());
        }
        let matrix = self.below.integers(name, expr)?;
        let bytes = matrix.as_ref().map_or(0, |matrix| matrix.bytes());
        if bytes <= room.bytes {
            room.bytes -= bytes;
            room.integers.insert(name.into(), matrix.clone());
        }
        Ok(matrix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The likeliest token after every prefix, as one call for the whole text finds it.
    #[test]
    fn generation_goes_on_beyond_the_short_texts_of_a_long_rope() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-phi4-mini");
        let model = Model::open(&folder).expect("it is in the repository");
        let prompt: Vec<u32> = (0..12).map(|n| n * 7 % 96).collect();
        let generated = Reference::new(&model).generate(&prompt, 10, &[], &mut |_| ()).expect("it generates");
        let mut text = prompt;
        for token in generated {
            let weights = SourceWeights(model.source.clone());
            let inputs = Inputs::tokens(&[&text], 0).expect("one window");
            let run = Run::new(&model.graph, &weights, Mode::Inference, vec![inputs]);
            let logits = run.finish(0).expect("it runs").0.remove(0).narrow(1, text.len() - 1, 1).expect("the last row");
            assert_eq!(
                kernel::with_f32(&logits, crate::runner::likeliest).expect("numbers"),
                token,
                "after {} tokens",
                text.len()
            );
            text.push(token);
        }
        assert!(text.len() > 16, "the text has grown beyond the short ones");
    }

    fn windows(lengths: &[usize]) -> Vec<Window> {
        lengths.iter().map(|n| Window { tokens: vec![0; *n], scored: 0..n - 1 }).collect()
    }

    #[test]
    fn a_lane_has_windows_of_one_length_and_not_too_many_tokens() {
        let windows = windows(&[512, 512, 512, 512, 512, 100, 4000, 4000]);
        assert_eq!(lanes(&windows), [0..4, 4..5, 5..6, 6..7, 7..8]);
    }

    #[test]
    fn passes_hold_every_window_once_in_order() {
        let windows = windows(&[512, 512, 512, 512, 512, 100, 4000, 4000]);
        let passes = passes(&windows, 5000);
        let covered: Vec<Range<usize>> = passes.iter().map(Pass::windows).collect();
        assert_eq!(covered, [0..6, 6..7, 7..8]);
    }
}
