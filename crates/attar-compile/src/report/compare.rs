//! Two plans beside each other: what each costs in all, and what each of its operations does. Operations are matched by their names;
//! where one plan joins kernels that the other runs apart, all of them are one row.

use std::collections::HashMap;

use serde::Serialize;

use super::{
    Energy, MARK, RestsOn, Table,
    known::rests_on,
    names::named,
    table::{pattern, several},
    words,
};
use crate::{
    Result,
    plan::{Plan, Space},
    simulate::{Simulation, time},
};

/// Two plans of the same model, or of two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The plans.
    pub plans: [Side; 2],
    /// Operations that both have or one has, in the order of the first plan, then of the second.
    pub operations: Vec<Operation>,
}

/// What a plan costs. Times and energies are predicted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// The device.
    pub device: String,
    /// What is run: `prefill: 128 tokens, empty cache`.
    pub title: String,
    /// What was minimized, where that is known.
    pub goal: Option<String>,
    /// Numbers of the device that were set, where that is known.
    pub set: Vec<String>,
    /// Bytes of on-chip memory that it was made for.
    pub sram: u64,
    /// Kernels that run, one after another.
    pub calls: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// DRAM and flash bytes read.
    pub read: u64,
    /// DRAM bytes written.
    pub written: u64,
    /// One past the highest byte used on the chip.
    pub peak_sram: u64,
    /// One past the highest byte used in DRAM.
    pub peak_dram: u64,
    /// Predictions by the model of the device.
    pub predicted: PredictedSide,
}

/// What is predicted of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PredictedSide {
    /// Cycles.
    pub cycles: u64,
    /// Seconds.
    pub latency: f64,
    /// Joules.
    pub energy: Energy,
    /// The numbers of the device that they rest on, those that count most first; none if that is not known.
    pub from: Option<Vec<RestsOn>>,
}

/// What both plans do under the same names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// As a person knows it: `block 3 / attention / norm + query, key, value`.
    pub name: String,
    /// The calls of the first plan, together; none if it has no such operation.
    pub first: Option<Cost>,
    /// The same of the second.
    pub second: Option<Cost>,
    /// Names of the kernels, as the longer list has them.
    #[serde(skip)]
    raw: String,
}

/// What calls cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// How many calls.
    pub calls: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// DRAM and flash bytes read and written.
    pub bytes: u64,
    /// Cycles, predicted.
    pub predicted_cycles: u64,
}

impl Cost {
    fn plus(self, other: Cost) -> Cost {
        Cost {
            calls: self.calls + other.calls,
            macs: self.macs + other.macs,
            bytes: self.bytes + other.bytes,
            predicted_cycles: self.predicted_cycles + other.predicted_cycles,
        }
    }
}

/// What the folder of a plan says of it besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What was minimized.
    pub goal: Option<String>,
    /// Numbers of the device that were set.
    pub set: Vec<String>,
}

impl Comparison {
    /// Of two plans, with what is known of their settings.
    ///
    /// # Errors
    /// A plan that cannot run.
    pub fn new(plans: [&Plan; 2], settings: [Settings; 2]) -> Result<Comparison> {
        let [first, second] = plans.map(|plan| time(plan, &plan.rates));
        let simulations = [first?, second?];
        let [one, two] = settings;
        let sides = [Side::new(plans[0], &simulations[0], one), Side::new(plans[1], &simulations[1], two)];
        Ok(Comparison { operations: operations(&simulations), plans: sides })
    }

