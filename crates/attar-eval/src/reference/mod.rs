//! The runner that evaluates the graph itself.

mod decoder;
mod kept;
mod passes;
mod tree;

use std::ops::Range;

use attar_graph::{Graph, Inputs, Mode, Node, Op, Run, SourceWeights, kernel};
use attar_model::Model;
use candle_core::Tensor;

use self::{
    decoder::{Answers, Decoder},
    kept::Kept,
    passes::Passes,
};
use crate::{
    Asked, Generation, Result,
    runner::{Output, Progress, Rows, Runner, Window},
};

/// The name of the runner that evaluates the graph.
pub const REFERENCE: &str = "reference";

/// Tokens that run through a block together.
const LANE: usize = 2048;

/// Bytes of weights that are kept between runs, of tokens or of texts; weights beyond are read again in each run.
const KEPT: usize = 4 << 30;

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

    fn start<'r>(&'r self, asked: Asked, windows: &'r [Window], progress: Progress<'r>) -> Result<Box<dyn Rows + 'r>> {
        let graph = &self.model.graph;
        let needed = if let Asked::Output(output) = &asked { *output } else { Output::Logits };
        needed.of(&outputs(graph))?;
        let weights = || Kept::new(&self.weights, KEPT);
        Ok(match asked {
            Asked::Output(Output::Logits) => Box::new(Passes::new(graph, &self.weights, windows, progress)),
            Asked::Output(output @ Output::Embedding) => {
                Box::new(Whole { graph, weights: weights(), output, windows, lanes: lanes(windows), progress, current: None })
            }
            Asked::Answers(how) => {
                Box::new(Answers { graph, weights: weights(), windows, how, progress, written: (0, Vec::new()) })
            }
        })
    }

    fn generate(&self, prompt: &[u32], how: &Generation, each: &mut dyn FnMut(u32)) -> Result<Vec<u32>> {
        Output::Logits.of(&outputs(&self.model.graph))?;
        let weights = Kept::new(&self.weights, KEPT);
        let decoder = Decoder::new(&self.model.graph, &weights);
        let mut answers = decoder.continuations(&[prompt], 0, how, &mut |_, token| each(token))?;
        Ok(answers.remove(0))
    }
}

/// The longest text with the rotary positions of a short one, if those of longer texts are others.
fn longest_short(graph: &Graph) -> Option<usize> {
    let longest = |node: Node| if let Op::Rope(rope) = &node.op { rope.longest_short() } else { None };
    nodes(graph).into_iter().filter_map(longest).min()
}

/// All nodes, those within fused ones included.
fn nodes(graph: &Graph) -> Vec<Node> {
    let inner = |node: &Node| node.op.fused().map_or(std::slice::from_ref(node), |fused| fused.body().nodes()).to_vec();
    graph.nodes().iter().flat_map(inner).collect()
}

/// Neighbours of one length that run together.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The likeliest token after every prefix, as one call for the whole text finds it.
    #[test]
    fn generation_goes_on_beyond_the_short_texts_of_a_long_rope() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-phi4-mini");
        let model = Model::open(&folder).expect("it is in the repository");
        let prompt: Vec<u32> = (0..12).map(|n| n * 7 % 96).collect();
        let generated =
            Reference::new(&model).generate(&prompt, &Generation::greedy(10, &[]), &mut |_| ()).expect("it generates");
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
}
