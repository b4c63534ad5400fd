//! What runs a model: the reference, or a real engine on a written artifact.

use std::ops::Range;

use attar_graph::kernel;

use crate::{Error, Generation, Result};

/// Called as work goes on, with the amount done and the whole amount.
pub type Progress<'p> = &'p dyn Fn(u64, u64);

/// Something that can run one model.
pub trait Runner {
    /// The name that recipes and gates use.
    fn name(&self) -> &str;

    /// Prepares what is asked of windows. The work is done here or when it is asked for; `progress` is called meanwhile.
    fn start<'r>(&'r self, asked: Asked, windows: &'r [Window], progress: Progress<'r>) -> Result<Box<dyn Rows + 'r>>;

    /// The continuation of `prompt`. Each token, the one that stops included, is given to `each` as soon as it is known, and
    /// returned.
    fn generate(&self, prompt: &[u32], how: &Generation, each: &mut dyn FnMut(u32)) -> Result<Vec<u32>>;
}

/// What is asked of a model for windows.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// Rows of an output: [`Rows::rows`].
    Output(Output),
    /// What the model writes after each: [`Rows::answer`].
    Answers(Generation),
}

impl From<Output> for Asked {
    fn from(output: Output) -> Asked {
        Asked::Output(output)
    }
}

/// Tokens that are run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// All tokens of the model's input, special ones included.
    pub tokens: Vec<u32>,
    /// The positions whose output counts. For logits: those whose next token is scored. An embedding has one row.
    pub scored: Range<usize>,
}

impl Window {
    /// The tokens that are scored, in the order of their positions.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[self.scored.start + 1..self.scored.end + 1]
    }
}

/// A model's output that a task asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For each token, a score of every token of the vocabulary to be the next one: decoders.
    Logits,
    /// One vector for the whole window: encoders.
    Embedding,
}

impl Output {
    /// The name in graphs and artifacts; that of an embedding is sentence-transformers' own.
    pub fn name(self) -> &'static str {
        match self {
            Output::Logits => "logits",
            Output::Embedding => "sentence_embedding",
        }
    }

    /// Its name, if `outputs` has it.
    pub fn of<N: AsRef<str>>(self, outputs: &[N]) -> Result<&'static str> {
        match outputs.iter().any(|output| output.as_ref() == self.name()) {
            true => Ok(self.name()),
            false => {
                let found = outputs.iter().map(|output| output.as_ref().to_owned()).collect();
                Err(Error::NoOutput { wanted: self.name(), found })
            }
        }
    }
}

/// What a model gives for windows: an output, a few rows at a time, or an answer.
pub trait Rows {
    /// Fills `out` with rows `[positions, width]` of a window and returns the width. Cheapest when windows are asked for
    /// in order.
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize>;

    /// What the model writes after a window, up to and with the token that stops, where [`Asked::Answers`] is asked.
    fn answer(&mut self, window: usize) -> Result<Vec<u32>> {
        Err(Error::NoAnswers { window })
    }
}

/// Whether every value is a number.
pub(crate) fn all_finite(row: &[f32]) -> bool {
    row.chunks(1024).all(|chunk| chunk.iter().fold(true, |all, x| all & x.is_finite()))
}

/// Rows of a side that a task compares, and their width. What is no number is an error, which names the side: a comparison
/// with it would say nothing, and two of them are not the same.
pub(crate) fn numbers(
    side: &mut dyn Rows,
    whose: &'static str,
    window: usize,
    positions: Range<usize>,
    out: &mut Vec<f32>,
) -> Result<usize> {
    let width = side.rows(window, positions.clone(), out)?;
    if all_finite(out) {
        return Ok(width);
    }
    let at = out.iter().position(|x| !x.is_finite()).expect("one is not finite");
    Err(Error::NotFinite { whose, value: out[at], window, position: positions.start + at / width })
}

/// The index of the largest logit, the first of equals.
pub(crate) fn likeliest(row: &[f32]) -> u32 {
    let largest = kernel::max(row);
    row.iter().position(|x| *x == largest).unwrap_or(0) as u32
}
