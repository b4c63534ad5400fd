//! Where everything lies: one arena for what changes off the chip, one binary for what does not. Plans share one address space of DRAM; what
//! lies between the tensors of a kind is left out.

use attar_compile::{
    Index,
    plan::{Placed, Space},
    program::Role,
};
use attar_tensor::Digest;

use super::{
    PREFIX, VERSION,
    compiled::{Compiled, refused},
};
use crate::Result;

/// Bytes of a memory of the plans, and where they lie in the binary or in the arena.
pub(super) struct Part {
    pub(super) space: Space,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) offset: u64,
}

/// The layout of a compiled model.
pub(super) struct Layout {
    /// Of everything, in bytes.
    pub(super) align: u64,
    /// Bytes of on-chip memory.
    pub(super) sram: u64,
    /// Bytes of the arena.
    pub(super) dram: u64,
    /// Bytes of the binary.
    pub(super) weights: u64,
    /// The tables of first values, and where each lies in the binary.
    pub(super) tables: Vec<(Index, u64)>,
    /// Weights and constants in the binary.
    pub(super) parts: Vec<Part>,
    /// Everything else off the chip.
    arena: Vec<Part>,
}

impl Layout {
    pub(super) fn new(compiled: &Compiled) -> Result<Layout> {
        let plans = || compiled.runs.iter().map(|run| &run.plan);
        let align = plans().map(|plan| plan.align).max().unwrap_or(1).max(16);
        if let Some(plan) = plans().find(|plan| plan.align % 8 != 0 || align % plan.align != 0) {
            let why = format!("buffers of `{}` are aligned to {} bytes; C needs a multiple of 8", plan.device, plan.align);
            return Err(refused(why));
        }
        let all = || plans().flat_map(|plan| &plan.tensors);
        let is_lasting = |tensor: &&Placed| matches!(tensor.role, Role::Weight | Role::Constant);
        let off_chip = |tensor: &&Placed| tensor.space != Space::Sram;
        let (parts, end) = compact(all().filter(is_lasting), PREFIX as u64, align);
        let (arena, dram) = compact(all().filter(off_chip).filter(|tensor| !is_lasting(tensor)), 0, align);
        let mut weights = end;
        let tables = compiled.tables.iter().map(|(of, rows)| {
            let offset = weights.next_multiple_of(align);
            weights = offset + 2 * rows * compiled.width;
            (*of, offset)
        });
        let tables = tables.collect();
        let weights = weights.next_multiple_of(align);
        let sram = plans().map(|plan| plan.sram).max().unwrap_or(0);
        Ok(Layout { align, sram, dram, weights, tables, parts, arena })
    }

    /// Where a table lies; 0 if there is none.
    pub(super) fn table(&self, of: Index) -> u64 {
        self.tables.iter().find(|(table, _)| *table == of).map_or(0, |(_, offset)| *offset)
    }

    /// Of what the weights are made from, and of where they lie.
    pub(super) fn digest(&self, compiled: &Compiled) -> Result<Digest> {
        let mut facts = compiled.digests()?.iter().flat_map(|digest| digest.as_bytes().to_vec()).collect::<Vec<u8>>();
        let places = self.parts.iter().flat_map(|part| [part.from, part.to, part.offset]);
        let tables = self.tables.iter().map(|(_, offset)| *offset);
        let numbers = places.chain(tables).chain([self.weights, VERSION.into()]);
        facts.extend(numbers.flat_map(u64::to_le_bytes));
        Ok(Digest::of(&facts))
    }

    /// The first byte of a tensor: on the chip, in the arena or in the binary.
    pub(super) fn place(&self, tensor: &Placed) -> Result<u64> {
        let parts = match tensor.role {
            _ if tensor.space == Space::Sram => return Ok(tensor.address),
            Role::Weight | Role::Constant => &self.parts,
            _ => &self.arena,
        };
        let found = parts.iter().find(|part| part.space == tensor.space && (part.from..part.to).contains(&tensor.address));
        let place = found.map(|part| part.offset + (tensor.address - part.from));
        place.ok_or_else(|| refused(format!("`{}` has no bytes", tensor.name)))
    }
}

/// The bytes of tensors, joined where they touch or share them, one part behind the other from `start` on; and where they end.
fn compact<'a>(tensors: impl Iterator<Item = &'a Placed>, start: u64, align: u64) -> (Vec<Part>, u64) {
    let mut found: Vec<(Space, u64, u64)> = tensors.map(|t| (t.space, t.address, t.address.saturating_add(t.bytes()))).collect();
    found.sort_unstable();
    let mut parts: Vec<Part> = Vec::new();
    let mut end = start;
    for (space, from, to) in found {
        if let Some(last) = parts.last_mut().filter(|last| last.space == space && from <= last.to) {
            last.to = last.to.max(to);
        } else {
            parts.push(Part { space, from, to, offset: end.next_multiple_of(align) });
        }
        let last = parts.last().expect("one was just pushed");
        end = last.offset + (last.to - last.from);
    }
    (parts, end)
}
