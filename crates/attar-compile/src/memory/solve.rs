//! From a problem to a placement, or to the reason why there is none: greedy first, then the exact search.

use std::fmt;

use super::{
    decide::{Decision, FIRST_LIMIT, decide},
    greedy::ORDERS,
    infeasible::{self, Reason},
    problem::{Buffer, MAX_BYTES, Placement, Problem},
    skyline::{self, Found},
};
use crate::Result;

/// Limits of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Nodes of the search, over all its attempts. Before it, shuffled skylines of many buffers may put down a quarter as many.
    pub nodes: u64,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { nodes: 10_000_000 }
    }
}

/// What found a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Lowest gap first, in this order of buffers.
    Greedy(&'static str),
    /// Lowest moments first, with the first buffer in this order that fits there.
    Skyline(&'static str),
    /// The exact search; ties were broken by this at the end.
    Search(&'static str),
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Greedy(order) => write!(f, "greedy by {order}"),
            Method::Skyline(order) => write!(f, "skyline by {order}"),
            Method::Search(preorder) => write!(f, "search by {preorder}"),
        }
    }
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A placement, and how it was found.
    Placed(Placement, Method),
    /// No placement exists.
    Infeasible(Reason),
    /// Not decided within the effort, or the problem is too large to search.
    Undecided,
}

/// The result of a search, with its effort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// The result.
    pub outcome: Outcome,
    /// Nodes searched, and buffers put down on shuffled skylines; 0 if greedy placement was enough.
    pub nodes: u64,
}

/// The lowest placement that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heights {
    /// The placement.
    pub placement: Placement,
    /// What found it.
    pub method: Method,
    /// No placement is lower than this; equal to the placement's height if that is the least.
    pub at_least: u64,
    /// Nodes searched, and buffers put down on shuffled skylines.
    pub nodes: u64,
}

/// Search nodes for reducing an infeasible set of buffers.
const BLAME_NODES: u64 = 500_000;

/// From so many buffers on, skylines come before the search: with many buffers each of its nodes takes long.
const MANY: usize = 512;

/// Shuffled skylines put down this part of what the search has in nodes.
const SKYLINE_PART: u64 = 4;

/// Steps of halving for which the effort of `minimise` lasts.
const PROBES: u64 = 16;

/// Places the buffers within the capacity.
pub fn solve(problem: &Problem, effort: Effort) -> Result<Solution> {
    problem.check()?;
    let answer = |outcome, nodes| Ok(Solution { outcome, nodes });
    let (buffers, capacity) = (&problem.buffers, problem.capacity.min(2 * MAX_BYTES));
    if let Some(reason) = infeasible::fixed(buffers, capacity) {
        return answer(Outcome::Infeasible(reason), 0);
    }
    if let Some(peak) = problem.peak().filter(|peak| peak.bytes > capacity) {
        return answer(Outcome::Infeasible(Reason::MaxLive(peak)), 0);
    }
    for order in ORDERS {
        let placement = order.place(problem);
        if placement.height <= capacity {
            return answer(Outcome::Placed(placement, Method::Greedy(order.name)), 0);
        }
    }
    let (found, skyline) = on_skyline(problem, capacity, effort);
    if let Some((placement, method)) = found.filter(|(placement, _)| placement.height <= capacity) {
        return answer(Outcome::Placed(placement, method), skyline);
    }
    let (decision, nodes) = decide(buffers, capacity, effort.nodes);
    let nodes = skyline + nodes;
    match decision {
        Decision::Placed(offsets, preorder) => {
            answer(Outcome::Placed(problem.placement(offsets), Method::Search(preorder)), nodes)
        }
        Decision::Failed(subset) => {
            let (reason, more) = infeasible::reduce(buffers, subset, capacity, BLAME_NODES);
            answer(Outcome::Infeasible(reason), nodes + more)
        }
        Decision::Limit => answer(Outcome::Undecided, nodes),
    }
}

