//! Runs a plan on simulated memories: proves that it computes what the program defines, and predicts how long it takes.
//!
//! The simulator trusts nothing. Every box must be inside its tensor, every address inside its memory, and every byte that is
//! read must have been written since its buffer was allocated. Any two accesses of which one writes must be ordered by waits,
//! whatever the speeds of the queues: clocks are vectors (Fidge 1988, Mattern 1989), so that one run covers all interleavings.
//! Each term of each sum must be added once, each output stored once. Statements run in the order of the code; times follow from
//! the waits.

mod check;
mod chip;
mod compute;
mod critical;
mod timeline;
mod transfer;
mod violation;

use std::{borrow::Cow, collections::VecDeque};

pub use crate::rates::{Elementwise, Rates};
pub use critical::Critical;
pub use timeline::Event;
pub use violation::Violation;

use chip::{ACTIVATIONS, Bytes, COMPUTE, Chip, Clock, STORES, WEIGHTS, join};
use critical::{Path, spread, then};
use timeline::Port;

use crate::{
    Error, Result,
    data::{self, Memory},
    fixed::Exponential,
    plan::{Body, Call, Compute, Extent, Operand, Place, Placed, Plan, Region, Space, Span, Statement, View},
    program::{Program, Role, Tensor, TensorId},
    reference,
};

/// The largest on-chip memory that is simulated.
const LARGEST: u64 = 1 << 30;

/// How many steps of loops are walked.
const LONGEST: u64 = 1 << 26;

/// What happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Simulation {
    /// Each call, in running order.
    pub calls: Vec<CallTrace>,
    /// Cycles from the first load to the last store.
    pub cycles: u64,
    /// One past the highest on-chip byte that was used.
    pub sram_peak: u64,
    /// What queues did when, of the first calls.
    pub events: Vec<Event>,
}

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallTrace {
    /// Its name.
    pub name: String,
    /// First cycle of anything in it.
    pub start: u64,
    /// One past its last cycle.
    pub end: u64,
    /// Cycles in which the compute queue worked.
    pub compute: u64,
    /// Cycles in which it waited for data or room.
    pub stalled: u64,
    /// Cycles of the call in which the compute queue did nothing, by the queue that it waited for: [`CallTrace::stalled`], and
    /// those at the end in which the other queues finish. With `compute` they are all cycles of the call.
    pub waits: [u64; 4],
    /// Its cycles on the critical path of the run, where that was followed; of a call's weight loads, some are before its start.
    pub critical: Critical,
    /// DRAM and flash bytes read: activations and states, then weights and constants.
    pub read: [u64; 2],
    /// DRAM bytes written.
    pub written: u64,
    /// Transfers.
    pub transfers: u64,
    /// Multiply-accumulates, without masked or padded terms.
    pub macs: u64,
    /// Of these, the ones with int16 activations.
    pub wide_macs: u64,
    /// Bytes between compute and SRAM, and between DRAM and SRAM.
    pub sram_bytes: u64,
    /// Of each operand: bytes read from where it lies, and written there.
    pub operands: Vec<[u64; 2]>,
}

impl Simulation {
    /// DRAM bytes read and written.
    pub fn dram(&self) -> u64 {
        self.calls.iter().map(|call| call.read[0] + call.read[1] + call.written).sum()
    }

    /// Multiply-accumulates.
    pub fn macs(&self) -> u64 {
        self.calls.iter().map(|call| call.macs).sum()
    }

    /// Of these, the ones with int16 activations.
    pub fn wide_macs(&self) -> u64 {
        self.calls.iter().map(|call| call.wide_macs).sum()
    }

    /// Seconds.
    pub fn latency(&self, rates: &Rates) -> f64 {
        self.cycles as f64 / rates.clock
    }

    /// Joules.
    pub fn energy(&self, rates: &Rates) -> f64 {
        let sram: u64 = self.calls.iter().map(|call| call.sram_bytes).sum();
        let products = rates.products(self.macs(), self.wide_macs());
        let rates = &rates.tile;
        let moved = sram as f64 * rates.sram_pj + self.dram() as f64 * rates.dram_pj;
        (products + moved + self.cycles as f64 * rates.cycle_pj) * 1e-12
    }
}

