//! A problem as people pose it: within a capacity, or as low as can be; and its answer in their names.

use super::{Effort, Entries, Heights, Method, Outcome, Placement, Problem, Reason, Solution, minimise, solve, validate};
use crate::Result;

/// What became of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A placement, checked.
    Placed {
        /// Where each buffer lies.
        placement: Placement,
        /// What found it.
        method: Method,
        /// No placement is lower, where that was asked for.
        at_least: Option<u64>,
    },
    /// There is no placement.
    Infeasible(Reason),
    /// Nobody knows: the search gave up.
    Undecided,
}

/// A problem and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Bytes that there are; as few as can be if it is not given.
    pub capacity: Option<u64>,
    /// The most bytes that live at one moment.
    pub max_live: u64,
    /// Nodes that were searched.
    pub nodes: u64,
    /// The answer.
    pub answer: Answer,
}

impl Planned {
    /// Places buffers within a capacity, or as low as can be, and checks what was found.
    ///
    /// # Errors
    /// Where the buffers make no sense.
    ///
    /// # Panics
    /// Where a placement does not hold: a bug of the planner.
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

    /// The share of the height that is above what lives at once; none without a placement.
    pub fn fragmentation(&self) -> Option<f64> {
        let Answer::Placed { placement, .. } = &self.answer else { return None };
        Some((placement.height - self.max_live) as f64 / placement.height as f64)
    }

    /// Why there is no placement, in words; none where there is one.
    pub fn failure(&self, entries: &Entries) -> Option<String> {
        match &self.answer {
            Answer::Placed { .. } => None,
            Answer::Infeasible(reason) => Some(format!("it does not fit: {}", reason.told(entries))),
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
    /// The buffers that are to blame.
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
            Reason::MaxLive(peak) => format!("at time {} {} B live, of {} buffers: {list}", peak.time, peak.bytes, names.len()),
            Reason::Collision { .. } => format!("{list} are fixed and overlap"),
            Reason::Above { end, .. } => format!("{list} is fixed and ends at {end}"),
            Reason::Exhausted { irreducible: true, .. } => format!(
                "the search looked everywhere; these {} buffers do not fit, and any fewer of them do: {list}",
                names.len()
            ),
            Reason::Exhausted { .. } => {
                format!("the search looked everywhere; these {} buffers do not fit: {list}", names.len())
            }
        }
    }
}
