//! Prompts in chunks, and programs made of sizes alone.

use std::num::NonZeroU64;

use attar_compile::{
    Data, Element, Memory, Plan, Program,
    fixed::Rescale,
    plan::{Placed, Space},
    program::{Column, Role},
    schedule::{
        Freedom, Goal, Image, Target, choose,
        chunk::{Candidate, Chunked, Chunking},
        schedule, schedule_on,
    },
    simulate::{self, prove},
};

use crate::{
    models::{MODELS, SRAM, generic, rule},
    shapes::Decoder,
    support::{Block, Builder, Random, WEIGHTS},
};

fn tokens(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).expect("no prompt is empty")
}

/// Two blocks of SmolLM2 with weights of 4 bits.
fn decoder() -> Decoder {
    Decoder { blocks: 2, ..MODELS[0].with(4) }
}

fn search(chunking: &Chunking, target: &Target, goal: Goal) -> Chunked {
    let decoder = decoder();
    chunking.search(&|rows, past| decoder.program(rows, past), target, goal, Freedom::ALL).expect("it fits")
}

/// Every chunk scheduled and timed, by hand: all find the weights where the first has them.
fn by_hand(chunk: u64, tokens: u64, target: &Target, goal: Goal) -> [u64; 2] {
    let decoder = decoder();
    let mut image = Image::default();
    let parts = (0..tokens).step_by(chunk as usize).map(|past| {
        let program = decoder.program(chunk.min(tokens - past), past).expect("sizes go together");
        let (schedule, run) = choose(&program, target, goal, Freedom::ALL, "by hand", &image).expect("it fits");
        image.add(&schedule.plan);
        [run.dram(), run.cycles]
    });
    parts.fold([0; 2], |[dram, cycles], [d, c]| [dram + d, cycles + c])
}

fn value(candidate: &Candidate, goal: Goal) -> f64 {
    match goal {
        Goal::Dram => candidate.dram as f64,
        Goal::Latency => candidate.cycles as f64,
        Goal::Energy => candidate.energy,
    }
}

#[test]
fn the_chosen_chunk_is_never_worse_than_the_whole_prompt() {
    for (sram, goal) in [(SRAM[0], Goal::Dram), (SRAM[0], Goal::Energy), (SRAM[2], Goal::Latency)] {
        let target = generic(sram, 4).unwrap();
        let found = search(&Chunking::new(tokens(200)), &target, goal);
        let whole = &found.candidates[0];
        assert_eq!((whole.chunk, whole.chunks, whole.exact), (200, 1, true));
        assert_eq!([whole.dram, whole.cycles], by_hand(200, 200, &target, goal), "{sram} {goal:?}; {}", rule(&target));
        let best = value(found.best(), goal);
        assert!(found.candidates.iter().all(|candidate| best <= value(candidate, goal)), "{sram} {goal:?}: {found:?}");
        assert!(found.candidates.iter().all(|candidate| candidate.sram_peak <= sram));
    }
}

#[test]
fn candidates_are_what_their_chunks_add_up_to() {
    let target = generic(512 << 10, 4).unwrap();
    let all = search(&Chunking { planned: u64::MAX, ..Chunking::new(tokens(330)) }, &target, Goal::Dram);
    let few = search(&Chunking::new(tokens(330)), &target, Goal::Dram);
    for (all, few) in all.candidates.iter().zip(&few.candidates) {
        assert!(all.exact);
        assert_eq!([all.dram, all.cycles], by_hand(all.chunk, 330, &target, Goal::Dram), "chunks of {}", all.chunk);
        let off = (few.dram as f64 / all.dram as f64 - 1.0).abs().max((few.cycles as f64 / all.cycles as f64 - 1.0).abs());
        assert!(off < 0.02, "chunks of {}: {few:?} {all:?}", all.chunk);
    }
    assert!(few.candidates.iter().any(|candidate| !candidate.exact));
}

#[test]
fn a_wanted_size_is_taken_and_nothing_depends_on_chance() {
    let target = generic(1 << 20, 4).unwrap();
    let chunking = Chunking { chunk: Some(tokens(100)), ..Chunking::new(tokens(250)) };
    let found = search(&chunking, &target, Goal::Latency);
    assert_eq!(found.candidates.iter().map(|c| (c.chunk, c.chunks)).collect::<Vec<_>>(), [(100, 3)]);
    assert_eq!(found, search(&chunking, &target, Goal::Latency));
    let larger = Chunking { chunk: Some(tokens(9000)), ..chunking };
    assert_eq!(search(&larger, &target, Goal::Dram).best().chunk, 250);
}

#[test]
fn nothing_fits_for_a_reason() {
    let decoder = decoder();
    let target = generic(16 << 10, 4).unwrap();
    let make = |rows, past| decoder.program(rows, past);
    let error = Chunking::new(tokens(64)).search(&make, &Target { sram: 512, ..target }, Goal::Dram, Freedom::ALL).unwrap_err();
    assert!(error.to_string().contains("blocks.0"), "{error}");
}

