//! Rows of text under a head, and the words in them.

use crate::shown::in_markdown;

/// Rows of text under a head.
pub struct Table {
    /// Names of the columns.
    pub head: &'static [&'static str],
    /// As many cells each as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let mut text = line(&mut self.head.iter().map(|h| h.to_string()));
        text += &line(&mut self.head.iter().map(|_| "---".to_string()));
        for row in &self.rows {
            text += &line(&mut row.iter().map(|cell| in_markdown(cell)));
        }
        text
    }
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
