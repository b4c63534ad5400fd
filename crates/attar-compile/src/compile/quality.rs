//! How good a model the integers are: their logits, or an encoder's rows, beside those of the same weights with float activations.

use std::{collections::BTreeMap, sync::Arc};

use attar_graph::{Graph, Op};
use attar_tensor::Source;
use serde::{Deserialize, Serialize};

use super::{Pooled, Pooling, Progress, Seen, Subject, Watch, seen};
use crate::{
    Data, Result,
    convert::{Bind, Converted, block_count, is_encoder},
    fast,
};

/// What the integers of a program lose, on text that nothing was fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Tokens whose logits or rows were compared.
    pub tokens: u64,
    /// Mean KL divergence of the integers' distributions from those with float activations, in nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Perplexity of the integers over that with float activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<f64>,
    /// Mean cosine of an encoder's embeddings of texts to those with float activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Signal-to-noise ratio of the logits or rows, each token's mean taken off, in decibels.
    pub snr_db: f64,
}

/// Sums over tokens.
#[derive(Default)]
struct Sums {
    tokens: u64,
    /// Rows that are logits, and their divergences.
    logits: u64,
    kl: f64,
    /// Negative log-likelihoods of the integers less those of floats, and how many there are.
    loss: f64,
    predicted: u64,
    cosines: f64,
    texts: u64,
    signal: f64,
    noise: f64,
}

/// Runs the program over windows of tokens: all blocks, block by block, and the head.
pub(super) fn measure(subject: &Subject<'_>, seen: &Seen, windows: &[Vec<u32>], watch: Watch<'_>) -> Result<Quality> {
    let mut by_length: BTreeMap<usize, Vec<&Vec<u32>>> = BTreeMap::new();
    windows.iter().for_each(|window| by_length.entry(window.len()).or_default().push(window));
    let mut sums = Sums::default();
    for (length, windows) in by_length {
        sums.measure(subject, seen, length as u64, &windows, watch)?;
    }
    Ok(sums.quality())
}

impl Sums {
    /// Adds windows of `rows` tokens each.
    fn measure(&mut self, subject: &Subject<'_>, seen: &Seen, rows: u64, windows: &[&Vec<u32>], watch: Watch<'_>) -> Result<()> {
        let count = block_count(&subject.fused);
        let bind = Bind { batch: 1, rows, past: 0, capacity: rows, blocks: [0, 0], head: false, every_row: true, numbers: true };
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
        let (encoder, pools) = (is_encoder(&seen.graph), Pooling::of(&seen.graph));
        let mut memory = head.memory.expect("numbers were asked for");
        for (window, stream) in windows.iter().zip(streams) {
            memory.set(head.input, Data::Numbers(stream));
            fast::run(&head.program, &mut memory);
            let wanted = values(&float, &seen.source, window, &head.program.get(head.output).name)?;
            let width = wanted.len() / window.len();
            let wanted: Vec<f64> = wanted.iter().map(|x| f64::from(*x)).collect();
            let found: Vec<f64> = memory.get(head.output).numbers().iter().map(|code| f64::from(*code) * step).collect();
            for (at, (wanted, found)) in wanted.chunks(width).zip(found.chunks(width)).enumerate() {
                self.add(wanted, found);
                if !encoder {
                    self.add_logits(wanted, found, window.get(at + 1).map(|token| *token as usize));
                }
            }
            if let Some(pooling) = pools {
                self.texts += 1;
                self.cosines += cosine(&pooled(pooling, &wanted, width), &pooled(pooling, &found, width));
            }
        }
        Ok(())
    }
}

/// The direction of the one row that is made of those of all tokens.
fn pooled(by: Pooling, rows: &[f64], width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    let rows = rows.chunks(width).take(if by.of == Pooled::First { 1 } else { usize::MAX });
    rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
    sum
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// The codes of the residual stream where it enters the first block.
fn entering(seen: &Seen, first: &Converted, windows: &[&Vec<u32>]) -> Result<Vec<Vec<i32>>> {
    let name = &first.program.get(first.input).name;
    let codes = |window: &&Vec<u32>| {
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

/// The rows of a value for every token of a window.
fn values(graph: &Graph, source: &Arc<dyn Source>, window: &[u32], name: &str) -> Result<Vec<f32>> {
    let (output, mut found) = (graph.find(name), Vec::new());
    seen::walk(graph, source, window, &mut |id, numbers, _| {
        if Some(id) == output {
            found = numbers.to_vec();
        }
        found.is_empty()
    })?;
    Ok(found)
}

impl Sums {
    /// Logits, and the token that comes next.
    fn add_logits(&mut self, wanted: &[f64], found: &[f64], next: Option<usize>) {
        let [p, q] = [wanted, found].map(log_softmax);
        self.logits += 1;
        self.kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        if let Some(next) = next {
            self.loss += p[next] - q[next];
            self.predicted += 1;
        }
    }

    /// A row.
    fn add(&mut self, wanted: &[f64], found: &[f64]) {
        self.tokens += 1;
        let mean = |row: &[f64]| row.iter().sum::<f64>() / row.len() as f64;
        let (wanted_mean, found_mean) = (mean(wanted), mean(found));
        for (wanted, found) in wanted.iter().zip(found) {
            let (signal, found) = (wanted - wanted_mean, found - found_mean);
            self.signal += signal * signal;
            self.noise += (found - signal) * (found - signal);
        }
    }

    fn quality(&self) -> Quality {
        let predicts = self.logits > 0;
        Quality {
            tokens: self.tokens,
            kl: predicts.then(|| self.kl / self.logits as f64),
            perplexity_ratio: predicts.then(|| (self.loss / self.predicted.max(1) as f64).exp()),
            cosine: (self.texts > 0).then(|| self.cosines / self.texts as f64),
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
