//! The exact search for a placement within a capacity.
//!
//! Consider a solution with the smallest sum of offsets. No buffer can be lowered: each one rests on offset 0, on a fixed buffer
//! or on another buffer. So the lowest buffer that is still free rests on what is placed already. The search branches on the
//! buffer that could be lowest: either it is placed there, or it is *postponed* and rests on a buffer that is still free.
//! Only canonical solutions are visited, each once, as in M. D. Moffitt, MiniMalloc (ASPLOS 2024). The section inference,
//! dominance, monotonic floor and decomposition at cuts of that paper are here, too. Two inferences are stronger: a postponed
//! buffer needs a free one to rest on and one in its way, and sections have a one-machine scheduling bound.
//!
//! The limit is a number of nodes, never a time, so that equal problems have equal answers. Nodes allocate nothing; an undo
//! stack restores the state.

use super::{preorder::Preorder, problem::Buffer, sections::Sections};

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A placement: `Search::offsets`.
    Solved,
    /// There is no placement.
    Failed,
    /// The limit of nodes was reached.
    Limit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Placed,
    /// By the problem. It always counts in its sections, since it may be above any other buffer.
    Fixed,
}

/// How a change is undone.
enum Change {
    Placed(u32),
    /// The bounds of a buffer as they were.
    Raised {
        buffer: u32,
        floor: u64,
        earliest: u64,
    },
}

/// A problem and the state of its search.
pub(super) struct Search {
    capacity: u64,
    sizes: Vec<u64>,
    aligns: Vec<u64>,
    /// For each buffer, the ranges of bytes that fixed buffers take from it, in order.
    obstacles: Vec<Vec<(u64, u64)>>,
    sections: Sections,
    /// A bit set of `words` words per buffer: the other buffers, not fixed, whose lifetimes overlap with its own.
    neighbours: Vec<u64>,
    words: usize,
    /// The free buffers, as such a bit set.
    free: Vec<u64>,
    state: Vec<State>,
    /// The offset of a placed or fixed buffer; the lowest offset of a free one above what is placed.
    floor: Vec<u64>,
    /// A lower bound on its offset in every solution. Above the floor if it is postponed.
    earliest: Vec<u64>,
    /// The place in the preorder.
    rank: Vec<u32>,
    /// The granularity, in bytes, in which slack is compared; `None`: slack is ignored.
    step: Option<u64>,
    undo: Vec<Change>,
    /// Sections whose bound must be checked again, as a queue and as flags.
    dirty: Vec<u32>,
    is_dirty: Vec<bool>,
    /// The free buffers of the components being solved, innermost last.
    pool: Vec<u32>,
    /// Scratch: earliest offsets and sizes of a section.
    heads: Vec<(u64, u64)>,
    /// Scratch: the slack of sections, and at which node it was measured.
    slack: Vec<(u64, u64)>,
    /// Visited so far, over all runs.
    pub(super) nodes: u64,
    limit: u64,
}

impl Search {
    /// `buffers` are checked, and fixed ones do not collide.
    pub(super) fn new(buffers: &[Buffer], capacity: u64) -> Search {
        let n = buffers.len();
        let sections = Sections::of(buffers);
        let words = n.div_ceil(64);
        let mut free = vec![0; words];
        for (b, _) in buffers.iter().enumerate().filter(|(_, buffer)| buffer.fixed.is_none()) {
            free[b / 64] |= 1 << (b % 64);
        }
        let mut search = Search {
            capacity,
            sizes: buffers.iter().map(|buffer| buffer.size).collect(),
            aligns: buffers.iter().map(|buffer| buffer.align).collect(),
            obstacles: buffers.iter().map(|buffer| obstacles(buffer, buffers)).collect(),
            neighbours: neighbours(&sections, &free, n),
            words,
            free,
            state: buffers.iter().map(|buffer| if buffer.fixed.is_some() { State::Fixed } else { State::Free }).collect(),
            floor: buffers.iter().map(|buffer| buffer.fixed.unwrap_or(0)).collect(),
            earliest: Vec::new(),
            rank: vec![0; n],
            step: None,
            undo: Vec::new(),
            dirty: Vec::new(),
            is_dirty: vec![false; sections.members.len()],
            pool: Vec::new(),
            heads: Vec::new(),
            slack: vec![(0, 0); sections.members.len()],
            sections,
            nodes: 0,
            limit: 0,
        };
        for b in (0..n).filter(|&b| buffers[b].fixed.is_none()) {
            search.floor[b] = search.fit(b, 0);
        }
        search.earliest = search.floor.clone();
        search
    }