/// Runs a plan on numbers, checking every rule. `memory` holds the tensors of the plan's program, by the same indices.
pub fn simulate(plan: &Plan, rates: &Rates, memory: &mut Memory) -> Result<Simulation> {
    Simulator::new(plan, rates, Some(memory))?.run()
}

/// Times and counts of a plan, without numbers and without checking bytes.
pub fn time(plan: &Plan, rates: &Rates) -> Result<Simulation> {
    Simulator::new(plan, rates, None)?.run()
}

/// The same with as many events as there are, up to a number, and with the critical path.
pub(crate) fn whole(plan: &Plan, events: usize) -> Result<Simulation> {
    let mut simulator = Simulator::new(plan, &plan.rates, None)?;
    (simulator.events, simulator.follows) = (events, true);
    simulator.run()
}

/// Runs `plan` and the reference of `program` on the same numbers and compares everything that the program writes, and how
/// often it multiplies.
pub fn prove(program: &Program, plan: &Plan, rates: &Rates, memory: &Memory) -> Result<Simulation> {
    Ok(prove_and_keep(program, plan, rates, memory)?.0)
}

/// The same, with the numbers after the run.
pub(crate) fn prove_and_keep(program: &Program, plan: &Plan, rates: &Rates, memory: &Memory) -> Result<(Simulation, Memory)> {
    let (mut found, mut wanted) = (memory.clone(), memory.clone());
    let simulation = simulate(plan, rates, &mut found)?;
    reference::run(program, &mut wanted);
    let violation = |what| Error::Violation { call: plan.title.clone(), statement: "the result".into(), what };
    let lasting = |tensor: &Tensor| matches!(tensor.role, Role::Output | Role::State);
    let outputs = (0..).zip(&program.tensors).filter(|(_, tensor)| lasting(tensor)).map(|(id, _)| TensorId(id));
    for id in stored(plan).into_iter().chain(outputs) {
        let tensor = program.get(id);
        let (found, wanted) = (found.get(id).numbers(), wanted.get(id).numbers());
        if let Some(at) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
            let (row, column) = (at as u64 / tensor.columns, at as u64 % tensor.columns);
            let (found, wanted) = (found[at], wanted[at]);
            return Err(violation(Violation::Differs { tensor: tensor.name.clone(), row, column, found, wanted }));
        }
    }
    let wanted = program.kernels.iter().map(|(_, kernel)| program.macs(kernel)).sum();
    match simulation.macs() {
        macs if macs != wanted => Err(violation(Violation::Count { what: "multiply-accumulates", found: macs, wanted })),
        _ => Ok((simulation, found)),
    }
}

/// The tensors that a plan stores, in the order of its calls.
fn stored(plan: &Plan) -> Vec<TensorId> {
    fn walk(code: &[Statement], found: &mut Vec<u32>) {
        for statement in code {
            match statement {
                Statement::Loop { body, .. } => walk(body, found),
                Statement::Store { operands, .. } => found.extend(operands.iter().map(|(operand, _)| *operand)),
                _ => {}
            }
        }
    }
    let mut ids = Vec::new();
    for call in &plan.calls {
        let mut operands = Vec::new();
        walk(&plan.bodies[call.body as usize].code, &mut operands);
        ids.extend(operands.into_iter().map(|operand| TensorId(call.operands[operand as usize].tensor)));
    }
    ids.dedup();
    ids
}

/// Rows and columns: from, to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    rows: [u64; 2],
    columns: [u64; 2],
}

impl Area {
    fn height(&self) -> u64 {
        self.rows[1] - self.rows[0]
    }

    fn width(&self) -> u64 {
        self.columns[1] - self.columns[0]
    }

    fn contains(&self, other: &Area) -> bool {
        let within = |mine: [u64; 2], theirs: [u64; 2]| mine[0] <= theirs[0] && theirs[1] <= mine[1];
        within(self.rows, other.rows) && within(self.columns, other.columns)
    }

