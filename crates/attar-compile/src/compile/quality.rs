//! How good a language model the integers are: their logits beside those of the same weights with float activations.

use std::sync::Arc;

use attar_graph::{Graph, Op};
use attar_tensor::Source;
use serde::{Deserialize, Serialize};

use super::{Progress, Seen, Subject, Watch, seen};
use crate::{
    Data, Result,
    convert::{Bind, Converted, block_count},
    fast,
};

/// What the integers of a program lose, on text that nothing was fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Tokens whose logits were compared.
    pub tokens: u64,
    /// Mean KL divergence of the integers' distributions from those with float activations, in nats per token.
    pub kl: f64,
    /// Perplexity of the integers over that with float activations.
    pub perplexity_ratio: f64,
    /// Signal-to-noise ratio of the logits, each token's mean taken off, in decibels.
    pub snr_db: f64,
}

/// Sums over tokens.
#[derive(Default)]
struct Sums {
    tokens: u64,
    kl: f64,
    /// Negative log-likelihoods of the integers less those of floats, and how many there are.
    loss: f64,
    predicted: u64,
    signal: f64,
    noise: f64,
}

/// Runs the program over windows of `rows` tokens each: all blocks, block by block, and the head.
pub(super) fn measure(subject: &Subject<'_>, seen: &Seen, rows: u64, windows: &[Vec<u32>], watch: Watch<'_>) -> Result<Quality> {
    let count = block_count(&subject.fused);
    let bind = Bind { rows, past: 0, capacity: rows, blocks: [0, 0], head: false, every_row: true, numbers: true };
    let mut streams: Vec<Vec<i32>> = Vec::new();
    for block in 0..count {
        Progress { stage: "measuring the integers", what: "a block", done: block, total: count + 1 }.tell(watch)?;
        let converted = subject.convert(&seen.ranges, Bind { blocks: [block, block + 1], ..bind })?;
        if block == 0 {
            streams = entering(seen, &converted, windows)?;
        }
        streams = passed(converted, streams);
    }
    Progress { stage: "measuring the integers", what: "the head", done: count, total: count + 1 }.tell(watch)?;
    let head = subject.convert(&seen.ranges, Bind { head: true, ..bind })?;
    let (step, float) = (head.logits.unwrap_or(1.0), without_rounding(&seen.graph)?);
    let mut sums = Sums::default();
    let mut memory = head.memory.expect("numbers were asked for");
    for (window, stream) in windows.iter().zip(streams) {
        memory.set(head.input, Data::Numbers(stream));
        fast::run(&head.program, &mut memory);
        let wanted = logits(&float, &seen.source, window)?;
        let width = wanted.len() / window.len();
        let found = memory.get(head.output).numbers().chunks(width);
        for (at, (wanted, found)) in wanted.chunks(width).zip(found).enumerate() {
            let found: Vec<f64> = found.iter().map(|code| f64::from(*code) * step).collect();
            let wanted: Vec<f64> = wanted.iter().map(|x| f64::from(*x)).collect();
            sums.add(&wanted, &found, window.get(at + 1).map(|token| *token as usize));
        }
    }
    Ok(sums.quality())
}

/// The codes of the residual stream where it enters the first block.
fn entering(seen: &Seen, first: &Converted, windows: &[Vec<u32>]) -> Result<Vec<Vec<i32>>> {
    let name = &first.program.get(first.input).name;
    let codes = |window: &Vec<u32>| {
        let [values, _] = seen.values(window, window.len(), [name, name])?;
        Ok(first.residual[0].round(&values))
    };
    windows.iter().map(codes).collect()
}

/// The streams behind a block.
fn passed(block: Converted, streams: Vec<Vec<i32>>) -> Vec<Vec<i32>> {
    let mut memory = block.memory.expect("numbers were asked for");
    let mut pass = |stream| {
        memory.set(block.input, Data::Numbers(stream));
        fast::run(&block.program, &mut memory);
        memory.get(block.output).numbers().to_vec()
    };
    streams.into_iter().map(&mut pass).collect()
}

/// The same graph with float activations.
fn without_rounding(graph: &Graph) -> Result<Graph> {
    let graph = graph.rewrite(&mut |copy, node| match node.op {
        Op::Quantize { .. } => {
            let value = copy.value(node.inputs[0])?;
            copy.put(node.output(), value);
            Ok(())
        }
        _ => copy.keep(node),
    })?;
    Ok(graph)
}

/// The logits of every token of a window.
fn logits(graph: &Graph, source: &Arc<dyn Source>, window: &[u32]) -> Result<Vec<f32>> {
    let (output, mut found) = (graph.outputs()[0], Vec::new());
    seen::walk(graph, source, window, &mut |id, numbers, _| {
        if id == output {
            found = numbers.to_vec();
        }
        true
    })?;
    Ok(found)
}

impl Sums {
    fn add(&mut self, wanted: &[f64], found: &[f64], next: Option<usize>) {
        let [p, q] = [wanted, found].map(log_softmax);
        self.tokens += 1;
        self.kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        if let Some(next) = next {
            self.loss += p[next] - q[next];
            self.predicted += 1;
        }
        let mean = |logits: &[f64]| logits.iter().sum::<f64>() / logits.len() as f64;
        let (wanted_mean, found_mean) = (mean(wanted), mean(found));
        for (wanted, found) in wanted.iter().zip(found) {
            let (signal, found) = (wanted - wanted_mean, found - found_mean);
            self.signal += signal * signal;
            self.noise += (found - signal) * (found - signal);
        }
    }

    fn quality(&self) -> Quality {
        Quality {
            tokens: self.tokens,
            kl: self.kl / self.tokens.max(1) as f64,
            perplexity_ratio: (self.loss / self.predicted.max(1) as f64).exp(),
            snr_db: 10.0 * (self.signal / self.noise.max(f64::MIN_POSITIVE)).log10(),
        }
    }
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - most).exp()).sum();
    let all = most + sum.ln();
    logits.iter().map(|x| x - all).collect()
}
