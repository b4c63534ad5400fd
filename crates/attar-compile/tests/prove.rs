//! Plans of random programs are run on simulated memories and compared with the reference, bit by bit.

mod cases;
mod support;

use attar_compile::{
    Element, Plan,
    lower::Tiles,
    program::{Epilogue, Part, Role},
    schedule::{Choice, Freedom, Goal, schedule},
    simulate::prove,
};
use cases::{proven, target};
use support::{Builder, Random, WEIGHTS};

#[test]
fn random_blocks_are_proven() {
    let count = std::env::var("ATTAR_PLANS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let proven: Vec<_> = (0..count).filter_map(|seed| proven(seed).unwrap_or_else(|why| panic!("{why}"))).collect();
    assert!(proven.len() as u64 * 2 > count, "{} of {count} fit", proven.len());
    let in_place = |choice: &Choice| matches!(&choice.tiles, Tiles::Linear(tiles) if tiles.in_place);
    assert!(proven.iter().any(|(schedule, _)| schedule.choices.iter().any(in_place)), "no residual was added in place");
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
        builder.linear("product", x, n, weight, 90.0, vec![Part { tensor: out, row: 0 }], Epilogue::Rescale);
        let (program, memory) = builder.memory();
        let target = target(random.within(600, 9_000) as u64, random.pick(&[1, 8, 32]));
        let Ok(schedule) = schedule(&program, &target, Goal::Dram, Freedom::ALL, "test") else { continue };
        let simulation = prove(&program, &schedule.plan, &target.rates, &memory)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", schedule.plan));
        assert_eq!(simulation.dram(), schedule.choices[0].dram, "seed {seed}\n{}", schedule.plan);
    }
}