    /// The buffers' offsets, after `Verdict::Solved`.
    pub(super) fn offsets(&self) -> &[u64] {
        &self.floor
    }

    /// Searches for at most `limit` more nodes, with the tie-breaking order of a round. Must not be called again once solved.
    pub(super) fn run(&mut self, preorder: &Preorder, round: usize, buffers: &[Buffer], limit: u64) -> Verdict {
        for (rank, b) in preorder.order(buffers, &self.sections).into_iter().enumerate() {
            self.rank[b as usize] = rank as u32;
        }
        self.step = preorder.steps(round).map(|steps| (self.capacity / steps).max(1));
        self.limit = self.nodes.saturating_add(limit);
        self.pool = (0..buffers.len() as u32).filter(|&b| self.state[b as usize] == State::Free).collect();
        (0..self.is_dirty.len()).for_each(|section| self.mark(section));
        let all = self.pool.len();
        let verdict = if self.propagate(0, all) { self.components(0, all) } else { Verdict::Failed };
        if verdict != Verdict::Solved {
            self.undo_to(0);
        }
        verdict
    }

    /// The least offset of `b`, `at` or above, that its alignment and the fixed buffers allow.
    fn fit(&self, b: usize, at: u64) -> u64 {
        let mut at = at.next_multiple_of(self.aligns[b]);
        for &(lower, upper) in &self.obstacles[b] {
            if lower < at + self.sizes[b] && at < upper {
                at = upper.next_multiple_of(self.aligns[b]);
            }
        }
        at
    }

    fn mark(&mut self, section: usize) {
        if !self.is_dirty[section] {
            self.is_dirty[section] = true;
            self.dirty.push(section as u32);
        }
    }

    fn mark_span(&mut self, b: usize) {
        let (first, last) = self.sections.spans[b];
        (first..=last).for_each(|section| self.mark(section as usize));
    }

    fn raise(&mut self, b: usize, floor: u64, earliest: u64) {
        self.undo.push(Change::Raised { buffer: b as u32, floor: self.floor[b], earliest: self.earliest[b] });
        self.floor[b] = floor;
        if earliest > self.earliest[b] {
            self.earliest[b] = earliest;
            self.mark_span(b);
        }
    }

    fn undo_to(&mut self, length: usize) {
        while self.undo.len() > length {
            match self.undo.pop().expect("it is longer") {
                Change::Placed(b) => {
                    self.state[b as usize] = State::Free;
                    self.free[b as usize / 64] |= 1 << (b % 64);
                }
                Change::Raised { buffer, floor, earliest } => {
                    (self.floor[buffer as usize], self.earliest[buffer as usize]) = (floor, earliest);
                }
            }
        }
    }

    fn is_free(&self, b: usize) -> bool {
        self.state[b] == State::Free
    }

    /// Whether it is free and may be placed on its floor.
    fn is_ready(&self, b: usize) -> bool {
        self.is_free(b) && self.earliest[b] == self.floor[b]
    }

    /// Places `b` on its floor. Free buffers with overlapping lifetimes are above it from now on.
    fn place(&mut self, b: usize) {
        self.undo.push(Change::Placed(b as u32));
        self.state[b] = State::Placed;
        self.free[b / 64] &= !(1 << (b % 64));
        let top = self.floor[b] + self.sizes[b];
        for word in 0..self.words {
            let mut bits = self.neighbours[b * self.words + word] & self.free[word];
            while bits != 0 {
                let c = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if self.floor[c] < top {
                    let floor = self.fit(c, top);
                    self.raise(c, floor, self.earliest[c].max(floor));
                }
            }
        }
        self.mark_span(b);
    }

