//! Requests and when they come: streams that each wait for their answer (closed loop), or arrivals that wait for nobody (open loop).
//!
//! A time counts from when a request was due, so one that had to wait behind another has waited (no coordinated omission).

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use crate::{Result, statistics::SplitMix};

/// Tokens in and out of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of the prompt.
    pub prompt: usize,
    /// Of the answer.
    pub answer: usize,
}

/// How long the tokens of an answer took, in seconds, by the server's own clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Timed {
    /// From the request to the first token.
    pub(crate) first: f64,
    /// From each token to the next.
    pub(crate) next: Vec<f64>,
}

/// Answers one request after another.
pub(crate) trait Server {
    /// Answers request number `at`.
    fn answer(&mut self, at: usize) -> Result<Timed>;
}

/// Time that passes.
pub(crate) trait Clock: Sync {
    /// Seconds since some moment.
    fn now(&self) -> f64;
    /// Waits until then.
    fn wait_until(&self, then: f64);
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) at: usize,
    /// Seconds between when it was due and when its server took it.
    pub(crate) waited: f64,
    /// When it was over.
    pub(crate) ended: f64,
    /// Or why not.
    pub(crate) timed: std::result::Result<Timed, String>,
}

/// Moments of `count` Poisson arrivals at `rate` a second, from 0 on.
pub(crate) fn arrivals(rate: f64, count: usize, seed: u64) -> Vec<f64> {
    let mut random = SplitMix::new(seed);
    let mut now = 0.0;
    let next = |_| {
        now += -(1.0 - random.unit()).ln() / rate;
        now
    };
    (0..count).map(next).collect()
}

/// Lets servers answer `count` requests, each the next that is due when it is free. Without `due`, a request is due when a server takes
/// it.
pub(crate) fn serve<S: Server + Send>(
    servers: &mut [S],
    count: usize,
    due: Option<&[f64]>,
    clock: &dyn Clock,
    done: &(dyn Fn(usize) + Sync),
) -> Vec<Served> {
    let (next, served) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    let one = |server: &mut S| {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            let due = due.map(|due| due[at]);
            due.iter().for_each(|due| clock.wait_until(*due));
            let taken = clock.now();
            let timed = server.answer(at).map_err(|error| error.to_string());
            let waited = due.map_or(0.0, |due| (taken - due).max(0.0));
            let mut all = served.lock().expect("no panic holds this lock");
            all.push(Served { at, waited, ended: clock.now(), timed });
            done(all.len());
        }
    };
    match servers {
        [only] => one(only),
        many => std::thread::scope(|scope| many.iter_mut().for_each(|server| _ = scope.spawn(|| one(server)))),
    }
    let mut served = served.into_inner().expect("the threads have ended");
    served.sort_by_key(|served| served.at);
    served
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Time that passes only as it is said to.
    #[derive(Default)]
    struct Told(Mutex<f64>);

    impl Clock for Told {
        fn now(&self) -> f64 {
            *self.0.lock().unwrap()
        }

        fn wait_until(&self, then: f64) {
            let mut now = self.0.lock().unwrap();
            *now = now.max(then);
        }
    }

    /// Takes a fixed time, and fails at times.
    struct Fixed<'c> {
        clock: &'c Told,
        seconds: f64,
        failing: Cell<usize>,
    }

    impl Server for Fixed<'_> {
        fn answer(&mut self, at: usize) -> Result<Timed> {
            *self.clock.0.lock().unwrap() += self.seconds;
            if at < self.failing.get() {
                return Err(crate::Error::EmptyPrompt);
            }
            Ok(Timed { first: self.seconds, next: Vec::new() })
        }
    }

    fn served(rate: Option<f64>, seconds: f64, count: usize, failing: usize) -> Vec<Served> {
        let clock = Told::default();
        let mut server = [Fixed { clock: &clock, seconds, failing: Cell::new(failing) }];
        let due = rate.map(|rate| arrivals(rate, count, 11));
        serve(&mut server, count, due.as_deref(), &clock, &|_| ())
    }

    /// The mean wait in a queue with Poisson arrivals and a fixed time of service: load / (2 (1 - load)) services (Pollaczek & Khinchine).
    #[test]
    fn waits_are_those_of_the_queue() {
        for load in [0.3, 0.6, 0.8] {
            const COUNT: usize = 200_000;
            let all = served(Some(load), 1.0, COUNT, 0);
            let mean = all.iter().map(|served| served.waited).sum::<f64>() / COUNT as f64;
            let expected = load / (2.0 * (1.0 - load));
            assert!((mean / expected - 1.0).abs() < 0.05, "load {load}: {mean}, expected {expected}");
        }
    }

    #[test]
    fn a_closed_loop_waits_for_nobody() {
        let all = served(None, 0.5, 20, 0);
        assert!(all.iter().all(|served| served.waited == 0.0) && all.len() == 20);
        assert_eq!(all[19].ended, 10.0);
    }

    #[test]
    fn every_request_is_accounted_for_when_some_fail() {
        let all = served(Some(0.5), 1.0, 50, 5);
        assert_eq!(all.iter().map(|served| served.at).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        assert_eq!(all.iter().filter(|served| served.timed.is_err()).count(), 5);
    }

    #[test]
    fn an_overload_does_not_go_on_for_ever() {
        let all = served(Some(2.0), 1.0, 100, 0);
        assert!(all.len() == 100 && all[99].waited > 30.0, "the last had to wait for the half of them");
    }

    #[test]
    fn arrivals_have_their_rate_and_their_seed() {
        let all = arrivals(4.0, 100_000, 3);
        assert!((all[99_999] / 25_000.0 - 1.0).abs() < 0.02 && all.is_sorted());
        assert_eq!(all, arrivals(4.0, 100_000, 3));
    }
}
