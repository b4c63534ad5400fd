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
    /// First comes what lives in the tightest section, slack being compared in so many steps of the capacity.
    pub(super) steps: Option<u64>,
    keys: [Key; 3],
}

use Key::{Area, Sections as Spread, Size, Total, Width};

/// Tried in turn. They differ in what they find easy; each alone is exact.
pub(super) static PREORDERS: &[Preorder] = &[
    Preorder { name: "slack, width", steps: Some(256), keys: [Width, Area, Total] },
    Preorder { name: "slack, size", steps: Some(256), keys: [Size, Width, Area] },
    Preorder { name: "area", steps: None, keys: [Area, Width, Total] },
    Preorder { name: "slack, total", steps: Some(64), keys: [Total, Width, Area] },
    Preorder { name: "width", steps: None, keys: [Width, Area, Total] },
    Preorder { name: "total, size", steps: None, keys: [Total, Size, Width] },
    Preorder { name: "slack, spread", steps: Some(1024), keys: [Spread, Width, Total] },
    Preorder { name: "total, area", steps: None, keys: [Total, Area, Width] },
];

impl Preorder {
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
