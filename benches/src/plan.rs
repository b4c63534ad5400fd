//! How long Llama-2-7B takes to plan: int4 weights, a prompt of 2048 tokens and a step behind it, 2 MiB of SRAM.

use std::time::Instant;

use attar_compile::{
    schedule::{Freedom, Goal, schedule},
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
    let freedom = Freedom { join: true, keep: true };
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
    Ok(())
}
