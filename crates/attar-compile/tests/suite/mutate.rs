//! Plans with one thing wrong: the simulator must find every one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use crate::support::{Block, Builder, Random, WEIGHTS};
use attar_compile::{
    Data, Element, Kernel, Memory, Plan, Program, TensorId,
    device::Can,
    plan::{Compute, Constant, Extent, Finish, Place, Proof, Region, Slots, Space, Span, Statement, View},
    program::{HeadNorm, Normed, Role},
    schedule::{Freedom, Goal, Target, schedule},
    simulate::{Rates, prove, simulate, time},
};

/// A change, where there is something to change.
type Mutation = fn(&mut Plan, &mut Random) -> Option<()>;

const MUTATIONS: &[(&str, Mutation)] = &[
    ("a buffer on top of another", |plan, random| {
        let call = pick_call(plan, random, |plan, call| plan.calls[call].offsets.len() > 1)?;
        let [from, to] = two(plan.calls[call].offsets.len(), random);
        plan.calls[call].offsets[from] = plan.calls[call].offsets[to];
        Some(())
    }),
    ("a buffer off its alignment", |plan, random| {
        let call = pick_call(plan, random, |_, _| plan_is_aligned())?;
        let at = random.next() as usize % plan.calls[call].offsets.len();
        plan.calls[call].offsets[at] += 1;
        (plan.align > 1).then_some(())
    }),
    ("less memory than is used", |plan, _| {
        let end = |plan: &Plan, call: usize| {
            let call = &plan.calls[call];
            plan.bodies[call.body as usize].buffers.iter().zip(&call.offsets).map(|(b, offset)| offset + b.bytes).max()
        };
        let peak = (0..plan.calls.len()).filter_map(|call| end(plan, call)).max()?;
        plan.sram = (peak - 1) / plan.align * plan.align;
        Some(())
    }),
    ("smaller slots", |plan, random| {
        let body = random.next() as usize % plan.bodies.len();
        let buffer = plan.bodies[body].buffers.iter_mut().find(|b| b.slots == Slots::Ring(2))?;
        buffer.slots = Slots::Ring(4);
        Some(())
    }),
    ("weights that nobody waits for", |plan, random| drop_waits(plan, random, true)),
    ("activations that nobody waits for", |plan, random| drop_waits(plan, random, false)),
    ("a dropped release", |plan, random| {
        edit(plan, random, &|s| matches!(s, Statement::Release { .. }), &|all, at| drop(all.remove(at)))
    }),
    ("a release that comes twice", |plan, random| {
        edit(plan, random, &|s| matches!(s, Statement::Release { .. }), &|all, at| all.insert(at, all[at].clone()))
    }),
    ("a release before the use", |plan, random| {
        let early = |all: &mut Vec<Statement>, at: usize| {
            let release = all.remove(at);
            all.insert(0, release);
        };
        edit(plan, random, &|s| matches!(s, Statement::Release { .. }), &early)
    }),
    ("a dropped load", |plan, random| {
        edit(plan, random, &|s| matches!(s, Statement::Load { .. }), &|all, at| drop(all.remove(at)))
    }),
    ("a shortened load", |plan, random| edit_region(plan, random, &is_load, &|region| region.rows = shorter(region.rows))),
    ("a load of other rows", |plan, random| edit_region(plan, random, &is_load, &|region| region.rows = shifted(region.rows))),
    ("a load of other columns", |plan, random| {
        edit_region(plan, random, &is_load, &|region| region.columns = shifted(region.columns))
    }),
    ("a load of another tensor", |plan, random| {
        let call = pick_call(plan, random, |_, _| true)?;
        let operands = &mut plan.calls[call].operands;
        let [from, to] = two(operands.len(), random);
        operands.swap(from, to);
        Some(())
    }),
    ("a dropped store", |plan, random| edit(plan, random, &is_store, &|all, at| drop(all.remove(at)))),
    ("a store that comes twice", |plan, random| edit(plan, random, &is_store, &|all, at| all.insert(at, all[at].clone()))),
    ("a store of other rows", |plan, random| edit_region(plan, random, &is_store, &|region| region.rows = shifted(region.rows))),
    ("a store before the result", |plan, random| {
        let early = |all: &mut Vec<Statement>, at: usize| {
            let store = all.remove(at);
            let made = (0..at).rev().find(|at| matches!(all[*at], Statement::Compute(_))).unwrap_or(0);
            all.insert(made, store);
        };
        edit(plan, random, &is_store, &early)
    }),
    ("a dropped result place", |plan, random| {
        edit(plan, random, &|s| matches!(s, Statement::Open { .. }), &|all, at| drop(all.remove(at)))
    }),
    ("a dropped computation", |plan, random| {
        edit(plan, random, &|s| matches!(s, Statement::Compute(_)), &|all, at| drop(all.remove(at)))
    }),
    ("a norm before its rows have come", |plan, random| {
        let loaded = |s: &Statement| match s {
            Statement::Compute(Compute::Norm { x: View { place: Place::Buffer(buffer), .. }, .. }) => Some(*buffer),
            _ => None,
        };
        let early = |all: &mut Vec<Statement>, at: usize| {
            let waited = |s: &Statement| matches!(s, Statement::Wait { buffer, .. } if Some(*buffer) == loaded(&all[at]));
            let wait = all[..at].iter().rposition(waited).unwrap();
            all[wait..=at].rotate_left(1);
        };
        let body = plan.bodies.iter().position(|body| body.name.starts_with("normed"))?;
        edit_body(plan, body, random, &|s| loaded(s).is_some(), &early)
    }),
    ("a product that is added twice", |plan, random| {
        edit(plan, random, &|s| matches!(s, Statement::Compute(Compute::Multiply { .. } | Compute::Attend { .. })), &|all, at| {
            all.insert(at, all[at].clone());
        })
    }),
    ("a loop that ends too soon", |plan, random| {
        let counted = |s: &Statement| matches!(s, Statement::Loop { extent: Extent::Count(_), .. });
        edit(plan, random, &counted, &|all, at| {
            if let Statement::Loop { tiles, .. } = &mut all[at] {
                tiles[1] -= 1;
            }
        })
    }),
    ("a loop that starts too late", |plan, random| {
        let counted = |s: &Statement| matches!(s, Statement::Loop { extent: Extent::Count(_), .. });
        edit(plan, random, &counted, &|all, at| {
            if let Statement::Loop { tiles, .. } = &mut all[at] {
                tiles[0] += 1;
            }
        })
    }),
    ("another rescaling", |plan, random| {
        let call = pick_call(plan, random, |plan, call| matches!(plan.calls[call].constants.first(), Some(Constant::Ranges(_))))?;
        if let Some(Constant::Ranges(ranges)) = plan.calls[call].constants.first_mut() {
            ranges.iter_mut().for_each(|range| range.rescale.shift += 2);
        }
        Some(())
    }),
    ("other gains of a head's norm", |plan, random| edit_norm(plan, random, &|norm| norm.gain_shift -= 2)),
    ("another epsilon of a head's norm", |plan, random| edit_norm(plan, random, &|norm| norm.epsilon = u64::MAX)),
    ("a gain too few of a head's norm", |plan, random| {
        edit_norm(plan, random, &|norm| norm.gains.truncate(norm.gains.len() - 1))
    }),
    ("a tensor on top of another", |plan, random| {
        let lasting = |t: &attar_compile::plan::Placed| t.space == Space::Dram && !matches!(t.role, Role::Scratch);
        let all: Vec<usize> = (0..plan.tensors.len()).filter(|at| lasting(&plan.tensors[*at])).collect();
        let [from, to] = two(all.len(), random);
        plan.tensors[all[from]].address = plan.tensors[all[to]].address;
        Some(())
    }),
    ("a scratch tensor on top of another", |plan, _| {
        // The residual stream lives from the output product to the end of its block, the gated activations within that.
        let used = |plan: &Plan, at: usize| plan.calls.iter().any(|call| call.operands.iter().any(|o| o.tensor as usize == at));
        let named = |plan: &Plan, end: &str| {
            let place = |at: &usize| plan.tensors[*at].name.ends_with(end) && plan.tensors[*at].space == Space::Dram;
            (0..plan.tensors.len()).find(|at| place(at) && used(plan, *at))
        };
        let (middle, normed) = (named(plan, ".middle")?, named(plan, ".normed again")?);
        plan.tensors[normed].address = plan.tensors[middle].address;
        Some(())
    }),
    ("a barrier that weights do not wait for", |plan, random| {
        // Only where their places are taken: a call whose weights lie where the call before has its sums.
        let taken = |plan: &Plan, call: usize| {
            call > 0
                && plan.calls[call].fence_weights
                && {
                    let [before, this] = [call - 1, call].map(|call| &plan.calls[call]);
                    let [old, new] = [before, this].map(|call| &plan.bodies[call.body as usize].buffers);
                    let [sums, weights] =
                        [(old, "sums"), (new, "kept weights")].map(|(b, name)| b.iter().position(|b| b.name == name));
                    matches!((sums, weights), (Some(s), Some(w)) if before.offsets[s] < this.offsets[w] + 16 && this.offsets[w] < before.offsets[s] + 16)
                }
        };
        let call = pick_call(plan, random, taken)?;
        plan.calls[call].fence_weights = false;
        Some(())
    }),
];

