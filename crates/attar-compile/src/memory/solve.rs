//! From a problem to a placement, or to why there is none: greedy first, then the exact search.

use std::fmt;

use super::{
    greedy::ORDERS,
    infeasible::{self, Reason},
    preorder::PREORDERS,
    problem::{Buffer, MAX_BYTES, Placement, Problem},
    search::{Search, Verdict},
};
use crate::Result;

/// How long to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Nodes of the search, over all its attempts.
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
    /// The exact search; ties were broken by this at the end.
    Search(&'static str),
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Greedy(order) => write!(f, "greedy by {order}"),
            Method::Search(preorder) => write!(f, "search by {preorder}"),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It fits.
    Placed(Placement, Method),
    /// It cannot.
    Infeasible(Reason),
    /// Neither was found out within the effort, or the problem is too large to search.
    Undecided,
}

/// An answer, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// The answer.
    pub outcome: Outcome,
    /// Nodes searched; 0 where greedy was enough.
    pub nodes: u64,
}

/// The lowest placement that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heights {
    /// Itself.
    pub placement: Placement,
    /// What found it.
    pub method: Method,
    /// No placement is lower than this; equal to the placement's height if that is the least.
    pub at_least: u64,
    /// Nodes searched.
    pub nodes: u64,
}

/// Buffers that share no moment with others are searched apart; more at once than this are not searched.
const MAX_SEARCHED: usize = 4096;

/// Nodes of the first attempt with each preorder, and what every further round multiplies them by.
const FIRST_LIMIT: u64 = 4_000;
const GROWTH: u64 = 2;

/// Nodes for finding out which buffers are to blame.
const BLAME_NODES: u64 = 500_000;

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
    let (decision, nodes) = decide(buffers, capacity, effort.nodes);
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

/// The lowest placement, whatever the problem's capacity; an error of the fixed buffers is the reason why there is none.
pub fn minimise(problem: &Problem, effort: Effort) -> Result<Result<Heights, Reason>> {
    problem.check()?;
    let buffers = &problem.buffers;
    if let Some(reason) = infeasible::fixed(buffers, 2 * MAX_BYTES) {
        return Ok(Err(reason));
    }
    let (mut placement, mut method) = best_greedy(problem);
    let grain = grain(buffers);
    let fixed = buffers.iter().filter_map(|buffer| Some(buffer.fixed? + buffer.size)).max().unwrap_or(0);
    let mut at_least = problem.max_live().max(fixed).next_multiple_of(grain);
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
    Ok(Ok(Heights { placement, method, at_least, nodes }))
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

/// What the search alone says.
pub(super) enum Decision {
    /// Offsets, and the preorder that found the last of them.
    Placed(Vec<u64>, &'static str),
    /// These buffers do not fit.
    Failed(Vec<usize>),
    /// Not found out.
    Limit,
}

/// Buffers that nothing joins in time to others.
struct Component {
    indices: Vec<usize>,
    buffers: Vec<Buffer>,
    search: Search,
    solved: bool,
}

/// Decides by search, in rounds over all preorders with growing limits. Also says how many nodes it took.
pub(super) fn decide(buffers: &[Buffer], capacity: u64, nodes: u64) -> (Decision, u64) {
    let groups = components(buffers);
    if groups.iter().any(|group| group.len() > MAX_SEARCHED) {
        return (Decision::Limit, 0);
    }
    let mut components: Vec<Component> = groups.into_iter().map(|indices| Component::new(indices, buffers, capacity)).collect();
    let (mut used, mut round, mut limit, mut found_by) = (0, 0, FIRST_LIMIT, PREORDERS[0].name);
    while used < nodes {
        for component in components.iter_mut().filter(|component| !component.solved) {
            for preorder in PREORDERS {
                let before = component.search.nodes;
                let verdict = component.search.run(preorder, round, &component.buffers, limit.min(nodes - used));
                used += component.search.nodes - before;
                match verdict {
                    Verdict::Solved => (component.solved, found_by) = (true, preorder.name),
                    Verdict::Failed => return (Decision::Failed(component.indices.clone()), used),
                    Verdict::Limit => continue,
                }
                break;
            }
        }
        if components.iter().all(|component| component.solved) {
            return (Decision::Placed(offsets(&components, buffers.len()), found_by), used);
        }
        (round, limit) = (round + 1, limit.saturating_mul(GROWTH));
    }
    (Decision::Limit, used)
}

impl Component {
    fn new(indices: Vec<usize>, all: &[Buffer], capacity: u64) -> Component {
        let buffers: Vec<Buffer> = indices.iter().map(|&b| all[b].clone()).collect();
        let search = Search::new(&buffers, capacity);
        Component { indices, buffers, search, solved: false }
    }
}

fn offsets(components: &[Component], count: usize) -> Vec<u64> {
    let mut offsets = vec![0; count];
    for component in components {
        component.indices.iter().zip(component.search.offsets()).for_each(|(&b, &offset)| offsets[b] = offset);
    }
    offsets
}

/// In the order of time.
fn components(buffers: &[Buffer]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&b| (buffers[b].lower, b));
    let (mut groups, mut reach): (Vec<Vec<usize>>, u64) = (Vec::new(), 0);
    for b in order {
        match groups.last_mut() {
            Some(group) if buffers[b].lower < reach => group.push(b),
            _ => groups.push(vec![b]),
        }
        reach = reach.max(buffers[b].upper);
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}
