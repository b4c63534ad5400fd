//! Time, cut down to what matters: the maximal sets of buffers that live at once.

use super::problem::Buffer;

/// The maximal cliques of an interval graph, in the order of time. Two buffers live at once if and only if they share a
/// section, and every limit on the buffers of one moment follows from the limit on a section.
pub(super) struct Sections {
    /// The buffers of each.
    pub(super) members: Vec<Vec<u32>>,
    /// For each buffer, the first and the last section that it is in.
    pub(super) spans: Vec<(u32, u32)>,
}

impl Sections {
    /// From the spans.
    pub(super) fn of(buffers: &[Buffer]) -> Sections {
        let spans = spans(buffers);
        let count = spans.iter().map(|&(_, last)| last as usize + 1).max().unwrap_or(0);
        let mut members = vec![Vec::new(); count];
        for (buffer, &(first, last)) in spans.iter().enumerate() {
            members[first as usize..=last as usize].iter_mut().for_each(|section| section.push(buffer as u32));
        }
        Sections { members, spans }
    }
}

/// For each buffer, the first and the last section that it is in. A sweep: a set is maximal where a birth is followed by a death.
pub(super) fn spans(buffers: &[Buffer]) -> Vec<(u32, u32)> {
    let mut births: Vec<u64> = buffers.iter().map(|buffer| buffer.lower).collect();
    let mut deaths: Vec<u64> = buffers.iter().map(|buffer| buffer.upper).collect();
    births.sort_unstable();
    deaths.sort_unstable();
    let mut times = Vec::new();
    let mut death = 0;
    for (i, &birth) in births.iter().enumerate() {
        while deaths[death] <= birth {
            death += 1;
        }
        if births.get(i + 1).is_none_or(|&next| deaths[death] <= next) {
            times.push(birth);
        }
    }
    let span = |buffer: &Buffer| {
        let first = times.partition_point(|&time| time < buffer.lower);
        let after = times.partition_point(|&time| time < buffer.upper);
        (first as u32, after as u32 - 1)
    };
    buffers.iter().map(span).collect()
}