fn plan_is_aligned() -> bool {
    true
}

/// Drops all waits of a call's body for what the queue of weight loads brings, or the other.
fn drop_waits(plan: &mut Plan, random: &mut Random, weights: bool) -> Option<()> {
    fn loads(code: &[Statement], found: &mut Vec<(u32, u32)>) {
        code.iter().for_each(|s| match s {
            Statement::Loop { body, .. } => loads(body, found),
            Statement::Load { buffer, operand, .. } => found.push((*buffer, *operand)),
            _ => {}
        });
    }
    fn remove(code: &mut Vec<Statement>, buffers: &[u32]) {
        code.retain(|s| !matches!(s, Statement::Wait { buffer, .. } if buffers.contains(buffer)));
        code.iter_mut().for_each(|s| {
            if let Statement::Loop { body, .. } = s {
                remove(body, buffers);
            }
        });
    }
    let buffers = |plan: &Plan, call: usize| -> Vec<u32> {
        let call = &plan.calls[call];
        let mut found = Vec::new();
        loads(&plan.bodies[call.body as usize].code, &mut found);
        let constant = |operand: u32| {
            matches!(plan.tensors[call.operands[operand as usize].tensor as usize].role, Role::Weight | Role::Constant)
        };
        found.into_iter().filter(|(_, operand)| constant(*operand) == weights).map(|(buffer, _)| buffer).collect()
    };
    let call = pick_call(plan, random, |plan, call| !buffers(plan, call).is_empty())?;
    let (buffers, body) = (buffers(plan, call), plan.calls[call].body as usize);
    remove(&mut plan.bodies[body].code, &buffers);
    Some(())
}

