//! Addresses: of buffers and kept tensors on the chip, of everything else in DRAM and flash.

use std::{collections::HashMap, ops::Range};

use super::{Image, Target, image::lasts};
use crate::{
    Error, Result,
    lower::Lowered,
    memory::{Buffer, Effort, Outcome, Problem, greedy, solve},
    plan::{Placed, Plan, Space},
    program::{Role, TensorId},
};

/// Search nodes for placing the buffers of a run; if they do not suffice, kernels get less room.
const NODES: u64 = 200_000;

/// A buffer or tensor that needs `bytes` during calls `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Item {
    from: usize,
    to: usize,
    bytes: u64,
}

/// The calls whose buffers cannot be placed together, as ranges.
pub(super) type Crowded = Vec<Range<usize>>;

/// Offsets of items, if they fit: greedily, else by the exact search.
fn fit(items: &[Item], capacity: u64) -> Result<Option<Vec<u64>>> {
    let buffers = items.iter().map(|item| Buffer::new(item.from as u64, item.to as u64, item.bytes)).collect();
    match solve(&Problem { buffers, capacity }, Effort { nodes: NODES })?.outcome {
        Outcome::Placed(placement, _) => Ok(Some(placement.offsets)),
        Outcome::Infeasible(_) | Outcome::Undecided => Ok(None),
    }
}

/// The same for each range of calls that share items. Equal ranges are placed once.
fn fit_apart(items: &[Item], calls: usize, capacity: u64) -> Result<Result<Vec<u64>, Crowded>> {
    let (mut offsets, mut crowded) = (vec![0; items.len()], Vec::new());
    let mut known: HashMap<Vec<Item>, Option<Vec<u64>>> = HashMap::new();
    for stretch in stretches(items, calls) {
        let mine: Vec<usize> = (0..items.len()).filter(|at| stretch.contains(&items[*at].from)).collect();
        let moved = |at: &usize| {
            let Item { from, to, bytes } = items[*at];
            Item { from: from - stretch.start, to: to - stretch.start, bytes }
        };
        let problem: Vec<Item> = mine.iter().map(moved).collect();
        let found = match known.get(&problem) {
            Some(found) => found.clone(),
            None => {
                let found = fit(&problem, capacity)?;
                known.insert(problem, found.clone());
                found
            }
        };
        match found {
            Some(found) => mine.iter().zip(found).for_each(|(at, offset)| offsets[*at] = offset),
            None => crowded.push(stretch),
        }
    }
    Ok(if crowded.is_empty() { Ok(offsets) } else { Err(crowded) })
}

