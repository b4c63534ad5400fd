//! Proofs: plans of a part of a model, run on the numbers of a prompt.

use super::{Compile, Seen};
use crate::{
    Data, Memory, Program, Result, TensorId,
    convert::Converted,
    plan::Proof,
    schedule::{Image, Schedule, Target, choose},
    simulate::{Simulation, prove_and_keep},
};

/// A plan of the first blocks, or of the head, whose result agrees with the reference in every bit.
#[derive(Clone, Debug, PartialEq)]
pub struct Proven {
    /// Number of blocks.
    pub blocks: usize,
    /// The schedule that ran.
    pub schedule: Schedule,
    /// The program and the numbers that it ran with.
    pub proof: Proof,
    /// Its counts and times.
    pub simulation: Simulation,
    /// Signal-to-noise ratio of the integers' result against that of the float graph, in decibels.
    pub snr_db: Option<f64>,
}

/// Rows of a prompt.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) rows: u64,
    pub(super) past: u64,
}

impl Span {
    /// The numbers of the last `rows` of its rows.
    fn of(self, values: &[f32], rows: u64, columns: u64) -> &[f32] {
        let end = ((self.past + self.rows) * columns) as usize;
        &values[end - (rows * columns) as usize..end]
    }
}

/// Proves one part after another on the same prompt.
pub(super) struct Prover<'a> {
    settings: &'a Compile,
    target: &'a Target,
    seen: &'a Seen,
    /// The first ones are the sequences of a batch.
    windows: &'a [Vec<u32>],
    /// How many are proven.
    count: usize,
    /// The blocks of the previous run, with their numbers after it.
    before: Option<(Program, Memory)>,
}

impl<'a> Prover<'a> {
    pub(super) fn new(
        settings: &'a Compile,
        target: &'a Target,
        seen: &'a Seen,
        windows: &'a [Vec<u32>],
        count: usize,
    ) -> Prover<'a> {
        Prover { settings, target, seen, windows, count, before: None }
    }

    /// Proves the first blocks on some rows, after those of the previous call. Weights and states are at the addresses of `image`.
    pub(super) fn blocks(&mut self, mut converted: Converted, span: Span, image: &Image) -> Result<Proven> {
        if let (Some((earlier, numbers)), Some(memory)) = (&self.before, &mut converted.memory) {
            carry(earlier, numbers, &converted.program, memory, &converted.states);
        }
        let (proven, after) = self.part(converted, span, image)?;
        self.before = Some((proven.proof.program.clone(), after));
        Ok(Proven { blocks: self.count, ..proven })
    }

    /// Proves the last norm and the head.
    pub(super) fn head(&self, converted: Converted, span: Span, image: &Image) -> Result<Proven> {
        Ok(self.part(converted, span, image)?.0)
    }

    fn part(&self, converted: Converted, span: Span, image: &Image) -> Result<(Proven, Memory)> {
        let Converted { program, memory, input, output, residual, logits, .. } = converted;
        let mut memory = memory.expect("numbers were asked for");
        let [from, to] = [input, output].map(|id| program.get(id));
        let tokens = (span.past + span.rows) as usize;
        let (mut entering, mut wanted) = (Vec::new(), Vec::new());
        for window in self.windows.iter().cycle().take(program.batch as usize) {
            let [before, after] = self.seen.values(window, tokens, [&from.name, &to.name])?;
            entering.push(span.of(&before, span.rows, from.columns).to_vec());
            wanted.push(span.of(&after, to.rows / program.batch, to.columns).to_vec());
        }
        let [entry, exit] = residual;
        memory.set(input, Data::Numbers(entry.round(&interleaved(&entering, from.columns))));
        let wanted = interleaved(&wanted, to.columns);
        let Compile { goal, .. } = self.settings;
        let (schedule, _) = choose(&program, self.target, *goal, self.settings.freedom(), "proof", image)?;
        let (simulation, after) = prove_and_keep(&program, &schedule.plan, &self.target.rates, &memory)?;
        let codes = after.get(output).numbers();
        let found = match logits {
            Some(step) => codes.iter().map(|code| f64::from(*code) * step).collect(),
            None => exit.values(codes),
        };
        let snr_db = snr(&found, &wanted);
        Ok((Proven { blocks: 0, schedule, proof: Proof::new(program, memory, &after), simulation, snr_db }, after))
    }
}

/// The first rows of all sequences, then the second ones, and so on.
fn interleaved(sequences: &[Vec<f32>], columns: u64) -> Vec<f32> {
    let rows = |at: usize| sequences.iter().filter_map(move |all| all.chunks(columns as usize).nth(at)).flatten().copied();
    let count = sequences.first().map_or(0, |all| all.len() / columns as usize);
    (0..count).flat_map(rows).collect()
}

/// Copies the states of an earlier run into the first rows of this one's.
fn carry(earlier: &Program, numbers: &Memory, program: &Program, memory: &mut Memory, states: &[TensorId]) {
    for state in states {
        let tensor = program.get(*state);
        let Some(at) = earlier.tensors.iter().position(|other| other.name == tensor.name) else { continue };
        let old = numbers.get(TensorId(at as u32)).numbers();
        let mut all = memory.get(*state).numbers().to_vec();
        let shared = old.len().min(all.len());
        all[..shared].copy_from_slice(&old[..shared]);
        memory.set(*state, Data::Numbers(all));
    }
}

fn snr(found: &[f64], wanted: &[f32]) -> Option<f64> {
    let pairs = || found.iter().zip(wanted.iter().map(|x| f64::from(*x)));
    let noise: f64 = pairs().map(|(found, wanted)| (found - wanted).powi(2)).sum();
    let signal: f64 = pairs().map(|(_, wanted)| wanted.powi(2)).sum();
    (noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}
