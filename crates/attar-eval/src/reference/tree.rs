//! Windows as a tree: what several of them begin with is a stem, and runs once.

use std::ops::Range;

use crate::Window;

/// Tokens from which on a common beginning is worth a run of its own.
const WORTH: usize = 8;

/// Stems on one another: examples that all questions begin with, a question that all its options begin with.
const DEPTH: usize = 3;

/// Padding that a group of windows may have, as a share of its tokens.
const PADDING: f64 = 0.25;

/// A beginning that several windows have in common.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stem {
    /// What it goes on from, which comes earlier in the list.
    pub(super) stem: Option<usize>,
    /// One of the windows that have it.
    pub(super) window: usize,
    /// Its tokens in that window.
    pub(super) tokens: Range<usize>,
}

/// The rest of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    /// What it goes on from.
    pub(super) stem: Option<usize>,
    /// The first token that is not in the stem.
    pub(super) from: usize,
}

/// Stems, and a leaf for every window.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) stems: Vec<Stem>,
    pub(super) leaves: Vec<Leaf>,
}

impl Tree {
    /// Of windows, of which those that begin alike follow each other. The tokens before the first position that counts can be shared, and
    /// those of windows of at most `longest` tokens.
    pub(super) fn of(windows: &[Window], longest: usize) -> Tree {
        let shared = |pair: &[Window]| {
            let [a, b] = [&pair[0], &pair[1]].map(|window| match window.tokens.len() <= longest {
                true => &window.tokens[..window.scored.start],
                false => &[],
            });
            a.iter().zip(b).take_while(|(a, b)| a == b).count()
        };
        let shared: Vec<usize> = windows.windows(2).map(shared).collect();
        let mut tree = Tree { stems: Vec::new(), leaves: vec![Leaf { stem: None, from: 0 }; windows.len()] };
        tree.grow(&shared, 0..windows.len(), Leaf { stem: None, from: 0 }, DEPTH);
        tree
    }

    /// The windows of `range` all go on from `at`; `shared` says how many tokens each has in common with the next.
    fn grow(&mut self, shared: &[usize], range: Range<usize>, at: Leaf, depth: usize) {
        let mut start = range.start;
        while start < range.end {
            let more = |i: &usize| *i + 1 < range.end && depth > 0 && shared[*i] >= at.from + WORTH;
            let end = (start..range.end).find(|i| !more(i)).map_or(range.end, |last| last + 1);
            match shared[start..end - 1].iter().min() {
                None => self.leaves[start] = at,
                Some(from) => {
                    self.stems.push(Stem { stem: at.stem, window: start, tokens: at.from..*from });
                    let at = Leaf { stem: Some(self.stems.len() - 1), from: *from };
                    self.grow(shared, start..end, at, depth - 1);
                }
            }
            start = end;
        }
    }

    /// A stem and what it goes on from, the last first.
    pub(super) fn under(&self, stem: Option<usize>) -> impl Iterator<Item = usize> {
        std::iter::successors(stem, |stem| self.stems[*stem].stem)
    }
}

/// Members of a batch, as indices into `lengths`: no more than `most` tokens each, padding included, and little of it.
pub(super) fn batches(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| lengths[*i]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for i in order {
        let length = lengths[i];
        let padded = |batch: &Vec<usize>| (batch.len() + 1) * length;
        match batches.last_mut() {
            Some(batch) if padded(batch) <= most && padded(batch) as f64 <= (tokens + length) as f64 * (1.0 + PADDING) => {
                batch.push(i);
                tokens += length;
            }
            _ => {
                batches.push(vec![i]);
                tokens = length;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: &str, scored: usize) -> Window {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        Window { scored: scored..tokens.len() - 1, tokens }
    }

    const SHOTS: &str = "examples for all. ";

    fn questions() -> Vec<Window> {
        let first = format!("{SHOTS}which is the first? ");
        let second = format!("{SHOTS}what about the second? ");
        let option = |question: &str, option: &str| window(&format!("{question}{option}"), question.len() - 1);
        vec![option(&first, "one"), option(&first, "another"), option(&second, "x y"), option(&second, "z")]
    }

    #[test]
    fn examples_and_questions_are_stems_and_options_leaves() {
        let windows = questions();
        let tree = Tree::of(&windows, usize::MAX);
        let text = |stem: &Stem| {
            let tokens = &windows[stem.window].tokens[stem.tokens.clone()];
            String::from_utf8(tokens.iter().map(|t| *t as u8).collect()).expect("it was a text")
        };
        let stems: Vec<(Option<usize>, String)> = tree.stems.iter().map(|stem| (stem.stem, text(stem))).collect();
        let expected = [(None, "examples for all. wh"), (Some(0), "ich is the first?"), (Some(0), "at about the second?")];
        assert_eq!(stems, expected.map(|(stem, text)| (stem, text.to_owned())));
        assert_eq!(tree.leaves.iter().map(|leaf| leaf.stem).collect::<Vec<_>>(), [Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!(tree.under(Some(2)).collect::<Vec<_>>(), [2, 0]);
    }

    #[test]
    fn what_counts_is_in_no_stem() {
        let all = |text: &str| window(text, 0);
        let tree = Tree::of(&[all("the same text"), all("the same text")], usize::MAX);
        assert_eq!(tree.stems, []);
        assert_eq!(tree.leaves, [Leaf { stem: None, from: 0 }; 2]);
    }

    #[test]
    fn windows_that_are_too_long_share_nothing() {
        assert_eq!(Tree::of(&questions(), 8).stems, []);
    }

    #[test]
    fn batches_hold_everything_once_with_little_padding() {
        let lengths = [5, 40, 6, 41, 5, 300];
        assert_eq!(batches(&lengths, 100), [vec![0, 4, 2], vec![1, 3], vec![5]]);
        assert_eq!(batches(&[], 100), Vec::<Vec<usize>>::new());
    }
}