/// Ranges of calls between which no item is live.
fn stretches(items: &[Item], calls: usize) -> Vec<Range<usize>> {
    let mut together = vec![false; calls + 1];
    items.iter().for_each(|item| together[item.from + 1..item.to].fill(true));
    let starts: Vec<usize> = (0..calls).filter(|call| !together[*call]).chain([calls]).collect();
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Places the buffers of all calls, and the tensors that `kept` lists for each call. Where there is room, weight buffers are
/// live during the previous call already, so that their first loads overlap with its work.
pub(super) fn on_chip(mut plan: Plan, lowered: &[Lowered], kept: &[Vec<u32>]) -> Result<Result<Plan, Crowded>> {
    let mut tensors: Vec<Option<Item>> = vec![None; plan.tensors.len()];
    for (call, ids) in kept.iter().enumerate() {
        for id in ids {
            let bytes = plan.tensors[*id as usize].bytes().next_multiple_of(plan.align);
            let item = tensors[*id as usize].get_or_insert(Item { from: call, to: call, bytes });
            item.to = call + 1;
        }
    }
    let used = |call: usize| -> u64 {
        let live = tensors.iter().flatten().filter(|item| (item.from..item.to).contains(&call)).map(|item| item.bytes);
        lowered[call].body.buffers.iter().map(|b| b.bytes.next_multiple_of(plan.align)).chain(live).sum()
    };
    let constant = |id: TensorId| matches!(plan.tensors[id.0 as usize].role, Role::Weight | Role::Constant);
    let weights: Vec<Vec<u32>> = lowered.iter().map(|lowered| lowered.weight_buffers(&constant)).collect();
    let early = |call: usize| -> u64 {
        let buffers = &lowered[call].body.buffers;
        weights[call].iter().map(|b| buffers[*b as usize].bytes.next_multiple_of(plan.align)).sum()
    };
    // Only one call has weight buffers that are live early in the previous one, so that no other call gets less room.
    let mut ahead: Vec<bool> =
        (0..lowered.len()).map(|call| call > 0 && early(call) > 0 && used(call - 1) + early(call) <= plan.sram).collect();
    let offsets = match fit(&items(&plan, lowered, &weights, &tensors, &ahead), plan.sram)? {
        Some(offsets) => offsets,
        None => {
            ahead.fill(false);
            let items = items(&plan, lowered, &weights, &tensors, &ahead);
            match fit_apart(&items, lowered.len(), plan.sram)? {
                Err(crowded) => return Ok(Err(crowded)),
                Ok(offsets) => {
                    reach(&mut ahead, &items, &offsets, lowered, &weights);
                    offsets
                }
            }
        }
    };
    let mut next = offsets.into_iter();
    for (tensor, item) in plan.tensors.iter_mut().zip(&tensors) {
        if item.is_some() {
            (tensor.space, tensor.address) = (Space::Sram, next.next().expect("one for each item"));
        }
    }
    for (call, ahead) in plan.calls.iter_mut().zip(ahead) {
        call.offsets = plan.bodies[call.body as usize].buffers.iter().map(|_| next.next().expect("one for each item")).collect();
        call.fence_weights = !ahead;
    }
    Ok(Ok(plan))
}

/// Marks the calls whose weight buffers overlap with nothing of the previous call.
fn reach(ahead: &mut [bool], items: &[Item], offsets: &[u64], lowered: &[Lowered], weights: &[Vec<u32>]) {
    let mut first = items.len() - lowered.iter().map(|lowered| lowered.body.buffers.len()).sum::<usize>();
    for call in 0..lowered.len() {
        let mine: Vec<usize> = weights[call].iter().map(|buffer| first + *buffer as usize).collect();
        let apart = |a: usize, b: usize| offsets[a] + items[a].bytes <= offsets[b] || offsets[b] + items[b].bytes <= offsets[a];
        let mut before = (0..items.len()).filter(|at| (items[*at].from..items[*at].to).contains(&call.wrapping_sub(1)));
        ahead[call] = call > 0 && !mine.is_empty() && before.all(|other| mine.iter().all(|one| apart(*one, other)));
        first += lowered[call].body.buffers.len();
    }
}

/// Kept tensors, then the buffers of each call.
fn items(plan: &Plan, lowered: &[Lowered], weights: &[Vec<u32>], tensors: &[Option<Item>], ahead: &[bool]) -> Vec<Item> {
    let mut items: Vec<Item> = tensors.iter().flatten().copied().collect();
    for (call, lowered) in lowered.iter().enumerate() {
        for (at, buffer) in lowered.body.buffers.iter().enumerate() {
            let early = ahead[call] && weights[call].contains(&(at as u32));
            let from = if early { call - 1 } else { call };
            items.push(Item { from, to: call + 1, bytes: buffer.bytes.next_multiple_of(plan.align) });
        }
    }
    items
}

/// Places all tensors that are not on the chip: weights, constants and states in the order of their use, or where `image` has
/// them, then those of the run itself. Weights that do not fit in DRAM are read from flash at each use; the first ones stay.
pub(super) fn in_memory(mut plan: Plan, target: &Target, image: &Image) -> Result<Plan> {
    let order = use_order(&plan);
    let own = Own::new(&plan, &order, target)?;
    let (lasting, base) = place_lasting(&plan, &order, target, image, own.bytes)?;
    let own = own.offsets.into_iter().map(|(at, offset)| (at, Space::Dram, base + offset));
    for (at, space, address) in lasting.into_iter().chain(own) {
        (plan.tensors[at].space, plan.tensors[at].address) = (space, address);
    }
    Ok(plan)
}

/// Bytes that a tensor takes in memory.
fn aligned(plan: &Plan, at: usize) -> u64 {
    plan.tensors[at].bytes().next_multiple_of(plan.align)
}

/// The tensors in DRAM whose role is wanted, in the given order.
fn in_dram(plan: &Plan, order: &[usize], role: &dyn Fn(Role) -> bool) -> Vec<usize> {
    let wanted = |at: &usize| plan.tensors[*at].space == Space::Dram && role(plan.tensors[*at].role);
    order.iter().copied().filter(wanted).collect()
}

/// Inputs, outputs and intermediate results of a run: offsets from a common base, and bytes in all.
struct Own {
    offsets: Vec<(usize, u64)>,
    bytes: u64,
}

impl Own {
    fn new(plan: &Plan, order: &[usize], target: &Target) -> Result<Own> {
        let uses = uses(plan);
        // No call uses what is internal to a joined kernel: it needs no room, and all of it may have the same address.
        let scratch = in_dram(plan, order, &|role| role == Role::Scratch);
        let (scratch, unused): (Vec<usize>, Vec<usize>) = scratch.into_iter().partition(|at| uses[*at].is_some());
        let buffer = |at: &usize| uses[*at].map(|(from, last)| Buffer::new(from as u64, last as u64 + 1, aligned(plan, *at)));
        let buffers = scratch.iter().filter_map(buffer).collect();
        let (placement, _) = greedy(&Problem { buffers, capacity: target.dram })?;
        let mut bytes = unused.iter().map(|at| aligned(plan, *at)).fold(placement.height, u64::max);
        let mut offsets = Vec::new();
        for at in in_dram(plan, order, &|role| matches!(role, Role::Input | Role::Output)) {
            offsets.push((at, bytes));
            bytes += aligned(plan, at);
        }
        offsets.extend(scratch.into_iter().zip(placement.offsets));
        offsets.extend(unused.into_iter().map(|at| (at, 0)));
        Ok(Own { offsets, bytes })
    }
}

/// Tensors with their memories and addresses.
type Places = Vec<(usize, Space, u64)>;

/// Places what outlives a run, if `own` bytes of the run itself fit in DRAM as well; also returns where those begin.
fn place_lasting(plan: &Plan, order: &[usize], target: &Target, image: &Image, own: u64) -> Result<(Places, u64)> {
    let mut bottom = Bottom::new(image, plan.align);
    let lasting: Vec<(usize, Option<&Placed>)> =
        in_dram(plan, order, &lasts).into_iter().map(|at| (at, known(image, &plan.tensors[at]))).collect();
    let mut room = room_for_weights(plan, &lasting, target, bottom.dram + own)?;
    let mut places = Vec::new();
    for (at, known) in lasting {
        let bytes = aligned(plan, at);
        let weight = plan.tensors[at].role == Role::Weight;
        let (space, address) = match known {
            Some(known) => (known.space, known.address),
            None if weight && bytes > room => {
                room = 0;
                (Space::Flash, bottom.take(Space::Flash, bytes))
            }
            None => {
                room -= if weight { bytes } else { 0 };
                (Space::Dram, bottom.take(Space::Dram, bytes))
            }
        };
        places.push((at, space, address));
    }
    Ok((places, bottom.dram))
}

/// Bytes of DRAM that are left for new weights, with `taken` bytes in use.
fn room_for_weights(plan: &Plan, lasting: &[(usize, Option<&Placed>)], target: &Target, taken: u64) -> Result<u64> {
    let new = |weights: bool| -> u64 {
        let tensors = lasting.iter().filter(|(at, known)| known.is_none() && (plan.tensors[*at].role == Role::Weight) == weights);
        tensors.map(|(at, _)| aligned(plan, *at)).sum()
    };
    let (weights, needed) = (new(true), taken + new(false));
    let what = "activations, states and constants";
    let room = target.dram.checked_sub(needed).ok_or(Error::MemoryTooSmall { what, needed, dram: target.dram, flash: 0 })?;
    if weights.saturating_sub(room) > target.flash {
        let (needed, dram, flash) = (needed + weights, target.dram, target.flash);
        return Err(Error::MemoryTooSmall { what: "all tensors", needed, dram, flash });
    }
    Ok(room)
}

/// The tensor in the image, if it is there in the same tiles.
fn known<'i>(image: &'i Image, tensor: &Placed) -> Option<&'i Placed> {
    image.find(&tensor.name, [tensor.rows, tensor.columns]).filter(|known| known.tile == tensor.tile)
}

