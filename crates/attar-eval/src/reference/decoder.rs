//! Continuations of texts, with the keys and values of what was read kept.

use std::ops::Range;

use attar_graph::{Graph, Inputs, Mode, Run, State, Weights, kernel};

use super::{kept::Kept, longest_short};
use crate::{
    Error, Generation, Result, Window,
    generation::Chooser,
    runner::{Progress, Rows},
};

/// Tokens of a prompt that run together.
const PROMPT: usize = 256;

/// Texts that are continued together: the weights of a block are read once for all of them.
const TOGETHER: usize = 16;

/// A text that is continued.
struct Text<'g> {
    /// All of it.
    tokens: Vec<u32>,
    /// Those that the state holds.
    read: usize,
    state: State,
    chooser: Chooser<'g>,
}

/// Continues texts, in step.
pub(super) struct Decoder<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    /// The longest text that the cached keys of a short one fit.
    longest_short: Option<usize>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(graph: &'a Graph, weights: &'a dyn Weights) -> Decoder<'a> {
        Decoder { graph, weights, longest_short: longest_short(graph) }
    }

    /// The continuations of prompts, of which the first has number `first`. `each` gets tokens with the places of their prompts.
    pub(super) fn continuations(
        &self,
        prompts: &[&[u32]],
        first: usize,
        how: &Generation,
        each: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Vec<u32>>> {
        if prompts.iter().any(|prompt| prompt.is_empty()) {
            return Err(Error::EmptyPrompt);
        }
        let text = |(at, prompt): (usize, &&[u32])| Text {
            tokens: prompt.to_vec(),
            read: 0,
            state: State::default(),
            chooser: Chooser::new(how, first + at),
        };
        let mut texts: Vec<Text<'_>> = prompts.iter().enumerate().map(text).collect();
        let written = |text: &Text<'_>, at: usize| text.tokens.len() - prompts[at].len();
        let mut open: Vec<usize> = if how.limit == 0 { Vec::new() } else { (0..texts.len()).collect() };
        while !open.is_empty() {
            let next = self.step(&mut texts, &open)?;
            for (at, token) in next {
                texts[at].tokens.push(token);
                each(at, token);
                if how.ends(token, written(&texts[at], at)) {
                    open.retain(|other| *other != at);
                }
            }
        }
        Ok(texts.into_iter().zip(prompts).map(|(text, prompt)| text.tokens[prompt.len()..].to_vec()).collect())
    }

    /// Reads on in each of the open texts; the next tokens of those that are read to their ends.
    fn step(&self, texts: &mut [Text<'_>], open: &[usize]) -> Result<Vec<(usize, u32)>> {
        let mut lanes = Vec::with_capacity(open.len());
        for at in open {
            let text = &mut texts[*at];
            // The rotary positions of all tokens change: what is cached is of no use.
            if self.longest_short.is_some_and(|longest| text.read <= longest && text.tokens.len() > longest) {
                (text.read, text.state) = (0, State::default());
            }
            let mut inputs = Inputs::tokens(&[&text.tokens[text.part()]], text.read)?;
            inputs.state = Some(std::mem::take(&mut text.state));
            lanes.push(inputs);
        }
        let mut run = Run::new(self.graph, self.weights, Mode::Inference, lanes).joining();
        run.advance_to_last_block(|_, _| {})?;
        let mut ended = Vec::new();
        for (lane, at) in open.iter().enumerate() {
            let text = &mut texts[*at];
            let part = text.part();
            text.state = run.take_state(lane).expect("a lane that was given a state leaves one");
            text.read = part.end;
            if part.end == text.tokens.len() {
                ended.push((*at, (lane, part.len() - 1)));
            }
        }
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<(usize, usize)> = ended.iter().map(|(_, place)| *place).collect();
        let logits = run.last_block_at(self.weights, &places)?;
        let width = logits.dim(2)?;
        kernel::with_f32(&logits, |logits| {
            let choose = |((at, _), row): (&(usize, _), &[f32])| {
                let text = &mut texts[*at];
                Ok((*at, text.chooser.choose(row, text.tokens.len())?))
            };
            ended.iter().zip(logits.chunks(width)).map(choose).collect()
        })?
    }
}

impl Text<'_> {
    /// The tokens to read next.
    fn part(&self) -> Range<usize> {
        self.read..self.tokens.len().min(self.read + PROMPT)
    }
}

/// Answers that are written when the first of several is asked for.
pub(super) struct Answers<'r> {
    pub(super) graph: &'r Graph,
    pub(super) weights: Kept<'r>,
    pub(super) windows: &'r [Window],
    pub(super) how: Generation,
    pub(super) progress: Progress<'r>,
    /// Of the windows from there on.
    pub(super) written: (usize, Vec<Vec<u32>>),
}

impl Rows for Answers<'_> {
    fn rows(&mut self, window: usize, _: Range<usize>, _: &mut Vec<f32>) -> Result<usize> {
        Err(Error::NoRows { window })
    }

    fn answer(&mut self, window: usize) -> Result<Vec<u32>> {
        let (first, written) = &self.written;
        if !(*first..first + written.len()).contains(&window) {
            let first = window / TOGETHER * TOGETHER;
            let windows = &self.windows[first..self.windows.len().min(first + TOGETHER)];
            let prompts: Vec<&[u32]> = windows.iter().map(|window| window.tokens.as_slice()).collect();
            let (all, limit, progress) = ((self.windows.len() * self.how.limit) as u64, self.how.limit, self.progress);
            let mut tokens = (first * limit) as u64;
            let mut count = |_: usize, _: u32| {
                tokens += 1;
                progress(tokens, all);
            };
            let answers = Decoder::new(self.graph, &self.weights).continuations(&prompts, first, &self.how, &mut count)?;
            self.written = (first, answers);
        }
        Ok(self.written.1[window - self.written.0].clone())
    }
}
