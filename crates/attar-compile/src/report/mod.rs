//! What a plan costs, per call and in total: as data ([`Report`]), as text ([`Table`]) and as a page ([`to_html`]).
//!
//! Counted and predicted figures are kept apart. Bytes, multiply-accumulates and addresses are counted from the plan. Cycles,
//! seconds and joules are predicted by a model of the device; in data they are fields of `predicted`, in text and on the page
//! they carry that word. Nothing here is measured on a device, and nothing depends on the time of the report.
//!
//! The roofline is that of Williams, Waterman & Patterson (2009).

mod axis;
mod bars;
mod compare;
mod html;
mod known;
mod least;
pub mod markup;
mod memory_map;
mod moved;
mod names;
mod roofline;
mod sram_map;
mod table;
mod tiling;
mod timeline;
mod trace;
mod words;

use serde::Serialize;

use crate::{
    plan::{Call, Plan, Space},
    program::{Kernel, Program, Role},
    schedule::{Choice, Schedule, Target},
    simulate::{CallTrace, Rates, Simulation},
};

pub use compare::{Comparison, Cost, Operation, PredictedSide, Settings, Side};
pub use html::{Origin, Picture, pictures, to_html};
pub use known::{MARK, RestsOn, assumed, most_assumed, rests_on};
use markup::escaped;
pub use memory_map::memory_map;
pub use moved::MovedReport;
use moved::moved;
pub use names::named;
pub use table::Table;
pub(crate) use table::pattern;
pub use tiling::{ProductReport, TilingReport, columns};
pub use trace::{calls, trace, waits_for};

/// Version of the report's data.
pub const FORMAT: u32 = 1;

/// A call whose array and memory are both busy for less than this part of its cycles waits for something else.
const BUSY: f64 = 0.75;

/// What a report needs to know in addition to the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Tokens that one run processes, by which energy and speed are divided. At least 1.
    pub tokens: u64,
}

/// What a plan costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of this format: [`FORMAT`].
    pub report: u32,
    /// The device.
    pub device: String,
    /// What is run: `prefill: 128 tokens, empty cache`.
    pub title: String,
    /// Tokens of a run.
    pub tokens: u64,
    /// Bytes of on-chip memory.
    pub sram: u64,
    /// The peak rates of the device.
    pub roof: Roof,
    /// Each call, in running order.
    pub calls: Vec<CallReport>,
    /// Totals over all calls.
    pub totals: Totals,
    /// Shares by kind of kernel, in the order of [`KernelKind::ALL`]; only kinds that occur.
    pub kinds: Vec<KindShare>,
    /// Shares by what tensors hold, in the order of [`Holds::ALL`].
    pub roles: Vec<RoleShare>,
    /// Tensors that stay on the chip between calls.
    pub kept: Vec<Kept>,
    /// The numbers of the device that the predictions rest on, those that count most first; empty if that is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub predicted_from: Vec<RestsOn>,
    /// Totals of the same program unfused (every kernel alone, nothing kept on the chip), if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfused: Option<Totals>,
}

/// Peak rates, which no program can exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roof {
    /// Multiply-accumulates per second.
    pub macs: f64,
    /// DRAM bytes read per second.
    pub bytes: f64,
    /// Cycles per second.
    pub clock: f64,
}

/// The kind of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelKind {
    /// A norm.
    Norm,
    /// A product.
    Linear,
    /// Attention.
    Attention,
    /// A whole gated MLP.
    #[serde(rename = "mlp")]
    GatedMlp,
}

impl KernelKind {
    /// All of them.
    pub const ALL: [KernelKind; 4] = [KernelKind::Norm, KernelKind::Linear, KernelKind::Attention, KernelKind::GatedMlp];

