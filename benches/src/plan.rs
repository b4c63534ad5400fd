//! How long Llama-2-7B takes to plan: int4 weights, a prompt of 2048 tokens and a step behind it, 2 MiB of SRAM.

use std::{num::NonZeroU64, time::Instant};

use attar_compile::{
    schedule::{
        Freedom, Goal,
        chunk::{Candidate, Chunking},
        schedule,
    },
    simulate,
};

use crate::{
    Bench, Failure, cost,
    models::{MODELS, generic, rule},
    table::{Row, Table},
};

pub(crate) const BENCH: Bench =
    Bench { name: "plan", about: "Planning Llama-2-7B shapes in int4: prompt of 2048 and decoding, 2 MiB", quick: true, run };

const SRAM: u64 = 2 << 20;
const TOKENS: u64 = 2048;

fn run(_options: &[String]) -> Result<(), Failure> {
    let decoder = MODELS[2].with(4);
    let target = generic(SRAM, 4)?;
    let freedom = Freedom::ALL;
    let mut table = Table::new();
    let (mut total, mut file) = (0.0, 0);
    for (name, rows, past) in [("prefill 2048", TOKENS, 0), ("decode at 2048", 1, TOKENS)] {
        let (made, spent) = cost::of(|| -> Result<_, Failure> {
            let program = decoder.program(rows, past)?;
            let schedule = schedule(&program, &target, Goal::Dram, freedom, name)?;
            let bytes = schedule.plan.to_bytes();
            Ok((schedule, bytes))
        });
        let (schedule, bytes) = made?;
        (total, file) = (total + spent.cpu, file + bytes.len());
        let start = Instant::now();
        let timed = simulate::time(&schedule.plan, &target.rates)?;
        let rate =
            format!("{} calls, {} bodies, {} bytes of file", schedule.plan.calls.len(), schedule.plan.bodies.len(), bytes.len());
        let ratio = format!(
            "{:.1} MB DRAM, {:.2} ms predicted (timeline in {:.2} s)",
            timed.dram() as f64 / 1e6,
            timed.latency(&target.rates) * 1e3,
            start.elapsed().as_secs_f64()
        );
        table.add(Row { work: name, cost: spent, rate, ratio, goal: "" });
    }
    table.print();
    println!("\nTogether {total:.2} CPU s (goal 2), {file} bytes of plan (goal 1000000). Rule: {}.", rule(&target));
    chunks()
}

/// The prompt of a small model in chunks, by latency.
fn chunks() -> Result<(), Failure> {
    let (decoder, target) = (MODELS[0].with(4), generic(SRAM, 4)?);
    let tokens = NonZeroU64::new(TOKENS).expect("it is not zero");
    let make = |rows, past| decoder.program(rows, past);
    let freedom = Freedom::ALL;
    let (found, spent) = cost::of(|| Chunking::new(tokens).search(&make, &target, Goal::Latency, freedom));
    let found = found?;
    println!("\n{} in int4, a prompt of {TOKENS} in chunks, 2 MiB, by latency; {:.2} CPU s.\n", MODELS[0].name, spent.cpu);
    println!("| chunk | chunks | DRAM MB | ms | J | peak SRAM KiB | DRAM for activations KiB | exact | |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (at, candidate) in found.candidates.iter().enumerate() {
        let Candidate { chunk, chunks, dram, cycles, energy, sram_peak, activations, exact } = candidate;
        let (dram, cycles) = (*dram as f64 / 1e6, *cycles as f64 / target.rates.clock * 1e3);
        println!(
            "| {chunk} | {chunks} | {dram:.1} | {cycles:.2} | {energy:.3} | {} | {} | {} | {} |",
            sram_peak >> 10,
            activations >> 10,
            if *exact { "yes" } else { "3 chunks and lines between" },
            if at == found.chosen { "chosen" } else { "" }
        );
    }
    Ok(())
}
