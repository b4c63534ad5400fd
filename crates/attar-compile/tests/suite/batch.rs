//! Several sequences side by side: each is computed as it is alone, by the reference and by plans.

use attar_compile::{
    Data, Kernel, Memory, Program, TensorId,
    program::{Epilogue, Role},
    reference,
    schedule::{Freedom, Goal, schedule},
    simulate::prove,
};

use crate::{
    cases::{Case, checked},
    support::Random,
};

/// The rotary tables of a program.
fn tables(program: &Program) -> Vec<TensorId> {
    let table = |kernel: &Kernel| match kernel {
        Kernel::Linear(linear) => match &linear.epilogue {
            Epilogue::Rotary { table, .. } => *table,
            _ => None,
        },
        _ => None,
    };
    program.kernels.iter().filter_map(|(_, kernel)| table(kernel)).collect()
}

/// Whether each sequence of a batch has rows of its own in a tensor.
fn by_sequence(program: &Program, id: TensorId) -> bool {
    !matches!(program.get(id).role, Role::Weight | Role::Constant) || tables(program).contains(&id)
}

/// The same program for so many sequences.
fn batched(program: &Program, batch: u64) -> Program {
    let mut all = program.clone();
    all.batch = batch;
    for (at, tensor) in all.tensors.iter_mut().enumerate() {
        if by_sequence(program, TensorId(at as u32)) {
            tensor.rows *= batch;
        }
    }
    for (_, kernel) in &mut all.kernels {
        match kernel {
            Kernel::Norm(norm) => norm.row *= batch,
            Kernel::Linear(linear) => {
                linear.out.iter_mut().for_each(|part| part.row *= batch);
                if let Epilogue::Rotary { position, .. } = &mut linear.epilogue {
                    *position *= batch;
                }
            }
            _ => {}
        }
    }
    all
}

/// The numbers of one sequence: what is its own is drawn anew, and tables are the same.
fn of_sequence(program: &Program, memory: &Memory, seed: u64) -> Memory {
    let (mut own, mut random) = (memory.clone(), Random(seed));
    for (at, tensor) in program.tensors.iter().enumerate() {
        let id = TensorId(at as u32);
        if matches!(tensor.role, Role::Input | Role::State) {
            let top = if tensor.element.bits == 16 { 20_000 } else { 127 };
            let numbers = memory.get(id).numbers().iter().map(|_| random.within(-top, top) as i32).collect();
            own.set(id, Data::Numbers(numbers));
        }
    }
    own
}

/// Row after row, those of all sequences side by side.
fn interleaved(sequences: &[Memory], id: TensorId, columns: usize) -> Vec<i32> {
    let rows = |memory: &Memory| memory.get(id).numbers().chunks(columns).map(<[i32]>::to_vec).collect::<Vec<_>>();
    let all: Vec<Vec<Vec<i32>>> = sequences.iter().map(rows).collect();
    (0..all[0].len()).flat_map(|row| all.iter().flat_map(move |rows| rows[row].clone())).collect()
}

#[test]
fn sequences_of_a_batch_are_computed_as_each_alone() {
    let (mut proven, mut moved) = (0, 0);
    for seed in 0..150 {
        let Some(Case { block, program, memory, mut target, .. }) = Case::of(seed).unwrap_or_else(|why| panic!("{why}")) else {
            continue;
        };
        let mut random = Random(seed ^ 0xba7c);
        let batch = random.within(2, 5) as u64;
        target.sram += random.within(0, 40_000) as u64;
        let all = batched(&program, batch);
        let sequences: Vec<Memory> = (0..batch).map(|of| of_sequence(&program, &memory, seed * 10 + of)).collect();
        let mut together = Memory::new(&all);
        for (at, tensor) in all.tensors.iter().enumerate() {
            let id = TensorId(at as u32);
            match by_sequence(&program, id) {
                true => together.set(id, Data::Numbers(interleaved(&sequences, id, tensor.columns as usize))),
                false => together.set(id, memory.get(id).clone()),
            }
        }
        let goal = random.pick(&[Goal::Dram, Goal::Latency, Goal::Energy]);
        let Ok(schedule) = schedule(&all, &target, goal, Freedom::ALL, "test") else { continue };
        checked(&all, &together, &target, &schedule)
            .unwrap_or_else(|why| panic!("seed {seed}, batch of {batch}, {block:?}: {why}"));
        proven += 1;
        let after: Vec<Memory> = sequences.iter().cloned().map(|mut memory| ran(&program, &mut memory)).collect();
        let mut together = together.clone();
        reference::run(&all, &mut together);
        for (at, tensor) in all.tensors.iter().enumerate().filter(|(_, t)| matches!(t.role, Role::Output | Role::State)) {
            let id = TensorId(at as u32);
            let wanted = interleaved(&after, id, tensor.columns as usize);
            assert_eq!(together.get(id).numbers(), wanted, "seed {seed}, batch of {batch}: {}", tensor.name);
        }
        if block.past > 0 {
            let earlier = block.past / 2;
            let (program, plan) = (crate::prove::at(&all, earlier), schedule.plan.at(earlier));
            prove(&program, &plan, &target.rates, &together)
                .unwrap_or_else(|error| panic!("seed {seed}, batch of {batch} at {earlier}: {error}\n{plan}"));
            moved += 1;
        }
    }
    assert!(proven > 60 && moved > 20, "{proven} proven, {moved} moved");
}

fn ran(program: &Program, memory: &mut Memory) -> Memory {
    reference::run(program, memory);
    memory.clone()
}