    /// The kind of a kernel, without the norm at its entry.
    pub fn of(kernel: &Kernel) -> KernelKind {
        match kernel {
            Kernel::Norm(_) => KernelKind::Norm,
            Kernel::Linear(_) => KernelKind::Linear,
            Kernel::Attention(_) => KernelKind::Attention,
            Kernel::GatedMlp(_) => KernelKind::GatedMlp,
            Kernel::Normed(normed) => KernelKind::of(&normed.then),
        }
    }

    /// Its name in text and data.
    pub fn name(self) -> &'static str {
        ["norm", "linear", "attention", "mlp"][self as usize]
    }
}

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holds {
    /// Codes of weights.
    Weights,
    /// Inputs, outputs and intermediate results.
    Activations,
    /// Keys and values.
    State,
    /// Rescalings, gains, rotary tables.
    Constants,
}

impl Holds {
    /// All of them.
    pub const ALL: [Holds; 4] = [Holds::Weights, Holds::Activations, Holds::State, Holds::Constants];

    fn of(role: Role) -> Holds {
        match role {
            Role::Weight => Holds::Weights,
            Role::Input | Role::Output | Role::Scratch => Holds::Activations,
            Role::State => Holds::State,
            Role::Constant => Holds::Constants,
        }
    }

    /// Its name in text and data.
    pub fn name(self) -> &'static str {
        ["weights", "activations", "state", "constants"][self as usize]
    }
}

/// What limits the speed of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The array and the vector units.
    Compute,
    /// DRAM bandwidth.
    Dram,
    /// Flash bandwidth.
    Flash,
    /// None of these: queues wait for each other.
    Stalls,
}

impl Limit {
    /// Its name in text and data.
    pub fn name(self) -> &'static str {
        ["compute", "dram", "flash", "stalls"][self as usize]
    }
}

/// Joules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Energy {
    /// Of multiply-accumulates.
    pub mac: f64,
    /// Of bytes read from and written to SRAM.
    pub sram: f64,
    /// Of bytes moved to and from DRAM and flash.
    pub dram: f64,
    /// Of cycles, whatever is done in them.
    #[serde(rename = "static")]
    pub fixed: f64,
}

impl Energy {
    /// Of multiply-accumulates and those of them with int16 activations, bytes, and cycles.
    fn new(rates: &Rates, [macs, wide]: [u64; 2], sram: u64, dram: u64, cycles: u64) -> Energy {
        let joules = |count: u64, picojoules: f64| count as f64 * picojoules * 1e-12;
        let tile = &rates.tile;
        Energy {
            mac: rates.products(macs, wide) * 1e-12,
            sram: joules(sram, tile.sram_pj),
            dram: joules(dram, tile.dram_pj),
            fixed: joules(cycles, tile.cycle_pj),
        }
    }

    /// All of it.
    pub fn total(&self) -> f64 {
        self.mac + self.sram + self.dram + self.fixed
    }

    fn plus(&self, other: &Energy) -> Energy {
        Energy {
            mac: self.mac + other.mac,
            sram: self.sram + other.sram,
            dram: self.dram + other.dram,
            fixed: self.fixed + other.fixed,
        }
    }
}

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallReport {
    /// The kernel's name; of joined kernels, both.
    pub name: String,
    /// Of its kernel.
    pub kind: KernelKind,
    /// `[m, k, n]` of a product, `n` in accumulator columns; rows, width, width of a norm; rows, keys, columns of attention;
    /// rows, width, inner width of a gated unit.
    pub shape: [u64; 3],
    /// Its tiles, in words.
    pub tile: String,
    /// Its loops from the outermost, and what stays on the chip while they run, in words.
    pub order: String,
    /// Names of the tensors that lie on the chip during it.
    pub kept: Vec<String>,
    /// How many times each row is normed; 0 if it has no norm.
    pub norms: u64,
    /// Multiply-accumulates, without masked or padded terms.
    pub macs: u64,
    /// DRAM and flash bytes read.
    pub read: u64,
    /// DRAM bytes written.
    pub written: u64,
    /// Of the bytes read, those from flash.
    pub flash: u64,
    /// Lower bound on the bytes that any schedule of this kernel moves, given what is kept on the chip.
    pub least: u64,
    /// Bytes moved divided by the lower bound.
    pub distance: f64,
    /// Its tensors, each with the bytes moved and its lower bound.
    pub tensors: Vec<MovedReport>,
    /// Predictions by the model of the device.
    pub predicted: Predicted,
}

