//! Where everything lies: buffers and kept tensors on the chip, the rest in DRAM and flash.

use std::{collections::HashMap, ops::Range};

use super::{Image, Target, image::lasts};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Item {
    from: usize,
    to: usize,
    bytes: u64,
}

/// The calls whose buffers do not fit side by side, in stretches.
pub(super) type Crowded = Vec<Range<usize>>;

/// Offsets of items, if they fit: greedily, else by the exact search.
fn fit(items: &[Item], capacity: u64) -> Result<Option<Vec<u64>>> {
    let buffers = items.iter().map(|item| Buffer::new(item.from as u64, item.to as u64, item.bytes)).collect();
    match solve(&Problem { buffers, capacity }, Effort { nodes: NODES })?.outcome {
        Outcome::Placed(placement, _) => Ok(Some(placement.offsets)),
        Outcome::Infeasible(_) | Outcome::Undecided => Ok(None),
    }
}

/// The same, each stretch of calls that share an item for itself. Equal stretches are placed once.
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

/// Calls in stretches, between which no item lives.
fn stretches(items: &[Item], calls: usize) -> Vec<Range<usize>> {
    let mut together = vec![false; calls + 1];
    items.iter().for_each(|item| together[item.from + 1..item.to].fill(true));
    let starts: Vec<usize> = (0..calls).filter(|call| !together[*call]).chain([calls]).collect();
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Places the buffers of all calls, and the tensors that `kept` lists for each call. Weight buffers reach into the call
/// before where there is room, so that their first loads run beside its work.
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
    // What a call's own early weights take of the call before leaves less for nobody else: only one call reaches into each.
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

/// Lets the weights of a call reach into the call before where they lie on nothing of that.
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

/// Places all tensors that are not on the chip: what lasts in the order of its use, or where `image` has it; behind it what is
/// the run's own. Of weights that DRAM has no room for the first stay there, and the rest is read from flash at each use.
pub(super) fn in_memory(mut plan: Plan, target: &Target, image: &Image) -> Result<Plan> {
    let order = use_order(&plan);
    let size = |tensor: &Placed| tensor.bytes().next_multiple_of(plan.align);
    let in_dram = |role: &dyn Fn(Role) -> bool| -> Vec<usize> {
        let tensors = order.iter().copied().filter(|at| plan.tensors[*at].space == Space::Dram);
        tensors.filter(|at| role(plan.tensors[*at].role)).collect()
    };
    let (scratch, ends) = (in_dram(&|role| role == Role::Scratch), in_dram(&|role| matches!(role, Role::Input | Role::Output)));
    let uses = uses(&plan);
    // What lies within a joined kernel is used by no call: nothing is there, so that all of it may be at one place.
    let (scratch, unused): (Vec<usize>, Vec<usize>) = scratch.into_iter().partition(|at| uses[*at].is_some());
    let buffer = |at: &usize| uses[*at].map(|(from, last)| Buffer::new(from as u64, last as u64 + 1, size(&plan.tensors[*at])));
    let buffers = scratch.iter().filter_map(buffer).collect();
    let (placement, _) = greedy(&Problem { buffers, capacity: target.dram })?;
    let within = unused.iter().map(|at| size(&plan.tensors[*at])).max().unwrap_or(0);
    let height = placement.height.max(within);
    let own = height + ends.iter().map(|at| size(&plan.tensors[*at])).sum::<u64>();

    let mut bottom = Bottom::new(image, plan.align);
    let lasting: Vec<(usize, Option<&Placed>)> =
        in_dram(&lasts).into_iter().map(|at| (at, known(image, &plan.tensors[at]))).collect();
    let new = |role: &dyn Fn(Role) -> bool| -> u64 {
        let tensors = lasting.iter().filter(|(_, known)| known.is_none()).map(|(at, _)| &plan.tensors[*at]);
        tensors.filter(|tensor| role(tensor.role)).map(size).sum()
    };
    let (weights, others) = (new(&|role| role == Role::Weight), new(&|role| role != Role::Weight));
    let needed = bottom.dram + others + own;
    let what = "activations, states and constants";
    let room = target.dram.checked_sub(needed).ok_or(Error::MemoryTooSmall { what, needed, dram: target.dram, flash: 0 })?;
    if weights.saturating_sub(room) > target.flash {
        let (needed, dram, flash) = (needed + weights, target.dram, target.flash);
        return Err(Error::MemoryTooSmall { what: "all tensors", needed, dram, flash });
    }
    let mut left = room;
    let places: Vec<(usize, Space, u64)> = lasting
        .iter()
        .map(|(at, known)| {
            let (tensor, bytes) = (&plan.tensors[*at], size(&plan.tensors[*at]));
            match (known, tensor.role) {
                (Some(known), _) => (*at, known.space, known.address),
                (None, Role::Weight) if bytes > left => {
                    left = 0;
                    (*at, Space::Flash, bottom.take(Space::Flash, bytes))
                }
                (None, role) => {
                    left -= if role == Role::Weight { bytes } else { 0 };
                    (*at, Space::Dram, bottom.take(Space::Dram, bytes))
                }
            }
        })
        .collect();
    let above = bottom.dram + height;
    let ends = ends.iter().scan(above, |next, at| {
        let address = *next;
        *next += size(&plan.tensors[*at]);
        Some((*at, Space::Dram, address))
    });
    let scratch = scratch.iter().zip(&placement.offsets).map(|(at, offset)| (*at, Space::Dram, bottom.dram + offset));
    let unused = unused.iter().map(|at| (*at, Space::Dram, bottom.dram));
    let all: Vec<(usize, Space, u64)> = places.into_iter().chain(ends).chain(scratch).chain(unused).collect();
    for (at, space, address) in all {
        (plan.tensors[at].space, plan.tensors[at].address) = (space, address);
    }
    Ok(plan)
}

/// Where a tensor lies already.
fn known<'i>(image: &'i Image, tensor: &Placed) -> Option<&'i Placed> {
    image.find(&tensor.name, [tensor.rows, tensor.columns]).filter(|known| known.tile == tensor.tile)
}

/// The first bytes that nothing has taken.
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