/// The first free byte of each memory.
struct Bottom {
    dram: u64,
    flash: u64,
}

impl Bottom {
    fn new(image: &Image, align: u64) -> Bottom {
        let end = |space: Space| {
            let ends = image.tensors().filter(|tensor| tensor.space == space).map(|tensor| tensor.address + tensor.bytes());
            ends.max().unwrap_or(0).next_multiple_of(align)
        };
        Bottom { dram: end(Space::Dram), flash: end(Space::Flash) }
    }

    fn take(&mut self, space: Space, bytes: u64) -> u64 {
        let next = if space == Space::Flash { &mut self.flash } else { &mut self.dram };
        let address = *next;
        *next += bytes;
        address
    }
}

/// Tensors in the order of their first use, then those that nothing uses.
fn use_order(plan: &Plan) -> Vec<usize> {
    let mut seen = vec![false; plan.tensors.len()];
    let used = plan.calls.iter().flat_map(|call| call.operands.iter().map(|operand| operand.tensor as usize));
    used.chain(0..plan.tensors.len()).filter(|at| !std::mem::replace(&mut seen[*at], true)).collect()
}

/// First and last call of each tensor, if any.
fn uses(plan: &Plan) -> Vec<Option<(usize, usize)>> {
    let mut uses: Vec<Option<(usize, usize)>> = vec![None; plan.tensors.len()];
    for (at, call) in plan.calls.iter().enumerate() {
        for operand in &call.operands {
            let known = &mut uses[operand.tensor as usize];
            *known = Some((known.map_or(at, |(first, _)| first), at));
        }
    }
    uses
}
