//! A report as text: heads and cells, for whoever draws tables.

use std::collections::HashMap;

use super::{CallReport, Energy, Report, Totals, words};

/// Cells below a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Of every column.
    pub head: &'static [&'static str],
    /// As many cells as the head.
    pub rows: Vec<Vec<String>>,
}

/// Calls that differ in nothing but the number of their block.
pub(super) struct Group {
    /// Of one call its name; of more `30 x blocks.*.norm`.
    pub(super) name: String,
    /// Indices of the calls.
    pub(super) calls: Vec<usize>,
}

/// Equal calls of equal blocks, in the order of the first of each.
pub(super) fn groups(calls: &[CallReport]) -> Vec<Group> {
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let name = pattern(&call.name);
        let counts = [call.macs, call.read, call.written];
        let key = format!("{name:?} {:?} {:?} {:?} {:?} {counts:?}", call.kind, call.shape, call.tile, call.order);
        let group = *index.entry(key).or_insert_with(|| {
            groups.push(Group { name, calls: Vec::new() });
            groups.len() - 1
        });
        groups[group].calls.push(at);
    }
    for group in &mut groups {
        group.name = match group.calls[..] {
            [only] => calls[only].name.clone(),
            _ => format!("{} x {}", group.calls.len(), group.name),
        };
    }
    groups
}

/// A name with a star for every number in it: `blocks.*.norm`, `b*.norm`.
pub(crate) fn pattern(name: &str) -> String {
    let starred = |piece: &str| number(piece).map_or_else(|| piece.to_owned(), |prefix| format!("{prefix}*"));
    let part = |part: &str| part.split('.').map(starred).collect::<Vec<_>>().join(".");
    name.split(" + ").map(part).collect::<Vec<_>>().join(" + ")
}

/// The rest of a name after its last number: `norm`.
pub(super) fn within_block(name: &str) -> String {
    let part = |part: &str| {
        let pieces: Vec<&str> = part.split('.').collect();
        let after = pieces.iter().rposition(|piece| number(piece).is_some()).map_or(0, |at| at + 1);
        if after < pieces.len() { pieces[after..].join(".") } else { part.into() }
    };
    name.split(" + ").map(part).collect::<Vec<_>>().join(" + ")
}

/// The text before the digits of a number or of a block's short name: nothing, or `b`.
fn number(piece: &str) -> Option<&str> {
    let digits = piece.strip_prefix('b').unwrap_or(piece);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| &piece[..piece.len() - digits.len()])
}

impl Report {
    /// One row for each call, or for all equal calls of equal blocks: of those, counts, cycles and joules are sums.
    pub fn calls_table(&self) -> Table {
        let rows = groups(&self.calls).iter().enumerate().map(|(at, group)| self.calls_row(at, group)).collect();
        Table {
            head: &[
                "#",
                "call",
                "kernel",
                "m x k x n",
                "tile",
                "loops",
                "MACs",
                "bytes",
                "bound",
                "distance",
                "predicted cycles",
                "predicted compute",
                "predicted stalled",
                "predicted utilisation",
                "predicted limit",
                "predicted energy",
            ],
            rows,
        }
    }

    fn calls_row(&self, at: usize, group: &Group) -> Vec<String> {
        let calls: Vec<&CallReport> = group.calls.iter().map(|at| &self.calls[*at]).collect();
        let sum = |of: fn(&CallReport) -> u64| calls.iter().map(|call| of(call)).sum::<u64>();
        let first = calls[0];
        let cycles = sum(|c| c.predicted.cycles);
        let energy = calls.iter().fold(Energy::default(), |sum, call| sum.plus(&call.predicted.energy));
        let part = |count: u64| words::percent(super::ratio(count as f64, cycles as f64));
        let most = cycles as f64 * self.roof.macs / self.roof.clock;
        vec![
            (at + 1).to_string(),
            group.name.clone(),
            first.kind.name().into(),
            words::shape_text(first.shape),
            first.tile.clone(),
            first.order.clone(),
            words::quantity(sum(|c| c.macs) as f64, ""),
            words::bytes(sum(CallReport::bytes)),
            words::bytes(sum(|c| c.least)),
            format!("{:.3}", super::distance(sum(CallReport::bytes), sum(|c| c.least))),
            cycles.to_string(),
            part(sum(|c| c.predicted.compute)),
            part(sum(|c| c.predicted.stalled)),
            words::percent(super::ratio(sum(|c| c.macs) as f64, most)),
            most_common(&calls),
            words::quantity(energy.total(), "J"),
        ]
    }