fn is_load(statement: &Statement) -> bool {
    matches!(statement, Statement::Load { .. })
}

fn is_store(statement: &Statement) -> bool {
    matches!(statement, Statement::Store { .. })
}

fn shifted(span: Span) -> Span {
    match span {
        Span::Fixed { start, length } => Span::Fixed { start: start + 1, length },
        Span::Tile { variable, base, unit } => Span::Tile { variable, base: base + 1, unit },
    }
}

fn shorter(span: Span) -> Span {
    match span {
        Span::Fixed { start, length } => Span::Fixed { start, length: length - 1 },
        Span::Tile { .. } => Span::Fixed { start: 0, length: 1 },
    }
}

/// Two different indices below `count`.
fn two(count: usize, random: &mut Random) -> [usize; 2] {
    let first = random.next() as usize % count;
    [first, (first + 1 + random.next() as usize % (count - 1)) % count]
}

fn pick_call(plan: &Plan, random: &mut Random, wanted: impl Fn(&Plan, usize) -> bool) -> Option<usize> {
    let all: Vec<usize> = (0..plan.calls.len()).filter(|call| wanted(plan, *call)).collect();
    (!all.is_empty()).then(|| random.pick(&all))
}

/// Changes one of the statements that are `wanted`, at random.
fn edit(
    plan: &mut Plan,
    random: &mut Random,
    wanted: &dyn Fn(&Statement) -> bool,
    change: &dyn Fn(&mut Vec<Statement>, usize),
) -> Option<()> {
    let body = random.next() as usize % plan.bodies.len();
    edit_body(plan, body, random, wanted, change)
}

