//! Kernels of encoders and of decoders that norm what their layers add, in random programs with random amounts of SRAM.

use crate::{
    cases::{checked, target},
    support::{Builder, Random, WEIGHTS},
};
use attar_compile::{
    Element, Kernel, Program, TensorId,
    fixed::{Rescale, weight_bits},
    lower::Tiles,
    program::{Attention, Destination, Epilogue, Mask, Range, Role},
    schedule::{Freedom, Goal, schedule},
    simulate::prove,
};

fn whole(tensor: TensorId) -> Vec<Destination> {
    vec![Destination { tensor, row: 0 }]
}

fn by(factor: f64) -> Rescale {
    Rescale::new(factor).expect("it is in range")
}

/// A block of an encoder: the norm of `x`, queries, keys and values of it without positions, attention to all keys, an MLP with an
/// activation and no gate, and the sums before the next norm.
fn block(builder: &mut Builder, at: usize, x: TensorId, [heads, head, inner]: [u64; 3], weight: Element) -> TensorId {
    let name = |what: &str| format!("{at}.{what}");
    let [rows, width] = [builder.program.get(x).rows, builder.program.get(x).columns];
    let queries = heads * head;
    let (stream, normed) = norms(builder, &name("norm"), x);
    let query = builder.scratch(&name("query"), [rows, queries], Element::INT8);
    let state = builder.scratch(&name("state"), [rows, 2 * queries], Element::INT8);
    let ranges = vec![Range { end: 3 * queries, norm: None, rescale: by(1.0 / 64.0) }];
    let none = Epilogue::Rotary { table: None, position: 0, head, rotated: 0, ranges };
    let parts = vec![Destination { tensor: query, row: 0 }, Destination { tensor: state, row: 0 }];
    builder.linear(&name("qkv"), normed, 3 * queries, weight, 4000.0, parts, none);
    let out = builder.scratch(&name("attended"), [rows, queries], Element::INT8);
    let attention = Attention {
        query,
        state,
        out,
        heads,
        key_heads: heads,
        head,
        past: rows,
        mask: Mask::Past,
        weight_bits: weight_bits(rows),
        logits: by(300.0 / (head as f64).sqrt() / 5000.0),
        rescale: by(1.7),
    };
    builder.program.kernel(name("attention"), Kernel::Attention(attention));
    let middle = builder.scratch(&name("middle"), [rows, width], Element::INT16);
    builder.linear(&name("output"), out, width, weight, 6000.0, whole(middle), Epilogue::Add { residual: stream });
    let (stream, normed) = norms(builder, &name("norm again"), middle);
    let activated = builder.scratch(&name("activated"), [rows, inner], Element::INT8);
    let Epilogue::Gated { table, .. } = builder.gate() else { unreachable!("it is a gate") };
    let activation = Epilogue::Activated { table, rescale: by(1.0 / 64.0) };
    builder.linear(&name("up"), normed, inner, weight, 300.0, whole(activated), activation);
    let sum = builder.scratch(&name("sum"), [rows, width], Element::INT16);
    builder.linear(&name("down"), activated, width, weight, 6000.0, whole(sum), Epilogue::Add { residual: stream });
    sum
}

/// A norm in int16, which is added later, and the same in int8, which is multiplied.
fn norms(builder: &mut Builder, name: &str, x: TensorId) -> (TensorId, TensorId) {
    let [rows, width] = [builder.program.get(x).rows, builder.program.get(x).columns];
    let [stream, normed] = [Element::INT16, Element::INT8].map(|element| {
        let out = builder.scratch(&format!("{name} in {element}"), [rows, width], element);
        builder.norm_of(&format!("{name} to {element}"), x, out, true, None);
        out
    });
    (stream, normed)
}

