//! Counting what test binaries say, line by line.

use std::fmt;

/// Sums of the `test result:` lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
    /// Lines with which a passing test said that it left something out. They change no other number.
    pub(crate) left_out: usize,
}

impl Tally {
    /// Counts one line of output.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            counts.split(';').for_each(|count| self.add(count));
        }
        // With one test thread the harness has already written `test name ... ` on that line.
        self.left_out += usize::from(line.starts_with("skipped: ") || line.contains(" ... skipped: "));
    }

    /// Whether any test ran to its end.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    /// `ok. 3 passed`, ` 0 failed`, ` 1 ignored`; other counts are none of ours.
    fn add(&mut self, count: &str) {
        let mut words = count.split_whitespace().rev();
        let (label, number) = (words.next(), words.next().and_then(|word| word.parse::<usize>().ok()));
        let number = number.unwrap_or(0);
        match label {
            Some("passed") => self.passed += number,
            Some("failed") => self.failed += number,
            Some("ignored") => self.ignored += number,
            _ => {}
        }
    }
}

/// The closing line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn the_results_of_all_binaries_are_summed() {
        let sum = tally(&[
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ]);
        assert_eq!(sum.to_string(), "7 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_coloured_result_counts_the_same() {
        let sum = tally(&["test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 3 passed; 0 failed; 1 ignored; 0 measured"]);
        assert_eq!(sum.to_string(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn what_tests_leave_out_is_counted_apart() {
        let sum = tally(&["skipped: no engine", "test reads_back ... skipped: no engine", "nothing was skipped: fine"]);
        assert_eq!(sum, Tally { left_out: 2, ..Tally::default() });
    }

    #[test]
    fn nothing_read_is_empty() {
        assert!(tally(&["running 0 tests", "test result: ok. 0 passed; 0 failed; 5 ignored"]).is_empty());
    }
}
