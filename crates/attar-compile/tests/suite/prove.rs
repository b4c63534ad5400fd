//! Plans of random programs are run on simulated memories and compared with the reference, bit by bit.

use std::collections::BTreeSet;

use crate::cases::{Case, checked, proven, target};
use crate::support::{Builder, Random, WEIGHTS};
use attar_compile::{
    Element, Kernel, Plan, Program,
    fixed::Rescale,
    lower::{Entry, Tiles},
    program::{Destination, Epilogue, Linear, Range, Role},
    schedule::{Choice, Freedom, Goal, schedule},
    simulate::prove,
};

#[test]
fn random_blocks_are_proven() {
    let count = std::env::var("ATTAR_PLANS").ok().and_then(|n| n.parse().ok()).unwrap_or(450);
    let proven: Vec<_> = (0..count).filter_map(|seed| proven(seed).unwrap_or_else(|why| panic!("{why}"))).collect();
    assert!(proven.len() as u64 * 2 > count, "{} of {count} fit", proven.len());
    let in_place = |choice: &Choice| matches!(&choice.tiles, Tiles::Linear(tiles) if tiles.in_place);
    assert!(proven.iter().any(|(schedule, _)| schedule.choices.iter().any(in_place)), "no residual was added in place");
    assert!(proven.iter().any(|(schedule, _)| schedule.choices.iter().any(in_strips)), "no output left in strips");
    let found: BTreeSet<String> = proven.iter().flat_map(|(schedule, _)| schedule.choices.iter().filter_map(entry)).collect();
    let wanted = ["linear once", "linear once, x on the chip", "linear again", "linear again, x on the chip"];
    let of_units = ["mlp", "mlp, x on the chip", "mlp, x is added"];
    for way in wanted.iter().chain(&of_units) {
        assert!(found.contains(*way), "no kernel was normed as `{way}`: {found:?}");
    }
}

/// Whether a product's outputs are finished and stored in strips.
fn in_strips(choice: &Choice) -> bool {
    matches!(&choice.tiles, Tiles::Linear(tiles) if tiles.tiling.has_strips())
}

/// How a kernel norms its rows, if it does.
fn entry(choice: &Choice) -> Option<String> {
    let (kind, on_chip) = match &choice.tiles {
        Tiles::Linear(tiles) => match tiles.entry? {
            Entry::Once { .. } => ("linear once", tiles.on_chip[0]),
            Entry::Again { .. } => ("linear again", tiles.on_chip[0]),
        },
        Tiles::GatedMlp(tiles) if tiles.added => ("mlp, x is added", false),
        Tiles::GatedMlp(tiles) => tiles.piece.map(|_| ("mlp", tiles.on_chip[0]))?,
        _ => return None,
    };
    Some(format!("{kind}{}", if on_chip { ", x on the chip" } else { "" }))
}

/// A run after fewer tokens than it was planned for is the same plan, moved: what a program of that position defines.
#[test]
fn a_run_moves_to_earlier_positions() {
    let (mut moved, mut windows) = (0, 0);
    for seed in 150..400 {
        let Some(case) = Case::of(seed).unwrap_or_else(|why| panic!("{why}")) else { continue };
        let past = case.block.past;
        for earlier in [0, past / 3, past.saturating_sub(1)].into_iter().filter(|earlier| *earlier < past) {
            let program = at(&case.program, earlier);
            let plan = case.schedule.plan.at(earlier);
            let (rates, memory) = (&case.target.rates, &case.memory);
            prove(&program, &plan, rates, memory).unwrap_or_else(|error| panic!("seed {seed} at {earlier}: {error}\n{plan}"));
            moved += 1;
            windows += usize::from(case.block.window.is_some());
        }
    }
    assert!(moved > 50 && windows > 10, "{moved} runs moved, {windows} with a window");
}

/// The same program with so many tokens before it.
pub(crate) fn at(program: &Program, past: u64) -> Program {
    let mut program = program.clone();
    let Program { tensors, kernels, batch } = &mut program;
    for (_, kernel) in kernels {
        match kernel {
            Kernel::Attention(attention) => attention.past = past,
            Kernel::Linear(Linear { out, epilogue: Epilogue::Rotary { position, .. }, .. }) => {
                *position = past * *batch;
                let states = out.iter_mut().filter(|part| tensors[part.tensor.0 as usize].role == Role::State);
                states.for_each(|part| part.row = past * *batch);
            }
            _ => {}
        }
    }
    program
}

#[test]
fn a_plan_survives_its_file() {
    let (schedule, _) = (0..).find_map(|seed| proven(seed).unwrap()).unwrap();
    let bytes = schedule.plan.to_bytes();
    assert_eq!(Plan::from_bytes(&bytes).unwrap(), schedule.plan);
}

