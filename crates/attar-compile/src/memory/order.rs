//! An order of ops with a low peak of live bytes.
//!
//! The bytes live between two ops depend only on the set of ops that ran, a *downset* of the graph. The exact search visits
//! downsets in the order of the peak needed to reach them: Dijkstra's algorithm with the maximum in place of the sum. If there
//! are too many, a beam search keeps the best of each size. In both, an op runs at once if it does not raise the peak and leaves
//! no more live bytes than before: that is never worse.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
};

use super::problem::{Buffer, MAX_BYTES};
use crate::{Error, Result};

/// An op and its buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Op {
    /// Indices of buffers that it reads; they live at least until it has run.
    pub reads: Vec<usize>,
    /// Indices of buffers that it writes, and no other op does; they live from its start.
    pub writes: Vec<usize>,
    /// Scratch bytes while it runs.
    pub scratch: u64,
}

/// Ops and their buffers. A buffer that no op writes lives from the start. A buffer dies after its last reader, or after the op
/// that wrote it if it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ops {
    /// Bytes of each buffer, at least 1.
    pub sizes: Vec<u64>,
    /// In any topological order.
    pub ops: Vec<Op>,
    /// Buffers that live to the end.
    pub kept: Vec<usize>,
}

/// An order and its peak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Indices of ops, first to last.
    pub order: Vec<usize>,
    /// The peak of live bytes, with scratch.
    pub peak: u64,
    /// Whether it is proven optimal.
    pub exact: bool,
}

/// Limits of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderEffort {
    /// The most downsets that the exact search visits.
    pub states: usize,
    /// Width of the beam: downsets kept per size; at least 1.
    pub width: usize,
}

impl Default for OrderEffort {
    fn default() -> OrderEffort {
        OrderEffort { states: 200_000, width: 64 }
    }
}

impl Ops {
    /// An order with the lowest peak, or the best found within the limits.
    pub fn order(&self, effort: OrderEffort) -> Result<Schedule> {
        let relations = Relations::of(self)?;
        let schedule = |(order, peak), exact| Schedule { order, peak, exact };
        if let Some(found) = relations.exact(effort.states) {
            return Ok(schedule(found, true));
        }
        let given: Vec<usize> = (0..self.ops.len()).collect();
        let beam = schedule(relations.beam(effort.width), false);
        let given = self.peak(&given).ok().map(|peak| schedule((given, peak), false));
        Ok(given.filter(|given| given.peak < beam.peak).unwrap_or(beam))
    }

    /// The peak of this order, computed step by step.
    pub fn peak(&self, order: &[usize]) -> Result<u64> {
        let buffers = self.lifetimes(order)?;
        let live = |time: u64| buffers.iter().filter(|b| b.lower <= time && time < b.upper).map(|b| b.size).sum();
        Ok((0..order.len() as u64).map(live).max().unwrap_or(0))
    }

    /// The placement problem of this order: its buffers, then the scratch of each op that has some. The op at position `t`
    /// runs in `t..t + 1`.
    pub fn lifetimes(&self, order: &[usize]) -> Result<Vec<Buffer>> {
        let mut time = vec![None; self.ops.len()];
        for (at, &op) in order.iter().enumerate() {
            let first = time.get_mut(op).filter(|time| time.is_none()).ok_or(Error::OrderOfOps { op })?;
            *first = Some(at as u64);
        }
        let time = |op: usize| time[op].ok_or(Error::OrderOfOps { op });
        let end = self.ops.len() as u64;
        let mut lives: Vec<(u64, u64)> = vec![(0, 0); self.sizes.len()];
        for (op, Op { writes, .. }) in self.ops.iter().enumerate() {
            for &buffer in writes {
                *lives.get_mut(buffer).ok_or(Error::OpBuffer { op, buffer })? = (time(op)?, time(op)? + 1);
            }
        }
        for (op, Op { reads, .. }) in self.ops.iter().enumerate() {
            for &buffer in reads {
                let (lower, upper) = lives.get_mut(buffer).ok_or(Error::OpBuffer { op, buffer })?;
                if time(op)? < *lower {
                    return Err(Error::OrderOfOps { op });
                }
                *upper = (*upper).max(time(op)? + 1);
            }
        }
        for &buffer in &self.kept {
            lives.get_mut(buffer).ok_or(Error::OpBuffer { op: self.ops.len(), buffer })?.1 = end;
        }
        let buffers = lives.iter().zip(&self.sizes).map(|(&(lower, upper), &size)| Buffer::new(lower, upper, size));
        let mut all: Vec<Buffer> = buffers.collect();
        for (op, Op { scratch, .. }) in self.ops.iter().enumerate().filter(|(_, op)| op.scratch > 0) {
            all.push(Buffer::new(time(op)?, time(op)? + 1, *scratch));
        }
        Ok(all)
    }
}