    /// Propagates the bounds of the free buffers in `pool[from..to]`, a union of components; `false` if there is no solution.
    fn propagate(&mut self, from: usize, to: usize) -> bool {
        let holds = self.raise_postponed(from, to) && self.sections_hold();
        while let Some(section) = self.dirty.pop() {
            self.is_dirty[section as usize] = false;
        }
        holds
    }

    /// To the fixed point.
    fn raise_postponed(&mut self, from: usize, to: usize) -> bool {
        if !(from..to).any(|i| self.is_free(self.pool[i] as usize)) {
            return true;
        }
        // The lowest free buffer of a solution rests on no free one.
        let ready = (from..to).map(|i| self.pool[i] as usize).filter(|&b| self.is_ready(b));
        let Some(lowest) = ready.map(|b| self.floor[b]).min() else { return false };
        loop {
            let mut changed = false;
            for i in from..to {
                let b = self.pool[i] as usize;
                if !self.is_free(b) || self.is_ready(b) {
                    continue;
                }
                let Some(support) = self.support(b, lowest) else { return false };
                let earliest = self.fit(b, support.max(lowest).max(self.earliest[b]));
                if earliest + self.sizes[b] > self.capacity {
                    return false;
                }
                if earliest > self.earliest[b] {
                    self.raise(b, self.floor[b], earliest);
                    changed = true;
                }
            }
            if !changed {
                return true;
            }
        }
    }

    /// The lowest top of a free buffer that can block the postponed `b`, which is above one of them.
    fn support(&self, b: usize, lowest: u64) -> Option<u64> {
        let top = self.floor[b] + self.sizes[b];
        let mut least = None;
        for word in 0..self.words {
            let mut bits = self.neighbours[b * self.words + word] & self.free[word];
            while bits != 0 {
                let c = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let earliest = self.earliest[c].max(lowest);
                let above = earliest + self.sizes[c];
                if earliest < top && least.is_none_or(|least| above < least) {
                    least = Some(above);
                }
            }
        }
        least
    }

    fn sections_hold(&mut self) -> bool {
        while let Some(section) = self.dirty.pop() {
            self.is_dirty[section as usize] = false;
            if self.section_end(section as usize) > self.capacity {
                return false;
            }
        }
        true
    }

    /// One-machine scheduling bound: the buffers of a section that are not placed are jobs with their lowest offsets as release
    /// dates, and this is a lower bound on the end of the last. If an upper bound on it is within the capacity, that is returned.
    fn section_end(&mut self, section: usize) -> u64 {
        self.collect_heads(section);
        let latest = self.heads.iter().map(|&(head, _)| head).max().unwrap_or(0);
        let loose = latest + self.heads.iter().map(|&(_, size)| size).sum::<u64>();
        if loose <= self.capacity { loose } else { self.exact_end() }
    }

    fn collect_heads(&mut self, section: usize) {
        self.heads.clear();
        for &b in &self.sections.members[section] {
            if self.state[b as usize] != State::Placed {
                self.heads.push((self.earliest[b as usize], self.sizes[b as usize]));
            }
        }
    }

    fn exact_end(&mut self) -> u64 {
        self.heads.sort_unstable();
        self.heads.iter().fold(0, |end, &(head, size)| head.max(end) + size)
    }

    /// The buffer of `pool[from..to]` to branch on: among those that could be lowest, one in the tightest section, then the
    /// one of lowest rank.
    fn choose(&mut self, from: usize, to: usize) -> Option<usize> {
        let ready = |search: &Search, i: usize| Some(search.pool[i] as usize).filter(|&b| search.is_ready(b));
        let lowest = (from..to).filter_map(|i| ready(self, i)).map(|b| self.floor[b]).min()?;
        let mut best: Option<(u64, u32, usize)> = None;
        for i in from..to {
            let Some(b) = ready(self, i).filter(|&b| self.floor[b] == lowest) else { continue };
            let key = (self.tightness(b), self.rank[b], b);
            if best.is_none_or(|best| key < best) {
                best = Some(key);
            }
        }
        best.map(|(_, _, b)| b)
    }

