//! The shortest path over partial schedules: prefixes of the kernels, by the tensors that are on the chip at their end.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use super::{Choice, Freedom, Goal, Image, Schedule, Target, place, place::Crowded};
use crate::{
    Error, Result,
    lower::{AttentionTiles, Entry, GatedMlpTiles, LinearTiles, Lowered, NormTiles, Tiles},
    plan::{Body, Call, Placed, Plan},
    program::{Attention, Epilogue, GatedMlp, Kernel, Linear, Normed, Program, Role, TensorId, normed_columns},
    tile::Limits,
};

/// Cost of a partial schedule, in the order of the goal.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost([f64; 3]);

impl Cost {
    fn plus(self, other: Cost) -> Cost {
        Cost(std::array::from_fn(|at| self.0[at] + other.0[at]))
    }

    /// The first that differs decides.
    fn order(&self, other: &Cost) -> Ordering {
        let each = self.0.iter().zip(&other.0).map(|(mine, theirs)| mine.total_cmp(theirs));
        each.fold(Ordering::Equal, Ordering::then)
    }
}

/// A partial schedule: a prefix of the kernels and its cost.
struct Prefix {
    cost: Cost,
    /// The shorter prefix and the segment that was added to it.
    before: Option<(usize, Segment)>,
}

/// A kernel, or joined kernels, with its tiles.
#[derive(Clone)]
pub(super) struct Segment {
    /// The first kernel and one past the last.
    pub(super) kernels: [usize; 2],
    kernel: Kernel,
    tiles: Tiles,
    kept: Vec<TensorId>,
    dram: u64,
}

fn last_uses(program: &Program) -> HashMap<TensorId, usize> {
    let reads =
        program.kernels.iter().enumerate().flat_map(|(at, (_, kernel))| kernel.reads().into_iter().map(move |id| (id, at)));
    reads.collect()
}

/// The search for the best schedule.
pub(super) struct Search<'a> {
    program: &'a Program,
    target: &'a Target,
    goal: Goal,
    freedom: Freedom,
    image: &'a Image,
    /// Bytes of on-chip memory for each kernel.
    room: &'a [u64],
    /// Results by the shape of a kernel and its room.
    known: HashMap<String, Option<(Tiles, u64, Cost)>>,
    last_use: HashMap<TensorId, usize>,
}

