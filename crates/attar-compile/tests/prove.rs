//! Plans of random programs are run on simulated memories and compared with the reference, bit by bit.

mod support;

use attar_compile::{
    Element, Error, Plan,
    program::{Epilogue, Part, Role},
    schedule::{Freedom, Goal, Schedule, Target, schedule},
    simulate::{Rates, Simulation, prove},
};
use support::{Block, Builder, Random, WEIGHTS};

fn target(sram: u64, align: u64) -> Target {
    let mut rates = Rates::generic();
    rates.tile.array = [1, 8, 8];
    Target { name: "test".into(), sram, align, dram: 1 << 40, flash: 0, rates }
}

fn random_block(random: &mut Random) -> Block {
    let weight = random.pick(&WEIGHTS);
    let per = u64::from(weight.per);
    let head = random.pick(&[4u64, 8, 16]).next_multiple_of(per);
    let key_heads = random.within(1, 3) as u64;
    let group = random.within(1, 3) as u64;
    Block {
        rows: random.within(1, 48) as u64,
        past: random.pick(&[0, 0, 5, 40]),
        width: random.pick(&[16u64, 32, 48, 64, 80]).next_multiple_of(per),
        inner: random.pick(&[16u64, 48, 96, 128]).next_multiple_of(per),
        heads: key_heads * group,
        key_heads,
        head,
        window: random.pick(&[None, None, Some(7), Some(40)]),
        weight,
    }
}

/// Random blocks in random room; those in which nothing fits do not count.
fn proven(seed: u64) -> Option<(Schedule, Simulation)> {
    let mut random = Random(seed);
    let mut builder = Builder::new(seed);
    let block = random_block(&mut random);
    builder.blocks(random.within(1, 2) as usize, &block);
    let (program, memory) = builder.memory();
    let target = target(random.within(2_000, 60_000) as u64, random.pick(&[1, 16, 64]));
    let freedom = Freedom { join: random.next() % 2 == 0, keep: random.next() % 2 == 0 };
    let goal = random.pick(&[Goal::Dram, Goal::Latency, Goal::Energy]);
    let schedule = match schedule(&program, &target, goal, freedom, "test") {
        Ok(schedule) => schedule,
        Err(Error::DoesNotFit { .. }) => return None,
        Err(other) => panic!("seed {seed}: {other}"),
    };
    let simulation = prove(&program, &schedule.plan, &target.rates, &memory)
        .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{block:?} {target:?}\n{}", schedule.plan));
    assert_eq!(
        simulation.dram(),
        schedule.choices.iter().map(|c| c.dram).sum::<u64>(),
        "seed {seed}: bytes\n{:?}\n{}",
        simulation
            .calls
            .iter()
            .zip(&schedule.choices)
            .map(|(call, c)| (c.name.clone(), c.dram, call.read, call.written))
            .collect::<Vec<_>>(),
        schedule.plan
    );
    assert!(simulation.sram_peak <= target.sram);
    Some((schedule, simulation))
}

#[test]
fn random_blocks_are_proven() {
    let count = std::env::var("ATTAR_PLANS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let proven = (0..count).filter(|seed| proven(*seed).is_some()).count();
    assert!(proven as u64 * 2 > count, "{proven} of {count} fit");
}

#[test]
fn a_plan_survives_its_file() {
    let (schedule, _) = (0..).find_map(proven).unwrap();
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
        builder.linear("product", x, n, weight, 90.0, vec![Part { tensor: out, row: 0 }], Epilogue::Rescale);
        let (program, memory) = builder.memory();
        let target = target(random.within(600, 9_000) as u64, random.pick(&[1, 8, 32]));
        let freedom = Freedom { join: true, keep: true };
        let Ok(schedule) = schedule(&program, &target, Goal::Dram, freedom, "test") else { continue };
        let simulation = prove(&program, &schedule.plan, &target.rates, &memory)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", schedule.plan));
        assert_eq!(simulation.dram(), schedule.choices[0].dram, "seed {seed}\n{}", schedule.plan);
    }
}
