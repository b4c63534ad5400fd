//! The table that every benchmark prints.

use crate::cost::Cost;

/// Rows as they are measured.
pub(crate) struct Table {
    rows: Vec<[String; 7]>,
}

/// One row.
pub(crate) struct Row<'a> {
    /// The command or the work.
    pub(crate) work: &'a str,
    pub(crate) cost: Cost,
    /// How much is done, in words.
    pub(crate) rate: String,
    /// To the baseline, in words.
    pub(crate) ratio: String,
    /// What should be reached.
    pub(crate) goal: &'a str,
}

const HEAD: [&str; 7] = ["work", "CPU s", "wall s", "peak MB", "rate", "ratio", "goal"];

impl Table {
    pub(crate) fn new() -> Table {
        Table { rows: vec![HEAD.map(Into::into), HEAD.map(|head| "-".repeat(head.len()))] }
    }

    pub(crate) fn add(&mut self, Row { work, cost, rate, ratio, goal }: Row<'_>) {
        let Cost { cpu, wall, peak } = cost;
        let peak = format!("{:.0}", peak as f64 / 1e6);
        self.rows.push([work.into(), format!("{cpu:.3}"), format!("{wall:.3}"), peak, rate, ratio, goal.into()]);
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        for row in &self.rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            println!("| {} |", cells.join(" | "));
        }
    }
}
