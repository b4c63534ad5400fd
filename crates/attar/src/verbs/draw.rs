//! Tables for a terminal, no wider than it.
//!
//! Where a table is too wide, columns without any content go first, then what has spaces is wrapped, and where that is not
//! enough long names are shortened in the middle. JSON and `report.md` have everything.

use attar_recipe::shown;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};

/// Columns of text where no terminal says how many there are.
const WIDTH: u16 = 80;

/// Characters that a name keeps.
const SHORTEST: usize = 12;

/// Characters of a line of wrapped text at least. Shorter text, such as `[1024, 128]` and `262.1 kB`, is not wrapped.
const NARROWEST: usize = 14;

/// A table under a head.
pub(super) fn draw<H: AsRef<str>>(head: &[H], rows: &[Vec<String>]) -> String {
    within(width(), head, rows)
}

/// Columns of the terminal, or of the variable `COLUMNS`.
fn width() -> u16 {
    let terminal = terminal_size::terminal_size().map(|(width, _)| width.0);
    let told = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0);
    terminal.or_else(told).unwrap_or(WIDTH)
}

fn within<H: AsRef<str>>(width: u16, head: &[H], rows: &[Vec<String>]) -> String {
    let mut columns: Vec<Vec<String>> = (0..head.len()).map(|at| column(head[at].as_ref(), rows, at)).collect();
    if needed(&columns) > width.into() {
        columns.retain(|column| column.len() == 1 || column[1..].iter().any(|cell| !matches!(&**cell, "" | "-")));
        shorten(&mut columns, width.into());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    let row = |at: usize| columns.iter().map(move |column| column[at].clone());
    table.set_header(row(0));
    table.add_rows((1..=rows.len()).map(row));
    let fits = needed_wrapped(&columns) <= width.into();
    for (at, column) in columns.iter().enumerate().filter(|(_, column)| fits && narrowest(column).is_none()) {
        // With a space on both sides.
        let whole = ColumnConstraint::Absolute(Width::Fixed(u16::try_from(longest(column) + 2).unwrap_or(u16::MAX)));
        table.column_mut(at).map(|column| column.set_constraint(whole));
    }
    format!("{table}\n")
}

/// The head of a column and its cells.
fn column(head: &str, rows: &[Vec<String>], at: usize) -> Vec<String> {
    let cell = |row: &Vec<String>| shown(row.get(at).map_or("", String::as_str));
    std::iter::once(head.to_owned()).chain(rows.iter().map(cell)).collect()
}

/// Characters of a line with borders.
fn needed(columns: &[Vec<String>]) -> usize {
    columns.iter().map(|column| longest(column) + 3).sum::<usize>() + 1
}

/// The same, with everything wrapped that can be.
fn needed_wrapped(columns: &[Vec<String>]) -> usize {
    columns.iter().map(|column| narrowest(column).unwrap_or_else(|| longest(column)) + 3).sum::<usize>() + 1
}

/// Characters that a column takes when it is wrapped between words, if it is worth it.
fn narrowest(column: &[String]) -> Option<usize> {
    let words = column.iter().flat_map(|cell| cell.split_whitespace()).map(|word| word.chars().count());
    let narrow = words.max().unwrap_or(0).max(NARROWEST);
    (narrow < longest(column)).then_some(narrow)
}

fn longest(column: &[String]) -> usize {
    column.iter().flat_map(|cell| cell.lines()).map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Shortens names, those of the widest column of names first, until the lines fit.
fn shorten(columns: &mut [Vec<String>], width: usize) {
    while let Some(beyond) = needed_wrapped(columns).checked_sub(width).filter(|beyond| *beyond > 0) {
        let names = columns.iter_mut().filter(|column| column[1..].iter().all(|cell| !cell.contains(char::is_whitespace)));
        let Some(widest) = names.max_by_key(|column| longest(column)).filter(|column| longest(column) > SHORTEST) else { return };
        let most = longest(widest).saturating_sub(beyond).max(SHORTEST);
        widest.iter_mut().for_each(|cell| *cell = in_the_middle(cell, most));
    }
}

/// At most `most` characters of a name, of its start and of its end.
fn in_the_middle(name: &str, most: usize) -> String {
    let count = name.chars().count();
    if count <= most {
        return name.to_owned();
    }
    let (start, end) = ((most - 1) / 2, most / 2);
    name.chars().take(start).chain(['…']).chain(name.chars().skip(count - end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [&str; 4] = ["weight", "note", "value", "read as"];

    fn rows() -> Vec<Vec<String>> {
        let row = |at: usize| {
            vec![
                format!("model.layers.{at}.self_attn.q_proj.weight"),
                "-".into(),
                "0.5 ± 0.1".into(),
                "blocks.attention.query".into(),
            ]
        };
        (0..3).map(row).collect()
    }

    #[test]
    fn a_table_fits_its_width_and_keeps_both_ends_of_names() {
        for width in [50, 60, 70, 80] {
            let table = within(width, &HEAD, &rows());
            assert!(table.lines().all(|line| line.chars().count() <= width.into()), "{width}\n{table}");
            assert!(!table.contains("note"), "an empty column takes room\n{table}");
        }
        let table = within(72, &HEAD, &rows());
        assert!(table.contains("…") && table.contains("proj.weight") && table.contains("model.layers."), "{table}");
    }

    #[test]
    fn a_table_that_fits_is_not_touched() {
        let table = within(120, &HEAD, &rows());
        assert!(!table.contains("…") && HEAD.iter().all(|head| table.contains(head)), "{table}");
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(in_the_middle("äöüäöüäöü", 5), "äö…öü");
        assert_eq!(in_the_middle("short", 5), "short");
    }
}
