//! Runs a plan on simulated memories: proves that it computes what the program means, and says how long it takes.
//!
//! The simulator believes nothing. Every box must lie in its tensor, every address in its memory, every byte read must have
//! been written since its place was handed out, and any two accesses of which one writes must be ordered by what queues
//! wait for, whatever the queues' speeds: clocks are vectors (Fidge 1988, Mattern 1989), so one run stands for all
//! interleavings. Each term of each sum must be added once, each output stored once. Statements run in the order of the
//! code; times follow from what each has to wait for.

mod chip;
mod compute;
mod rates;
mod timeline;
mod violation;

use std::collections::VecDeque;

pub use rates::Rates;
pub use timeline::Event;
pub use violation::Violation;

use chip::{ACTIVATIONS, Bytes, COMPUTE, Chip, Clock, STORES, WEIGHTS, join};
use timeline::Port;

use crate::{
    Error, Result,
    data::{self, Memory},
    fixed::Exponential,
    plan::{Body, Call, Compute, Constant, Extent, Operand, Place, Placed, Plan, Region, Slots, Space, Span, Statement, View},
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
    /// One behind the highest on-chip byte that was used.
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
    /// One behind its last cycle.
    pub end: u64,
    /// Cycles in which the compute queue worked.
    pub compute: u64,
    /// Cycles in which it waited for data or room.
    pub stalled: u64,
    /// DRAM and flash bytes read: activations and states, then weights and constants.
    pub read: [u64; 2],
    /// DRAM bytes written.
    pub written: u64,
    /// Transfers.
    pub transfers: u64,
    /// Multiply-accumulates whose terms count.
    pub macs: u64,
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

    /// Seconds.
    pub fn latency(&self, rates: &Rates) -> f64 {
        self.cycles as f64 / rates.clock
    }

    /// Joules.
    pub fn energy(&self, rates: &Rates) -> f64 {
        let sram: u64 = self.calls.iter().map(|call| call.sram_bytes).sum();
        let rates = &rates.tile;
        let moved = sram as f64 * rates.sram_pj + self.dram() as f64 * rates.dram_pj;
        (self.macs() as f64 * rates.mac_pj + moved + self.cycles as f64 * rates.cycle_pj) * 1e-12
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

/// Runs `plan` and the reference of `program` on the same numbers and compares everything that the program writes, and how
/// often it multiplies.
pub fn prove(program: &Program, plan: &Plan, rates: &Rates, memory: &Memory) -> Result<Simulation> {
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
        found if found != wanted => Err(violation(Violation::Count { what: "multiply-accumulates", found, wanted })),
        _ => Ok(simulation),
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
struct Box {
    rows: [u64; 2],
    columns: [u64; 2],
}

impl Box {
    fn height(&self) -> u64 {
        self.rows[1] - self.rows[0]
    }

    fn width(&self) -> u64 {
        self.columns[1] - self.columns[0]
    }

    fn contains(&self, other: &Box) -> bool {
        let within = |mine: [u64; 2], theirs: [u64; 2]| mine[0] <= theirs[0] && theirs[1] <= mine[1];
        within(self.rows, other.rows) && within(self.columns, other.columns)
    }
}

/// What part of a sum is there: terms, ascending and joined where they touch, of all that there are.
#[derive(Clone, Debug)]
struct Terms {
    place: Box,
    found: Vec<[u64; 2]>,
    wanted: [u64; 2],
}

/// What a slot of a buffer holds.
#[derive(Clone, Debug)]
struct Slot {
    index: u64,
    bytes: Bytes,
    region: Box,
    /// When it was loaded; compute knows of what it opened.
    clock: Clock,
    time: u64,
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
    freed: Vec<(Clock, u64)>,
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
    region: Box,
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
    chip: Chip,
    exponential: Exponential,
    clocks: [Clock; 4],
    times: [u64; 4],
    /// What was known at the last barrier, and when that was.
    barrier: (Clock, u64),
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
            exponential: Exponential::default(),
            clocks: [[0; 4]; 4],
            times: [rates.dispatch; 4],
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
        };
        let title = plan.title.clone();
        simulator.check_plan().map_err(|what| Error::Violation { call: title, statement: "the plan".into(), what })?;
        Ok(simulator)
    }

    /// What can be seen before anything runs.
    fn check_plan(&self) -> Result<(), Violation> {
        let plan = self.plan;
        if plan.sram > LARGEST {
            return Err(Violation::Capacity {
                what: "on-chip memory".into(),
                end: plan.sram,
                space: "the simulator",
                capacity: LARGEST,
            });
        }
        if plan.align == 0 || plan.align > plan.sram.max(1) {
            return Err(Violation::Misaligned { what: "the plan".into(), offset: 0, align: plan.align });
        }
        if let Some(memory) = &self.memory {
            memory.check(&plan.tensors).map_err(|tensor| Violation::Undefined { tensor })?;
        }
        let uses = self.uses();
        for (index, call) in plan.calls.iter().enumerate() {
            let body = plan.bodies.get(call.body as usize).ok_or(Violation::Index {
                what: "body",
                index: call.body.into(),
                count: plan.bodies.len() as u64,
            })?;
            self.check_places(index, call, body, &uses)?;
            self.check_constants(call)?;
        }
        for (index, tensor) in plan.tensors.iter().enumerate().filter(|(_, t)| t.space != Space::Sram) {
            self.check_constant(index, tensor)?;
        }
        Ok(())
    }

    /// First and last call of each tensor.
    fn uses(&self) -> Vec<Option<[usize; 2]>> {
        let mut uses: Vec<Option<[usize; 2]>> = vec![None; self.plan.tensors.len()];
        for (index, call) in self.plan.calls.iter().enumerate() {
            for operand in &call.operands {
                if let Some(of) = uses.get_mut(operand.tensor as usize) {
                    *of = Some([of.map_or(index, |[first, _]| first), index]);
                }
            }
        }
        uses
    }

    /// Rescalings shift by what they can.
    fn check_constants(&self, call: &Call) -> Result<(), Violation> {
        for constant in &call.constants {
            let shifts: Vec<u32> = match constant {
                Constant::Norm { gain_shift, .. } => vec![gain_shift + 1],
                Constant::Ranges(ranges) => ranges.iter().map(|(_, rescale)| rescale.shift.into()).collect(),
                Constant::Gate { rescale, .. } | Constant::Rescale(rescale) => vec![rescale.shift.into()],
            };
            if let Some(shift) = shifts.into_iter().find(|shift| !(1..=62).contains(shift)) {
                return Err(Violation::Index { what: "shift", index: shift.into(), count: 63 });
            }
        }
        Ok(())
    }

    /// Buffers of a call, and tensors that live on the chip during it, are aligned, in memory, and apart.
    fn check_places(&self, index: usize, call: &Call, body: &Body, uses: &[Option<[usize; 2]>]) -> Result<(), Violation> {
        let (plan, counts) = (self.plan, [call.offsets.len(), call.operands.len()]);
        if counts != [body.buffers.len(), body.operands as usize] {
            let [offsets, operands] = counts.map(|count| count as u64);
            return Err(Violation::Mismatch {
                what: "numbers of buffers and operands",
                found: [offsets, operands],
                wanted: [body.buffers.len() as u64, body.operands.into()],
            });
        }
        for operand in &call.operands {
            if operand.tensor as usize >= plan.tensors.len() {
                let count = plan.tensors.len() as u64;
                return Err(Violation::Index { what: "tensor", index: operand.tensor.into(), count });
            }
        }
        let buffers = body.buffers.iter().zip(&call.offsets).map(|(b, offset)| (b.name.as_str(), *offset, b.bytes));
        let live = plan.tensors.iter().zip(uses).filter(|(tensor, uses)| {
            tensor.space == Space::Sram && uses.is_some_and(|[first, last]| (first..=last).contains(&index))
        });
        let mut places: Vec<(&str, u64, u64)> =
            buffers.chain(live.map(|(t, _)| (t.name.as_str(), t.address, t.bytes()))).collect();
        for (name, start, bytes) in &places {
            if start % plan.align != 0 {
                return Err(Violation::Misaligned { what: (*name).into(), offset: *start, align: plan.align });
            }
            let end = start.saturating_add(*bytes);
            if end > plan.sram {
                return Err(Violation::Capacity { what: (*name).into(), end, space: "sram", capacity: plan.sram });
            }
        }
        places.sort_by_key(|(_, start, _)| *start);
        match places.windows(2).find(|pair| pair[0].1 + pair[0].2 > pair[1].1) {
            Some(pair) => Err(Violation::Overlap { first: pair[0].0.into(), second: pair[1].0.into(), at: pair[1].1 }),
            None => Ok(()),
        }
    }

    /// What never changes, and what outlives a run, lies apart from everything else.
    fn check_constant(&self, index: usize, tensor: &Placed) -> Result<(), Violation> {
        if matches!(tensor.role, Role::Scratch) {
            return Ok(());
        }
        let range = |t: &Placed| t.address..t.address.saturating_add(t.bytes());
        let mine = range(tensor);
        for (other, against) in self.plan.tensors.iter().enumerate() {
            let theirs = range(against);
            if other != index && against.space == tensor.space && mine.start < theirs.end && theirs.start < mine.end {
                let at = mine.start.max(theirs.start);
                return Err(Violation::Overlap { first: tensor.name.clone(), second: against.name.clone(), at });
            }
        }
        Ok(())
    }

    fn run(mut self) -> Result<Simulation> {
        for index in 0..self.plan.calls.len() {
            self.run_call(index)?;
        }
        self.result.cycles = self.times.into_iter().max().unwrap_or(0);
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
        self.trace.end = self.times.into_iter().max().unwrap_or(0);
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
        let time = waiting.iter().map(|queue| self.times[*queue]).max().unwrap_or(0);
        for queue in waiting {
            join(&mut self.clocks[*queue], &all);
            self.times[*queue] = time;
        }
        let (before, before_time) = std::mem::replace(&mut self.barrier, (all, time));
        join(&mut self.clocks[WEIGHTS], &before);
        self.times[WEIGHTS] = self.times[WEIGHTS].max(before_time);
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
    fn range(&mut self, extent: &Extent, tile: u64, [first, behind]: [u64; 2]) -> Result<Vec<Tile>, Violation> {
        let tile = tile.max(1);
        let (from, to) = match extent {
            Extent::Count(count) => (0, *count),
            Extent::Keys { rows, past, window } => {
                let rows = self.tiles[*rows as usize];
                let first = past.saturating_add(rows.start).saturating_add(1);
                let last = past.saturating_add(rows.start).saturating_add(rows.length);
                (window.map_or(0, |window| first.saturating_sub(window)), last)
            }
        };
        let range = first.max(from / tile)..behind.min(to.div_ceil(tile));
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

    fn region(&self, region: &Region) -> Box {
        Box { rows: self.span(&region.rows), columns: self.span(&region.columns) }
    }

    fn tensor(&self, call: &Call, operand: u32) -> Result<(Operand, &'p Placed), Violation> {
        let count = call.operands.len() as u64;
        let of = call.operands.get(operand as usize).ok_or(Violation::Index { what: "operand", index: operand.into(), count })?;
        Ok((*of, &self.plan.tensors[of.tensor as usize]))
    }

    /// The next slot of a buffer: its number, its bytes, and when they were freed.
    fn next_slot(&mut self, call: &Call, body: &Body, buffer: u32, bytes: u64) -> Result<(u64, Bytes, Clock, u64), Violation> {
        let count = body.buffers.len() as u64;
        let what = body.buffers.get(buffer as usize).ok_or(Violation::Index { what: "buffer", index: buffer.into(), count })?;
        let (state, offset) = (&mut self.buffers[buffer as usize], call.offsets[buffer as usize]);
        let (index, start, room) = match what.slots {
            Slots::Ring(slots) => {
                let slots = slots.max(1);
                let index = state.given % slots;
                (index, index * (what.bytes / slots), what.bytes / slots)
            }
            Slots::Packed => (0, state.filled, what.bytes - state.filled.min(what.bytes)),
        };
        if bytes > room {
            return Err(Violation::TooLarge { buffer: what.name.clone(), bytes, room });
        }
        if start % self.plan.align != 0 {
            return Err(Violation::Misaligned { what: what.name.clone(), offset: start, align: self.plan.align });
        }
        state.given += 1;
        if what.slots == Slots::Packed {
            state.filled = start + bytes.next_multiple_of(self.plan.align);
        }
        let (clock, time) = state.freed.get(index as usize).copied().unwrap_or_default();
        Ok((index, Bytes { start: offset + start, length: bytes }, clock, time))
    }

    fn load(&mut self, call: &Call, body: &Body, buffer: u32, operand: u32, region: &Region) -> Result<(), Violation> {
        let (of, tensor) = self.tensor(call, operand)?;
        let region = self.region(region);
        let bytes = moved(tensor, of.row, &region)?;
        let queue = if matches!(tensor.role, Role::Weight | Role::Constant) { WEIGHTS } else { ACTIVATIONS };
        self.free_slot(body, buffer)?;
        if body.buffers[buffer as usize].element != tensor.element {
            let element = |e: crate::Element| [u64::from(e.bits), u64::from(e.per)];
            let (found, wanted) = (element(tensor.element), element(body.buffers[buffer as usize].element));
            return Err(Violation::Mismatch { what: "elements", found, wanted });
        }
        let (index, place, clock, time) = self.next_slot(call, body, buffer, bytes)?;
        join(&mut self.clocks[queue], &clock);
        self.clocks[queue][queue] += 1;
        self.read_tensor(of.tensor as usize, queue)?;
        self.chip.forget(place);
        let clock = self.clocks[queue];
        self.chip.write(&body.buffers[buffer as usize].name, queue, &clock, place)?;
        let end = self.transfer(queue, self.times[queue].max(time), tensor, &region, bytes);
        self.trace.read[usize::from(queue == WEIGHTS)] += bytes;
        self.trace.operands[operand as usize][0] += bytes;
        if let Some(memory) = &self.memory {
            let rows = region.rows.map(|row| row + of.row);
            let packed = data::pack(&as_tensor(tensor), memory.get(TensorId(of.tensor)), rows, region.columns);
            self.chip.bytes[place.start as usize..][..packed.len()].copy_from_slice(&packed);
        }
        let slot = Slot { index, bytes: place, region, clock, time: end, loaded: true, sums: Vec::new() };
        self.buffers[buffer as usize].held.push_back(slot);
        Ok(())
    }

    /// A ring has room for another load.
    fn free_slot(&self, body: &Body, buffer: u32) -> Result<(), Violation> {
        let (Some(state), Some(what)) = (self.buffers.get(buffer as usize), body.buffers.get(buffer as usize)) else {
            return Err(Violation::Index { what: "buffer", index: buffer.into(), count: body.buffers.len() as u64 });
        };
        match what.slots {
            Slots::Ring(slots) if state.held.len() as u64 >= slots => {
                Err(Violation::Deadlock { buffer: what.name.clone(), why: "no slot is released before this load" })
            }
            _ => Ok(()),
        }
    }

    /// `queue` may read a tensor: it is defined, and its stores are done.
    fn read_tensor(&mut self, tensor: usize, queue: usize) -> Result<(), Violation> {
        let placed = &self.plan.tensors[tensor];
        if placed.space == Space::Sram {
            return Err(Violation::Undefined { tensor: placed.name.clone() });
        }
        if !self.defined[tensor] {
            return Err(Violation::Undefined { tensor: placed.name.clone() });
        }
        if self.stored[tensor][STORES] > self.clocks[queue][STORES] {
            return Err(dram_hazard("read after write", placed, queue, STORES));
        }
        self.loaded[tensor][queue] = self.clocks[queue][queue];
        Ok(())
    }

    /// Takes the port; returns when the transfer is done.
    fn transfer(&mut self, queue: usize, ready: u64, tensor: &Placed, region: &Box, bytes: u64) -> u64 {
        let pieces = if tensor.tile.is_some() || region.width() == tensor.columns { 1 } else { region.height() };
        let way = match (tensor.space, queue) {
            (Space::Flash, _) => rates::Port::Flash,
            (_, STORES) => rates::Port::Write,
            _ => rates::Port::Read,
        };
        let cycles = self.rates.transfer(pieces, bytes / pieces.max(1), way);
        let port = if way == rates::Port::Flash { &mut self.flash } else { &mut self.port };
        let start = port.take(ready + self.rates.tile.setup as u64, cycles);
        let end = start + cycles;
        self.times[queue] = end;
        self.trace.transfers += 1;
        self.trace.sram_bytes += bytes;
        self.event(queue, start, end);
        end
    }

    fn event(&mut self, queue: usize, start: u64, end: u64) {
        if self.result.events.len() < EVENTS && end > start {
            self.result.events.push(Event { queue, call: self.call, start, end });
        }
    }

    fn wait(&mut self, body: &Body, buffer: u32, region: &Region) -> Result<(), Violation> {
        let region = self.region(region);
        let slot = self.slot(body, buffer, &region)?;
        let (clock, time) = (slot.clock, slot.time);
        join(&mut self.clocks[COMPUTE], &clock);
        self.stall_until(time);
        Ok(())
    }

    fn stall_until(&mut self, time: u64) {
        let waited = time.saturating_sub(self.times[COMPUTE]);
        self.trace.stalled += waited;
        self.times[COMPUTE] += waited;
    }

    /// The slot that holds a box: of several, the one that came last.
    fn slot(&self, body: &Body, buffer: u32, region: &Box) -> Result<&Slot, Violation> {
        let count = body.buffers.len() as u64;
        let state = self.buffers.get(buffer as usize).ok_or(Violation::Index { what: "buffer", index: buffer.into(), count })?;
        state.held.iter().rev().find(|slot| slot.region.contains(region)).ok_or_else(|| Violation::NotThere {
            place: body.buffers[buffer as usize].name.clone(),
            rows: region.rows,
            columns: region.columns,
        })
    }

    fn release(&mut self, body: &Body, buffer: u32) -> Result<(), Violation> {
        self.clocks[COMPUTE][COMPUTE] += 1;
        let freed = (self.clocks[COMPUTE], self.times[COMPUTE]);
        let count = body.buffers.len() as u64;
        let (Some(state), Some(what)) = (self.buffers.get_mut(buffer as usize), body.buffers.get(buffer as usize)) else {
            return Err(Violation::Index { what: "buffer", index: buffer.into(), count });
        };
        let Some(slot) = state.held.pop_front() else {
            return Err(Violation::Deadlock { buffer: what.name.clone(), why: "nothing is there to be released" });
        };
        if what.slots == Slots::Packed {
            state.held.clear();
            state.filled = 0;
        }
        free(state, slot.index, freed);
        Ok(())
    }

    fn open(&mut self, call: &Call, body: &Body, buffer: u32, region: &Region) -> Result<(), Violation> {
        let region = self.region(region);
        let count = body.buffers.len() as u64;
        let what = body.buffers.get(buffer as usize).ok_or(Violation::Index { what: "buffer", index: buffer.into(), count })?;
        let bytes = what.element.bytes(region.width()) * region.height();
        let (index, place, clock, time) = self.next_slot(call, body, buffer, bytes)?;
        join(&mut self.clocks[COMPUTE], &clock);
        self.stall_until(time);
        self.clocks[COMPUTE][COMPUTE] += 1;
        self.chip.forget(place);
        let state = &mut self.buffers[buffer as usize];
        state.held.retain(|slot| slot.index != index);
        let slot = Slot { index, bytes: place, region, clock: self.clocks[COMPUTE], time, loaded: false, sums: Vec::new() };
        state.held.push_back(slot);
        Ok(())
    }

    fn store(
        &mut self,
        call: &Call,
        body: &Body,
        buffer: u32,
        operands: &[(u32, u64)],
        region: &Region,
    ) -> Result<(), Violation> {
        let region = self.region(region);
        let compute = self.clocks[COMPUTE];
        join(&mut self.clocks[STORES], &compute);
        self.clocks[STORES][STORES] += 1;
        let found = self.find(call, body, &View { place: Place::Buffer(buffer), region: fixed(&region) })?;
        let clock = self.clocks[STORES];
        for run in found.runs() {
            self.chip.read(&found.name, STORES, &clock, run)?;
        }
        let mut end = self.times[STORES].max(self.times[COMPUTE]);
        for (at, (operand, first)) in operands.iter().enumerate() {
            let behind = operands.get(at + 1).map_or(u64::MAX, |(_, next)| *next);
            let columns = [region.columns[0].max(*first), region.columns[1].min(behind)];
            if columns[0] < columns[1] {
                let part = Box { rows: region.rows, columns };
                end = self.store_part(call, *operand, *first, &found, &part, end)?;
            }
        }
        let (index, loaded) = self.slot(body, buffer, &region).map(|slot| (slot.index, slot.loaded))?;
        if loaded {
            self.buffers[buffer as usize].held.retain(|slot| slot.index != index);
        }
        free(&mut self.buffers[buffer as usize], index, (self.clocks[STORES], end));
        Ok(())
    }

    /// The columns of a store that belong to one tensor, whose column 0 is `first`.
    fn store_part(
        &mut self,
        call: &Call,
        operand: u32,
        first: u64,
        found: &Found,
        part: &Box,
        ready: u64,
    ) -> Result<u64, Violation> {
        let (of, tensor) = self.tensor(call, operand)?;
        let local = Box { rows: part.rows, columns: part.columns.map(|column| column - first) };
        let bytes = moved(tensor, of.row, &local)?;
        self.write_tensor(of.tensor as usize)?;
        let end = self.transfer(STORES, ready, tensor, &local, bytes);
        self.trace.written += bytes;
        self.trace.operands[operand as usize][1] += bytes;
        self.mark_written(operand, of.row, tensor, &local)?;
        let numbers = if self.memory.is_some() { self.numbers(found, part) } else { Vec::new() };
        if let Some(memory) = &mut self.memory {
            let target = memory.numbers_mut(TensorId(of.tensor));
            for (row, values) in (local.rows[0]..local.rows[1]).zip(numbers.chunks(local.width() as usize)) {
                let at = ((row + of.row) * tensor.columns + local.columns[0]) as usize;
                target[at..at + values.len()].copy_from_slice(values);
            }
        }
        Ok(end)
    }

    /// The store queue may write a tensor; what else lay there is gone.
    fn write_tensor(&mut self, tensor: usize) -> Result<(), Violation> {
        let placed = &self.plan.tensors[tensor];
        if !matches!(placed.role, Role::Scratch | Role::Output | Role::State) || placed.space != Space::Dram {
            return Err(Violation::Undefined { tensor: placed.name.clone() });
        }
        let clock = self.clocks[STORES];
        for (other, against) in self.plan.tensors.iter().enumerate() {
            let apart = against.space != Space::Dram
                || against.address >= placed.address + placed.bytes()
                || placed.address >= against.address + against.bytes();
            if apart {
                continue;
            }
            if let Some(reader) = (0..4).find(|reader| self.loaded[other][*reader] > clock[*reader]) {
                return Err(dram_hazard("write after read", against, STORES, reader));
            }
            self.defined[other] = other == tensor;
        }
        self.stored[tensor][STORES] = clock[STORES];
        Ok(())
    }

    fn mark_written(&mut self, operand: u32, row: u64, tensor: &Placed, part: &Box) -> Result<(), Violation> {
        let written = &mut self.written[operand as usize];
        if written.is_empty() {
            return Ok(());
        }
        for r in part.rows[0]..part.rows[1] {
            let at = ((r + row) * tensor.columns) as usize;
            let cells = &mut written[at + part.columns[0] as usize..at + part.columns[1] as usize];
            if let Some(column) = cells.iter().position(|cell| *cell) {
                let column = part.columns[0] + column as u64;
                return Err(Violation::StoredTwice { tensor: tensor.name.clone(), row: r + row, column });
            }
            cells.fill(true);
        }
        Ok(())
    }

    /// Whatever a call has loaded, it lets go.
    fn check_released(&self, body: &Body) -> Result<(), Violation> {
        let loaded = |state: &BufferState| state.held.iter().any(|slot| slot.loaded);
        match self.buffers.iter().position(loaded) {
            Some(at) => {
                let buffer = body.buffers[at].name.clone();
                Err(Violation::Deadlock { buffer, why: "what it holds is never released" })
            }
            None => Ok(()),
        }
    }

    /// A tensor that a call has stored to is stored whole (a state: whole rows).
    fn check_stored(&self, call: &Call) -> Result<(), Violation> {
        for (operand, written) in call.operands.iter().zip(&self.written) {
            let tensor = &self.plan.tensors[operand.tensor as usize];
            let rows = written.chunks(tensor.columns.max(1) as usize).filter(|row| row.contains(&true));
            let touched: Vec<&[bool]> = rows.collect();
            let holes: usize = touched.iter().map(|row| row.iter().filter(|cell| !**cell).count()).sum();
            let whole = tensor.role == Role::State || touched.is_empty() || touched.len() as u64 == tensor.rows;
            let missing = holes as u64 + if whole { 0 } else { (tensor.rows - touched.len() as u64) * tensor.columns };
            if missing > 0 {
                return Err(Violation::NotStored { tensor: tensor.name.clone(), missing });
            }
        }
        Ok(())
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
                let all = Box { rows: [0, tensor.rows - of.row.min(tensor.rows)], columns: [0, tensor.columns] };
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
    fn numbers(&self, found: &Found, part: &Box) -> Vec<i32> {
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

/// A slot is free from now on.
fn free(state: &mut BufferState, index: u64, freed: (Clock, u64)) {
    let index = index as usize;
    if state.freed.len() <= index {
        state.freed.resize(index + 1, Default::default());
    }
    state.freed[index] = freed;
}

/// Bytes of a transfer, if its box is in the tensor and, of a weight, one of its tiles.
fn moved(tensor: &Placed, row: u64, region: &Box) -> Result<u64, Violation> {
    let rows = region.rows.map(|r| r.saturating_add(row));
    if rows[1] > tensor.rows || region.columns[1] > tensor.columns || region.height() == 0 || region.width() == 0 {
        return Err(Violation::OutOfBounds {
            tensor: tensor.name.clone(),
            shape: [tensor.rows, tensor.columns],
            rows,
            columns: region.columns,
        });
    }
    let Some(tile) = tensor.tile else { return Ok(tensor.element.bytes(region.width()) * region.height()) };
    let is_tile = |[from, to]: [u64; 2], tile: u64, whole: u64| tile > 0 && from % tile == 0 && to == (from + tile).min(whole);
    match is_tile(rows, tile[0], tensor.rows) && is_tile(region.columns, tile[1], tensor.columns) {
        true => Ok(tensor.element.bytes(region.width() * region.height())),
        false => Err(Violation::NoTile { tensor: tensor.name.clone(), rows, columns: region.columns }),
    }
}

fn dram_hazard(kind: &'static str, tensor: &Placed, queue: usize, other: usize) -> Violation {
    let [queue, other] = [queue, other].map(|queue| chip::QUEUES[queue]);
    Violation::Hazard { kind, place: tensor.name.clone(), at: tensor.address, queue, other }
}

fn as_tensor(placed: &Placed) -> Tensor {
    Tensor { name: String::new(), rows: placed.rows, columns: placed.columns, element: placed.element, role: placed.role }
}

fn fixed(region: &Box) -> Region {
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
