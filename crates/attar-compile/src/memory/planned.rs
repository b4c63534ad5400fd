//! Problems as users pose them, within a capacity or with the least height, and answers in the names of their buffers.

use super::{Effort, Entries, Heights, Method, Outcome, Placement, Problem, Reason, Solution, minimise, solve, validate};
use crate::Result;

/// The answer to a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A validated placement.
    Placed {
        /// The offset of each buffer.
        placement: Placement,
        /// What found it.
        method: Method,
        /// Lower bound on the height of any placement, if the least height was requested.
        at_least: Option<u64>,
    },
    /// There is no placement.
    Infeasible(Reason),
    /// Not decided: the search reached its limit.
    Undecided,
}

/// A problem and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Bytes available; `None` to find the least height.
    pub capacity: Option<u64>,
    /// The largest sum of live bytes at any time.
    pub max_live: u64,
    /// Nodes searched.
    pub nodes: u64,
    /// The answer.
    pub answer: Answer,
}

impl Planned {
    /// Places buffers within a capacity, or with the least height, and validates the placement.
    ///
    /// # Errors
    /// If a buffer is invalid.
    ///
    /// # Panics
    /// If the placement is invalid, which is a bug of the planner.
    pub fn find(entries: &Entries, capacity: Option<u64>, effort: Effort) -> Result<Planned> {
        let problem = Problem { buffers: entries.buffers.clone(), capacity: capacity.unwrap_or(0) };
        let (answer, nodes) = match capacity {
            Some(_) => within(&problem, effort)?,
            None => lowest(&problem, effort)?,
        };
        if let Answer::Placed { placement, .. } = &answer {
            let capacity = capacity.unwrap_or(placement.height);
            let checked = validate(&Problem { capacity, ..problem.clone() }, placement);
            assert_eq!(checked, Ok(()), "the planner's placement does not hold");
        }
        Ok(Planned { capacity, max_live: problem.max_live(), nodes, answer })
    }

    /// The share of the height above the largest sum of live bytes; `None` without a placement.
    pub fn fragmentation(&self) -> Option<f64> {
        let Answer::Placed { placement, .. } = &self.answer else { return None };
        Some((placement.height - self.max_live) as f64 / placement.height as f64)
    }

    /// Why there is no placement, in words; `None` if there is one.
    pub fn failure(&self, entries: &Entries) -> Option<String> {
        match &self.answer {
            Answer::Placed { .. } => None,
            Answer::Infeasible(reason) => Some(format!("the buffers do not fit: {}", reason.told(entries))),
            Answer::Undecided => Some(format!("not decided within {} nodes", self.nodes)),
        }
    }
}

fn within(problem: &Problem, effort: Effort) -> Result<(Answer, u64)> {
    let Solution { outcome, nodes } = solve(problem, effort)?;
    let answer = match outcome {
        Outcome::Placed(placement, method) => Answer::Placed { placement, method, at_least: None },
        Outcome::Infeasible(reason) => Answer::Infeasible(reason),
        Outcome::Undecided => Answer::Undecided,
    };
    Ok((answer, nodes))
}

fn lowest(problem: &Problem, effort: Effort) -> Result<(Answer, u64)> {
    Ok(match minimise(problem, effort)? {
        Ok(Heights { placement, method, at_least, nodes }) => {
            (Answer::Placed { placement, method, at_least: Some(at_least) }, nodes)
        }
        Err(reason) => (Answer::Infeasible(reason), 0),
    })
}

impl Reason {
    /// Ids of the buffers that cause the conflict.
    pub fn blamed<'a>(&self, entries: &'a Entries) -> Vec<&'a str> {
        let indices = match self {
            Reason::MaxLive(peak) => peak.buffers.clone(),
            Reason::Collision { one, other } => vec![*one, *other],
            Reason::Above { buffer, .. } => vec![*buffer],
            Reason::Exhausted { subset, .. } => subset.clone(),
        };
        indices.into_iter().map(|buffer| entries.ids[buffer].as_str()).collect()
    }

    /// In words.
    pub fn told(&self, entries: &Entries) -> String {
        let names = self.blamed(entries);
        let list = format!("`{}`", names.join("`, `"));
        match self {
            Reason::MaxLive(peak) => {
                format!("{} B are live at time {}, in {} buffers: {list}", peak.bytes, peak.time, names.len())
            }
            Reason::Collision { .. } => format!("{list} have fixed offsets and overlap"),
            Reason::Above { end, .. } => format!("{list} has a fixed offset and ends at byte {end}"),
            Reason::Exhausted { irreducible: true, .. } => format!(
                "the search was exhaustive; these {} buffers do not fit, and any proper subset of them does: {list}",
                names.len()
            ),
            Reason::Exhausted { .. } => {
                format!("the search was exhaustive; these {} buffers do not fit: {list}", names.len())
            }
        }
    }
}
