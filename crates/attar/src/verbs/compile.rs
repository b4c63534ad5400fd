//! `attar compile MODEL --calibration TEXT --device NAME --out DIR`: runs the step on its own and writes no checkpoint.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_compile::{
    Manifest, Plan,
    report::{calls, trace},
};
use attar_recipe::{Error, read_plan};
use clap::{Arg, ArgMatches, Command};

use super::{Verb, check_written, path, run_text, step, write_named};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Compile;

const NAME: &str = "compile";

impl Verb for Compile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn command(&self) -> Command {
        trace_flags(step::verb(NAME)).long_about(
            "Compile a model's blocks for a device: fuse, tile, plan memory, and prove the plan in simulation.\n\n\
             The model's weights and activations must be quantized to integers already. The calibration text provides the \
             value ranges of intermediate results and the prompt of the proof. Writes the folder `compiled`: plans, their \
             text form, reports and proofs.",
        )
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar compile static --device generic-npu --seq 64 --calibration text.txt --samples 4 --out plans",
            "attar compile static --set sram=64KiB --seq 64 --calibration text.txt --samples 4 --out small-sram",
            "attar compile static --seq 64 --out traced --trace trace.json --csv calls.csv",
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        check_traces(arguments, path(arguments, "out"))?;
        let text = step::recipe_of(NAME, arguments, &[]) + &step::data(NAME, arguments);
        let title = format!("attar {NAME} {}", path(arguments, "model").display());
        let code = run_text(&title, &text, arguments, environment, printer)?;
        if !arguments.get_flag("print-recipe") {
            write_traces(arguments, || plans(&path(arguments, "out").join("compiled")))?;
        }
        Ok(code)
    }
}

/// The plans of a folder, in the order in which they run.
fn plans(folder: &Path) -> Result<Vec<Plan>, Error> {
    read_manifest(folder)?.runs.iter().map(|run| read_plan(&folder.join(format!("{}.plan", run.name)))).collect()
}

/// The file of a folder of plans that says which there are.
pub(super) const MANIFEST: &str = "model.json";

/// What a folder of plans says of them.
pub(super) fn read_manifest(folder: &Path) -> Result<Manifest, Error> {
    let unread =
        |path: &Path, error: &dyn std::error::Error| Error::input(format!("cannot read `{}`", path.display())).because(error);
    let path = folder.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|e| unread(&path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| unread(&path, &e))
}

/// Adds `--trace` and `--csv`.
pub(super) fn trace_flags(command: Command) -> Command {
    let file = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("FILE").help(help).value_parser(clap::value_parser!(PathBuf))
    };
    command
        .arg(file("trace", "Also write the predicted timeline of all queues as a trace that Perfetto and Chrome open (JSON)"))
        .arg(file("csv", "Also write a table of all calls: cycles, stalls, utilisation, bytes (CSV)"))
}

/// Fails where a trace or a table cannot be written, or would be over the other or over something in `taken`, a file or a folder.
pub(super) fn check_traces(arguments: &ArgMatches, taken: &Path) -> Result<(), Error> {
    check_written(arguments, &["trace", "csv"], taken)
}

/// Writes what the flags ask for, of plans in running order.
pub(super) fn write_traces(arguments: &ArgMatches, plans: impl FnOnce() -> Result<Vec<Plan>, Error>) -> Result<(), Error> {
    let [to_trace, to_csv] = ["trace", "csv"].map(|name| arguments.get_one::<PathBuf>(name));
    if to_trace.is_none() && to_csv.is_none() {
        return Ok(());
    }
    let plans = plans()?;
    if let Some(to) = to_trace {
        write_named(to, &serde_json::to_vec(&trace(&plans)?).expect("a trace is JSON"))?;
    }
    if let Some(to) = to_csv {
        write_named(to, calls(&plans)?.as_bytes())?;
    }
    Ok(())
}
