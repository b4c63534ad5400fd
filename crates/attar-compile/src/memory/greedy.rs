//! Greedy placement: each buffer in turn in the lowest gap that holds it.

use std::cmp::Reverse;

use super::problem::{Buffer, Placement, Problem};

/// An order in which buffers are put down.
pub(super) struct Order {
    pub(super) name: &'static str,
    /// More comes first.
    key: fn(&Buffer) -> (u128, u64),
}

/// The orders, best known first.
pub(super) static ORDERS: &[Order] = &[
    Order { name: "size", key: |b| (b.size.into(), b.upper - b.lower) },
    Order { name: "width", key: |b| ((b.upper - b.lower).into(), b.size) },
    Order { name: "area", key: |b| (u128::from(b.size) * u128::from(b.upper - b.lower), b.size) },
    Order { name: "start", key: |b| ((u64::MAX - b.lower).into(), b.size) },
];

impl Order {
    /// Fixed buffers lie where they must, and do not collide; the height is whatever comes of it.
    pub(super) fn place(&self, problem: &Problem) -> Placement {
        let buffers = &problem.buffers;
        let mut offsets: Vec<u64> = buffers.iter().map(|buffer| buffer.fixed.unwrap_or(0)).collect();
        let (mut placed, mut rest): (Vec<usize>, Vec<usize>) = (0..buffers.len()).partition(|&b| buffers[b].fixed.is_some());
        rest.sort_by_cached_key(|&b| Reverse((self.key)(&buffers[b])));
        placed.sort_by_key(|&b| offsets[b]);
        for b in rest {
            offsets[b] = lowest_gap(&buffers[b], &placed, &offsets, buffers);
            let at = placed.partition_point(|&other| offsets[other] <= offsets[b]);
            placed.insert(at, b);
        }
        problem.placement(offsets)
    }
}

/// `placed` is in the order of offsets.
fn lowest_gap(buffer: &Buffer, placed: &[usize], offsets: &[u64], buffers: &[Buffer]) -> u64 {
    let mut at = 0;
    for &other in placed {
        let Buffer { lower, upper, size, .. } = buffers[other];
        if lower >= buffer.upper || buffer.lower >= upper {
            continue;
        }
        if at + buffer.size <= offsets[other] {
            break;
        }
        at = at.max((offsets[other] + size).next_multiple_of(buffer.align));
    }
    at
}
