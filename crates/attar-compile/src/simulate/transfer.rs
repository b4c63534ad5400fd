//! Slots of SRAM buffers, and transfers between them and DRAM.

use super::{
    Area, BufferState, Event, Found, Simulator, Slot, Violation,
    chip::{self, ACTIVATIONS, Bytes, COMPUTE, Clock, STORES, WEIGHTS, join},
    critical::Path,
    fixed,
};
use crate::{
    data,
    plan::{Body, Call, Place, Placed, Region, Slots, Space, View},
    program::{Role, TensorId},
    rates,
};

impl<'p> Simulator<'p, '_> {
    /// The next slot of a buffer: its number, its byte range, and when it was freed.
    fn next_slot(&mut self, call: &Call, body: &Body, buffer: u32, bytes: u64) -> Result<(u64, Bytes, Freed), Violation> {
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
        let freed = state.freed.get(index as usize).cloned().unwrap_or_default();
        Ok((index, Bytes { start: offset + start, length: bytes }, freed))
    }

    pub(super) fn load(&mut self, call: &Call, body: &Body, buffer: u32, operand: u32, region: &Region) -> Result<(), Violation> {
        let (of, tensor) = self.tensor(call, operand)?;
        let region = self.region(region);
        let bytes = moved(&tensor, of.row, &region)?;
        let queue = if matches!(tensor.role, Role::Weight | Role::Constant) { WEIGHTS } else { ACTIVATIONS };
        self.free_slot(body, buffer)?;
        if body.buffers[buffer as usize].element != tensor.element {
            let element = |e: crate::Element| [u64::from(e.bits), u64::from(e.per)];
            let (found, wanted) = (element(tensor.element), element(body.buffers[buffer as usize].element));
            return Err(Violation::Mismatch { what: "elements", found, wanted });
        }
        let (index, place, (clock, time, path)) = self.next_slot(call, body, buffer, bytes)?;
        join(&mut self.clocks[queue], &clock);
        self.clocks[queue][queue] += 1;
        self.read_tensor(of.tensor as usize, queue)?;
        self.chip.forget(place);
        let clock = self.clocks[queue];
        self.chip.write(&body.buffers[buffer as usize].name, queue, &clock, place)?;
        let end = self.transfer(queue, (time, path), &tensor, &region, bytes);
        self.trace.read[usize::from(queue == WEIGHTS)] += bytes;
        self.trace.operands[operand as usize][0] += bytes;
        if let Some(memory) = &self.memory {
            let (rows, data) = (region.rows.map(|row| row + of.row), memory.get(TensorId(of.tensor)));
            let packed = match tensor.role {
                Role::Weight | Role::Constant => {
                    let stored = self.stored_bytes[of.tensor as usize].get_or_insert_with(|| tensor.stored(data));
                    tensor.part(stored, [rows, region.columns])
                }
                _ => data::pack(&tensor.tensor(), data, rows, region.columns),
            };
            self.chip.bytes[place.start as usize..][..packed.len()].copy_from_slice(&packed);
        }
        let path = self.paths[queue].clone();
        let slot = Slot { index, bytes: place, region, clock, time: end, path, queue, loaded: true, sums: Vec::new() };
        self.buffers[buffer as usize].held.push_back(slot);
        Ok(())
    }

    /// Checks that a ring buffer has a free slot for another load.
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

    /// Checks that `queue` may read a tensor: it is defined, and its stores are complete.
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

    /// Occupies the port for a transfer whose slot or numbers are there at `ready`; returns the time at which it is complete. A queue's
    /// transfers arrive in order, and each is requested as early as the number of requests in flight allows.
    fn transfer(&mut self, queue: usize, (ready, path): (u64, Path), tensor: &Placed, region: &Area, bytes: u64) -> u64 {
        let pieces = if tensor.tile.is_some() || region.width() == tensor.columns { 1 } else { region.height() };
        let way = match (tensor.space, queue) {
            (Space::Flash, _) => rates::Port::Flash,
            (_, STORES) => rates::Port::Write,
            _ => rates::Port::Read,
        };
        let moved = if tensor.role == Role::Weight { self.rates.tile.moved(tensor.element) } else { 1.0 };
        let cycles = self.rates.transfer(pieces, bytes / pieces.max(1), moved, way);
        let requested = ready.max(self.requests[queue]);
        let port = if way == rates::Port::Flash { &mut self.flash } else { &mut self.port };
        let setup = self.rates.tile.setup as u64;
        let earliest = (requested + setup).max(self.times[queue]);
        let (start, waited) = port.take(earliest, cycles);
        let end = start + cycles;
        let path = if start > earliest {
            self.then(&waited, |path| path.queues[queue] += cycles)
        } else if requested == ready && start == ready + setup {
            self.then(&path, |path| (path.setup, path.queues[queue]) = (path.setup + setup, path.queues[queue] + cycles))
        } else {
            // Held by the queue's transfer before it: what follows that one's end is latency.
            let latency = start - self.times[queue];
            let before = self.paths[queue].clone();
            self.then(&before, |path| (path.setup, path.queues[queue]) = (path.setup + latency, path.queues[queue] + cycles))
        };
        let port = if way == rates::Port::Flash { &mut self.flash } else { &mut self.port };
        port.ended(end, &path);
        (self.times[queue], self.paths[queue]) = (end, path);
        self.requests[queue] = requested.max(end.saturating_sub(self.rates.lead(way)));
        self.trace.transfers += 1;
        self.trace.sram_bytes += bytes;
        self.event(queue, start, end);
        end
    }

    pub(super) fn event(&mut self, queue: usize, start: u64, end: u64) {
        if self.result.events.len() < self.events && end > start {
            self.result.events.push(Event { queue, call: self.call, start, end });
        }
    }

    pub(super) fn wait(&mut self, body: &Body, buffer: u32, region: &Region) -> Result<(), Violation> {
        let region = self.region(region);
        let slot = self.slot(body, buffer, &region)?;
        let (clock, time, path, queue) = (slot.clock, slot.time, slot.path.clone(), slot.queue);
        join(&mut self.clocks[COMPUTE], &clock);
        self.stall_until(time, &path, queue);
        Ok(())
    }

    /// Compute does nothing until `queue` is done.
    fn stall_until(&mut self, time: u64, path: &Path, queue: usize) {
        if time > self.times[COMPUTE] {
            let waited = time - self.times[COMPUTE];
            self.trace.stalled += waited;
            self.trace.waits[queue] += waited;
            self.times[COMPUTE] = time;
            self.paths[COMPUTE].clone_from(path);
        }
    }

    /// The slot that holds a box; the latest, if several do.
    pub(super) fn slot(&self, body: &Body, buffer: u32, region: &Area) -> Result<&Slot, Violation> {
        let count = body.buffers.len() as u64;
        let state = self.buffers.get(buffer as usize).ok_or(Violation::Index { what: "buffer", index: buffer.into(), count })?;
        state.held.iter().rev().find(|slot| slot.region.contains(region)).ok_or_else(|| Violation::NotThere {
            place: body.buffers[buffer as usize].name.clone(),
            rows: region.rows,
            columns: region.columns,
        })
    }

    pub(super) fn release(&mut self, body: &Body, buffer: u32) -> Result<(), Violation> {
        self.clocks[COMPUTE][COMPUTE] += 1;
        let freed = (self.clocks[COMPUTE], self.times[COMPUTE], self.paths[COMPUTE].clone());
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

    pub(super) fn open(&mut self, call: &Call, body: &Body, buffer: u32, region: &Region) -> Result<(), Violation> {
        let region = self.region(region);
        let count = body.buffers.len() as u64;
        let what = body.buffers.get(buffer as usize).ok_or(Violation::Index { what: "buffer", index: buffer.into(), count })?;
        let bytes = what.element.bytes(region.width()) * region.height();
        let (index, place, (clock, time, path)) = self.next_slot(call, body, buffer, bytes)?;
        join(&mut self.clocks[COMPUTE], &clock);
        self.stall_until(time, &path, STORES);
        self.clocks[COMPUTE][COMPUTE] += 1;
        self.chip.forget(place);
        let state = &mut self.buffers[buffer as usize];
        state.held.retain(|slot| slot.index != index);
        let (clock, queue) = (self.clocks[COMPUTE], STORES);
        let slot = Slot { index, bytes: place, region, clock, time, path, queue, loaded: false, sums: Vec::new() };
        state.held.push_back(slot);
        Ok(())
    }

    pub(super) fn store(
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
        let last = self.last(&[STORES, COMPUTE]);
        let (mut end, mut path) = (self.times[last], self.paths[last].clone());
        for (at, (operand, first)) in operands.iter().enumerate() {
            let next = operands.get(at + 1).map_or(u64::MAX, |(_, next)| *next);
            let columns = [region.columns[0].max(*first), region.columns[1].min(next)];
            if columns[0] < columns[1] {
                let part = Area { rows: region.rows, columns };
                end =
                    self.store_part(call, *operand, *first, &found, &part, (self.times[COMPUTE], self.paths[COMPUTE].clone()))?;
                path = self.paths[STORES].clone();
            }
        }
        let (index, loaded) = self.slot(body, buffer, &region).map(|slot| (slot.index, slot.loaded))?;
        if loaded {
            self.buffers[buffer as usize].held.retain(|slot| slot.index != index);
        }
        free(&mut self.buffers[buffer as usize], index, (self.clocks[STORES], end, path));
        Ok(())
    }

    /// The columns of a store that belong to the tensor whose first column is `first`.
    fn store_part(
        &mut self,
        call: &Call,
        operand: u32,
        first: u64,
        found: &Found,
        part: &Area,
        ready: (u64, Path),
    ) -> Result<u64, Violation> {
        let (of, tensor) = self.tensor(call, operand)?;
        let local = Area { rows: part.rows, columns: part.columns.map(|column| column - first) };
        let bytes = moved(&tensor, of.row, &local)?;
        self.write_tensor(of.tensor as usize)?;
        let end = self.transfer(STORES, ready, &tensor, &local, bytes);
        self.trace.written += bytes;
        self.trace.operands[operand as usize][1] += bytes;
        self.mark_written(operand, of.row, &tensor, &local)?;
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

    /// Checks that the store queue may write a tensor, and invalidates the tensors that shared its memory.
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

    fn mark_written(&mut self, operand: u32, row: u64, tensor: &Placed, part: &Area) -> Result<(), Violation> {
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

    /// Checks that a call releases every slot it loaded.
    pub(super) fn check_released(&self, body: &Body) -> Result<(), Violation> {
        let loaded = |state: &BufferState| state.held.iter().any(|slot| slot.loaded);
        match self.buffers.iter().position(loaded) {
            Some(at) => {
                let buffer = body.buffers[at].name.clone();
                Err(Violation::Deadlock { buffer, why: "what it holds is never released" })
            }
            None => Ok(()),
        }
    }

    /// Checks that a call stores its tensors completely (of a state: complete rows).
    pub(super) fn check_stored(&self, call: &Call) -> Result<(), Violation> {
        for (operand, written) in call.operands.iter().zip(&self.written) {
            let tensor = self.plan.tensors[operand.tensor as usize].side_by_side(operand.beside);
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
}

/// When a slot became free: what was known then, the time, and the way to it.
type Freed = (Clock, u64, Path);

/// Frees a slot.
fn free(state: &mut BufferState, index: u64, freed: Freed) {
    let index = index as usize;
    if state.freed.len() <= index {
        state.freed.resize(index + 1, Default::default());
    }
    state.freed[index] = freed;
}

/// Bytes of a transfer. Its box must be within the tensor and, for a weight, one of its tiles.
fn moved(tensor: &Placed, row: u64, region: &Area) -> Result<u64, Violation> {
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