impl<'a> Search<'a> {
    /// A search with `room` bytes of on-chip memory for each kernel.
    pub(super) fn new(
        program: &'a Program,
        target: &'a Target,
        goal: Goal,
        freedom: Freedom,
        image: &'a Image,
        room: &'a [u64],
    ) -> Search<'a> {
        Search { program, target, goal, freedom, image, room, known: HashMap::new(), last_use: last_uses(program) }
    }

    /// The segments of the best schedule.
    pub(super) fn run(&mut self) -> Result<Vec<Segment>> {
        let count = self.program.kernels.len();
        let mut prefixes: Vec<Prefix> = vec![Prefix { cost: Cost([0.0; 3]), before: None }];
        // At each position: for each set of kept tensors, the best prefix.
        let mut at: Vec<BTreeMap<Vec<TensorId>, usize>> = vec![BTreeMap::new(); count + 1];
        at[0].insert(Vec::new(), 0);
        for position in 0..count {
            let states: Vec<(Vec<TensorId>, usize)> = at[position].iter().map(|(kept, prefix)| (kept.clone(), *prefix)).collect();
            for (kept, prefix) in states {
                for (end, kernel) in self.segments(position) {
                    for (step, cost, after) in self.steps(position, end, &kernel, &kept) {
                        let cost = prefixes[prefix].cost.plus(cost);
                        let known = at[end].get(&after).copied();
                        if known.is_none_or(|known| cost.order(&prefixes[known].cost).is_lt()) {
                            prefixes.push(Prefix { cost, before: Some((prefix, step)) });
                            at[end].insert(after, prefixes.len() - 1);
                        }
                    }
                }
            }
            if at[position + 1].is_empty() && !self.segments(position).iter().any(|(end, _)| *end > position + 1) {
                return Err(self.too_small(position));
            }
        }
        let best = at[count].values().copied().min_by(|a, b| prefixes[*a].cost.order(&prefixes[*b].cost));
        let mut prefix = best.ok_or_else(|| self.too_small(count.saturating_sub(1)))?;
        let mut steps = Vec::new();
        while let Some((before, step)) = &prefixes[prefix].before {
            steps.push(step.clone());
            prefix = *before;
        }
        steps.reverse();
        Ok(steps)
    }

    /// Why a kernel cannot run.
    fn too_small(&mut self, position: usize) -> Error {
        let (name, kernel) = &self.program.kernels[position];
        match self.tiles(kernel, &[], self.room[position]) {
            Err(source) => {
                let (kernel_name, device) = (name.clone(), self.target.name.clone());
                let source = Box::new(source);
                match self.target.can.needs_room(kernel) {
                    Some(key) => Error::DeviceNeeds { device, key, kernel: kernel_name, source },
                    None => Error::DoesNotFit { kernel: kernel_name, source },
                }
            }
            Ok(_) => Error::Kernel { kernel: name.clone(), what: "fits alone, but no schedule reaches it" },
        }
    }

    /// The kernels that can run next: one alone, a gated product joined with the one that reads it, or a norm within one of
    /// these.
    fn segments(&self, position: usize) -> Vec<(usize, Kernel)> {
        let mut found = self.joined(position);
        let Kernel::Norm(norm) = &self.program.kernels[position].1 else { return found };
        let [rows, all] = [norm.out, norm.x].map(|id| self.program.get(id).rows);
        let last = position + 1 == self.program.kernels.len();
        if !self.freedom.recompute || rows != all || last || !self.passes(norm.out, position) {
            return found;
        }
        for (end, then) in self.joined(position + 1) {
            let reads = match &then {
                Kernel::Linear(linear) => linear.x == norm.out,
                Kernel::GatedMlp(mlp) => mlp.gated.x == norm.out,
                _ => false,
            };
            if reads {
                found.push((end, Kernel::Normed(Normed { norm: norm.clone(), then: Box::new(then) })));
            }
        }
        found
    }

    /// Whether a tensor is made by the kernel at `position` for the next one, and nobody else.
    fn passes(&self, tensor: TensorId, position: usize) -> bool {
        self.last_use.get(&tensor) == Some(&(position + 1)) && self.program.get(tensor).role == Role::Scratch
    }

    /// A kernel alone, or a gated product with the one that reads it.
    fn joined(&self, position: usize) -> Vec<(usize, Kernel)> {
        let kernels = &self.program.kernels;
        let mut found = vec![(position + 1, kernels[position].1.clone())];
        if let (true, Kernel::Linear(gated), Some((_, Kernel::Linear(down)))) =
            (self.freedom.join, &kernels[position].1, kernels.get(position + 1))
        {
            let inner = gated.out[0].tensor;
            let only = self.passes(inner, position);
            let plain = matches!(down.epilogue, Epilogue::Rescale | Epilogue::Add { .. }) && down.out.len() == 1;
            if matches!(gated.epilogue, Epilogue::Gated { .. }) && down.x == inner && only && plain {
                found.push((position + 2, Kernel::GatedMlp(GatedMlp { gated: gated.clone(), down: down.clone() })));
            }
        }
        found
    }

    /// The ways to run a segment: its output kept or not. With the tensors that are kept after it.
    fn steps(&mut self, start: usize, end: usize, kernel: &Kernel, kept: &[TensorId]) -> Vec<(Segment, Cost, Vec<TensorId>)> {
        let out = keepable(self.program, kernel).filter(|_| self.freedom.keep);
        let choices = std::iter::once(None).chain(out.map(Some));
        let mut found = Vec::new();
        for keep in choices {
            let mut live: Vec<TensorId> = kept.iter().copied().chain(keep).collect();
            live.sort();
            let used: u64 = live.iter().map(|id| self.program.get(*id).bytes().next_multiple_of(self.target.align)).sum();
            let least = self.room[start..end].iter().min().copied().unwrap_or(0);
            let Some(room) = least.checked_sub(used) else { continue };
            let key = format!("{:?} {:?} {room}", shape(self.program, kernel, &live), self.stored(kernel));
            let known = match self.known.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let tiles = self.tiles(kernel, &live, room).ok().map(|tiles| self.cost(kernel, &tiles, &live));
                    self.known.insert(key, tiles.clone());
                    tiles
                }
            };
            let Some((tiles, dram, cost)) = known else { continue };
            let after: Vec<TensorId> =
                live.iter().copied().filter(|id| self.last_use.get(id).is_some_and(|last| *last >= end)).collect();
            let step = Segment { kernels: [start, end], kernel: kernel.clone(), tiles, kept: live, dram };
            found.push((step, cost, after));
        }
        found
    }

    /// The tiles of k and n that a product's weight is stored in.
    fn tile(&self, linear: &Linear) -> Option<[u64; 2]> {
        let weight = self.program.get(linear.weight);
        let [rows, columns] = self.image.find(&weight.name, [weight.rows, weight.columns])?.tile?;
        Some([columns, rows])
    }

    /// The same of all weights of a kernel.
    fn stored(&self, kernel: &Kernel) -> [Option<[u64; 2]>; 2] {
        match kernel.core() {
            Kernel::Linear(linear) => [self.tile(linear), None],
            Kernel::GatedMlp(mlp) => [self.tile(&mlp.gated), self.tile(&mlp.down)],
            Kernel::Norm(_) | Kernel::Attention(_) | Kernel::Normed(_) => [None; 2],
        }
    }

    /// What a kernel may use.
    fn limits(&self, kernel: &Kernel, room: u64) -> Result<Limits> {
        let [stored, second] = self.stored(kernel);
        if let (Kernel::GatedMlp(mlp), Some([width, pairs]), Some(down)) = (kernel.core(), stored, second) {
            let [_, d, _] = self.program.product(&mlp.gated);
            if width != d || down != [pairs / 2, d] {
                return Err(Error::Stored { weight: self.program.get(mlp.gated.weight).name.clone() });
            }
        }
        Ok(Limits { stored, ..self.target.limits(room) })
    }

    /// The best tiles of a kernel in some room, with `live` on the chip.
    fn tiles(&self, kernel: &Kernel, live: &[TensorId], room: u64) -> Result<Tiles> {
        let limits = self.limits(kernel, room)?;
        let on = |id: TensorId| live.contains(&id);
        let program = self.program;
        let bits = activation_bits(self.program, kernel);
        let rates = self.target.rates.of(bits);
        let array = |k: u64| self.target.block(bits, k);
        let objective = self.goal.objective(rates);
        let norm = kernel.entry();
        let read = |x: TensorId| on(norm.map_or(x, |norm| norm.x));
        Ok(match kernel.core() {
            Kernel::Norm(norm) => {
                let chip = [on(norm.x), on(norm.out), norm.residual.is_some_and(on)];
                Tiles::Norm(NormTiles::search(program, norm, chip, &limits)?)
            }
            Kernel::Linear(linear) => {
                let chip = [read(linear.x), linear.out.len() == 1 && on(linear.out[0].tensor), residual(linear).is_some_and(on)];
                let search = |entry| {
                    LinearTiles::search(program, linear, entry, chip, &limits, array(program.product(linear)[1]), &objective)
                };
                let Some(norm) = norm else { return Ok(Tiles::Linear(search(None)?)) };
                let entries = Entry::all(&limits, program.get(norm.x).columns, chip[0]);
                let cost = |tiles: &Result<Tiles>| tiles.as_ref().ok().map(|tiles| self.cost(kernel, tiles, live).2);
                let tiles = entries.into_iter().map(|entry| search(Some((entry, norm))).map(Tiles::Linear));
                let ways = tiles.map(|tiles| (cost(&tiles), tiles));
                let better = |best: &Option<Cost>, next: &Option<Cost>| match (best, next) {
                    (Some(best), Some(next)) => next.order(best).is_lt(),
                    (best, next) => best.is_none() && next.is_some(),
                };
                let best = ways.reduce(|best, next| if better(&best.0, &next.0) { next } else { best });
                best.expect("there are ways").1?
            }
            Kernel::Attention(attention) => {
                let chip = [on(attention.query), on(attention.out)];
                Tiles::Attention(AttentionTiles::search(program, attention, chip, &limits, self.target.can.softmax)?)
            }
            Kernel::Normed(_) => unreachable!("a norm stands before a product"),
            Kernel::GatedMlp(mlp) => {
                let chip = [read(mlp.gated.x), on(mlp.down.out[0].tensor), residual(&mlp.down).is_some_and(on)];
                let [_, depth, columns] = rates.array;
                Tiles::GatedMlp(GatedMlpTiles::search(program, mlp, norm, chip, &limits, [depth, columns])?)
            }
        })
    }

    /// Numbers that a kernel norms, each time, and the cycles of that.
    fn normed(&self, kernel: &Kernel) -> [u64; 2] {
        let norm = match kernel {
            Kernel::Norm(norm) => Some(norm),
            _ => kernel.entry(),
        };
        norm.map_or([0; 2], |norm| {
            let numbers = self.program.get(norm.out).rows * self.program.get(norm.out).columns;
            [numbers, self.target.rates.norm(numbers, norm.centered, norm.residual.is_some())]
        })
    }

    /// DRAM bytes and the cost of tiles, in the order of the goal.
    fn cost(&self, kernel: &Kernel, tiles: &Tiles, live: &[TensorId]) -> (Tiles, u64, Cost) {
        let on = |id: TensorId| live.contains(&id);
        let rates = &self.target.rates;
        let read = rates.tile.read;
        let dram = traffic(self.program, kernel, tiles, &on);
        let macs = self.program.macs(kernel) as f64;
        let [numbers, norm] = self.normed(kernel).map(|count| count as f64);
        let norms = tiles.norms() as f64;
        let products = rates.of(activation_bits(self.program, kernel));
        let cycles = match (tiles, kernel.core()) {
            (Tiles::Linear(tiles), _) => tiles.cycles(&products, norm),
            (Tiles::GatedMlp(tiles), Kernel::GatedMlp(mlp)) => tiles.cycles(self.program, mlp, &products, norm),
            (Tiles::Attention(tiles), Kernel::Attention(attention)) => {
                (tiles.work(self.program, attention, rates) as f64).max(dram as f64 / read)
            }
            _ => norm.max(dram as f64 / read),
        };
        // Rows are read in int16 and written in int8.
        let normed = norms * 3.0 * numbers;
        let moved = dram as f64 * rates.tile.dram_pj + normed * rates.tile.sram_pj;
        let energy = macs * products.mac_pj + moved + cycles * rates.tile.cycle_pj;
        let bytes = dram as f64;
        let cost = match self.goal {
            Goal::Dram => [bytes, cycles, energy],
            Goal::Latency => [cycles, bytes, energy],
            Goal::Energy => [energy, bytes, cycles],
        };
        (tiles.clone(), dram, Cost(cost))
    }

    /// The plan of these segments, or the calls whose buffers cannot be placed together.
    pub(super) fn plan(&self, steps: &[Segment], title: &str) -> Result<Result<Schedule, Crowded>> {
        let mut bodies = Bodies::default();
        let (mut calls, mut lowered_all, mut choices) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            let (name, lowered) = (self.name(step), lower(self.program, &step.kernel, &step.tiles));
            calls.push(call(name.clone(), bodies.index(&lowered.body), &lowered));
            choices.push(self.choice(name, step));
            lowered_all.push(lowered);
        }
        let kept: Vec<Vec<u32>> = steps.iter().map(|step| step.kept.iter().map(|id| id.0).collect()).collect();
        let plan = Plan {
            device: self.target.name.clone(),
            title: title.into(),
            sram: self.target.sram,
            align: self.target.align,
            rates: self.target.rates.clone(),
            tensors: self.layouts(steps),
            bodies: bodies.all,
            calls,
        };
        Ok(match place::on_chip(plan, &lowered_all, &kept)? {
            Ok(plan) => Ok(Schedule { plan: place::in_memory(plan, self.target, self.image)?, choices }),
            Err(crowded) => Err(crowded),
        })
    }

    /// Names of the kernels of a segment.
    fn name(&self, step: &Segment) -> String {
        let kernels = &self.program.kernels[step.kernels[0]..step.kernels[1]];
        kernels.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" + ")
    }

    fn choice(&self, name: String, step: &Segment) -> Choice {
        let kept = step.kept.iter().map(|id| self.program.get(*id).name.clone()).collect();
        let (tiles, norms) = (step.tiles.clone(), step.tiles.norms());
        Choice { name, kernel: step.kernel.clone(), tiles, kept, dram: step.dram, norms }
    }

    /// The program's tensors, weights in the tiles of the kernel that reads them.
    fn layouts(&self, steps: &[Segment]) -> Vec<Placed> {
        let mut tiles: HashMap<TensorId, [u64; 2]> = HashMap::new();
        for step in steps {
            match (&step.tiles, step.kernel.core()) {
                (Tiles::Linear(linear), Kernel::Linear(kernel)) => {
                    tiles.insert(kernel.weight, [linear.tiling.tile[2], linear.tiling.tile[1]]);
                }
                (Tiles::GatedMlp(mlp), Kernel::GatedMlp(kernel)) => {
                    let [width, d] = [&kernel.gated, &kernel.down].map(|linear| self.program.product(linear)[1]);
                    tiles.insert(kernel.gated.weight, [2 * mlp.inner, width]);
                    tiles.insert(kernel.down.weight, [self.program.get(kernel.down.weight).rows, mlp.inner.min(d)]);
                }
                _ => {}
            }
        }
        let placed = |(at, tensor): (usize, &crate::Tensor)| Placed {
            name: tensor.name.clone(),
            rows: tensor.rows,
            columns: tensor.columns,
            element: tensor.element,
            role: tensor.role,
            space: crate::plan::Space::Dram,
            address: 0,
            tile: tiles.get(&TensorId(at as u32)).copied(),
        };
        self.program.tensors.iter().enumerate().map(placed).collect()
    }
}

