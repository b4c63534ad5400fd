//! A report as text: heads and cells, for whoever draws tables.

use std::collections::HashMap;

use super::{
    CallReport, Energy, Report, Totals,
    known::{MARK, On, RestsOn, signed},
    names::{block, named},
    words,
};

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
    /// As a person knows it: of one call `block 3 / MLP / norm`, of more `blocks 0 to 29 / MLP / norm`.
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
            [only] => named(&calls[only].name),
            ref some => several(&group.name, &some.iter().map(|at| calls[*at].name.as_str()).collect::<Vec<_>>()),
        };
    }
    groups
}

/// What calls of a pattern are called together: by their blocks, if each belongs to the one after the one before.
pub(super) fn several(pattern: &str, names: &[&str]) -> String {
    const ANY: &str = "block * / ";
    let name = named(pattern);
    let numbers: Option<Vec<u64>> = names.iter().map(|name| block(name)?.rsplit(' ').next()?.parse().ok()).collect();
    match (name.strip_prefix(ANY), numbers.as_deref()) {
        (Some(rest), Some([first, .., last])) if last - first + 1 == names.len() as u64 => {
            format!("blocks {first} to {last} / {rest}")
        }
        (Some(rest), Some(_)) => format!("{} blocks / {rest}", names.len()),
        _ => format!("{} x {name}", names.len()),
    }
}

/// A name with a star for every number in it: `blocks.*.norm`, `b*.norm`.
pub(crate) fn pattern(name: &str) -> String {
    let starred = |piece: &str| number(piece).map_or_else(|| piece.to_owned(), |prefix| format!("{prefix}*"));
    let part = |part: &str| part.split('.').map(starred).collect::<Vec<_>>().join(".");
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
                "predicted wait for activations",
                "predicted wait for weights",
                "predicted wait for stores",
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
        let in_cycles = |text: String| self.marked(text, On::Cycles);
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
            in_cycles(cycles.to_string()),
            in_cycles(part(sum(|c| c.predicted.compute))),
            in_cycles(part(sum(|c| c.predicted.waits.activation_loads))),
            in_cycles(part(sum(|c| c.predicted.waits.weight_loads))),
            in_cycles(part(sum(|c| c.predicted.waits.stores))),
            in_cycles(words::percent(super::ratio(sum(|c| c.macs) as f64, most))),
            in_cycles(most_common(&calls)),
            self.marked(words::quantity(energy.total(), "J"), On::Joules),
        ]
    }

    /// Totals of the run, with those of the unfused program if they are known.
    pub fn totals_table(&self) -> Table {
        let row = |(name, on, value): (&str, Option<On>, Value)| {
            let mine = value(&self.totals);
            let marked = |text: String| on.map_or(text.clone(), |on| self.marked(text, on));
            let mut row = vec![name.to_string(), marked(mine.text())];
            if let Some(unfused) = &self.unfused {
                let theirs = value(unfused);
                row.extend([theirs.text(), mine.over(&theirs)].map(marked));
            }
            row
        };
        let head: &[&str] = match self.unfused {
            Some(_) => &["figure", "this plan", "unfused", "this / unfused"],
            None => &["figure", "this plan"],
        };
        Table { head, rows: FIGURES.into_iter().map(row).collect() }
    }

    /// The numbers of the device that predictions rest on, and what changes if each is twice as bad.
    pub fn numbers_table(&self) -> Table {
        let row = |rests: &RestsOn| {
            let value = if rests.is_assumed() { format!("{}{MARK}", rests.value) } else { rests.value.clone() };
            let changes = [rests.cycles, rests.latency, rests.energy].map(signed);
            let known = vec![rests.key.clone(), value, rests.confidence.into()];
            known.into_iter().chain(changes).chain([rests.source.clone()]).collect()
        };
        Table {
            head: &[
                "number",
                "value",
                "known by",
                "predicted cycles if twice as bad",
                "predicted latency",
                "predicted energy",
                "source",
            ],
            rows: self.predicted_from.iter().map(row).collect(),
        }
    }

    /// Where bytes and joules go: by the kind of kernel, then by what tensors hold.
    pub fn shares_table(&self) -> Table {
        let totals = &self.totals;
        let (bytes, joules) = (totals.bytes() as f64, totals.predicted.energy.total());
        let row = |name: &str, moved: u64, energy: f64| {
            let parts = [(moved as f64, bytes), (energy, joules)].map(|(part, all)| words::percent(super::ratio(part, all)));
            let [bytes_part, joules_part] = parts;
            let [energy, joules_part] = [words::quantity(energy, "J"), joules_part].map(|text| self.marked(text, On::Joules));
            vec![name.into(), words::bytes(moved), bytes_part, energy, joules_part]
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

/// What is said of a run, and what it rests on.
const FIGURES: [(&str, Option<On>, Value); 16] = [
    ("predicted latency", Some(On::Seconds), |t| Figure::Unit(t.predicted.latency, "s")),
    ("predicted tokens per second", Some(On::Seconds), |t| Figure::Unit(t.predicted.tokens_per_second, "")),
    ("predicted energy", Some(On::Joules), |t| Figure::Unit(t.predicted.energy.total(), "J")),
    ("predicted energy per token", Some(On::Joules), |t| Figure::Unit(t.predicted.energy_per_token, "J")),
    ("predicted cycles", Some(On::Cycles), |t| Figure::Count(t.predicted.cycles)),
    ("predicted cycles before the first load", Some(On::Dispatch), |t| Figure::Count(t.predicted.dispatch)),
    ("predicted utilisation", Some(On::Cycles), |t| Figure::Percent(t.predicted.utilisation)),
    ("multiply-accumulates", None, |t| Figure::Unit(t.macs as f64, "")),
    ("DRAM bytes", None, |t| Figure::Bytes(t.bytes() - t.flash)),
    ("flash bytes", None, |t| Figure::Bytes(t.flash)),
    ("lower bound on bytes, given what is kept", None, |t| Figure::Bytes(t.least)),
    ("bytes / lower bound", None, |t| Figure::Ratio(t.distance)),
    ("peak SRAM", None, |t| Figure::Bytes(t.sram_peak)),
    ("peak DRAM", None, |t| Figure::Bytes(t.dram_peak)),
    ("peak flash", None, |t| Figure::Bytes(t.flash_peak)),
    ("calls", None, |t| Figure::Count(t.calls)),
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
    }
}
