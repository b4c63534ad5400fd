//! Whether buffers fit, by search alone: rounds over all preorders with growing limits of nodes.

use super::{
    preorder::PREORDERS,
    problem::Buffer,
    search::{Search, Verdict},
};

/// Buffers that share no moment with others are searched separately; larger groups than this are not searched.
const MAX_SEARCHED: usize = 4096;

/// Nodes of the first attempt with each preorder, and the factor by which every further round raises them.
pub(super) const FIRST_LIMIT: u64 = 4_000;
const GROWTH: u64 = 2;

/// The answer of the search.
pub(super) enum Decision {
    /// Offsets, and the preorder that found the last of them.
    Placed(Vec<u64>, &'static str),
    /// These buffers do not fit.
    Failed(Vec<usize>),
    /// Not decided within the limit of nodes.
    Limit,
}

/// Buffers whose lifetimes are connected; no lifetime connects them to other buffers.
struct Component {
    indices: Vec<usize>,
    buffers: Vec<Buffer>,
    search: Search,
    solved: bool,
}

/// Decides whether `buffers` fit in `capacity` bytes, using at most `nodes` search nodes. Also returns the nodes used.
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

/// Groups of buffers with connected lifetimes, ordered by time.
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
