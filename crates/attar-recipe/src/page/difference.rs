//! Two answers side by side: the words of one that the other does not have are marked.

use attar_compile::report::markup::escaped;

/// Words beyond which answers are not compared.
const MOST: usize = 1500;

/// `text` as HTML, with what differs from `other` in `<mark>`.
pub(super) fn marked(text: &str, other: &str) -> String {
    let (a, b) = (words(text), words(other));
    if a.len() > MOST || b.len() > MOST {
        return html(text);
    }
    let same = common(&a, &b);
    let mut out = String::new();
    let mut open = false;
    for (word, same) in a.iter().zip(same) {
        if open == same {
            out += if same { "</mark>" } else { "<mark>" };
            open = !same;
        }
        out += &html(word);
    }
    if open { out + "</mark>" } else { out }
}

/// Text with its line breaks.
pub(super) fn html(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// Words with the white space behind them.
fn words(text: &str) -> Vec<&str> {
    text.split_inclusive(char::is_whitespace).collect()
}

/// Which of `a` are in the longest common subsequence.
fn common(a: &[&str], b: &[&str]) -> Vec<bool> {
    let width = b.len() + 1;
    let mut longest = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = match a[i].trim() == b[j].trim() {
                true => longest[(i + 1) * width + j + 1] + 1,
                false => longest[(i + 1) * width + j].max(longest[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j, mut same) = (0, 0, vec![false; a.len()]);
    while i < a.len() && j < b.len() {
        if a[i].trim() == b[j].trim() {
            same[i] = true;
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_the_other_does_not_have_are_marked() {
        assert_eq!(marked("The old king is here.", "The king is here."), "The <mark>old </mark>king is here.");
        assert_eq!(marked("a <b>", "a"), "a <mark>&lt;b&gt;</mark>");
        assert_eq!(marked("a\nb", "a\nb"), "a\nb");
        assert_eq!(marked("", "x"), "");
    }
}
