//! What differs in each run, beside the report: times and memory of engines, and the gates on them (`measured.json`).

use attar_eval::{Evaluation, Latencies, Status, Verdict, bench::Machine};
use serde::{Deserialize, Serialize};

/// Version of this format.
const FORMAT: u32 = 1;

/// Times and memory of engines, measured on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Version of this format: 1.
    pub measured: u32,
    /// The program, with its version.
    pub tool: String,
    /// That of the report beside it.
    pub recipe_digest: attar_tensor::Digest,
    /// Where.
    pub machine: Machine,
    /// What.
    pub evals: Vec<Evaluation>,
    /// Gates on these.
    pub gates: Vec<Verdict>,
    /// Whether every one of them passed.
    pub passed: bool,
}

impl Timed {
    /// Of what was measured on this machine.
    pub(crate) fn here(recipe_digest: attar_tensor::Digest, evals: Vec<Evaluation>, gates: Vec<Verdict>) -> Timed {
        let passed = gates.iter().all(|verdict| verdict.status == Status::Passed);
        Timed { measured: FORMAT, tool: crate::json::TOOL.into(), recipe_digest, machine: Machine::here(), evals, gates, passed }
    }

    /// Whether there is nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.evals.is_empty() && self.gates.is_empty()
    }
}

/// The times of an evaluation, if it took some.
pub(crate) fn latencies(evaluation: &Evaluation) -> Option<Latencies> {
    match &evaluation.outcome {
        attar_eval::Outcome::Measured(measured) => measured.read(),
        _ => None,
    }
}
