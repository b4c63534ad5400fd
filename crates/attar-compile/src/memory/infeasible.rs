//! Reasons why there is no placement.

use super::{
    decide::{Decision, decide},
    problem::{Buffer, Peak},
};

/// Why no placement fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// More live bytes at one time than the capacity.
    MaxLive(Peak),
    /// Two fixed buffers live at once and overlap.
    Collision {
        /// The first.
        one: usize,
        /// The second.
        other: usize,
    },
    /// A fixed buffer ends above the capacity.
    Above {
        /// Which.
        buffer: usize,
        /// One past its last byte.
        end: u64,
    },
    /// The search was exhaustive.
    Exhausted {
        /// Buffers that do not fit even without the others, increasing.
        subset: Vec<usize>,
        /// Whether any proper subset of them is known to fit.
        irreducible: bool,
    },
}

/// The fixed buffers contradict each other, or the capacity.
pub(super) fn fixed(buffers: &[Buffer], capacity: u64) -> Option<Reason> {
    let fixed: Vec<(usize, u64)> = buffers.iter().enumerate().filter_map(|(i, buffer)| Some((i, buffer.fixed?))).collect();
    for (at, &(i, offset)) in fixed.iter().enumerate() {
        let end = offset + buffers[i].size;
        if end > capacity {
            return Some(Reason::Above { buffer: i, end });
        }
        let collides = |&&(j, other): &&(usize, u64)| {
            let in_time = buffers[i].lower < buffers[j].upper && buffers[j].lower < buffers[i].upper;
            in_time && offset < other + buffers[j].size && other < end
        };
        if let Some(&(j, _)) = fixed[..at].iter().find(collides) {
            return Some(Reason::Collision { one: j, other: i });
        }
    }
    None
}

/// Shrinks `subset`, which does not fit, as far as `nodes` search nodes allow: a buffer is dropped where the others still do
/// not fit. Also returns the nodes used.
pub(super) fn reduce(buffers: &[Buffer], subset: Vec<usize>, capacity: u64, nodes: u64) -> (Reason, u64) {
    let (mut kept, mut used, mut irreducible) = (subset, 0, true);
    let mut at = 0;
    while at < kept.len() {
        let without: Vec<usize> = kept.iter().copied().filter(|&b| b != kept[at]).collect();
        let rest: Vec<Buffer> = without.iter().map(|&b| buffers[b].clone()).collect();
        let (decision, cost) = decide(&rest, capacity, nodes - used);
        used += cost;
        match decision {
            Decision::Failed(failed) => {
                let failed: Vec<usize> = failed.into_iter().map(|b| without[b]).collect();
                at = failed.iter().filter(|b| kept[..at].contains(b)).count();
                kept = failed;
            }
            Decision::Placed(..) => at += 1,
            Decision::Limit => {
                irreducible = false;
                if used >= nodes {
                    break;
                }
                at += 1;
            }
        }
    }
    (Reason::Exhausted { subset: kept, irreducible }, used)
}