    /// The areas that are left of it without one that it contains: above and below, then to the left and to the right.
    fn without(&self, part: &Area) -> impl Iterator<Item = Area> {
        let sides = |all: [u64; 2], part: [u64; 2]| [[all[0], part[0]], [part[1], all[1]]];
        let rows = sides(self.rows, part.rows).map(|rows| Area { rows, ..*self });
        let columns = sides(self.columns, part.columns).map(|columns| Area { columns, ..*part });
        rows.into_iter().chain(columns).filter(|area| area.height() > 0 && area.width() > 0)
    }
}

/// What part of a sum is there: terms, ascending and joined where they touch, of all that there are.
#[derive(Clone, Debug)]
struct Terms {
    place: Area,
    found: Vec<[u64; 2]>,
    wanted: [u64; 2],
}

/// What a slot of a buffer holds.
#[derive(Clone, Debug)]
struct Slot {
    index: u64,
    bytes: Bytes,
    region: Area,
    /// When it was loaded; compute knows of what it opened.
    clock: Clock,
    time: u64,
    /// How it came to be there at that time.
    path: Path,
    /// The queue that loaded it, or whose stores made room for it.
    queue: usize,
    /// By a load, not opened.
    loaded: bool,
    sums: Vec<Terms>,
}

#[derive(Clone, Debug, Default)]
struct BufferState {
    held: VecDeque<Slot>,
    /// Slots handed out so far.
    given: u64,
    /// Of each slot of a ring (one for a packed buffer): when it became free.
    freed: Vec<(Clock, u64, Path)>,
    /// Bytes in use of a packed buffer.
    filled: u64,
}

/// A tile that a loop is at.
#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    index: u64,
    start: u64,
    length: u64,
}

/// A box on the chip, found.
struct Found {
    name: String,
    region: Area,
    start: u64,
    /// Bytes from row to row.
    stride: u64,
    /// Bits of a number.
    bits: u32,
}

impl Found {
    /// Its bytes, in as few runs as there are.
    fn runs(&self) -> Vec<Bytes> {
        let row = self.region.width() * u64::from(self.bits) / 8;
        match row == self.stride {
            true => vec![Bytes { start: self.start, length: row * self.region.height() }],
            false => (0..self.region.height()).map(|r| Bytes { start: self.start + r * self.stride, length: row }).collect(),
        }
    }
}

struct Simulator<'p, 'm> {
    plan: &'p Plan,
    rates: &'p Rates,
    memory: Option<&'m mut Memory>,
    /// Weights and constants as they lie in memory, once they were read.
    stored_bytes: Vec<Option<Vec<u8>>>,
    chip: Chip,
    exponential: Exponential,
    clocks: [Clock; 4],
    times: [u64; 4],
    /// The earliest cycle at which each queue may request its next transfer.
    requests: [u64; 4],
    /// How each queue came to be at its time.
    paths: [Path; 4],
    /// Whether paths are followed.
    follows: bool,
    /// What was known at the last barrier, and when that was.
    barrier: (Clock, u64, Path),
    port: Port,
    flash: Port,
    /// Which tensors hold what they are said to.
    defined: Vec<bool>,
    /// When a tensor was last stored, and last loaded by each queue.
    stored: Vec<Clock>,
    loaded: Vec<Clock>,
    /// Sums in operands that are kept on the chip.
    kept: Vec<Vec<Terms>>,
    buffers: Vec<BufferState>,
    tiles: Vec<Tile>,
    /// Elements stored in this call, of each operand.
    written: Vec<Vec<bool>>,
    trace: CallTrace,
    result: Simulation,
    call: u32,
    /// Of loops, so far.
    steps: u64,
    /// How many events are remembered.
    events: usize,
}

/// How many events a simulation remembers.
const EVENTS: usize = 20_000;