/// A set of ops.
type Downset = Box<[u64]>;

fn has(set: &Downset, op: usize) -> bool {
    set[op / 64] >> (op % 64) & 1 == 1
}

fn with(set: &Downset, op: usize) -> Downset {
    let mut more = set.clone();
    more[op / 64] |= 1 << (op % 64);
    more
}

/// A checked problem with its dependencies.
struct Relations<'a> {
    all: &'a Ops,
    /// For each op, its predecessors.
    before: Vec<Vec<usize>>,
    /// For each buffer, its readers, and whether it lives to the end.
    readers: Vec<Vec<usize>>,
    kept: Vec<bool>,
    /// Bytes live before anything runs.
    start: u64,
}

/// The live bytes of a step.
struct Transition {
    /// While the op runs.
    peak: u64,
    /// After it.
    live: u64,
}

/// How a downset was reached with the lowest peak.
struct Reached {
    peak: u64,
    live: u64,
    /// The last op and the downset before it.
    last: Option<(usize, Downset)>,
}

impl<'a> Relations<'a> {
    fn of(all: &'a Ops) -> Result<Relations<'a>> {
        let count = all.sizes.len();
        let (mut writer, mut readers, mut kept) = (vec![None; count], vec![Vec::new(); count], vec![false; count]);
        for (op, Op { reads, writes, .. }) in all.ops.iter().enumerate() {
            for &buffer in writes {
                let writer = writer.get_mut(buffer).ok_or(Error::OpBuffer { op, buffer })?;
                if writer.replace(op).is_some() {
                    return Err(Error::OpWritesAgain { op, buffer });
                }
            }
            for &buffer in reads {
                let readers: &mut Vec<usize> = readers.get_mut(buffer).ok_or(Error::OpBuffer { op, buffer })?;
                if readers.last() != Some(&op) {
                    readers.push(op);
                }
            }
        }
        for &buffer in &all.kept {
            *kept.get_mut(buffer).ok_or(Error::OpBuffer { op: all.ops.len(), buffer })? = true;
        }
        let mut total = all.ops.iter().fold(0u64, |total, op| total.saturating_add(op.scratch));
        for (buffer, &size) in all.sizes.iter().enumerate() {
            total = total.saturating_add(size);
            if size == 0 || total > MAX_BYTES {
                return Err(Error::BufferSize { buffer, size, total });
            }
            if writer[buffer].is_none() && readers[buffer].is_empty() && !kept[buffer] {
                return Err(Error::OpUnused { buffer });
            }
        }
        let before = |op: &Op| {
            let mut before: Vec<usize> = op.reads.iter().filter_map(|&buffer| writer[buffer]).collect();
            before.sort_unstable();
            before.dedup();
            before
        };
        let start = (0..count).filter(|&b| writer[b].is_none()).map(|b| all.sizes[b]).sum();
        let relations = Relations { all, before: all.ops.iter().map(before).collect(), readers, kept, start };
        relations.check_cycles().map(|()| relations)
    }

    /// Whether there is a topological order.
    fn check_cycles(&self) -> Result<()> {
        let mut set = self.nothing();
        loop {
            let ready = self.ready(&set);
            match ready.first() {
                None => break,
                Some(_) => ready.into_iter().for_each(|op| set = with(&set, op)),
            }
        }
        match (0..self.all.ops.len()).find(|&op| !has(&set, op)) {
            Some(op) => Err(Error::OpCycle { op }),
            None => Ok(()),
        }
    }

    fn nothing(&self) -> Downset {
        vec![0; self.all.ops.len().div_ceil(64)].into()
    }

    fn ready(&self, set: &Downset) -> Vec<usize> {
        let waits = |&op: &usize| !has(set, op) && self.before[op].iter().all(|&other| has(set, other));
        (0..self.all.ops.len()).filter(waits).collect()
    }

    fn step(&self, set: &Downset, live: u64, op: usize) -> Transition {
        let Op { reads, writes, scratch } = &self.all.ops[op];
        let sizes = &self.all.sizes;
        let written: u64 = writes.iter().map(|&buffer| sizes[buffer]).sum();
        let over = |buffer: usize| !self.kept[buffer] && self.readers[buffer].iter().all(|&r| r == op || has(set, r));
        let died = |(i, &buffer): (usize, &usize)| !reads[..i].contains(&buffer) && over(buffer);
        let read: u64 = reads.iter().enumerate().filter(|&read| died(read)).map(|(_, &buffer)| sizes[buffer]).sum();
        let unread: u64 = writes.iter().filter(|&&buffer| over(buffer)).map(|&buffer| sizes[buffer]).sum();
        Transition { peak: live + written + scratch, live: live + written - read - unread }
    }

    /// The successors with their live bytes; a single one if it is never worse than the others.
    fn next(&self, set: &Downset, peak: u64, live: u64) -> Vec<(usize, Transition)> {
        let mut steps: Vec<(usize, Transition)> = self.ready(set).into_iter().map(|op| (op, self.step(set, live, op))).collect();
        if let Some(free) = steps.iter().position(|(_, step)| step.peak <= peak && step.live <= live) {
            return vec![steps.swap_remove(free)];
        }
        steps
    }

    fn exact(&self, states: usize) -> Option<(Vec<usize>, u64)> {
        let count = self.all.ops.len();
        let start = Reached { peak: self.start, live: self.start, last: None };
        let mut reached: HashMap<Downset, Reached> = HashMap::from([(self.nothing(), start)]);
        // Ties: the larger set, then the set itself, so that the answer is reproducible.
        let mut queue = BinaryHeap::from([(Reverse(self.start), 0, self.nothing())]);
        while let Some((Reverse(peak), size, set)) = queue.pop() {
            if size == count {
                return Some((walk_back(&reached, set), peak));
            }
            if reached[&set].peak < peak {
                continue;
            }
            for (op, step) in self.next(&set, peak, reached[&set].live) {
                let (more, peak) = (with(&set, op), peak.max(step.peak));
                if reached.get(&more).is_none_or(|known| peak < known.peak) {
                    reached.insert(more.clone(), Reached { peak, live: step.live, last: Some((op, set.clone())) });
                    queue.push((Reverse(peak), size + 1, more));
                }
            }
            if reached.len() > states {
                return None;
            }
        }
        unreachable!("without cycles everything runs")
    }

    fn beam(&self, width: usize) -> (Vec<usize>, u64) {
        // The lowest peak per set, with the order that led there.
        let mut beam = vec![(self.start, self.start, self.nothing(), Vec::new())];
        for _ in 0..self.all.ops.len() {
            let mut next: BTreeMap<Downset, (u64, u64, Vec<usize>)> = BTreeMap::new();
            for (peak, live, set, order) in &beam {
                for (op, step) in self.next(set, *peak, *live) {
                    let (more, peak) = (with(set, op), step.peak.max(*peak));
                    if next.get(&more).is_none_or(|known| peak < known.0) {
                        let order = order.iter().copied().chain([op]).collect();
                        next.insert(more, (peak, step.live, order));
                    }
                }
            }
            beam = next.into_iter().map(|(set, (peak, live, order))| (peak, live, set, order)).collect();
            beam.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
            beam.truncate(width.max(1));
        }
        let (peak, _, _, order) = beam.into_iter().next().expect("without cycles everything runs");
        (order, peak)
    }
}

fn walk_back(reached: &HashMap<Downset, Reached>, mut set: Downset) -> Vec<usize> {
    let mut order = Vec::new();
    while let Some((op, before)) = &reached[&set].last {
        order.push(*op);
        set = before.clone();
    }
    order.reverse();
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Problem;

    /// The lowest peak over all orders, each computed step by step.
    fn enumerated(ops: &Ops, order: &mut Vec<usize>) -> u64 {
        if order.len() == ops.ops.len() {
            return ops.peak(order).unwrap();
        }
        let written = |buffer: &usize| ops.ops.iter().position(|op| op.writes.contains(buffer));
        let mut least = u64::MAX;
        for op in 0..ops.ops.len() {
            let ready = ops.ops[op].reads.iter().filter_map(written).all(|writer| order.contains(&writer));
            if ready && !order.contains(&op) {
                order.push(op);
                least = least.min(enumerated(ops, order));
                order.pop();
            }
        }
        least
    }

    /// Op i writes buffer 2 + i and reads some before; 0 and 1 are there from the start.
    fn graph(most: usize) -> impl Strategy<Value = Ops> {
        let op = (prop::collection::vec(any::<prop::sample::Index>(), 1..4), 1..9u64, prop_oneof![2 => Just(0), 1 => 1..6u64]);
        (prop::collection::vec(op, 1..most), any::<prop::sample::Index>()).prop_map(|(drawn, kept)| {
            let mut all = Ops { sizes: vec![3, 2], ..Ops::default() };
            for (reads, size, scratch) in drawn {
                let known = all.sizes.len();
                let reads = reads.iter().map(|read| read.index(known)).collect();
                all.ops.push(Op { reads, writes: vec![known], scratch });
                all.sizes.push(size);
            }
            all.kept = vec![0, 1, kept.index(all.sizes.len())];
            all
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

        #[test]
        fn the_exact_order_is_the_least_of_all(ops in graph(7)) {
            let schedule = ops.order(OrderEffort::default()).unwrap();
            prop_assert!(schedule.exact);
            prop_assert_eq!(ops.peak(&schedule.order).unwrap(), schedule.peak);
            prop_assert_eq!(schedule.peak, enumerated(&ops, &mut Vec::new()));
        }

        #[test]
        fn the_peak_is_what_a_placement_needs_at_least(ops in graph(12)) {
            let schedule = ops.order(OrderEffort::default()).unwrap();
            let buffers = ops.lifetimes(&schedule.order).unwrap();
            prop_assert_eq!(Problem { buffers, capacity: 0 }.max_live(), schedule.peak);
        }

        #[test]
        fn a_beam_is_an_order_and_no_better_than_the_best(ops in graph(20), width in 1..8usize) {
            let beam = ops.order(OrderEffort { states: 0, width }).unwrap();
            let exact = ops.order(OrderEffort::default()).unwrap();
            prop_assert!(!beam.exact && exact.exact);
            prop_assert_eq!(ops.peak(&beam.order).unwrap(), beam.peak);
            prop_assert!(exact.peak <= beam.peak);
            prop_assert!(beam.peak <= ops.peak(&(0..ops.ops.len()).collect::<Vec<_>>()).unwrap());
        }
    }

    fn op(reads: &[usize], writes: &[usize]) -> Op {
        Op { reads: reads.into(), writes: writes.into(), scratch: 0 }
    }

    /// Two branches that widen and narrow again: one is finished before the other begins.
    #[test]
    fn a_branch_is_finished_before_the_next() {
        let ops = Ops {
            sizes: vec![1, 100, 100, 2, 2, 1],
            ops: vec![op(&[0], &[1]), op(&[0], &[2]), op(&[1], &[3]), op(&[2], &[4]), op(&[3, 4], &[5])],
            kept: vec![5],
        };
        let schedule = ops.order(OrderEffort::default()).unwrap();
        assert_eq!(ops.peak(&[0, 1, 2, 3, 4]).unwrap(), 202);
        assert_eq!((schedule.peak, schedule.exact), (104, true));
    }

    #[test]
    fn what_is_no_order_of_work_is_refused() {
        let refuse = |sizes: &[u64], ops: Vec<Op>| Ops { sizes: sizes.into(), ops, kept: vec![] }.order(OrderEffort::default());
        assert!(matches!(refuse(&[1, 1], vec![op(&[0], &[1]), op(&[1], &[0])]), Err(Error::OpCycle { op: 0 })));
        assert!(matches!(refuse(&[1], vec![op(&[], &[0]), op(&[], &[0])]), Err(Error::OpWritesAgain { op: 1, buffer: 0 })));
        assert!(matches!(refuse(&[1], vec![op(&[3], &[0])]), Err(Error::OpBuffer { op: 0, buffer: 3 })));
        assert!(matches!(refuse(&[1, 1], vec![op(&[], &[0])]), Err(Error::OpUnused { buffer: 1 })));
        assert!(matches!(refuse(&[0], vec![op(&[], &[0])]), Err(Error::BufferSize { .. })));
        let chain = Ops { sizes: vec![1, 1], ops: vec![op(&[], &[0]), op(&[0], &[1])], kept: vec![] };
        assert!(matches!(chain.peak(&[1, 0]), Err(Error::OrderOfOps { op: 1 })));
        assert!(matches!(chain.peak(&[0, 0]), Err(Error::OrderOfOps { op: 0 })));
        assert!(matches!(chain.peak(&[0]), Err(Error::OrderOfOps { op: 1 })));
    }
}
