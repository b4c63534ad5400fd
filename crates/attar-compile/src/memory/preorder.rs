//! Which of several equally low buffers is decided first.

use std::cmp::Reverse;

use super::{problem::Buffer, sections::Sections};

/// What buffers are compared by; more comes first.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// How long it lives.
    Width,
    Size,
    /// Size times width.
    Area,
    /// The most bytes live while it lives.
    Total,
    /// Size times the number of sections it is in.
    Sections,
}

/// How ties are broken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preorder {
    /// For people.
    pub(super) name: &'static str,
    keys: [Key; 3],
    /// Where in `STEPS` it begins.
    first: usize,
}

use Key::{Area, Sections as Spread, Size, Total, Width};

/// Tried in turn. They differ in what they find easy; each alone is exact.
pub(super) static PREORDERS: &[Preorder] = &[
    Preorder { name: "width", keys: [Width, Area, Total], first: 3 },
    Preorder { name: "size", keys: [Size, Width, Area], first: 3 },
    Preorder { name: "area", keys: [Area, Width, Total], first: 0 },
    Preorder { name: "spread", keys: [Spread, Width, Total], first: 0 },
    Preorder { name: "total", keys: [Total, Width, Area], first: 2 },
    Preorder { name: "total, area", keys: [Total, Area, Width], first: 4 },
    Preorder { name: "total, size", keys: [Total, Size, Width], first: 0 },
];

/// In how many steps of the capacity the slack of sections is compared, before anything else; `None`: not at all. Every round
/// takes the next.
static STEPS: [Option<u64>; 5] = [None, Some(16), Some(64), Some(256), Some(1024)];

impl Preorder {
    /// The steps in which slack is compared in a round: what lives in the tightest section comes first.
    pub(super) fn steps(&self, round: usize) -> Option<u64> {
        STEPS[(self.first + round) % STEPS.len()]
    }

    /// The buffers, first to last; equal ones in the order they have.
    pub(super) fn order(&self, buffers: &[Buffer], sections: &Sections) -> Vec<u32> {
        let live = |members: &Vec<u32>| members.iter().map(|&b| buffers[b as usize].size).sum::<u64>();
        let totals: Vec<u64> = sections.members.iter().map(live).collect();
        let value = |b: usize, key: Key| {
            let Buffer { lower, upper, size, .. } = buffers[b];
            let (first, last) = sections.spans[b];
            u128::from(match key {
                Width => upper - lower,
                Size => size,
                Total => totals[first as usize..=last as usize].iter().copied().max().unwrap_or(0),
                Area => return u128::from(upper - lower) * u128::from(size),
                Spread => return u128::from(last - first + 1) * u128::from(size),
            })
        };
        let mut order: Vec<u32> = (0..buffers.len() as u32).collect();
        order.sort_by_cached_key(|&b| Reverse(self.keys.map(|key| value(b as usize, key))));
        order
    }
}