impl<'p, 'm> Simulator<'p, 'm> {
    fn new(plan: &'p Plan, rates: &'p Rates, memory: Option<&'m mut Memory>) -> Result<Self> {
        let simulator = Simulator {
            plan,
            rates,
            chip: Chip::new(plan.sram.min(LARGEST), plan.align.max(1), memory.is_some()),
            memory,
            stored_bytes: vec![None; plan.tensors.len()],
            exponential: Exponential::default(),
            clocks: [[0; 4]; 4],
            times: [rates.dispatch; 4],
            requests: [rates.dispatch; 4],
            paths: Default::default(),
            follows: false,
            barrier: Default::default(),
            port: Port::default(),
            flash: Port::default(),
            defined: plan.tensors.iter().map(|t| !matches!(t.role, Role::Scratch | Role::Output)).collect(),
            stored: vec![[0; 4]; plan.tensors.len()],
            loaded: vec![[0; 4]; plan.tensors.len()],
            kept: vec![Vec::new(); plan.tensors.len()],
            buffers: Vec::new(),
            tiles: vec![Tile::default(); 256],
            written: Vec::new(),
            trace: CallTrace::default(),
            result: Simulation::default(),
            call: 0,
            steps: 0,
            events: EVENTS,
        };
        let title = plan.title.clone();
        simulator.check_plan().map_err(|what| Error::Violation { call: title, statement: "the plan".into(), what })?;
        Ok(simulator)
    }

    fn run(mut self) -> Result<Simulation> {
        let kept = self.plan.tensors.iter().filter(|tensor| tensor.space == Space::Sram);
        self.result.sram_peak = kept.map(|tensor| tensor.address.saturating_add(tensor.bytes())).max().unwrap_or(0);
        for index in 0..self.plan.calls.len() {
            self.run_call(index)?;
        }
        self.result.cycles = self.times.into_iter().max().unwrap_or(0);
        let mut critical = vec![Critical::default(); self.result.calls.len()];
        spread(&self.paths[self.last(&[0, 1, 2, 3])], &mut critical);
        self.result.calls.iter_mut().zip(critical).for_each(|(call, critical)| call.critical = critical);
        Ok(self.result)
    }

    fn run_call(&mut self, index: usize) -> Result<()> {
        let plan = self.plan;
        let call = &plan.calls[index];
        let body = &plan.bodies[call.body as usize];
        self.barrier(call.fence_weights);
        self.call = index as u32;
        let operands = vec![[0; 2]; call.operands.len()];
        self.trace = CallTrace { name: call.name.clone(), start: self.times[COMPUTE], operands, ..CallTrace::default() };
        self.buffers = body.buffers.iter().map(|_| BufferState::default()).collect();
        let elements = |operand: &Operand| {
            let tensor = &plan.tensors[operand.tensor as usize];
            let kept = matches!(tensor.role, Role::Weight | Role::Constant | Role::Input);
            if self.memory.is_some() && !kept { (tensor.rows * tensor.columns) as usize } else { 0 }
        };
        self.written = call.operands.iter().map(|operand| vec![false; elements(operand)]).collect();
        for (buffer, offset) in body.buffers.iter().zip(&call.offsets) {
            self.chip.forget(Bytes { start: *offset, length: buffer.bytes });
            self.result.sram_peak = self.result.sram_peak.max(offset + buffer.bytes);
        }
        self.statements(call, body, &body.code)?;
        self.check_released(body).map_err(|what| violation(call, "the end", what))?;
        self.check_stored(call).map_err(|what| violation(call, "the end", what))?;
        let last = self.last(&[COMPUTE, STORES, ACTIVATIONS, WEIGHTS]);
        self.trace.end = self.times[last];
        self.trace.waits[last] += self.times[last] - self.times[COMPUTE];
        let earliest = self.times[ACTIVATIONS].min(self.times[STORES]).min(self.times[WEIGHTS]);
        self.port.forget(earliest);
        self.flash.forget(earliest);
        self.result.calls.push(std::mem::take(&mut self.trace));
        Ok(())
    }