    /// The figures of both plans, beside each other.
    pub fn figures(&self) -> Table {
        let text = |name: &str, of: &dyn Fn(&Side) -> String| {
            let [first, second] = self.plans.each_ref().map(of);
            let change = if first == second { "same" } else { "" };
            vec![name.to_owned(), first, second, change.to_owned()]
        };
        let number = |name: &str, of: &dyn Fn(&Side) -> f64, shown: &dyn Fn(f64) -> String, on: Option<On>| {
            let cells = self.plans.each_ref().map(|side| {
                let text = shown(of(side));
                if on.is_some_and(|on| side.rests_on_assumed(on)) { text + MARK } else { text }
            });
            let [first, second] = cells;
            vec![name.to_owned(), first, second, change(of(&self.plans[0]), of(&self.plans[1]))]
        };
        let bytes = |count: f64| words::bytes(count as u64);
        let unit = |unit: &'static str| move |value: f64| words::quantity(value, unit);
        let count = |value: f64| format!("{value:.0}");
        let settings = |side: &Side| if side.set.is_empty() { "-".into() } else { side.set.join(", ") };
        let rows = vec![
            text("device", &|side| side.device.clone()),
            text("run", &|side| side.title.clone()),
            text("goal", &|side| side.goal.clone().unwrap_or_else(|| "unknown".into())),
            text("numbers that were set", &settings),
            number("on-chip memory", &|side| side.sram as f64, &bytes, None),
            number("predicted latency", &|side| side.predicted.latency, &unit("s"), Some(On::Latency)),
            number("predicted cycles", &|side| side.predicted.cycles as f64, &count, Some(On::Cycles)),
            number("predicted energy", &|side| side.predicted.energy.total(), &unit("J"), Some(On::Energy)),
            number("bytes read", &|side| side.read as f64, &bytes, None),
            number("bytes written", &|side| side.written as f64, &bytes, None),
            number("peak SRAM", &|side| side.peak_sram as f64, &bytes, None),
            number("peak DRAM", &|side| side.peak_dram as f64, &bytes, None),
            number("multiply-accumulates", &|side| side.macs as f64, &unit(""), None),
            number("calls", &|side| side.calls as f64, &count, None),
        ];
        Table { head: &["figure", "first plan", "second plan", "change"], rows }
    }