/// The code of a kernel with its tiles.
pub(super) fn lower(program: &Program, kernel: &Kernel, tiles: &Tiles) -> Lowered {
    let norm = kernel.entry();
    let name = |name: &'static str, normed: &'static str| if norm.is_some() { normed } else { name };
    match (tiles, kernel.core()) {
        (Tiles::Norm(tiles), Kernel::Norm(norm)) => tiles.lower(program, norm, "norm"),
        (Tiles::Linear(tiles), Kernel::Linear(linear)) => tiles.lower(program, linear, norm, name("linear", "normed linear")),
        (Tiles::Attention(tiles), Kernel::Attention(attention)) => tiles.lower(program, attention, "attention"),
        (Tiles::GatedMlp(tiles), Kernel::GatedMlp(mlp)) => tiles.lower(program, mlp, norm, name("mlp", "normed mlp")),
        _ => unreachable!("tiles are searched for the kernel they go with"),
    }
}

/// Bodies, equal ones once.
#[derive(Default)]
pub(super) struct Bodies {
    pub(super) all: Vec<Body>,
    index: HashMap<Vec<u8>, u32>,
}

impl Bodies {
    /// The number of a body.
    pub(super) fn index(&mut self, body: &Body) -> u32 {
        let bytes = postcard::to_allocvec(body).expect("a body has no value that postcard lacks");
        let all = &mut self.all;
        *self.index.entry(bytes).or_insert_with(|| {
            all.push(body.clone());
            all.len() as u32 - 1
        })
    }
}

