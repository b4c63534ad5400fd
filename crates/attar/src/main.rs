//! The command line of attar: turns a model checkpoint into NPU-ready artifacts and verifies them.
//!
//! This crate parses arguments and prints progress, reports and errors; the work is done by `attar-recipe`. Exit codes: 0 done; 1 a gate failed; 2 wrong usage or recipe; 3 the model, the data or the machine
//! cannot be used; 70 a bug of attar; 130 interrupted.

mod environment;
mod interrupt;
mod limit;
mod printer;
mod progress;
mod settings;
mod verbs;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use attar_recipe::{Error, ErrorKind};
use clap::{Arg, ArgAction, Command};

use crate::{environment::Environment, printer::Printer, verbs::verbs};

#[global_allocator]
static ALLOCATOR: limit::Limited = limit::Limited;

/// The exit code of a bug in attar: `EX_SOFTWARE` of sysexits.h.
const BUG: u8 = 70;

/// What follows the list of verbs in `attar --help`.
const EPILOGUE: &str = "\
Start with a recipe, a TOML file: `attar plan RECIPE` checks it, `attar run RECIPE` runs it. To try one step on its own, use
its command; `--print-recipe` shows the recipe behind it.

Exit codes: 0 done; 1 a gate failed; 2 wrong usage or a mistake in the recipe; 3 the model, the data or the machine cannot be
used; 70 a bug in attar; 130, 143 or 129 interrupted by SIGINT, SIGTERM or SIGHUP";

fn main() -> ExitCode {
    // candle's own thread pool for elementwise ops busy-waits, which starves everything else on the machine.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let matches = command().get_matches();
    interrupt::stop_at_once();
    let printer = Printer::new(&matches);
    if let Some(threads) = matches.get_one::<usize>("threads") {
        // Fails only if the pool exists already; nothing has started it yet.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(*threads).build_global();
    }
    let max_memory = matches.get_one::<attar_recipe::Size>("max-memory").map(|size| size.0);
    if let Some(bytes) = max_memory {
        let [stdout, stderr] = printer.last_words(&out_of_memory(bytes));
        limit::set(bytes, stdout, stderr);
    }
    let (name, arguments) = matches.subcommand().expect("clap demands one");
    let verb = verbs().find(|verb| verb.name() == name).expect("clap knows only these");
    let environment = Environment::read(arguments, max_memory);
    match catch_unwind(AssertUnwindSafe(|| verb.run(arguments, &environment, &printer).and_then(|code| printer.done(code)))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            let error = verbs::said_by(verb, arguments, error);
            printer.error(&error);
            ExitCode::from(if error.kind == ErrorKind::Interrupted { interrupt::exit_code() } else { error.exit_code() })
        }
        Err(_) => {
            printer.bug();
            ExitCode::from(BUG)
        }
    }
}

/// The whole command line.
fn command() -> Command {
    let global =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help).global(true).help_heading("Global options");
    Command::new("attar")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Turn model checkpoints into verified artifacts for NPUs and other small devices")
        .after_help(EPILOGUE)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(global("json", "Print results as JSON").action(ArgAction::SetTrue))
        .arg(global("quiet", "Print only errors").short('q').action(ArgAction::SetTrue))
        .arg(global("threads", "Threads to use [default: all cores]").value_name("N").value_parser(parse_threads))
        .arg(
            global("max-memory", "Take no more memory than this, such as `2 GB` [default: no limit]")
                .value_name("SIZE")
                .value_parser(|text: &str| text.parse::<attar_recipe::Size>()),
        )
        .subcommands(verbs().map(verbs::command))
}

fn out_of_memory(allowed: u64) -> Error {
    let message = format!("more memory is needed than the {} that `--max-memory` allows", attar_recipe::bytes(allowed));
    Error::input(message).hint("raise it, or lower `--threads`; finished work is kept".to_owned())
}

fn parse_threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "expected a whole number from 1 to 1024".into())
}
