//! Chunked prefill: a prompt in chunks, each run by a program of its own after the tokens before it. Small chunks need less room
//! for activations and read all weights once more per chunk; which size is best depends on both, so sizes are tried.
//!
//! For 1, 2, 3, 4, 6, 8, 12, … chunks the smallest size is a candidate that is a multiple of [`RUN`] keys, so that runs of
//! keys stay whole; that includes the whole prompt. A chunk costs more the more tokens are before it. [`Chunking::planned`] of a
//! candidate's chunks are scheduled and timed: the last, which may be shorter and makes the logits, and of the equal ones before
//! it some that are evenly spread. Between these, bytes and cycles are interpolated along straight lines, which is what reading
//! keys and values and computing scores grows by while tiles stay the same. A candidate of no more chunks than that is exact
//! ([`Candidate::exact`]), the whole prompt always.

use std::num::NonZeroU64;

use super::{Freedom, Goal, Image, Target, choose};
use crate::{
    Error, Program, Result,
    fixed::RUN,
    front::front as nothing_beats,
    plan::{Plan, Space},
    program::Role,
};

/// Makes the program of `rows` tokens after `past` others.
pub type Make<'a> = &'a dyn Fn(u64, u64) -> Result<Program>;

/// Most chunks a candidate has, per doubling of which two are tried.
const CHUNKS: u64 = 512;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Of the prompt.
    pub tokens: NonZeroU64,
    /// Only this size, if any, or the whole prompt where that is smaller: what a user asked for.
    pub chunk: Option<NonZeroU64>,
    /// How many chunks of a candidate are scheduled, at least 3; all with `u64::MAX`.
    pub planned: u64,
}

/// One size and what a prompt costs with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Tokens of a chunk; the last may have fewer.
    pub chunk: u64,
    /// How many there are.
    pub chunks: u64,
    /// DRAM bytes of all chunks.
    pub dram: u64,
    /// Predicted cycles of all chunks, one after the other.
    pub cycles: u64,
    /// Predicted joules of all chunks.
    pub energy: f64,
    /// Bytes of SRAM at its fullest.
    pub sram_peak: u64,
    /// Bytes of DRAM for inputs, outputs and what lies between kernels, of the chunk that needs most.
    pub activations: u64,
    /// Whether every chunk was scheduled.
    pub exact: bool,
}

/// Every candidate that fits and the best.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunked {
    /// Largest chunk first.
    pub candidates: Vec<Candidate>,
    /// Index of the best by the goal; the largest of equals.
    pub chosen: usize,
}

impl Chunked {
    /// The best.
    pub fn best(&self) -> &Candidate {
        &self.candidates[self.chosen]
    }
}

/// A size under a goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// What was made small.
    pub goal: Goal,
    /// The size, and what a prompt costs with it.
    pub candidate: Candidate,
}