/// A call that is not placed yet.
pub(super) fn call(name: String, body: u32, lowered: &Lowered) -> Call {
    Call {
        name,
        body,
        operands: lowered.operands.clone(),
        offsets: Vec::new(),
        constants: lowered.constants.clone(),
        fence_weights: true,
    }
}

/// Bits of the activations that a kernel multiplies; of a gated MLP the widest.
fn activation_bits(program: &Program, kernel: &Kernel) -> u32 {
    let bits = |linear: &Linear| program.get(linear.x).element.bits;
    match kernel.core() {
        Kernel::Linear(linear) => bits(linear),
        Kernel::GatedMlp(mlp) => bits(&mlp.gated).max(bits(&mlp.down)),
        _ => 8,
    }
}

fn residual(linear: &Linear) -> Option<TensorId> {
    match linear.epilogue {
        Epilogue::Add { residual } => Some(residual),
        _ => None,
    }
}

/// The output that may stay on the chip.
fn keepable(program: &Program, kernel: &Kernel) -> Option<TensorId> {
    let out = match kernel.core() {
        Kernel::Norm(norm) => norm.out,
        Kernel::Linear(Linear { out, .. }) if out.len() == 1 && out[0].row == 0 => out[0].tensor,
        Kernel::Attention(attention) => attention.out,
        Kernel::GatedMlp(mlp) if mlp.down.out[0].row == 0 => mlp.down.out[0].tensor,
        _ => return None,
    };
    (program.get(out).role == Role::Scratch).then_some(out)
}

