//! Lists of indices, kept as runs: what a selection of rows or columns names.

use std::{fmt, ops::Range};

/// Indices in any order, some perhaps more than once: `0..64, 128, 96..98`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Runs(Vec<Range<usize>>);

impl Runs {
    /// The indices of `runs`, one run after the other. Runs that continue each other become one.
    pub fn new(runs: impl IntoIterator<Item = Range<usize>>) -> Runs {
        let mut all: Vec<Range<usize>> = Vec::new();
        for run in runs.into_iter().filter(|run| !run.is_empty()) {
            match all.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => all.push(run),
            }
        }
        Runs(all)
    }

    /// The same indices.
    pub fn of(indices: impl IntoIterator<Item = usize>) -> Runs {
        Runs::new(indices.into_iter().map(|index| index..index + 1))
    }

    /// How many indices.
    pub fn len(&self) -> usize {
        self.0.iter().fold(0, |sum, run| sum.saturating_add(run.len()))
    }

    /// Whether there is no index.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more than the largest index.
    pub fn end(&self) -> usize {
        self.0.iter().map(|run| run.end).max().unwrap_or(0)
    }

    /// The indices, in order.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        self.0.iter().cloned().flatten()
    }

    /// As runs, in order.
    pub fn runs(&self) -> &[Range<usize>] {
        &self.0
    }

    /// The indices at some places of the list, as runs.
    pub(crate) fn at(&self, places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut first = 0;
        self.0.iter().filter_map(move |run| {
            let begin = places.start.max(first);
            let end = places.end.min(first + run.len());
            let part = (begin < end).then(|| run.start + (begin - first)..run.start + (end - first));
            first += run.len();
            part
        })
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, run) in self.0.iter().enumerate() {
            f.write_str(if at > 0 { ", " } else { "" })?;
            match run.len() {
                1 => write!(f, "{}", run.start)?,
                _ => write!(f, "{}..{}", run.start, run.end)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_run_and_order_stays() {
        let runs = Runs::of([0, 1, 2, 7, 5, 6, 6, 3]);
        assert_eq!(runs.to_string(), "0..3, 7, 5..7, 6, 3");
        assert_eq!(runs.indices().collect::<Vec<_>>(), [0, 1, 2, 7, 5, 6, 6, 3]);
        assert_eq!((runs.len(), runs.end()), (8, 8));
        assert!(Runs::new(std::iter::once(4..4)).is_empty());
    }

    #[test]
    fn places_of_a_list_are_those_of_its_indices() {
        let indices = [0, 1, 2, 7, 5, 6, 6, 3];
        let runs = Runs::of(indices);
        for (start, end) in (0..=8).flat_map(|start| (start..=8).map(move |end| (start, end))) {
            let found: Vec<usize> = runs.at(start..end).flatten().collect();
            assert_eq!(found, indices[start..end], "{start}..{end}");
        }
    }
}