/// The same in one body.
fn edit_body(
    plan: &mut Plan,
    body: usize,
    random: &mut Random,
    wanted: &dyn Fn(&Statement) -> bool,
    change: &dyn Fn(&mut Vec<Statement>, usize),
) -> Option<()> {
    fn count(code: &[Statement], wanted: &dyn Fn(&Statement) -> bool) -> usize {
        code.iter()
            .map(|s| usize::from(wanted(s)) + if let Statement::Loop { body, .. } = s { count(body, wanted) } else { 0 })
            .sum()
    }
    fn apply(
        code: &mut Vec<Statement>,
        left: &mut usize,
        wanted: &dyn Fn(&Statement) -> bool,
        change: &dyn Fn(&mut Vec<Statement>, usize),
    ) -> bool {
        for at in 0..code.len() {
            if wanted(&code[at]) {
                if *left == 0 {
                    change(code, at);
                    return true;
                }
                *left -= 1;
            }
            if let Statement::Loop { body, .. } = &mut code[at]
                && apply(body, left, wanted, change)
            {
                return true;
            }
        }
        false
    }
    let all = count(&plan.bodies[body].code, wanted);
    let mut left = random.next() as usize % all.max(1);
    (all > 0 && apply(&mut plan.bodies[body].code, &mut left, wanted, change)).then_some(())
}

/// Changes the norm of queries of a call that has one.
fn edit_norm(plan: &mut Plan, random: &mut Random, change: &dyn Fn(&mut HeadNorm)) -> Option<()> {
    let norm = |constant: &mut Constant| match constant {
        Constant::Ranges(ranges) => ranges[0].norm.as_mut().map(change),
        _ => None,
    };
    let has = |plan: &Plan, call: usize| plan.calls[call].constants.clone().iter_mut().any(|constant| norm(constant).is_some());
    let call = pick_call(plan, random, has)?;
    plan.calls[call].constants.iter_mut().find_map(norm)
}

fn edit_region(
    plan: &mut Plan,
    random: &mut Random,
    wanted: &dyn Fn(&Statement) -> bool,
    change: &dyn Fn(&mut Region),
) -> Option<()> {
    edit(plan, random, wanted, &|all, at| match &mut all[at] {
        Statement::Load { region, .. } | Statement::Store { region, .. } => change(region),
        _ => unreachable!("only loads and stores are edited"),
    })
}

fn proven(seed: u64) -> Option<(Program, Memory, Plan, Rates)> {
    let mut random = Random(seed);
    let block = Block {
        rows: random.within(20, 40) as u64,
        past: random.pick(&[0, 9]),
        width: 32,
        inner: 96,
        heads: 4,
        key_heads: 2,
        head: 32,
        window: random.pick(&[None, Some(11)]),
        weight: random.pick(&WEIGHTS[..4]),
        normed_heads: seed.is_multiple_of(2),
    };
    let mut builder = Builder::new(seed);
    builder.blocks(1, &block);
    let (program, memory) = builder.memory();
    let mut rates = Rates::generic();
    rates.tile.array = [1, 8, 8];
    let can = Can::default();
    let target =
        Target { name: "test".into(), sram: random.within(9_000, 20_000) as u64, align: 16, dram: 1 << 40, flash: 0, rates, can };
    let [join, keep, recompute] = [0; 3].map(|_| random.next().is_multiple_of(2));
    let freedom = Freedom { join, keep, recompute };
    let plan = schedule(&program, &target, Goal::Dram, freedom, "test").ok()?.plan;
    prove(&program, &plan, &target.rates, &memory).unwrap();
    Some((program, memory, plan, target.rates))
}

#[test]
fn every_mutation_is_found() {
    let plans: Vec<_> = (0..).filter_map(proven).take(25).collect();
    let mut random = Random(7);
    for (name, mutation) in MUTATIONS {
        let mut applied = 0;
        for (program, memory, plan, rates) in &plans {
            for _ in 0..4 {
                let mut changed = plan.clone();
                if mutation(&mut changed, &mut random).is_none() {
                    continue;
                }
                applied += 1;
                assert!(prove(program, &changed, rates, memory).is_err(), "{name} is not found:\n{changed}");
            }
        }
        assert!(applied >= 5, "{name} was applied {applied} times");
    }
    assert!(MUTATIONS.len() >= 12);
}

