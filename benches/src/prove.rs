//! Random plans, each run on simulated memories and compared with the reference bit by bit.

use crate::{
    Bench, Failure, cases, cost,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench =
    Bench { name: "prove", about: "Proofs of `--plans=N` random plans (10000 unless told) on one thread", quick: false, run };

/// How many unless told.
const PLANS: u64 = 10_000;

fn run(options: &[String]) -> Result<(), Failure> {
    let wanted = options.iter().find_map(|option| option.strip_prefix("--plans=")).map_or(Ok(PLANS), str::parse)?;
    let (counted, cost) = cost::of(|| prove(wanted));
    let Counted { seeds, calls, terms } = counted?;
    let mut table = Table::new();
    let rate =
        format!("{:.0} plans/CPU-s, {calls} calls, {:.1} M multiply-accumulates", wanted as f64 / cost.cpu, terms as f64 / 1e6);
    let ratio = format!("{:.2} of the seeds fit", wanted as f64 / seeds as f64);
    table.add(Row { work: &format!("{wanted} plans proven"), cost, rate, ratio, goal: "10000, none wrong" });
    table.print();
    println!(
        "\nEach of one or two random blocks: random shape, weights, past, window, goal, freedom, 2 to 60 KB of SRAM, buffers"
    );
    println!("aligned to 1, 16 or 64 bytes, streamed operands double-buffered, outputs staged, tiles of 8 columns or whole.");
    Ok(())
}

#[derive(Default)]
struct Counted {
    seeds: u64,
    calls: usize,
    terms: u64,
}

/// Proves the first `wanted` seeds that fit.
fn prove(wanted: u64) -> Result<Counted, Failure> {
    let (mut counted, mut proven) = (Counted::default(), 0);
    while proven < wanted {
        if let Some((schedule, simulation)) = cases::proven(counted.seeds)? {
            proven += 1;
            counted.calls += schedule.plan.calls.len();
            counted.terms += simulation.macs();
        }
        counted.seeds += 1;
    }
    Ok(counted)
}
