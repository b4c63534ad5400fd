//! Rows of text under a head, and the words in them.

use std::collections::BTreeSet;

use crate::shown::in_markdown;

/// Rows of text under a head.
pub struct Table {
    /// Names of the columns.
    pub head: &'static [&'static str],
    /// As many cells each as the head.
    pub rows: Vec<Vec<String>>,
}

/// Columns of a line of Markdown.
const WIDTH: usize = 100;

impl Table {
    /// As Markdown of at most [`WIDTH`] columns: a table that is wider becomes several, each with the cells that tell rows apart; one with cells that are
    /// wider, a list. Only a word can be longer.
    pub(crate) fn markdown(&self) -> String {
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(|cell| in_markdown(cell)).collect()).collect();
        let widths: Vec<usize> = (0..self.head.len())
            .map(|at| rows.iter().map(|row| columns(&row[at])).chain([columns(self.head[at]), 3]).max().unwrap_or(3) + 3)
            .collect();
        let keys = self.keys();
        let room = WIDTH - 1 - widths[..keys].iter().sum::<usize>().min(WIDTH - 1);
        if widths.iter().sum::<usize>() < WIDTH {
            return self.part(&rows, &(0..widths.len()).collect::<Vec<_>>());
        }
        if widths[keys..].iter().any(|width| *width > room) {
            return self.list(&rows, keys);
        }
        let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
        for (at, width) in widths.iter().enumerate().skip(keys) {
            match parts.last_mut() {
                Some((used, part)) if *used + width <= room => {
                    *used += width;
                    part.push(at);
                }
                _ => parts.push((*width, (0..keys).chain([at]).collect())),
            }
        }
        parts.iter().map(|(_, part)| self.part(&rows, part)).collect::<Vec<_>>().join("\n")
    }

    /// So many columns, at least one, tell all rows apart; if all together do not, the first does for it.
    fn keys(&self) -> usize {
        let distinct = |count: usize| self.rows.iter().map(|row| &row[..count]).collect::<BTreeSet<_>>().len() == self.rows.len();
        (1..self.head.len()).find(|count| distinct(*count)).unwrap_or(1)
    }

    fn part(&self, rows: &[Vec<String>], columns: &[usize]) -> String {
        let line = |cell: &dyn Fn(usize) -> String| {
            let cells: Vec<String> = columns.iter().map(|at| cell(*at)).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = line(&|at| self.head[at].to_owned()) + &line(&|_| "---".to_owned());
        rows.iter().for_each(|row| text += &line(&|at| row[at].clone()));
        text
    }

    fn list(&self, rows: &[Vec<String>], keys: usize) -> String {
        let item = |row: &Vec<String>| {
            let rest = (keys..row.len()).filter(|at| !row[*at].is_empty()).map(|at| format!("{}: {}", self.head[at], row[at]));
            wrapped(&format!("- {}; {}", row[..keys].join(", "), rest.collect::<Vec<_>>().join("; "))) + "\n"
        };
        rows.iter().map(item).collect()
    }
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// A paragraph or an item of a list in lines of at most [`WIDTH`] columns, as far as its words are not longer.
pub(crate) fn wrapped(paragraph: &str) -> String {
    let indent = if paragraph.starts_with("- ") { "  " } else { "" };
    let mut lines: Vec<String> = Vec::new();
    for word in paragraph.split(' ') {
        match lines.last_mut() {
            Some(line) if columns(line) + 1 + columns(word) <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("{indent}{word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// Markdown whose paragraphs are wrapped; tables, headings and code are as they are.
pub(crate) fn wrapped_text(text: &str) -> String {
    let mut code = false;
    let line = |line: &str| {
        code ^= line.starts_with("```");
        match code || line.starts_with(['|', '#', ' ']) || line.starts_with("```") {
            true => line.to_owned(),
            false => wrapped(line),
        }
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// `1.5 MB`: powers of ten, as disks are sold.
pub fn bytes(n: u64) -> String {
    let (unit, size) =
        [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)].into_iter().find(|(_, size)| n as f64 >= *size).unwrap_or(("B", 1.0));
    if unit == "B" { format!("{n} B") } else { format!("{:.1} {unit}", n as f64 / size) }
}

/// Of each variant, `rows` gives some of what was found; the variant's name comes before their cells.
pub(crate) fn rows_of<'v, T: 'v, R>(
    variants: impl IntoIterator<Item = (&'v str, &'v [T])>,
    rows: impl Fn(&'v T) -> R,
) -> Vec<Vec<String>>
where
    R: IntoIterator<Item = Vec<String>>,
{
    let mut all = Vec::new();
    for (variant, found) in variants {
        let named = |row: Vec<String>| std::iter::once(or_dash(variant)).chain(row).collect::<Vec<_>>();
        all.extend(found.iter().flat_map(&rows).map(named));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(cells: &[&str]) -> Table {
        let row = |name: &str| std::iter::once(name.to_owned()).chain(cells.iter().map(|cell| (*cell).to_owned())).collect();
        Table { head: &["name", "first", "second", "third"], rows: vec![row("a"), row("b")] }
    }

    fn widest(text: &str) -> usize {
        text.lines().map(columns).max().unwrap_or(0)
    }

    #[test]
    fn a_table_is_as_it_is_where_there_is_room() {
        let text = table(&["1", "2", "3|4"]).markdown();
        assert_eq!(
            text,
            "| name | first | second | third |\n| --- | --- | --- | --- |\n| a | 1 | 2 | 3\\|4 |\n| b | 1 | 2 | 3\\|4 |\n"
        );
    }

    #[test]
    fn a_wide_table_is_several_each_with_what_tells_rows_apart() {
        let wide = "x".repeat(50);
        let text = table(&[&wide, &wide, "3"]).markdown();
        assert!(widest(&text) <= WIDTH, "{text}");
        assert_eq!(text.matches("| --- |").count() / 2, 1, "{text}");
        assert_eq!(text.matches("\n| a | ").count(), 2, "{text}");
    }

    #[test]
    fn cells_that_are_too_wide_make_a_list() {
        let long = "some words of a reason ".repeat(8);
        let text = table(&[long.trim(), "2", ""]).markdown();
        assert!(
            widest(&text) <= WIDTH && text.starts_with("- a; first: some words") && text.contains("; second: 2\n- b;"),
            "{text}"
        );
    }

    #[test]
    fn paragraphs_are_wrapped_and_code_is_not() {
        let long = "word ".repeat(40);
        let text = wrapped_text(&format!("# title\n\n{}\n\n```toml\n{}\n```\n", long.trim(), long.trim()));
        let (before, code) = text.split_once("```toml\n").expect("code stays");
        assert!(widest(before) <= WIDTH && widest(code) > WIDTH, "{text}");
    }
}
