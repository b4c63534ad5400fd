//! How what a gate measures depends on the noise.

use attar_eval::{Against, Better, Bound, Evaluation, Measurements, Metric, Outcome, Verdict, task};

/// Tasks whose metrics follow a law.
const KNOWN: [&str; 5] = ["perplexity", "texts", "choice", "embedding", "embedding-drift"];

/// A measured loss, and what of it is allowed. `noise` is the energy of all rounding noise relative to now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loss {
    law: Law,
    measured: f64,
    limit: f64,
}

/// A law with the value that there is without any noise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Law {
    /// A divergence: in proportion to the noise.
    Linear,
    /// A perplexity, or its ratio: its logarithm over that of the base is.
    Log(f64),
    /// The same, written as a share that was lost.
    LogShare,
    /// A share of answers that are the same or right: they change with the size of the noise, its root.
    Root(f64),
    /// The same, written as a share that was lost.
    RootShare,
}

impl Loss {
    /// Of a gate on quality that failed; `None` for other gates, and where not even the base passes.
    pub(super) fn of(verdict: &Verdict, evals: &[Evaluation]) -> Option<Loss> {
        let gate = &verdict.gate;
        let eval = evals.iter().find(|eval| {
            let own = eval.eval == gate.eval && eval.runner == gate.runner;
            own && eval.variant == verdict.variant && (gate.mode.is_none() || eval.mode == gate.mode)
        })?;
        let Outcome::Measured(measurements) = &eval.outcome else { return None };
        let task = task(&eval.task).ok()?;
        let metric = task.metric(&gate.metric).ok()?;
        // Answers that are written go apart at the first other token: no law holds for them. And less noise makes nothing worse.
        let towards = match gate.bound {
            Bound::AtMost(_) => metric.better == Better::Lower,
            Bound::AtLeast(_) => metric.better == Better::Higher,
            Bound::WorseAtMost(_) | Bound::DropAtMost(_) => true,
        };
        if !KNOWN.contains(&task.name) || !towards {
            return None;
        }
        let law = Law::of(metric, measurements, gate.bound.is_relative())?;
        let loss = Loss { law, measured: verdict.measured?, limit: verdict.limit };
        let allowed = loss.allowed();
        (allowed > 0.0 && allowed.is_finite()).then_some(loss)
    }

    /// The noise that the limit allows.
    pub(super) fn allowed(self) -> f64 {
        let Loss { law, measured, limit } = self;
        match law {
            Law::Linear => limit / measured,
            Law::Log(base) => (limit / base).ln() / (measured / base).ln(),
            Law::LogShare => limit.ln_1p() / measured.ln_1p(),
            Law::Root(best) => ((best - limit) / (best - measured)).max(0.0).powi(2),
            Law::RootShare => (limit / measured).powi(2),
        }
    }

    /// A prediction counts as one that the gate will pass if it would with so much more noise. What depends on
    /// single tokens has a noise of its own.
    pub(super) fn caution(self) -> f64 {
        match self.law {
            Law::Linear => 1.2,
            Law::Log(_) | Law::LogShare | Law::Root(_) | Law::RootShare => 2.5,
        }
    }

    /// What is predicted to be measured with that noise.
    pub(super) fn at(self, noise: f64) -> f64 {
        let measured = self.measured;
        match self.law {
            Law::Linear => measured * noise,
            Law::Log(base) => base * ((measured / base).ln() * noise).exp(),
            Law::LogShare => (measured.ln_1p() * noise).exp_m1(),
            Law::Root(best) => best - (best - measured) * noise.sqrt(),
            Law::RootShare => measured * noise.sqrt(),
        }
    }
}

impl Law {
    fn of(metric: &Metric, measurements: &Measurements, relative: bool) -> Option<Law> {
        let predicts = metric.name.starts_with("perplexity");
        let base = || metric.base.and_then(|base| measurements.number(base));
        match (metric.against, metric.better, relative) {
            // What differs between runners has other reasons.
            (Against::Sibling, ..) => None,
            (_, _, true) if predicts => Some(Law::LogShare),
            (_, Better::Higher, true) => Some(Law::RootShare),
            (Against::Base, Better::Lower, false) if predicts => Some(Law::Log(1.0)),
            (Against::Nothing, Better::Lower, false) if predicts => base().map(Law::Log),
            (Against::Base, Better::Lower, _) => Some(Law::Linear),
            (Against::Base, Better::Higher, false) => Some(Law::Root(metric.perfect)),
            (Against::Nothing, Better::Higher, false) => base().map(Law::Root),
            (Against::Nothing, Better::Lower, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_what_gives_the_limit() {
        for law in [Law::Linear, Law::Log(20.0), Law::LogShare, Law::Root(0.99), Law::RootShare] {
            let (measured, limit) = match law {
                Law::Linear => (0.2, 0.05),
                Law::Log(_) => (30.0, 22.0),
                Law::LogShare | Law::RootShare => (0.4, 0.1),
                Law::Root(_) => (0.7, 0.9),
            };
            let loss = Loss { law, measured, limit };
            let allowed = loss.allowed();
            assert!(allowed > 0.0 && allowed < 1.0, "{law:?}: {allowed}");
            assert!((loss.at(allowed) - limit).abs() < 1e-9 && (loss.at(1.0) - measured).abs() < 1e-9, "{law:?}");
        }
    }

    #[test]
    fn a_base_that_fails_allows_nothing() {
        let beyond = [(Law::Log(20.0), 25.0, 19.0), (Law::Root(0.8), 0.7, 0.9)];
        for (law, measured, limit) in beyond {
            assert!(Loss { law, measured, limit }.allowed() <= 0.0, "{law:?}");
        }
    }
}