    /// All queues wait for each other; weight loads without `weights` only for the barrier before this one.
    fn barrier(&mut self, weights: bool) {
        let waiting: &[usize] = if weights { &[0, 1, 2, 3] } else { &[ACTIVATIONS, COMPUTE, STORES] };
        let mut all = [0; 4];
        waiting.iter().for_each(|queue| join(&mut all, &self.clocks[*queue]));
        let last = self.last(waiting);
        let (time, path) = (self.times[last], self.paths[last].clone());
        for queue in waiting {
            join(&mut self.clocks[*queue], &all);
            self.times[*queue] = time;
            self.requests[*queue] = time;
            self.paths[*queue].clone_from(&path);
        }
        let (before, before_time, before_path) = std::mem::replace(&mut self.barrier, (all, time, path));
        join(&mut self.clocks[WEIGHTS], &before);
        self.requests[WEIGHTS] = self.requests[WEIGHTS].max(before_time);
        if before_time > self.times[WEIGHTS] {
            (self.times[WEIGHTS], self.paths[WEIGHTS]) = (before_time, before_path);
        }
    }

    /// The queue of these that is the last to be done, the first of equals.
    fn last(&self, queues: &[usize]) -> usize {
        let later = |best: usize, next: usize| if self.times[next] > self.times[best] { next } else { best };
        queues.iter().copied().reduce(later).unwrap_or(COMPUTE)
    }

    /// The way to the end of something of this call that began at the end of `path`.
    fn then(&self, path: &Path, add: impl FnOnce(&mut Critical)) -> Path {
        if self.follows { then(path, self.call, add) } else { None }
    }

    fn statements(&mut self, call: &Call, body: &Body, code: &[Statement]) -> Result<()> {
        for statement in code {
            match statement {
                Statement::Loop { variable, extent, tile, tiles, body: inner } => {
                    for at in self.range(extent, *tile, *tiles).map_err(|what| violation(call, &name(statement), what))? {
                        self.tiles[*variable as usize] = at;
                        self.statements(call, body, inner)?;
                    }
                }
                _ => self.statement(call, body, statement).map_err(|what| violation(call, &name(statement), what))?,
            }
        }
        Ok(())
    }

    /// The tiles that a loop goes over.
    fn range(&mut self, extent: &Extent, tile: u64, [first, end]: [u64; 2]) -> Result<Vec<Tile>, Violation> {
        let tile = tile.max(1);
        let (from, to) = match extent {
            Extent::Count(count) => (0, *count),
            Extent::Rows { rows } => {
                let rows = self.tiles[*rows as usize];
                (rows.start, rows.start.saturating_add(rows.length))
            }
            Extent::Keys { rows, past, mask } => {
                let rows = self.tiles[*rows as usize];
                mask.keys(*past, rows.start, rows.length)
            }
            Extent::AllKeys { rows, past, mask } => mask.keys(*past, 0, *rows),
        };
        let range = first.max(from / tile)..end.min(to.div_ceil(tile));
        self.steps = self.steps.saturating_add(range.end.saturating_sub(range.start));
        if self.steps > LONGEST {
            return Err(Violation::TooLong { steps: LONGEST });
        }
        Ok(range.map(|index| Tile { index, start: index * tile, length: tile.min(to - index * tile) }).collect())
    }

    fn statement(&mut self, call: &Call, body: &Body, statement: &Statement) -> Result<(), Violation> {
        match statement {
            Statement::Loop { .. } => unreachable!("loops are walked above"),
            Statement::Load { buffer, operand, region } => self.load(call, body, *buffer, *operand, region),
            Statement::Wait { buffer, region } => self.wait(body, *buffer, region),
            Statement::Release { buffer } => self.release(body, *buffer),
            Statement::Open { buffer, region } => self.open(call, body, *buffer, region),
            Statement::Store { buffer, operands, region } => self.store(call, body, *buffer, operands, region),
            Statement::Compute(compute) => self.compute(call, body, compute),
        }
    }

    fn span(&self, span: &Span) -> [u64; 2] {
        match span {
            Span::Fixed { start, length } => [*start, start.saturating_add(*length)],
            Span::Tile { variable, base, unit } => {
                let tile = self.tiles[*variable as usize];
                let at = |step: u64| base.saturating_add(step.saturating_mul(*unit));
                [at(tile.start), at(tile.start.saturating_add(tile.length))]
            }
        }
    }

