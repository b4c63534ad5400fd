//! Who is busy when.

use super::critical::Path;

/// Something that took time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index of the queue: activation loads, weight loads, compute, stores.
    pub queue: usize,
    /// Index of the call.
    pub call: u32,
    /// First cycle.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

/// The port to DRAM: one transfer at a time, each in the first gap after it is ready.
#[derive(Default)]
pub(super) struct Port {
    /// Ascending, disjoint; with the way to the end of each.
    busy: Vec<(u64, u64, Path)>,
}

impl Port {
    /// Takes the port for `cycles` from `ready` on, as early as it can; returns the start, and the way to it if it waited for
    /// the end of another transfer.
    pub(super) fn take(&mut self, ready: u64, cycles: u64) -> (u64, Path) {
        let (mut start, mut way) = (ready, None);
        let mut at = self.busy.partition_point(|(_, end, _)| *end <= ready);
        while at < self.busy.len() && self.busy[at].0 < start + cycles {
            if self.busy[at].1 > start {
                (start, way) = (self.busy[at].1, self.busy[at].2.clone());
            }
            at += 1;
        }
        if cycles > 0 {
            self.busy.insert(at, (start, start + cycles, None));
            self.join_at(at);
        }
        (start, way)
    }

    /// Says which way led to the end of a transfer.
    pub(super) fn ended(&mut self, end: u64, way: &Path) {
        if let Ok(at) = self.busy.binary_search_by_key(&end, |(_, end, _)| *end) {
            self.busy[at].2.clone_from(way);
        }
    }

    /// Joins what touches, so that the list stays short.
    fn join_at(&mut self, at: usize) {
        if at + 1 < self.busy.len() && self.busy[at].1 == self.busy[at + 1].0 {
            let (_, end, way) = self.busy.remove(at + 1);
            (self.busy[at].1, self.busy[at].2) = (end, way);
        }
        if at > 0 && self.busy[at - 1].1 == self.busy[at].0 {
            let (_, end, way) = self.busy.remove(at);
            (self.busy[at - 1].1, self.busy[at - 1].2) = (end, way);
        }
    }

    /// Nothing will ask for a time before `time` any more.
    pub(super) fn forget(&mut self, time: u64) {
        let gone = self.busy.partition_point(|(_, end, _)| *end <= time);
        self.busy.drain(..gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_fills_gaps() {
        let mut port = Port::default();
        let starts = [(0, 10), (30, 10), (5, 15), (5, 10), (5, 5)].map(|(ready, cycles)| port.take(ready, cycles).0);
        assert_eq!(starts, [0, 30, 10, 40, 25]);
    }
}