    /// One row for each operation; equal names of consecutive blocks share one, with sums.
    pub fn table(&self) -> Table {
        let mut groups: Vec<(String, Vec<&Operation>)> = Vec::new();
        let mut index: HashMap<String, usize> = HashMap::new();
        for operation in &self.operations {
            let key = format!("{} {} {}", pattern(&operation.raw), operation.first.is_some(), operation.second.is_some());
            let group = *index.entry(key).or_insert_with(|| {
                groups.push((pattern(&operation.raw), Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(operation);
        }
        let rows = groups.iter().map(|(pattern, group)| {
            let name = match group[..] {
                [only] => only.name.clone(),
                _ => several(pattern, &group.iter().map(|operation| operation.raw.as_str()).collect::<Vec<_>>()),
            };
            let sum = |of: fn(&Operation) -> Option<Cost>| group.iter().filter_map(|operation| of(operation)).reduce(Cost::plus);
            let [first, second] = [sum(|operation| operation.first), sum(|operation| operation.second)];
            let cells = |of: fn(&Cost) -> u64, shown: fn(u64) -> String| {
                let [one, two] = [first, second].map(|cost| cost.map(|cost| of(&cost)));
                let text = |value: Option<u64>| value.map_or("-".into(), shown);
                let change = one.zip(two).map_or("-".into(), |(one, two)| change(one as f64, two as f64));
                [text(one), text(two), change]
            };
            let calls = match (first, second) {
                (Some(one), Some(two)) if one.calls == two.calls => one.calls.to_string(),
                (one, two) => format!("{}, {}", one.map_or(0, |cost| cost.calls), two.map_or(0, |cost| cost.calls)),
            };
            let cycles = cells(|cost| cost.predicted_cycles, |count| count.to_string());
            [name, calls].into_iter().chain(cycles).chain(cells(|cost| cost.bytes, words::bytes)).collect()
        });
        Table {
            head: &["operation", "calls", "predicted cycles", "second", "change", "bytes", "second", "change"],
            rows: rows.collect(),
        }
    }
}

/// What a figure is.
#[derive(Clone, Copy)]
enum On {
    Latency,
    Cycles,
    Energy,
}

impl Side {
    fn new(plan: &Plan, simulation: &Simulation, settings: Settings) -> Side {
        let sum = |of: fn(&crate::simulate::CallTrace) -> u64| simulation.calls.iter().map(of).sum::<u64>();
        let (read, written) = (sum(|call| call.read[0] + call.read[1]), sum(|call| call.written));
        let dram = plan.tensors.iter().filter(|tensor| tensor.space == Space::Dram);
        Side {
            device: plan.device.clone(),
            title: plan.title.clone(),
            goal: settings.goal,
            set: settings.set,
            sram: plan.sram,
            calls: plan.calls.len() as u64,
            macs: simulation.macs(),
            read,
            written,
            peak_sram: simulation.sram_peak,
            peak_dram: dram.map(|tensor| tensor.address + tensor.bytes()).max().unwrap_or(0),
            predicted: PredictedSide {
                cycles: simulation.cycles,
                latency: simulation.latency(&plan.rates),
                energy: Energy::new(
                    &plan.rates,
                    [simulation.macs(), simulation.wide_macs()],
                    sum(|call| call.sram_bytes),
                    read + written,
                    simulation.cycles,
                ),
                from: rests_on(plan),
            },
        }
    }

    fn rests_on_assumed(&self, on: On) -> bool {
        let change = |rests: &RestsOn| match on {
            On::Latency => rests.latency,
            On::Cycles => rests.cycles,
            On::Energy => rests.energy,
        };
        self.predicted.from.iter().flatten().any(|rests| rests.is_assumed() && change(rests) != 0.0)
    }
}

/// Operations of both, matched by the names of their kernels.
fn operations(simulations: &[Simulation; 2]) -> Vec<Operation> {
    let mut sets = Sets::default();
    for call in simulations.iter().flat_map(|simulation| &simulation.calls) {
        sets.join(&call.name);
    }
    let mut operations: Vec<Operation> = Vec::new();
    let mut index: HashMap<usize, usize> = HashMap::new();
    for (side, simulation) in simulations.iter().enumerate() {
        for call in &simulation.calls {
            let at = *index.entry(sets.of(&call.name)).or_insert_with(|| {
                operations.push(Operation { name: String::new(), first: None, second: None, raw: String::new() });
                operations.len() - 1
            });
            let operation = &mut operations[at];
            let cost = Cost {
                calls: 1,
                macs: call.macs,
                bytes: call.read[0] + call.read[1] + call.written,
                predicted_cycles: call.end.saturating_sub(call.start),
            };
            let sum = if side == 0 { &mut operation.first } else { &mut operation.second };
            *sum = Some(sum.unwrap_or_default().plus(cost));
            for part in parts(&call.name) {
                if !operation.raw.split(" + ").any(|known| known == part) {
                    let between = if operation.raw.is_empty() { "" } else { " + " };
                    operation.raw = format!("{}{between}{part}", operation.raw);
                }
            }
        }
    }
    operations.iter_mut().for_each(|operation| operation.name = named(&operation.raw));
    operations
}

/// The kernels that a call joins, whatever the width of their results.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.split(" + ").map(|part| [".int8", ".int16"].iter().find_map(|width| part.strip_suffix(width)).unwrap_or(part))
}

/// Sets of names that some call has together (Tarjan 1975, without ranks).
#[derive(Default)]
struct Sets {
    index: HashMap<String, usize>,
    parent: Vec<usize>,
}

impl Sets {
    fn join(&mut self, name: &str) {
        let ids: Vec<usize> = parts(name).map(|part| self.id(part)).collect();
        for pair in ids.windows(2) {
            let [a, b] = [self.root(pair[0]), self.root(pair[1])];
            self.parent[a.max(b)] = a.min(b);
        }
    }

    fn of(&mut self, name: &str) -> usize {
        let first = parts(name).next().unwrap_or_default();
        let id = self.id(first);
        self.root(id)
    }

    fn id(&mut self, part: &str) -> usize {
        let next = self.parent.len();
        let id = *self.index.entry(part.to_owned()).or_insert(next);
        if id == next {
            self.parent.push(next);
        }
        id
    }

    fn root(&mut self, mut id: usize) -> usize {
        while self.parent[id] != id {
            self.parent[id] = self.parent[self.parent[id]];
            id = self.parent[id];
        }
        id
    }
}

/// `+12.3%`, or `same`.
fn change(first: f64, second: f64) -> String {
    match first {
        first if first == second => "same".into(),
        0.0 => "-".into(),
        first => super::known::signed(second / first - 1.0),
    }
}
