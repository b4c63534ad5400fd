//! Who is busy when.

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
    /// Ascending, disjoint.
    busy: Vec<(u64, u64)>,
}

impl Port {
    /// Takes the port for `cycles` from `ready` on, as early as it can; returns the start.
    pub(super) fn take(&mut self, ready: u64, cycles: u64) -> u64 {
        let mut start = ready;
        let mut at = self.busy.partition_point(|(_, end)| *end <= ready);
        while at < self.busy.len() && self.busy[at].0 < start + cycles {
            start = start.max(self.busy[at].1);
            at += 1;
        }
        if cycles > 0 {
            self.busy.insert(at, (start, start + cycles));
            self.join_at(at);
        }
        start
    }

    /// Joins what touches, so that the list stays short.
    fn join_at(&mut self, at: usize) {
        if at + 1 < self.busy.len() && self.busy[at].1 == self.busy[at + 1].0 {
            self.busy[at].1 = self.busy[at + 1].1;
            self.busy.remove(at + 1);
        }
        if at > 0 && self.busy[at - 1].1 == self.busy[at].0 {
            self.busy[at - 1].1 = self.busy[at].1;
            self.busy.remove(at);
        }
    }

    /// Nothing will ask for a time before `time` any more.
    pub(super) fn forget(&mut self, time: u64) {
        let gone = self.busy.partition_point(|(_, end)| *end <= time);
        self.busy.drain(..gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_fills_gaps() {
        let mut port = Port::default();
        assert_eq!(port.take(0, 10), 0);
        assert_eq!(port.take(30, 10), 30);
        assert_eq!(port.take(5, 15), 10);
        assert_eq!(port.take(5, 10), 40);
        assert_eq!(port.take(5, 5), 25);
    }
}