/// All of a kernel that decides how it can be tiled.
fn shape(program: &Program, kernel: &Kernel, live: &[TensorId]) -> String {
    let tensor = |id: &TensorId| {
        let tensor = program.get(*id);
        (tensor.rows, tensor.columns, tensor.element.bits, tensor.element.per, live.contains(id))
    };
    let ids: Vec<_> = kernel.reads().iter().chain(&kernel.writes()).map(tensor).collect();
    let kind = match kernel.core() {
        Kernel::Norm(norm) => format!("norm {} {}", norm.centered, norm.residual.is_some()),
        Kernel::Normed(_) => unreachable!("a norm stands before a product"),
        Kernel::Linear(linear) => format!("linear {}", epilogue(&linear.epilogue)),
        Kernel::Attention(Attention { heads, key_heads, head, past, mask, .. }) => {
            format!("attention {heads} {key_heads} {head} {past} {mask:?}")
        }
        Kernel::GatedMlp(mlp) => format!("mlp {}", epilogue(&mlp.down.epilogue)),
    };
    // What is made within the kernel, too.
    let inner = match kernel.core() {
        Kernel::Linear(linear) => vec![linear.x],
        Kernel::GatedMlp(mlp) => vec![mlp.gated.x, mlp.down.x],
        _ => Vec::new(),
    };
    let inner: Vec<u32> = inner.into_iter().map(|id| program.get(id).element.bits).collect();
    // A norm's rows may be the residual, too.
    let entry = kernel.entry().map(|norm| (kernel.core().reads().contains(&norm.x), norm.centered));
    format!("{kind} {entry:?} {inner:?} {ids:?}")
}

