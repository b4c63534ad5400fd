//! The critical path: the chain of work that a run's last cycle waited for. Each piece of work begins when what it waited for
//! longest is done; following that from the end to the start of the run gives pieces whose cycles add up to all of it.

use std::rc::Rc;

/// Cycles on the critical path, by what was done in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Critical {
    /// Transfers of the queues: activation loads, weight loads; arithmetic; stores.
    pub queues: [u64; 4],
    /// Starting transfers: setup and latency.
    pub setup: u64,
}

impl Critical {
    /// All of them.
    pub fn cycles(&self) -> u64 {
        self.queues.iter().sum::<u64>() + self.setup
    }
}

/// How some work came to be done when it was: the cycles on the way, call by call.
#[derive(Debug)]
pub(super) struct Link {
    call: u32,
    cycles: Critical,
    /// Calls before this one: chains of links only grow by calls, not by events.
    before: Path,
}

/// Without recursion: a plan from a file may have any number of calls.
impl Drop for Link {
    fn drop(&mut self) {
        let mut next = self.before.take();
        while let Some(mut link) = next.and_then(Rc::into_inner) {
            next = link.before.take();
        }
    }
}

/// The way to a time; none at the start of a run, and where no paths are followed.
pub(super) type Path = Option<Rc<Link>>;

/// `path`, and then some cycles of `call`.
pub(super) fn then(path: &Path, call: u32, add: impl FnOnce(&mut Critical)) -> Path {
    let (mut cycles, before) = match path {
        Some(last) if last.call == call => (last.cycles, last.before.clone()),
        other => (Critical::default(), other.clone()),
    };
    add(&mut cycles);
    Some(Rc::new(Link { call, cycles, before }))
}

/// Adds the cycles of a path to the calls that it leads through.
pub(super) fn spread(path: &Path, calls: &mut [Critical]) {
    let mut at = path;
    while let Some(link) = at {
        if let Some(call) = calls.get_mut(link.call as usize) {
            call.setup += link.cycles.setup;
            call.queues.iter_mut().zip(link.cycles.queues).for_each(|(sum, more)| *sum += more);
        }
        at = &link.before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_link_for_each_call() {
        let first = then(&None, 0, |cycles| cycles.setup += 3);
        let second = then(&first, 0, |cycles| cycles.queues[2] += 4);
        let third = then(&second, 2, |cycles| cycles.queues[3] += 5);
        assert!(second.as_ref().is_some_and(|link| link.before.is_none()), "one call is one link");
        let mut calls = [Critical::default(); 3];
        spread(&third, &mut calls);
        assert_eq!(calls.map(|call| call.cycles()), [7, 0, 5]);
        assert_eq!(calls[0].queues[2], 4);
    }
}