#[test]
fn one_product_in_every_order() {
    for seed in 0..200 {
        let mut random = Random(seed ^ 0xabcdef);
        let mut builder = Builder::new(seed);
        let [m, k, n] = [0; 3].map(|_| random.within(1, 70) as u64);
        let weight = random.pick(&WEIGHTS);
        let k = k.next_multiple_of(weight.per.into());
        let x = builder.numbers("x", [m, k], Element::INT8, Role::Input);
        let out = builder.program.tensor("out", [m, n], Element::INT8, Role::Output);
        builder.linear("product", x, n, weight, 90.0, vec![Destination { tensor: out, row: 0 }], Epilogue::Rescale);
        let (program, memory) = builder.memory();
        let target = target(random.within(600, 9_000) as u64, random.pick(&[1, 8, 32]));
        let Ok(schedule) = schedule(&program, &target, Goal::Dram, Freedom::ALL, "test") else { continue };
        checked(&program, &memory, &target, &schedule).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// Long sums in little room, with every epilogue and sums of 32 and 64 bits: the tile of outputs gives way to strips.
#[test]
fn products_in_strips_with_every_epilogue() {
    let mut found = BTreeSet::new();
    for seed in 0..400 {
        let mut random = Random(seed ^ 0x5712_1550);
        let mut builder = Builder::new(seed);
        let weight = random.pick(&WEIGHTS);
        let [m, k, n] = [[40, 100], [100, 400], [8, 16]].map(|[from, to]| random.within(from, to) as u64);
        let (k, n) = (k.next_multiple_of(weight.per.into()), 8 * n);
        let wide = random.pick(&[Element::INT8, Element::INT16]);
        let x = builder.numbers("x", [m, k], wide, Role::Input);
        let (kind, epilogue, element) = match random.next() % 4 {
            0 => ("rescale", Epilogue::Rescale, Element::INT8),
            1 => {
                let residual = builder.numbers("residual", [m, n], Element::INT16, Role::Input);
                ("add", Epilogue::Add { residual }, Element::INT16)
            }
            2 => {
                let table = builder.numbers("table", [m, 8], Element::INT16, Role::Constant);
                let ranges = vec![Range { end: n, norm: None, rescale: Rescale::new(1.0 / 64.0).unwrap() }];
                (
                    "rotary",
                    Epilogue::Rotary { table: Some(table), position: 0, head: 8, rotated: n / 16 * 8, ranges },
                    Element::INT8,
                )
            }
            _ => ("gated", builder.gate(), Element::INT8),
        };
        let outputs = if kind == "gated" { n / 2 } else { n };
        let out = builder.program.tensor("out", [m, outputs], element, Role::Output);
        builder.linear("product", x, n, weight, 2000.0, vec![Destination { tensor: out, row: 0 }], epilogue);
        let (program, memory) = builder.memory();
        let target = target(random.within(2_500, 10_000) as u64, random.pick(&[1, 8, 32]));
        let Ok(schedule) = schedule(&program, &target, Goal::Dram, Freedom::ALL, "test") else { continue };
        if !in_strips(&schedule.choices[0]) {
            continue;
        }
        checked(&program, &memory, &target, &schedule).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        found.insert(format!("{kind} of int{}", wide.bits));
    }
    for kind in ["rescale", "add", "rotary", "gated"] {
        for bits in [8, 16] {
            assert!(found.contains(&format!("{kind} of int{bits}")), "no `{kind}` of int{bits} in strips: {found:?}");
        }
    }
}

/// A norm and a product that reads it, with every epilogue, behind a product whose result may stay on the chip or from memory.
#[test]
fn one_normed_product_in_every_order() {
    let (mut ways, mut most) = (BTreeSet::new(), 0);
    for seed in 0..600 {
        let mut random = Random(seed ^ 0x1234_5678);
        let mut builder = Builder::new(seed);
        let [m, k, n] = [70, 40, 60].map(|top| random.within(1, top) as u64);
        let weight = random.pick(&WEIGHTS);
        let k = k.next_multiple_of(weight.per.into());
        let x = match random.next().is_multiple_of(2) {
            true => builder.numbers("x", [m, k], Element::INT16, Role::Input),
            false => {
                let before = builder.numbers("before", [m, k], Element::INT8, Role::Input);
                let x = builder.scratch("x", [m, k], Element::INT16);
                builder.linear("first", before, k, weight, 6000.0, vec![Destination { tensor: x, row: 0 }], Epilogue::Rescale);
                x
            }
        };
        let normed = builder.scratch("normed", [m, k], Element::INT8);
        builder.norm("norm", x, normed);
        let (kind, epilogue, n, element) = match random.next() % 4 {
            0 => ("rescale", Epilogue::Rescale, n, Element::INT8),
            1 => ("add", Epilogue::Add { residual: x }, k, Element::INT16),
            2 => {
                let residual = builder.numbers("residual", [m, n], Element::INT16, Role::Input);
                ("add", Epilogue::Add { residual }, n, Element::INT16)
            }
            _ => ("gated", builder.gate(), 2 * n, Element::INT8),
        };
        let outputs = if kind == "gated" { n / 2 } else { n };
        let out = builder.program.tensor("out", [m, outputs], element, Role::Output);
        builder.linear("product", normed, n, weight, 300.0, vec![Destination { tensor: out, row: 0 }], epilogue);
        let (program, memory) = builder.memory();
        let target = target(random.within(600, 9_000) as u64, random.pick(&[1, 8, 32]));
        let goal = random.pick(&[Goal::Dram, Goal::Latency, Goal::Energy]);
        let Ok(schedule) = schedule(&program, &target, goal, Freedom::ALL, "test") else { continue };
        checked(&program, &memory, &target, &schedule).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        most = schedule.choices.iter().map(|choice| choice.norms).fold(most, u64::max);
        ways.extend(schedule.choices.iter().filter_map(entry).map(|way| format!("{way}, {kind}")));
    }
    for kind in ["rescale", "add", "gated"] {
        for way in ["linear once", "linear once, x on the chip", "linear again", "linear again, x on the chip"] {
            assert!(ways.contains(&format!("{way}, {kind}")), "`{way}` of `{kind}` is not among {ways:?}");
        }
    }
    assert!(most > 2, "rows were normed {most} times at most");
}
