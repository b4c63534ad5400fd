//! Where everything lies: buffers and kept tensors on the chip, the rest in DRAM and flash.

use super::Target;
use crate::{
    Error, Result,
    lower::Lowered,
    memory::{Buffer, Effort, Outcome, Problem, greedy, solve},
    plan::{Placed, Plan, Space},
    program::{Role, TensorId},
};

/// Nodes that the search for places may take: a program with less room for each kernel is the way out.
const NODES: u64 = 200_000;

/// Something that needs `bytes` from call `from` up to but without call `to`.
#[derive(Clone, Copy, Debug)]
struct Item {
    from: usize,
    to: usize,
    bytes: u64,
}

/// Offsets of items, if they fit: greedily, else by the exact search.
fn fit(items: &[Item], capacity: u64) -> Result<Option<Vec<u64>>> {
    let buffers = items.iter().map(|item| Buffer::new(item.from as u64, item.to as u64, item.bytes)).collect();
    match solve(&Problem { buffers, capacity }, Effort { nodes: NODES })?.outcome {
        Outcome::Placed(placement, _) => Ok(Some(placement.offsets)),
        Outcome::Infeasible(_) | Outcome::Undecided => Ok(None),
    }
}

/// Places the buffers of all calls, and the tensors that `kept` lists for each call. Weight buffers reach into the call
/// before where there is room, so that their first loads run beside its work.
pub(super) fn on_chip(mut plan: Plan, lowered: &[Lowered], kept: &[Vec<u32>]) -> Result<Option<Plan>> {
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
    let mut ahead: Vec<bool> =
        (0..lowered.len()).map(|call| call > 0 && early(call) > 0 && used(call - 1) + early(call) <= plan.sram).collect();
    // What a call's own early weights take of the call before leaves less for nobody else: only one call reaches into each.
    let offsets = loop {
        let items = items(&plan, lowered, &weights, &tensors, &ahead);
        match fit(&items, plan.sram)? {
            Some(offsets) => break offsets,
            None if ahead.iter().any(|ahead| *ahead) => ahead.fill(false),
            None => return Ok(None),
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
    Ok(Some(plan))
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

/// Places all tensors that are not on the chip: what lasts in the order of its use, scratch behind it, weights that DRAM
/// has no room for in flash: the first stay in DRAM, the rest is read from flash at each use.
pub(super) fn in_memory(mut plan: Plan, target: &Target) -> Result<Plan> {
    let order = use_order(&plan);
    let last = |tensor: &Placed| !matches!(tensor.role, Role::Scratch | Role::Weight);
    let size = |tensor: &Placed| tensor.bytes().next_multiple_of(plan.align);
    let in_dram: Vec<usize> = order.iter().copied().filter(|at| plan.tensors[*at].space == Space::Dram).collect();
    let uses = uses(&plan);
    let scratch: Vec<usize> = in_dram.iter().copied().filter(|at| plan.tensors[*at].role == Role::Scratch).collect();
    // What lies within a joined kernel is used by no call: nothing is there, so that all of it may be at one place.
    let (scratch, unused): (Vec<usize>, Vec<usize>) = scratch.into_iter().partition(|at| uses[*at].is_some());
    let within = unused.iter().map(|at| size(&plan.tensors[*at])).max().unwrap_or(0);
    let items: Vec<Item> = scratch
        .iter()
        .map(|at| (uses[*at].expect("it is used"), size(&plan.tensors[*at])))
        .map(|((from, last), bytes)| Item { from, to: last + 1, bytes })
        .collect();
    let buffers = items.iter().map(|item| Buffer::new(item.from as u64, item.to as u64, item.bytes)).collect();
    let (placement, _) = greedy(&Problem { buffers, capacity: target.dram })?;
    let height = placement.height.max(within);
    let lasting: u64 = in_dram.iter().map(|at| &plan.tensors[*at]).filter(|t| last(t)).map(size).sum();
    let weights: u64 = in_dram.iter().map(|at| &plan.tensors[*at]).filter(|t| t.role == Role::Weight).map(size).sum();
    let room = target.dram.checked_sub(lasting + height).ok_or(Error::MemoryTooSmall {
        what: "activations, states and constants",
        needed: lasting + height,
        dram: target.dram,
        flash: 0,
    })?;
    if weights.saturating_sub(room) > target.flash {
        let (needed, dram, flash) = (lasting + height + weights, target.dram, target.flash);
        return Err(Error::MemoryTooSmall { what: "all tensors", needed, dram, flash });
    }
    for (at, offset) in scratch.iter().zip(placement.offsets) {
        plan.tensors[*at].address = offset;
    }
    let (mut dram, mut flash, mut left) = (height, 0, room);
    for at in in_dram {
        let bytes = plan.tensors[at].bytes().next_multiple_of(plan.align);
        let tensor = &mut plan.tensors[at];
        match tensor.role {
            Role::Scratch => {}
            Role::Weight if bytes > left => {
                left = 0;
                (tensor.space, tensor.address) = (Space::Flash, flash);
                flash += bytes;
            }
            _ => {
                if tensor.role == Role::Weight {
                    left -= bytes;
                }
                tensor.address = dram;
                dram += bytes;
            }
        }
    }
    Ok(plan)
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