/// Random numbers for every tensor that a run does not make itself.
fn filled(program: &Program, seed: u64) -> Memory {
    let (mut memory, mut random) = (Memory::new(program), Random(seed));
    for (at, tensor) in program.tensors.iter().enumerate() {
        let (count, top) = (tensor.rows * tensor.columns, if tensor.element.bits == 8 { 127 } else { 20_000 });
        let data = match tensor.role {
            Role::Scratch | Role::Output => continue,
            Role::Weight => {
                let top = 1i64 << (tensor.element.bits - 1);
                let codes = (0..count).map(|_| random.within(-top, top - 1) as i8).collect();
                Data::Weight { codes, scales: Vec::new() }
            }
            Role::Constant if tensor.element == Column::ELEMENT => {
                let column = Column { rescale: Rescale::new(1.0 / 500.0).expect("it is legal"), bias: 3, coarser: 0 };
                Data::Columns(vec![column; count as usize])
            }
            _ => Data::Numbers((0..count).map(|_| random.within(-top, top) as i32).collect()),
        };
        memory.set(attar_compile::TensorId(at as u32), data);
    }
    memory
}

#[test]
fn programs_of_sizes_are_proven() {
    for (rows, past, vocabulary) in [(1, 0, None), (1, 37, Some(50)), (20, 0, Some(33)), (12, 40, None)] {
        let weight = Element::INT4;
        let decoder =
            Decoder { width: 32, inner: 64, heads: 4, key_heads: 2, head: 8, blocks: 2, window: None, weight, vocabulary };
        let program = decoder.program(rows, past).unwrap();
        let target = generic(64 << 10, 4).unwrap();
        let schedule = schedule(&program, &target, Goal::Dram, Freedom::ALL, "sizes").unwrap();
        let run = prove(&program, &schedule.plan, &target.rates, &filled(&program, rows)).unwrap();
        let timed = simulate::time(&schedule.plan, &target.rates).unwrap();
        assert_eq!((run.cycles, run.dram()), (timed.cycles, timed.dram()));
    }
}

/// Shapes have the kernels and sizes of programs with numbers: costs do not depend on which is planned.
#[test]
fn sizes_cost_what_numbers_do() {
    let mut random = Random(7);
    for seed in 0..20 {
        let weight = random.pick(&WEIGHTS[..2]);
        let (rows, past) = (random.within(1, 40) as u64, random.pick(&[0u64, 9]));
        let window = random.pick(&[None, Some(12)]);
        let [width, inner, heads, key_heads, head] = [48, 96, 4, 2, 16];
        let block = Block { rows, past, width, inner, heads, key_heads, head, window, weight, normed_heads: false };
        let mut builder = Builder::new(seed);
        builder.blocks(2, &block);
        let decoder = Decoder { width, inner, heads, key_heads, head, blocks: 2, window, weight, vocabulary: None };
        let target = generic(16 << 10, 4).unwrap();
        let numbers = schedule(&builder.memory().0, &target, Goal::Dram, Freedom::ALL, "numbers").unwrap();
        let sizes = schedule(&decoder.program(rows, past).unwrap(), &target, Goal::Dram, Freedom::ALL, "sizes").unwrap();
        let dram = |schedule: &attar_compile::schedule::Schedule| -> Vec<u64> {
            schedule.choices.iter().map(|choice| choice.dram).collect()
        };
        assert_eq!(dram(&numbers), dram(&sizes), "{block:?}");
    }
}

/// Weights are stored once: a token behind a prompt, and a shorter chunk, read them where the prompt's plan has them.
#[test]
fn weights_lie_where_the_first_plan_has_them() {
    for (sram, bits) in SRAM.into_iter().flat_map(|sram| [(sram, 4), (sram, 8)]) {
        let target = generic(sram, bits).unwrap();
        for decoder in MODELS.map(|model| Decoder { blocks: 2, ..model.with(bits) }) {
            for goal in [Goal::Dram, Goal::Latency] {
                let plan = |rows, past, image: &Image| {
                    let program = decoder.program(rows, past).unwrap();
                    schedule_on(&program, &target, goal, Freedom::ALL, "a chunk", image).unwrap().plan
                };
                let first = plan(128, 0, &Image::default());
                let image = Image::of(&first);
                for (rows, past) in [(1, 128), (44, 128)] {
                    let other = plan(rows, past, &image);
                    let weights = |plan: &Plan| -> Vec<Placed> {
                        plan.tensors.iter().filter(|tensor| tensor.role == Role::Weight).cloned().collect()
                    };
                    assert!(weights(&first) == weights(&other), "{sram} {bits} {goal:?} {rows}");
                    simulate::time(&other, &target.rates).expect("every load is a tile that is stored");
                }
            }
        }
    }
}

/// What lies within joined kernels, and behind norms that are computed again, takes no room for each block.
#[test]
fn more_blocks_need_no_more_room_for_activations() {
    let scratch = |blocks: u64| {
        let program = Decoder { blocks, ..decoder() }.program(256, 0).unwrap();
        let target = generic(SRAM[1], 4).unwrap();
        let plan = schedule(&program, &target, Goal::Dram, Freedom::ALL, "test").unwrap().plan;
        let in_dram = || plan.tensors.iter().filter(|tensor| tensor.role == Role::Scratch && tensor.space == Space::Dram);
        let end = in_dram().map(|tensor| tensor.address + tensor.bytes()).max().unwrap();
        end - in_dram().map(|tensor| tensor.address).min().unwrap()
    };
    assert_eq!(scratch(2), scratch(9));
}