/// The lowest of the greedy placements. Fixed buffers must not collide.
pub fn greedy(problem: &Problem) -> Result<(Placement, Method)> {
    problem.check()?;
    Ok(best_greedy(problem))
}

fn best_greedy(problem: &Problem) -> (Placement, Method) {
    let placements = ORDERS.iter().map(|order| (order.place(problem), Method::Greedy(order.name)));
    placements.min_by_key(|(placement, _)| placement.height).expect("there are orders")
}

/// If there are many buffers: the lowest placement on a skyline, or the first one within `goal`. Also returns the
/// buffers put down in shuffled orders.
fn on_skyline(problem: &Problem, goal: u64, effort: Effort) -> (Option<(Placement, Method)>, u64) {
    if problem.buffers.len() < MANY {
        return (None, 0);
    }
    let found = skyline::lowest(problem, goal, effort.nodes / SKYLINE_PART);
    let steps = found.as_ref().map_or(0, |found| found.steps);
    (found.map(|Found { placement, order, .. }| (placement, Method::Skyline(order))), steps)
}

/// The lowest placement, whatever the problem's capacity; an error of the fixed buffers is the reason why there is none.
pub fn minimise(problem: &Problem, effort: Effort) -> Result<Result<Heights, Reason>> {
    problem.check()?;
    let buffers = &problem.buffers;
    if let Some(reason) = infeasible::fixed(buffers, 2 * MAX_BYTES) {
        return Ok(Err(reason));
    }
    let grain = grain(buffers);
    let fixed = buffers.iter().filter_map(|buffer| Some(buffer.fixed? + buffer.size)).max().unwrap_or(0);
    let at_least = problem.max_live().max(fixed).next_multiple_of(grain);
    // Before greedy, whose time grows with the square of the buffers.
    let (found, skyline) = on_skyline(problem, at_least, effort);
    let lowest = match found {
        Some((placement, method)) if placement.height <= at_least => Heights { placement, method, at_least, nodes: 0 },
        found => {
            // Not from the skyline's height downwards: lower capacities are harder to decide.
            let searched = search_lowest(problem, at_least, grain, effort);
            match found {
                Some((placement, method)) if placement.height < searched.placement.height => {
                    Heights { placement, method, ..searched }
                }
                _ => searched,
            }
        }
    };
    Ok(Ok(Heights { nodes: lowest.nodes + skyline, ..lowest }))
}

/// The lowest placement by greedy and search. Heights are multiples of `grain`, and none is less than `at_least`.
fn search_lowest(problem: &Problem, mut at_least: u64, grain: u64, effort: Effort) -> Heights {
    let buffers = &problem.buffers;
    let (mut placement, mut method) = best_greedy(problem);
    let (mut nodes, mut next) = (0, at_least);
    let mut capacity = at_least;
    while next < placement.height && nodes < effort.nodes {
        let share = if capacity == at_least { effort.nodes / 4 } else { effort.nodes / PROBES };
        let (decision, used) = decide(buffers, capacity, share.max(FIRST_LIMIT).min(effort.nodes - nodes));
        nodes += used;
        match decision {
            Decision::Placed(offsets, preorder) => (placement, method) = (problem.placement(offsets), Method::Search(preorder)),
            Decision::Failed(_) => (at_least, next) = (at_least.max(capacity + grain), capacity + grain),
            Decision::Limit => next = capacity + grain,
        }
        capacity = next + (placement.height.saturating_sub(next + grain)) / 2 / grain * grain;
    }
    Heights { placement, method, at_least, nodes }
}

/// Every height of a placement in which nothing can be lowered is a multiple of this.
fn grain(buffers: &[Buffer]) -> u64 {
    let aligns = buffers.iter().map(|buffer| buffer.align).filter(|&align| align > 1);
    let fixed = buffers.iter().filter_map(|buffer| buffer.fixed);
    let grain = buffers.iter().map(|buffer| buffer.size).chain(aligns).chain(fixed).fold(0, greatest_common_divisor);
    grain.max(1)
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