    /// The least slack of the sections of `b`, in steps.
    fn tightness(&mut self, b: usize) -> u64 {
        let Some(step) = self.step else { return 0 };
        let (first, last) = self.sections.spans[b];
        (first as usize..=last as usize).map(|section| self.slack_of(section)).min().unwrap_or(0) / step
    }

    fn slack_of(&mut self, section: usize) -> u64 {
        if self.slack[section].0 != self.nodes {
            self.collect_heads(section);
            self.slack[section] = (self.nodes, self.capacity.saturating_sub(self.exact_end()));
        }
        self.slack[section].1
    }

    /// Solves the free buffers of `pool[from..to]`, component by component (lifetimes of components do not overlap).
    fn components(&mut self, from: usize, to: usize) -> Verdict {
        let base = self.pool.len();
        for i in from..to {
            if self.is_free(self.pool[i] as usize) {
                self.pool.push(self.pool[i]);
            }
        }
        let spans = &self.sections.spans;
        self.pool[base..].sort_unstable_by_key(|&b| (spans[b as usize].0, b));
        let end = self.pool.len();
        let mut verdict = Verdict::Solved;
        let mut start = base;
        while start < end && verdict == Verdict::Solved {
            let next = self.component_end(start, end);
            verdict = self.search(start, next);
            start = next;
        }
        self.pool.truncate(base);
        verdict
    }

    /// The end of the component that begins at `pool[start]`; the pool is sorted by first section.
    fn component_end(&self, start: usize, end: usize) -> usize {
        let mut reach = 0;
        for i in start..end {
            let (first, last) = self.sections.spans[self.pool[i] as usize];
            if i > start && first > reach {
                return i;
            }
            reach = reach.max(last);
        }
        end
    }

    /// Solves a component whose bounds are propagated.
    fn search(&mut self, from: usize, to: usize) -> Verdict {
        let start = self.undo.len();
        loop {
            if self.nodes >= self.limit {
                return Verdict::Limit;
            }
            self.nodes += 1;
            let Some(b) = self.choose(from, to) else { break };
            let here = self.undo.len();
            self.place(b);
            let verdict = if self.propagate(from, to) { self.components(from, to) } else { Verdict::Failed };
            if verdict != Verdict::Failed {
                return verdict;
            }
            self.undo_to(here);
            self.raise(b, self.floor[b], self.floor[b] + 1);
            if !self.propagate(from, to) {
                break;
            }
        }
        self.undo_to(start);
        Verdict::Failed
    }
}

fn obstacles(buffer: &Buffer, buffers: &[Buffer]) -> Vec<(u64, u64)> {
    let together = |other: &&Buffer| other.lower < buffer.upper && buffer.lower < other.upper;
    let range = |other: &Buffer| other.fixed.map(|offset| (offset, offset + other.size));
    let mut ranges: Vec<(u64, u64)> = buffers.iter().filter(together).filter_map(range).collect();
    ranges.sort_unstable();
    ranges
}

fn neighbours(sections: &Sections, free: &[u64], n: usize) -> Vec<u64> {
    let words = free.len();
    let mut rows = vec![0u64; n * words];
    let mut members = vec![0u64; words];
    for section in &sections.members {
        members.fill(0);
        section.iter().for_each(|&b| members[b as usize / 64] |= 1 << (b % 64));
        for &b in section {
            let row = &mut rows[b as usize * words..][..words];
            row.iter_mut().zip(members.iter().zip(free)).for_each(|(row, (member, free))| *row |= member & free);
        }
    }
    for b in 0..n {
        rows[b * words + b / 64] &= !(1 << (b % 64));
    }
    rows
}