/// The Pareto front: sizes that no other beats in DRAM bytes, cycles, energy and SRAM at once.
pub fn front<'a>(found: impl IntoIterator<Item = (Goal, &'a Chunked)>) -> Vec<Point> {
    let of = |(goal, chunked): (Goal, &'a Chunked)| chunked.candidates.iter().map(move |one| Point { goal, candidate: *one });
    let points = found.into_iter().flat_map(of).collect();
    nothing_beats(points, |Point { candidate, .. }: &Point| {
        [candidate.dram as f64, candidate.cycles as f64, candidate.energy, candidate.sram_peak as f64]
    })
}

impl Chunking {
    /// All candidates for a prompt, four chunks of each scheduled.
    pub fn new(tokens: NonZeroU64) -> Chunking {
        Chunking { tokens, chunk: None, planned: 4 }
    }

    /// Tries every candidate.
    ///
    /// # Errors
    /// Where none fits: why the last of them, the smallest, does not.
    pub fn search(&self, make: Make<'_>, target: &Target, goal: Goal, freedom: Freedom) -> Result<Chunked> {
        let (mut candidates, mut failed) = (Vec::new(), None);
        for chunk in self.sizes() {
            let mut image = Image::default();
            match self.candidate(chunk, &mut |rows, past| ChunkCost::of(make, target, goal, freedom, [rows, past], &mut image)) {
                Ok(candidate) => candidates.push(candidate),
                Err(error @ (Error::DoesNotFit { .. } | Error::MemoryTooSmall { .. })) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        let best = (0..candidates.len()).reduce(|best, at| {
            let better = candidates[at].key(goal) < candidates[best].key(goal);
            if better { at } else { best }
        });
        match (best, failed) {
            (Some(chosen), _) => Ok(Chunked { candidates, chosen }),
            (None, failed) => Err(failed.expect("there is always a size to try")),
        }
    }

    /// Sizes to try, largest first.
    pub fn sizes(&self) -> Vec<u64> {
        let tokens = self.tokens.get();
        if let Some(chunk) = self.chunk {
            return vec![chunk.get().min(tokens)];
        }
        let doublings = (0..).map(|power| 1u64 << power).take_while(|chunks| *chunks <= CHUNKS);
        let counts = doublings.flat_map(|chunks| [Some(chunks), (chunks > 1).then_some(chunks / 2 * 3)]).flatten();
        let mut sizes: Vec<u64> = counts.map(|chunks| tokens.div_ceil(chunks).next_multiple_of(RUN).min(tokens)).collect();
        sizes.dedup();
        sizes
    }

    fn candidate(&self, chunk: u64, part: &mut dyn FnMut(u64, u64) -> Result<ChunkCost>) -> Result<Candidate> {
        let tokens = self.tokens.get();
        let chunks = tokens.div_ceil(chunk);
        let equal = chunks - 1;
        let planned = if equal > 0 { spread(equal, self.planned - 1) } else { Vec::new() };
        let parts = planned.iter().map(|at| Ok((*at, part(chunk, at * chunk)?))).collect::<Result<Vec<(u64, ChunkCost)>>>()?;
        let mut all = parts.iter().fold(ChunkCost::default(), |all, (_, part)| all.plus(part));
        for pair in parts.windows(2) {
            let [(from, first), (to, last)] = [&pair[0], &pair[1]];
            all = (from + 1..*to).fold(all, |all, at| all.plus(&first.towards(last, [at - from, to - from])));
        }
        all = all.plus(&part(tokens - equal * chunk, equal * chunk)?);
        let ChunkCost { dram, cycles, energy, sram_peak, activations } = all;
        Ok(Candidate { chunk, chunks, dram, cycles, energy, sram_peak, activations, exact: planned.len() as u64 == equal })
    }
}

impl Candidate {
    fn key(&self, goal: Goal) -> [f64; 2] {
        let [dram, cycles] = [self.dram as f64, self.cycles as f64];
        match goal {
            Goal::Dram => [dram, cycles],
            Goal::Latency => [cycles, dram],
            Goal::Energy => [self.energy, dram],
        }
    }
}

/// At most `most` of `count` indices, but two where there are two: the first, the last, and evenly between.
fn spread(count: u64, most: u64) -> Vec<u64> {
    let taken = most.max(2).min(count);
    let at = |index: u64| (u128::from(index) * u128::from(count - 1) / u128::from((taken - 1).max(1))) as u64;
    (0..taken).map(at).collect()
}

/// What one chunk, or several, cost.
#[derive(Clone, Copy, Debug, Default)]
struct ChunkCost {
    dram: u64,
    cycles: u64,
    energy: f64,
    sram_peak: u64,
    activations: u64,
}

impl ChunkCost {
    /// The first chunk decides where weights lie that all have.
    fn of(
        make: Make<'_>,
        target: &Target,
        goal: Goal,
        freedom: Freedom,
        [rows, past]: [u64; 2],
        image: &mut Image,
    ) -> Result<ChunkCost> {
        let title = tokens_text(rows, past);
        let (schedule, run) = choose(&make(rows, past)?, target, goal, freedom, &title, image)?;
        let plan = schedule.plan;
        image.add(&plan);
        let energy = run.energy(&target.rates);
        let (dram, cycles, sram_peak) = (run.dram(), run.cycles, run.sram_peak);
        Ok(ChunkCost { dram, cycles, energy, sram_peak, activations: activations(&plan) })
    }

    fn plus(&self, other: &ChunkCost) -> ChunkCost {
        ChunkCost {
            dram: self.dram + other.dram,
            cycles: self.cycles + other.cycles,
            energy: self.energy + other.energy,
            sram_peak: self.sram_peak.max(other.sram_peak),
            activations: self.activations.max(other.activations),
        }
    }

    /// A point `at` of `length` of the way to another.
    fn towards(&self, other: &ChunkCost, [at, length]: [u64; 2]) -> ChunkCost {
        let between = |from: u64, to: u64| {
            let way = (i128::from(to) - i128::from(from)) * i128::from(at) / i128::from(length);
            (i128::from(from) + way) as u64
        };
        let energy = self.energy + (other.energy - self.energy) * at as f64 / length as f64;
        let (dram, cycles) = (between(self.dram, other.dram), between(self.cycles, other.cycles));
        ChunkCost { dram, cycles, energy, ..*self }
    }
}

/// DRAM bytes of inputs, outputs and all between them, which lie together.
fn activations(plan: &Plan) -> u64 {
    let in_dram = || plan.tensors.iter().filter(|tensor| tensor.space == Space::Dram);
    let own = || in_dram().filter(|tensor| matches!(tensor.role, Role::Scratch | Role::Input | Role::Output));
    let (start, end) = (own().map(|t| t.address).min(), own().map(|t| t.address + t.bytes()).max());
    end.unwrap_or(0) - start.unwrap_or(0)
}

/// `3 tokens, empty cache` or `3 tokens after 5 cached`.
pub(crate) fn tokens_text(rows: u64, past: u64) -> String {
    let tokens = if rows == 1 { "1 token".into() } else { format!("{rows} tokens") };
    if past == 0 { format!("{tokens}, empty cache") } else { format!("{tokens} after {past} cached") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_spread_from_end_to_end() {
        assert_eq!(spread(1, 3), [0]);
        assert_eq!(spread(2, 3), [0, 1]);
        assert_eq!(spread(9, 3), [0, 4, 8]);
        assert_eq!(spread(4, u64::MAX), [0, 1, 2, 3]);
    }

    #[test]
    fn sizes_are_runs_or_the_whole() {
        for tokens in 1..700 {
            let chunking = Chunking::new(NonZeroU64::new(tokens).unwrap());
            let sizes = chunking.sizes();
            assert!(sizes[0] == tokens && sizes.len() <= 20, "{tokens}: {sizes:?}");
            assert!(sizes.windows(2).all(|pair| pair[0] > pair[1]), "{tokens}: {sizes:?}");
            assert!(sizes.iter().skip(1).all(|size| size.is_multiple_of(RUN)), "{tokens}: {sizes:?}");
        }
    }

    /// What one goal finds can make what another found not worth having; equal points are there once, under the first goal.
    #[test]
    fn a_front_is_over_all_goals() {
        let candidate = |chunk, dram, cycles| {
            let (chunks, energy, sram_peak, activations, exact) = (1, 1.0, 64, 0, true);
            Candidate { chunk, chunks, dram, cycles, energy, sram_peak, activations, exact }
        };
        let by_bytes = Chunked { candidates: vec![candidate(64, 10, 90), candidate(32, 30, 95)], chosen: 0 };
        let by_cycles = Chunked { candidates: vec![candidate(64, 10, 90), candidate(32, 30, 40)], chosen: 1 };
        let points = front([(Goal::Dram, &by_bytes), (Goal::Latency, &by_cycles)]);
        let told: Vec<_> = points.iter().map(|point| (point.goal, point.candidate.dram, point.candidate.cycles)).collect();
        assert_eq!(told, [(Goal::Dram, 10, 90), (Goal::Latency, 30, 40)]);
    }

    /// A cost that is a straight line in what is before is found exactly, whatever is scheduled of it.
    #[test]
    fn straight_lines_are_exact() {
        let cost = |rows: u64, past: u64| 1000 * rows + 7 * rows * past;
        let mut part = |rows, past| Ok(ChunkCost { dram: cost(rows, past), cycles: past, ..ChunkCost::default() });
        for tokens in [1, 31, 64, 500, 2048, 4100] {
            for planned in [3, 4, u64::MAX] {
                let chunking = Chunking { planned, ..Chunking::new(NonZeroU64::new(tokens).unwrap()) };
                for chunk in chunking.sizes() {
                    let by_hand: u64 = (0..tokens).step_by(chunk as usize).map(|at| cost(chunk.min(tokens - at), at)).sum();
                    let found = chunking.candidate(chunk, &mut part).unwrap();
                    assert_eq!((found.dram, found.chunks), (by_hand, tokens.div_ceil(chunk)));
                }
            }
        }
    }
}
