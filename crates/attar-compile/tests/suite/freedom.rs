//! What the freedoms of a schedule (joining, keeping, recomputing) do on the shapes of known decoders, on the generic device.

use attar_compile::{
    program::Kernel,
    schedule::{Choice, Freedom, Goal, Image, Schedule, choose, schedule},
};

use crate::{
    models::{BITS, MODELS, SRAM, TOKENS, generic, rule},
    shapes::Decoder,
};

fn dram(schedule: &Schedule) -> u64 {
    schedule.choices.iter().map(|choice| choice.dram).sum()
}

/// (model, tokens, SRAM, bits) of the table.
fn table() -> impl Iterator<Item = (&'static str, Decoder, u64, u64, u32)> {
    let cases = TOKENS.into_iter().flat_map(|tokens| SRAM.map(|sram| (tokens, sram)));
    let cases = cases.flat_map(|(tokens, sram)| BITS.map(|bits| (tokens, sram, bits)));
    let cases: Vec<_> = cases.collect();
    MODELS.iter().flat_map(move |model| {
        let rows = cases.clone().into_iter();
        rows.map(|(tokens, sram, bits)| (model.name, model.with(bits), tokens, sram, bits))
    })
}

#[test]
fn no_freedom_hurts() {
    for (name, decoder, tokens, sram, bits) in table() {
        let target = generic(sram, bits).unwrap();
        let program = decoder.program(tokens, 0).unwrap();
        // A bit for each freedom.
        let with = |bits: usize| {
            let [join, keep, recompute] = [1, 2, 4].map(|bit| bits & bit != 0);
            dram(&schedule(&program, &target, Goal::Dram, Freedom { join, keep, recompute }, name).unwrap())
        };
        let all: Vec<u64> = (0..8).map(with).collect();
        let case = format!("{name} w{bits}, {tokens} tokens, {sram} bytes; {}", rule(&target));
        for (bits, bit) in (0..8).flat_map(|bits| [1, 2, 4].map(|bit| (bits, bit))) {
            assert!(all[bits | bit] <= all[bits], "{case}: {bit} in addition to {bits} hurts: {all:?}");
        }
    }
}

/// How a norm hands its rows on: kept on the chip, stored, or computed where they are read, and how often.
fn handed(schedule: &Schedule, norm: &str) -> (&'static str, u64) {
    let first = |choice: &&Choice| choice.name.split(" + ").next() == Some(norm);
    let choice = schedule.choices.iter().find(first).expect("every norm is somewhere");
    let way = match &choice.kernel {
        Kernel::Norm(_) if choice.kept.contains(&format!("{norm}.out")) => "kept",
        Kernel::Norm(_) => "stored",
        _ => "computed",
    };
    (way, choice.norms)
}

#[test]
fn norms_are_kept_stored_or_computed_again() {
    let plan = |model: usize, bits: u32, tokens: u64, sram: u64, freedom: Freedom| {
        let decoder = Decoder { blocks: 2, ..MODELS[model].with(bits) };
        schedule(&decoder.program(tokens, 0).unwrap(), &generic(sram, bits).unwrap(), Goal::Dram, freedom, "test").unwrap()
    };
    let stored_only = Freedom { recompute: false, ..Freedom::ALL };
    // The smallest model: rows fit beside the weights that read them.
    assert_eq!(handed(&plan(0, 8, 256, 256 << 10, Freedom::ALL), "blocks.0.norm"), ("kept", 1));
    // Wide rows in little room: tiles in depth save more weights than rows that come once.
    assert_eq!(handed(&plan(1, 8, 128, 256 << 10, Freedom::ALL), "blocks.0.norm"), ("stored", 1));
    // Rows are outermost, and weights come again for each block of them in any case.
    let (found, without) = (plan(1, 8, 512, 1 << 20, Freedom::ALL), plan(1, 8, 512, 1 << 20, stored_only));
    assert_eq!((handed(&found, "blocks.0.norm"), handed(&without, "blocks.0.norm")), (("computed", 1), ("stored", 1)));
    assert!(dram(&found) < dram(&without));
    // Rows are normed once for every tile of columns, so that weights come only once and something else can stay.
    let (found, without) = (plan(0, 4, 512, 832 << 10, Freedom::ALL), plan(0, 4, 512, 832 << 10, stored_only));
    let (way, passes) = handed(&found, "blocks.0.mlp.norm");
    assert!(way == "computed" && passes > 1, "{way} {passes} times");
    assert!(dram(&found) < dram(&without), "{} {}", dram(&found), dram(&without));
}

/// By the simulated clock, and to 1/128.
#[test]
fn no_other_goal_meets_a_goal_better() {
    for (rows, past) in [(1, 128), (128, 0)] {
        for sram in [256u64 << 10, 2 << 20] {
            let target = generic(sram, 4).unwrap();
            let program = Decoder { blocks: 3, ..MODELS[0].with(4) }.program(rows, past).unwrap();
            let goals = [Goal::Dram, Goal::Latency, Goal::Energy];
            let found = goals.map(|goal| choose(&program, &target, goal, Freedom::ALL, "test", &Image::default()).unwrap().1);
            let measures = found.map(|run| [run.dram() as f64, run.cycles as f64, run.energy(&target.rates)]);
            for (at, goal) in goals.iter().enumerate() {
                let least = measures.iter().map(|measure| measure[at]).fold(f64::INFINITY, f64::min);
                assert!(measures[at][at] <= least * (1.0 + 1.0 / 128.0), "{goal:?}, {rows} rows, {sram}: {measures:?}");
            }
        }
    }
}
