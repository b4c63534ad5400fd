//! What attar costs, measured.
//!
//! ```text
//! cargo run --release -p attar-bench                    # the quick ones
//! cargo run --release -p attar-bench -- rtn prefill     # those named
//! cargo run --release -p attar-bench -- sharded --small # with options
//! ```
//!
//! Every benchmark prints one Markdown table: the command or the work, CPU-seconds of all threads, peak memory, a rate,
//! its ratio to a baseline measured in the same run, and the goal. Nothing is asserted: a slow machine is no failure.
//! Each runs in a process of its own, so that its peak memory is its own.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "benchmarks talk to people")]

mod apart;
#[path = "../../crates/attar-compile/tests/suite/cases.rs"]
mod cases;
mod chain;
mod checkpoint;
mod cost;
mod fusion;
mod gaussian;
mod host;
mod memory;
#[path = "../../crates/attar-compile/tests/suite/models.rs"]
mod models;
mod plan;
mod prefill;
mod prove;
mod rtn;
#[path = "../../crates/attar-compile/tests/suite/shapes.rs"]
mod shapes;
mod sharded;
mod smollm2;
mod startup;
#[path = "../../crates/attar-compile/tests/suite/support.rs"]
mod support;
mod table;
mod tiles;

use std::process::{Command, ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why there is no measurement.
type Failure = Box<dyn std::error::Error>;

/// One benchmark.
struct Bench {
    name: &'static str,
    about: &'static str,
    /// Whether it runs when none is named.
    quick: bool,
    run: fn(&[String]) -> Result<(), Failure>,
}

/// Every benchmark, in the order of the documentation.
static BENCHES: &[Bench] = &[
    startup::BENCH,
    rtn::BENCH,
    prefill::BENCH,
    gaussian::BENCH,
    tiles::BENCH,
    smollm2::BENCH,
    sharded::BENCH,
    memory::BENCH,
    plan::BENCH,
    fusion::BENCH,
    prove::BENCH,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (options, names): (Vec<String>, Vec<String>) = arguments.into_iter().partition(|argument| argument.starts_with("--"));
    if let Some(unknown) = names.iter().find(|name| !BENCHES.iter().any(|bench| bench.name == *name)) {
        eprintln!("error: no benchmark is named `{unknown}`\n");
        return usage();
    }
    if options.iter().any(|option| option == "--help") {
        return usage();
    }
    let chosen: Vec<&Bench> = BENCHES
        .iter()
        .filter(|bench| if names.is_empty() { bench.quick } else { names.iter().any(|n| n == bench.name) })
        .collect();
    let succeeded = match chosen.as_slice() {
        [bench] => here(bench, &options),
        several => several.iter().filter(|bench| !apart(bench, &options)).count() == 0,
    };
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("usage: attar-bench [NAME]... [--OPTION]...\n");
    for Bench { name, about, quick, .. } in BENCHES {
        eprintln!("  {name:10} {about}{}", if *quick { "" } else { " (only when named)" });
    }
    ExitCode::from(2)
}

fn here(bench: &Bench, options: &[String]) -> bool {
    println!("## {}\n\n{}, on {}.\n", bench.name, bench.about, host::description());
    let done = (bench.run)(options);
    println!();
    done.map_err(|error| eprintln!("error: {}: {error}", bench.name)).is_ok()
}

fn apart(bench: &Bench, options: &[String]) -> bool {
    let program = std::env::current_exe().expect("this program has a path");
    Command::new(program).arg(bench.name).args(options).status().is_ok_and(|status| status.success())
}