    fn region(&self, region: &Region) -> Area {
        Area { rows: self.span(&region.rows), columns: self.span(&region.columns) }
    }

    /// An operand, and its tensor in the operand's rows and columns.
    fn tensor(&self, call: &Call, operand: u32) -> Result<(Operand, Cow<'p, Placed>), Violation> {
        let count = call.operands.len() as u64;
        let of = call.operands.get(operand as usize).ok_or(Violation::Index { what: "operand", index: operand.into(), count })?;
        Ok((*of, self.plan.tensors[of.tensor as usize].side_by_side(of.beside)))
    }

    /// Where a view lies.
    fn find(&self, call: &Call, body: &Body, view: &View) -> Result<Found, Violation> {
        let region = self.region(&view.region);
        match view.place {
            Place::Buffer(buffer) => {
                let slot = self.slot(body, buffer, &region)?;
                let what = &body.buffers[buffer as usize];
                let bits = if what.element.per == 1 { what.element.bits } else { 0 };
                let bytes = u64::from(bits / 8);
                let stride = slot.region.width() * bytes;
                let start = slot.bytes.start
                    + (region.rows[0] - slot.region.rows[0]) * stride
                    + (region.columns[0] - slot.region.columns[0]) * bytes;
                Ok(Found { name: what.name.clone(), region, start, stride, bits })
            }
            Place::Operand(operand) => {
                let (of, tensor) = self.tensor(call, operand)?;
                let all = Area { rows: [0, tensor.rows - of.row.min(tensor.rows)], columns: [0, tensor.columns] };
                if !all.contains(&region) || tensor.space != Space::Sram {
                    let (rows, columns) = (region.rows, region.columns);
                    return Err(Violation::NotThere { place: tensor.name.clone(), rows, columns });
                }
                let bytes = u64::from(tensor.element.bits / 8);
                let stride = tensor.columns * bytes;
                let start = tensor.address + (region.rows[0] + of.row) * stride + region.columns[0] * bytes;
                Ok(Found { name: tensor.name.clone(), region, start, stride, bits: tensor.element.bits })
            }
        }
    }

    /// The numbers of a part of a box on the chip.
    fn numbers(&self, found: &Found, part: &Area) -> Vec<i32> {
        let bytes = u64::from(found.bits / 8);
        let length = (part.width() * bytes) as usize;
        let first = found.start + (part.columns[0] - found.region.columns[0]) * bytes;
        (part.rows[0]..part.rows[1])
            .flat_map(|row| {
                let at = (first + (row - found.region.rows[0]) * found.stride) as usize;
                data::numbers(&self.chip.bytes[at..at + length], found.bits)
            })
            .collect()
    }
}

fn fixed(region: &Area) -> Region {
    let span = |[from, to]: [u64; 2]| Span::Fixed { start: from, length: to - from };
    Region { rows: span(region.rows), columns: span(region.columns) }
}

fn violation(call: &Call, statement: &str, what: Violation) -> Error {
    Error::Violation { call: call.name.clone(), statement: statement.into(), what }
}

/// What a statement is called in messages.
fn name(statement: &Statement) -> String {
    match statement {
        Statement::Loop { variable, .. } => format!("loop v{variable}"),
        Statement::Load { region, .. } => format!("load {region}"),
        Statement::Wait { region, .. } => format!("wait {region}"),
        Statement::Release { buffer } => format!("release of buffer {buffer}"),
        Statement::Open { region, .. } => format!("open {region}"),
        Statement::Store { region, .. } => format!("store {region}"),
        Statement::Compute(compute) => match compute {
            Compute::Multiply { sums, .. } => format!("multiply {}", sums.region),
            Compute::Finish { out, .. } => format!("finish {}", out.region),
            Compute::Norm { out, .. } => format!("norm {}", out.region),
            Compute::Attend { query, key, .. } => format!("attend {} to {}", query.region, key.region),
            Compute::Attended { out, .. } => format!("attended {}", out.region),
        },
    }
}
