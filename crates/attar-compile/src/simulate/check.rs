//! What can be seen of a plan before anything runs: indices, shifts, places.

use super::{LARGEST, Simulator, Violation};
use crate::{
    data::{Data, Memory, code_bits},
    plan::{Body, Call, Constant, Placed, Space},
    program::{Column, Role},
};

impl Simulator<'_, '_> {
    /// What can be seen before anything runs.
    pub(super) fn check_plan(&self) -> Result<(), Violation> {
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
            check_numbers(&plan.tensors, memory)?;
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
                Constant::Norm { gain_shift, .. } => vec![gain_shift.saturating_add(1)],
                Constant::Ranges(ranges) => {
                    let norms = ranges.iter().filter_map(|range| range.norm.as_ref());
                    let gains = norms.map(|norm| norm.gain_shift.saturating_add(1));
                    ranges.iter().map(|range| range.rescale.shift.into()).chain(gains).collect()
                }
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
            let (of, tensor) = (operand.beside, &plan.tensors[operand.tensor as usize]);
            if of == 0 || !tensor.rows.is_multiple_of(of) || (of > 1 && tensor.tile.is_some()) {
                return Err(Violation::Index { what: "rows side by side", index: of, count: tensor.rows });
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
}

/// Every tensor has as many numbers as it should, of its kind.
fn check_numbers(tensors: &[Placed], memory: &Memory) -> Result<(), Violation> {
    let wrong = tensors.iter().zip(memory.all()).find(|(tensor, data)| !fits(tensor, data));
    match wrong {
        Some((tensor, _)) => Err(Violation::Undefined { tensor: tensor.name.clone() }),
        None if tensors.len() != memory.all().len() => {
            let [index, count] = [tensors.len(), memory.all().len()].map(|n| n as u64);
            Err(Violation::Index { what: "tensor", index, count })
        }
        None => Ok(()),
    }
}

fn fits(tensor: &Placed, data: &Data) -> bool {
    let (count, per) = (tensor.rows.saturating_mul(tensor.columns), u64::from(tensor.element.per.max(1)));
    match data {
        Data::Numbers(numbers) => {
            let plain = per == 1 && [8, 16, 32].contains(&tensor.element.bits);
            plain && tensor.role != Role::Weight && numbers.len() as u64 == count
        }
        Data::Weight { codes, scales } => {
            let groups = if per > 1 { count / per } else { 0 };
            let sized = codes.len() as u64 == count && scales.len() as u64 == groups && tensor.columns.is_multiple_of(per);
            sized && tensor.role == Role::Weight && (1..=8).contains(&code_bits(tensor.element))
        }
        Data::Columns(columns) => tensor.element == Column::ELEMENT && columns.len() as u64 == count,
    }
}