#[test]
fn random_encoders_are_proven_and_read_shorter_texts() {
    let (mut proven, mut inside, mut shorter) = (0, 0, 0);
    for seed in 0..150 {
        let mut random = Random(seed ^ 0xe0c0_de25);
        let mut builder = Builder::new(seed);
        let weight = random.pick(&WEIGHTS);
        let rows = random.within(1, 70) as u64;
        let [width, inner] = [0; 2].map(|_| (random.within(1, 40) as u64).next_multiple_of(weight.per.into()));
        let head = 2 * random.within(1, 8) as u64;
        let heads = (1..4).find(|heads| (heads * head).is_multiple_of(weight.per.into())).unwrap_or(u64::from(weight.per));
        let mut x = builder.numbers("x", [rows, width], Element::INT16, Role::Input);
        for at in 0..2 {
            x = block(&mut builder, at, x, [heads, head, inner], weight);
        }
        let out = builder.program.tensor("out", [rows, width], Element::INT16, Role::Output);
        builder.norm_of("last norm", x, out, true, None);
        let (program, memory) = builder.memory();
        let target = target(random.within(2_000, 30_000) as u64, random.pick(&[1, 8, 32]));
        let goal = random.pick(&[Goal::Dram, Goal::Latency, Goal::Energy]);
        let Ok(schedule) = schedule(&program, &target, goal, Freedom::ALL, "test") else { continue };
        checked(&program, &memory, &target, &schedule).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        proven += 1;
        inside += usize::from(schedule.choices.iter().any(|choice| !matches!(choice.tiles, Tiles::Norm(_)) && choice.norms > 0));
        for count in [1, rows / 2, rows - 1].into_iter().filter(|count| (1..rows).contains(count)) {
            let (program, plan) = (of(&program, count), schedule.plan.at(count));
            prove(&program, &plan, &target.rates, &memory)
                .unwrap_or_else(|error| panic!("seed {seed}, {count} tokens: {error}\n{plan}"));
            shorter += 1;
        }
    }
    assert!(
        proven > 75 && inside > 20 && shorter > 100,
        "{proven} proven, {inside} with norms in products, {shorter} shorter texts"
    );
}

/// The same program for so many tokens: the rows of others are there, and none sees them.
fn of(program: &Program, count: u64) -> Program {
    let mut program = program.clone();
    for (_, kernel) in &mut program.kernels {
        if let Kernel::Attention(attention) = kernel {
            attention.past = count;
        }
    }
    program
}

/// What rows of an encoder show does not depend on what lies behind its tokens.
#[test]
fn tokens_that_do_not_count_change_nothing() {
    let (rows, count, width) = (12, 7, 16);
    let mut builder = Builder::new(5);
    let x = builder.numbers("x", [rows, width], Element::INT16, Role::Input);
    let out = block(&mut builder, 0, x, [2, 8, 24], Element::INT8);
    let (program, memory) = builder.memory();
    let (program, mut other) = (of(&program, count), memory.clone());
    let mut numbers = memory.get(x).numbers().to_vec();
    numbers[(count * width) as usize..].fill(12_345);
    other.set(x, attar_compile::Data::Numbers(numbers));
    let shown = |mut memory: attar_compile::Memory| {
        attar_compile::reference::run(&program, &mut memory);
        memory.get(out).numbers()[..(count * width) as usize].to_vec()
    };
    assert_eq!(shown(memory), shown(other));
}

/// Norms with every combination of what they can do, behind a product whose result may be on the chip or not.
#[test]
fn norms_that_add_a_residual_are_proven() {
    let mut on_chip = [0; 2];
    for seed in 0..200 {
        let mut random = Random(seed ^ 0x0a0d_0a0d);
        let mut builder = Builder::new(seed);
        let [m, k] = [random.within(1, 50) as u64, random.within(1, 40) as u64];
        let x = builder.numbers("x", [m, k], Element::INT8, Role::Input);
        let residual = builder.numbers("residual", [m, k], Element::INT16, Role::Input);
        let wide = builder.scratch("wide", [m, k], Element::INT16);
        builder.linear("product", x, k, Element::INT8, 6000.0, whole(wide), Epilogue::Rescale);
        let out = builder.program.tensor("out", [m, k], Element::INT16, Role::Output);
        builder.norm_of("norm", wide, out, seed % 2 == 0, Some(residual));
        let (program, memory) = builder.memory();
        let target = target(random.within(600, 5_000) as u64, random.pick(&[1, 8, 32]));
        let Ok(schedule) = schedule(&program, &target, Goal::Dram, Freedom::ALL, "test") else { continue };
        checked(&program, &memory, &target, &schedule).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        on_chip[usize::from(!schedule.choices[0].kept.is_empty())] += 1;
    }
    assert!(on_chip.iter().all(|count| *count > 20), "{on_chip:?} plans, from memory and on the chip");
}