    /// Totals of the run, with those of the unfused program if they are known.
    pub fn totals_table(&self) -> Table {
        let row = |(name, value): (&str, Value)| {
            let mine = value(&self.totals);
            let mut row = vec![name.to_string(), mine.text()];
            if let Some(unfused) = &self.unfused {
                let theirs = value(unfused);
                row.extend([theirs.text(), mine.over(&theirs)]);
            }
            row
        };
        let head: &[&str] = match self.unfused {
            Some(_) => &["figure", "this plan", "unfused", "this / unfused"],
            None => &["figure", "this plan"],
        };
        Table { head, rows: FIGURES.into_iter().map(row).collect() }
    }

    /// Where bytes and joules go: by the kind of kernel, then by what tensors hold.
    pub fn shares_table(&self) -> Table {
        let totals = &self.totals;
        let (bytes, joules) = (totals.bytes() as f64, totals.predicted.energy.total());
        let row = |name: &str, moved: u64, energy: f64| {
            let parts = [(moved as f64, bytes), (energy, joules)].map(|(part, all)| words::percent(super::ratio(part, all)));
            let [bytes_part, joules_part] = parts;
            vec![name.into(), words::bytes(moved), bytes_part, words::quantity(energy, "J"), joules_part]
        };
        let kinds = self.kinds.iter().map(|k| {
            let name = format!("{} ({} calls)", k.kind.name(), k.calls);
            row(&name, k.bytes, k.predicted.energy.total())
        });
        let roles = self.roles.iter().map(|r| row(r.holds.name(), r.read + r.written, r.predicted_joules));
        let rows = kinds.chain(roles).collect();
        Table { head: &["what", "bytes", "of all bytes", "predicted energy", "of all energy"], rows }
    }
}

/// The limit of most of the calls, the earlier of equals.
fn most_common(calls: &[&CallReport]) -> String {
    let count = |limit| calls.iter().filter(|call| call.predicted.limit == limit).count();
    let limits = calls.iter().map(|call| call.predicted.limit);
    let best = limits.reduce(|best, next| if count(next) > count(best) { next } else { best });
    best.map_or(String::new(), |limit| limit.name().into())
}

/// A figure with its unit.
enum Figure {
    Bytes(u64),
    Count(u64),
    Unit(f64, &'static str),
    Ratio(f64),
    Percent(f64),
}

type Value = fn(&Totals) -> Figure;

/// What is said of a run.
const FIGURES: [(&str, Value); 16] = [
    ("predicted latency", |t| Figure::Unit(t.predicted.latency, "s")),
    ("predicted tokens per second", |t| Figure::Unit(t.predicted.tokens_per_second, "")),
    ("predicted energy", |t| Figure::Unit(t.predicted.energy.total(), "J")),
    ("predicted energy per token", |t| Figure::Unit(t.predicted.energy_per_token, "J")),
    ("predicted cycles", |t| Figure::Count(t.predicted.cycles)),
    ("predicted cycles before the first load", |t| Figure::Count(t.predicted.dispatch)),
    ("predicted utilisation", |t| Figure::Percent(t.predicted.utilisation)),
    ("multiply-accumulates", |t| Figure::Unit(t.macs as f64, "")),
    ("DRAM bytes", |t| Figure::Bytes(t.bytes() - t.flash)),
    ("flash bytes", |t| Figure::Bytes(t.flash)),
    ("lower bound on bytes, given what is kept", |t| Figure::Bytes(t.least)),
    ("bytes / lower bound", |t| Figure::Ratio(t.distance)),
    ("peak SRAM", |t| Figure::Bytes(t.sram_peak)),
    ("peak DRAM", |t| Figure::Bytes(t.dram_peak)),
    ("peak flash", |t| Figure::Bytes(t.flash_peak)),
    ("calls", |t| Figure::Count(t.calls)),
];

impl Figure {
    fn text(&self) -> String {
        match self {
            Figure::Bytes(count) => words::bytes(*count),
            Figure::Count(count) => count.to_string(),
            Figure::Unit(value, unit) => words::quantity(*value, unit),
            Figure::Ratio(value) => format!("{value:.3}"),
            Figure::Percent(part) => words::percent(*part),
        }
    }

    fn number(&self) -> f64 {
        match self {
            Figure::Bytes(count) | Figure::Count(count) => *count as f64,
            Figure::Unit(value, _) | Figure::Ratio(value) | Figure::Percent(value) => *value,
        }
    }

    fn over(&self, other: &Figure) -> String {
        match other.number() {
            0.0 => "-".into(),
            whole => format!("{:.3}", self.number() / whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blocks_are_told_from_their_numbers() {
        let names = ["blocks.3.mlp.gate + blocks.3.mlp.down", "lm_head", "layer2.norm", "out.7", "b12.gated + b12.x"];
        assert_eq!(
            names.map(pattern),
            ["blocks.*.mlp.gate + blocks.*.mlp.down", "lm_head", "layer2.norm", "out.*", "b*.gated + b*.x"]
        );
        assert_eq!(names.map(within_block), ["mlp.gate + mlp.down", "lm_head", "layer2.norm", "out.7", "gated + x"]);
    }
}