impl CallReport {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

/// Predictions for a call.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Predicted {
    /// Cycles from the end of the previous call to its own end.
    pub cycles: u64,
    /// Cycles in which the compute queue was busy.
    pub compute: u64,
    /// Cycles in which it waited for data or for room.
    pub stalled: u64,
    /// Cycles in which it did nothing, by what it waited for. With `compute` they are all cycles of the call.
    pub waits: Waits,
    /// Multiply-accumulates divided by those that the array could do in these cycles.
    pub utilisation: f64,
    /// What limits its speed.
    pub limit: Limit,
    /// Joules.
    pub energy: Energy,
}

/// Cycles in which the compute queue did nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// It waited for activations or states to be loaded.
    pub activation_loads: u64,
    /// It waited for weights or constants to be loaded.
    pub weight_loads: u64,
    /// It waited for room that a store leaves, or for the last store of the call.
    pub stores: u64,
}

/// All calls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// How many.
    pub calls: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// DRAM and flash bytes read.
    pub read: u64,
    /// DRAM bytes written.
    pub written: u64,
    /// Of the bytes read, those from flash.
    pub flash: u64,
    /// Sum of the lower bounds of all calls.
    pub least: u64,
    /// Bytes moved divided by the lower bound.
    pub distance: f64,
    /// One past the highest byte used on the chip.
    pub sram_peak: u64,
    /// One past the highest byte used in DRAM.
    pub dram_peak: u64,
    /// One past the highest byte used in flash.
    pub flash_peak: u64,
    /// Predictions by the model of the device.
    pub predicted: PredictedTotals,
}

impl Totals {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

/// Predictions for a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PredictedTotals {
    /// Cycles from the start to the last store.
    pub cycles: u64,
    /// Cycles before the first load.
    pub dispatch: u64,
    /// Cycles in which the compute queue was busy.
    pub compute: u64,
    /// Cycles in which it waited for data or for room.
    pub stalled: u64,
    /// Multiply-accumulates divided by those that the array could do in these cycles.
    pub utilisation: f64,
    /// Seconds.
    pub latency: f64,
    /// Tokens of a run divided by its seconds.
    pub tokens_per_second: f64,
    /// Joules.
    pub energy: Energy,
    /// Joules per token.
    pub energy_per_token: f64,
}

/// All calls of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KindShare {
    /// Which.
    pub kind: KernelKind,
    /// How many.
    pub calls: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Predictions by the model of the device.
    pub predicted: PredictedShare,
}

/// Predictions for some calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PredictedShare {
    /// Cycles.
    pub cycles: u64,
    /// Joules.
    pub energy: Energy,
}

/// All tensors of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RoleShare {
    /// Which.
    pub holds: Holds,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Predicted joules of moving them between DRAM and the chip.
    pub predicted_joules: f64,
}

/// A tensor that stays on the chip between calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Its first byte.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
    /// Indices of the first and the last call that use it.
    pub calls: [usize; 2],
}