/// A file can ask for loops without end, and gets an error, not the end of the stack.
#[test]
fn norms_that_nest_are_an_error() {
    let mut builder = Builder::new(1);
    let x = builder.numbers("x", [1, 8], Element::INT16, Role::Input);
    let out = builder.scratch("normed", [1, 8], Element::INT8);
    builder.norm("norm", x, out);
    let (program, memory) = builder.memory();
    let Kernel::Norm(norm) = program.kernels[0].1.clone() else { panic!("it is a norm") };
    let normed = |then| Kernel::Normed(Normed { norm: norm.clone(), then: Box::new(then) });
    let nested = (0..2000).fold(Kernel::Norm(norm.clone()), |kernel, _| normed(kernel));
    for (kernel, reads) in [(normed(Kernel::Norm(norm.clone())), true), (nested, false)] {
        let kernels = vec![("norm".to_owned(), kernel)];
        let proof = Proof { program: Program { kernels, ..program.clone() }, memory: memory.clone(), results: Vec::new() };
        assert_eq!(Proof::from_bytes(&proof.to_bytes()).is_ok(), reads);
    }
}

/// An array without rows, and numbers of another size than their tensor's.
#[test]
fn impossible_rates_and_numbers_are_errors() {
    let (program, memory, plan, _) = (0..).find_map(proven).unwrap();
    for at in 0..3 {
        let mut plan = plan.clone();
        plan.rates.tile.array[at] = 0;
        assert!(Plan::from_bytes(&plan.to_bytes()).is_err());
    }
    let proof = Proof { program: program.clone(), memory: memory.clone(), results: Vec::new() };
    assert!(Proof::from_bytes(&proof.to_bytes()).is_ok());
    for (at, tensor) in program.tensors.iter().enumerate() {
        let mut memory = memory.clone();
        memory.set(TensorId(at as u32), Data::Numbers(Vec::new()));
        let proof = Proof { program: program.clone(), memory, results: Vec::new() };
        assert!(Proof::from_bytes(&proof.to_bytes()).is_err(), "{}", tensor.name);
    }
}

/// A sum that adds nothing is found without numbers, too: what is exported is walked through so.
#[test]
fn a_residual_that_is_missing_is_found_without_numbers() {
    let found = (0..).find_map(|seed| {
        let (_, _, mut plan, rates) = proven(seed)?;
        let mut taken = false;
        plan.bodies.iter_mut().for_each(|body| without_extra(&mut body.code, &mut taken));
        taken.then_some((plan, rates))
    });
    let (plan, rates) = found.unwrap();
    assert!(time(&plan, &rates).is_err());
}

/// Takes the residuals of additions away.
fn without_extra(code: &mut [Statement], taken: &mut bool) {
    for statement in code {
        match statement {
            Statement::Loop { body, .. } => without_extra(body, taken),
            Statement::Compute(Compute::Finish { extra, finish: Finish::Add, .. }) => *taken |= extra.take().is_some(),
            _ => {}
        }
    }
}

#[test]
fn loops_that_nest_too_deep_are_an_error() {
    let (_, _, mut plan, _) = (0..).find_map(proven).unwrap();
    for _ in 0..100_000 {
        let body = std::mem::take(&mut plan.bodies[0].code);
        plan.bodies[0].code.push(Statement::Loop { variable: 0, extent: Extent::Count(1), tile: 1, tiles: [0, 1], body });
    }
    let nested = std::thread::Builder::new().stack_size(1 << 30).spawn(move || {
        let bytes = postcard::to_allocvec(&plan).unwrap();
        std::mem::forget(plan);
        bytes
    });
    let bytes = nested.unwrap().join().unwrap();
    assert!(postcard::from_bytes::<Plan>(&bytes).is_err());
}

/// Plans of random bytes do not make the simulator panic.
#[test]
fn damaged_plans_are_errors() {
    let (_, memory, plan, rates) = (0..).find_map(proven).unwrap();
    let bytes = postcard::to_allocvec(&plan).unwrap();
    let mut random = Random(3);
    let mut read = 0;
    for _ in 0..3_000 {
        let mut bytes = bytes.clone();
        for _ in 0..random.within(1, 3) {
            let at = random.next() as usize % bytes.len();
            bytes[at] = random.next() as u8;
        }
        if let Ok(changed) = postcard::from_bytes::<Plan>(&bytes)
            && changed.tensors.len() == plan.tensors.len()
        {
            read += 1;
            let _ = simulate(&changed, &rates, &mut memory.clone());
        }
    }
    assert!(read > 500, "{read}");
}
