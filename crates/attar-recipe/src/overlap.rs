//! Text that is measured on, and was seen before: scores on it flatter.

use std::collections::HashSet;

use attar_eval::Window;

/// Tokens in a row that two texts do not share by chance: some thirteen words and more (Brown et al. 2020).
const RUN: usize = 24;

/// So many different tokens such a run has at least: rules of tables and indents are alike everywhere.
const VARIED: usize = 8;

/// What was seen: the runs of its windows.
pub(crate) struct Known<'w>(HashSet<&'w [u32]>);

impl<'w> Known<'w> {
    pub(crate) fn of(windows: &'w [Vec<u32>]) -> Known<'w> {
        Known(windows.iter().flat_map(|window| window.windows(RUN)).filter(|run| is_varied(run)).collect())
    }

    /// How many of these windows have a run that is known.
    pub(crate) fn count(&self, windows: &[Window]) -> usize {
        windows.iter().filter(|window| window.tokens.windows(RUN).any(|run| self.0.contains(run))).count()
    }
}

fn is_varied(run: &[u32]) -> bool {
    run.iter().collect::<HashSet<_>>().len() >= VARIED
}

/// What to say of it.
pub(crate) fn note(eval: &str, count: usize, of: usize) -> String {
    format!(
        "eval `{eval}`: {count} of {of} windows share {RUN} tokens in a row or more with the calibration text, so its scores flatter"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(tokens: impl Iterator<Item = u32>) -> Window {
        let tokens: Vec<u32> = tokens.collect();
        Window { scored: 0..tokens.len() - 1, tokens }
    }

    #[test]
    fn only_long_and_varied_runs_are_an_overlap() {
        let seen = [(0..100).collect::<Vec<u32>>(), vec![7; 100]];
        let known = Known::of(&seen);
        let same = window((500..530).chain(40..40 + RUN as u32).chain(600..620));
        let shorter = window((500..530).chain(40..40 + RUN as u32 - 1).chain(600..620));
        assert_eq!(known.count(&[same, shorter, window([7; 60].into_iter())]), 1);
    }
}