impl Report {
    /// The report of a schedule of `program` for `target`, simulated (or only timed) with the target's rates.
    pub fn new(program: &Program, schedule: &Schedule, simulation: &Simulation, target: &Target, options: Options) -> Report {
        let (plan, rates) = (&schedule.plan, &target.rates);
        let clock = rates.clock;
        let roof = Roof { macs: array(rates) * clock, bytes: rates.tile.read * clock, clock };
        let first = simulation.calls.first().map_or(0, |call| call.start);
        // Every cycle belongs to one call: from the end of the previous call to its own end.
        let starts = std::iter::once(first).chain(simulation.calls.iter().map(|call| call.end));
        let each = plan.calls.iter().zip(&schedule.choices).zip(&simulation.calls).zip(starts);
        let calls: Vec<CallReport> =
            each.map(|(((call, choice), trace), start)| one(program, plan, target, call, choice, trace, start)).collect();
        let totals = totals(&calls, plan, simulation, rates, options, first);
        Report {
            report: FORMAT,
            device: target.name.clone(),
            title: plan.title.clone(),
            tokens: options.tokens.max(1),
            sram: plan.sram,
            roof,
            kinds: kinds(&calls),
            roles: roles(plan, simulation, rates),
            kept: kept(plan),
            calls,
            totals,
            predicted_from: Vec::new(),
            unfused: None,
        }
    }

    /// Adds the totals of the same program unfused.
    pub fn against(self, unfused: &Report) -> Report {
        Report { unfused: Some(unfused.totals), ..self }
    }
}