fn epilogue(epilogue: &Epilogue) -> String {
    match epilogue {
        Epilogue::Rescale => "rescale".into(),
        Epilogue::Add { .. } => "add".into(),
        Epilogue::Activated { .. } => "activated".into(),
        Epilogue::Rotary { head, rotated, ranges, .. } => format!("rotary {head} {rotated} {}", normed_columns(ranges)),
        Epilogue::Gated { .. } => "gated".into(),
    }
}

/// Predicted DRAM bytes of a kernel.
fn traffic(program: &Program, kernel: &Kernel, tiles: &Tiles, on: &dyn Fn(TensorId) -> bool) -> u64 {
    match (kernel.core(), tiles) {
        (Kernel::Norm(norm), _) => {
            let rows = program.get(norm.out).rows;
            let moved = [norm.x, norm.out].into_iter().chain(norm.residual).filter(|id| !on(*id)).map(|id| program.get(id));
            moved.map(|tensor| tensor.element.bytes(tensor.columns) * rows).sum::<u64>() + program.get(norm.gains).bytes()
        }
        (Kernel::Linear(linear), Tiles::Linear(tiles)) => tiles.traffic(program, linear),
        (Kernel::Attention(attention), Tiles::Attention(tiles)) => tiles.traffic(program, attention),
        (Kernel::GatedMlp(mlp), Tiles::GatedMlp(tiles)) => tiles.traffic(program, mlp),
        _ => unreachable!("tiles are searched for the kernel they go with"),
    }
}