/// Multiply-accumulates per cycle.
fn array(rates: &Rates) -> f64 {
    rates.tile.array.iter().product::<u64>() as f64
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn distance(bytes: u64, least: u64) -> f64 {
    if least == 0 { 1.0 } else { bytes as f64 / least as f64 }
}

fn one(
    program: &Program,
    plan: &Plan,
    target: &Target,
    call: &Call,
    choice: &Choice,
    trace: &CallTrace,
    start: u64,
) -> CallReport {
    let rates = &target.rates;
    let read: u64 = trace.read.iter().sum();
    let flash = flash(plan, call, trace);
    let least = least::least(program, choice, target.sram, &|id| plan.tensors[id.0 as usize].space == Space::Sram);
    let cycles = trace.end - start;
    let predicted = Predicted {
        cycles,
        compute: trace.compute,
        stalled: trace.stalled,
        waits: Waits { activation_loads: trace.waits[0], weight_loads: trace.waits[1], stores: trace.waits[3] },
        utilisation: ratio(trace.macs as f64, cycles as f64 * array(rates)),
        limit: limit(rates, trace, flash, cycles),
        energy: Energy::new(rates, [trace.macs, trace.wide_macs], trace.sram_bytes, read + trace.written, cycles),
    };
    CallReport {
        name: call.name.clone(),
        kind: KernelKind::of(&choice.kernel),
        shape: words::shape(program, &choice.kernel),
        tile: words::tile(&choice.tiles),
        order: words::order(program, choice),
        kept: choice.kept.clone(),
        norms: choice.norms,
        macs: trace.macs,
        read,
        written: trace.written,
        flash,
        least,
        distance: distance(read + trace.written, least),
        tensors: moved(program, plan, call, &choice.kernel, trace),
        predicted,
    }
}

/// Bytes that a call reads from flash.
fn flash(plan: &Plan, call: &Call, trace: &CallTrace) -> u64 {
    let moved = call.operands.iter().zip(&trace.operands);
    moved.filter(|(operand, _)| plan.tensors[operand.tensor as usize].space == Space::Flash).map(|(_, bytes)| bytes[0]).sum()
}

/// The busiest, if it is busy enough.
fn limit(rates: &Rates, trace: &CallTrace, flash: u64, cycles: u64) -> Limit {
    let read = trace.read.iter().sum::<u64>() - flash;
    let dram = ratio(read as f64, rates.tile.read) + ratio(trace.written as f64, rates.tile.write);
    let busy = [(Limit::Compute, trace.compute as f64), (Limit::Dram, dram), (Limit::Flash, ratio(flash as f64, rates.flash))];
    let (limit, most) = busy.into_iter().fold((Limit::Stalls, 0.0), |best, next| if next.1 > best.1 { next } else { best });
    if most >= BUSY * cycles as f64 { limit } else { Limit::Stalls }
}

fn totals(calls: &[CallReport], plan: &Plan, simulation: &Simulation, rates: &Rates, options: Options, dispatch: u64) -> Totals {
    let sum = |of: fn(&CallReport) -> u64| calls.iter().map(of).sum::<u64>();
    let (read, written, least, macs) = (sum(|c| c.read), sum(|c| c.written), sum(|c| c.least), sum(|c| c.macs));
    let sram = simulation.calls.iter().map(|call| call.sram_bytes).sum();
    let tokens = options.tokens.max(1) as f64;
    let (cycles, latency) = (simulation.cycles, simulation.latency(rates));
    let energy = Energy::new(rates, [macs, simulation.wide_macs()], sram, read + written, cycles);
    let peak = |space: Space| {
        let ends = plan.tensors.iter().filter(|tensor| tensor.space == space).map(|tensor| tensor.address + tensor.bytes());
        ends.max().unwrap_or(0)
    };
    Totals {
        calls: calls.len() as u64,
        macs,
        read,
        written,
        flash: sum(|c| c.flash),
        least,
        distance: distance(read + written, least),
        sram_peak: simulation.sram_peak.max(peak(Space::Sram)),
        dram_peak: peak(Space::Dram),
        flash_peak: peak(Space::Flash),
        predicted: PredictedTotals {
            cycles,
            dispatch,
            compute: sum(|c| c.predicted.compute),
            stalled: sum(|c| c.predicted.stalled),
            utilisation: ratio(macs as f64, cycles as f64 * array(rates)),
            latency,
            tokens_per_second: ratio(tokens, latency),
            energy,
            energy_per_token: energy.total() / tokens,
        },
    }
}

fn kinds(calls: &[CallReport]) -> Vec<KindShare> {
    let share = |kind: KernelKind| {
        let none = KindShare { kind, calls: 0, macs: 0, bytes: 0, predicted: PredictedShare::default() };
        calls.iter().filter(|call| call.kind == kind).fold(none, |sum, call| KindShare {
            kind,
            calls: sum.calls + 1,
            macs: sum.macs + call.macs,
            bytes: sum.bytes + call.bytes(),
            predicted: PredictedShare {
                cycles: sum.predicted.cycles + call.predicted.cycles,
                energy: sum.predicted.energy.plus(&call.predicted.energy),
            },
        })
    };
    KernelKind::ALL.into_iter().map(share).filter(|share| share.calls > 0).collect()
}

fn roles(plan: &Plan, simulation: &Simulation, rates: &Rates) -> Vec<RoleShare> {
    let mut moved = [[0u64; 2]; Holds::ALL.len()];
    for (call, trace) in plan.calls.iter().zip(&simulation.calls) {
        for (operand, bytes) in call.operands.iter().zip(&trace.operands) {
            let sum = &mut moved[Holds::of(plan.tensors[operand.tensor as usize].role) as usize];
            *sum = [sum[0] + bytes[0], sum[1] + bytes[1]];
        }
    }
    let share = |(holds, [read, written]): (Holds, [u64; 2])| RoleShare {
        holds,
        read,
        written,
        predicted_joules: (read + written) as f64 * rates.tile.dram_pj * 1e-12,
    };
    Holds::ALL.into_iter().zip(moved).map(share).collect()
}

fn kept(plan: &Plan) -> Vec<Kept> {
    let mut found = Vec::new();
    for (at, tensor) in plan.tensors.iter().enumerate().filter(|(_, tensor)| tensor.space == Space::Sram) {
        let uses = |call: &Call| call.operands.iter().any(|operand| operand.tensor as usize == at);
        let first = plan.calls.iter().position(uses);
        let last = plan.calls.iter().rposition(uses);
        if let (Some(first), Some(last)) = (first, last) {
            found.push(Kept { name: tensor.name.clone(), address: tensor.address, bytes: tensor.bytes(), calls: [first, last] });
        }
    }
    found
}
