//! `attar compare RUN…`: a page of several finished runs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_recipe::{Error, RUN_FILES, RunReport, compare_runs};
use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Verb, write_named};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Compare;

impl Verb for Compare {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn command(&self) -> Command {
        Command::new("compare")
            .about("Write a page that compares finished runs: sizes, quality, latency, answers")
            .long_about("Write a page that compares finished runs: sizes against quality, damage by layer, latency, answers side by side.\n\nEach run is the output folder of `attar run`. Of one run, the page is its `report.html`.")
            .arg(
                Arg::new("run")
                    .value_name("RUN")
                    .help("Output folders of finished runs")
                    .required(true)
                    .num_args(1..)
                    .value_parser(value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("FILE.html")
                    .help("The page to write")
                    .required(true)
                    .value_parser(value_parser!(PathBuf)),
            )
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar compare out out-int8 --out compared.html"]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let folders = arguments.get_many::<PathBuf>("run").into_iter().flatten();
        let runs = folders.map(|folder| RunReport::read(folder)).collect::<Result<Vec<RunReport>, Error>>()?;
        let page = compare_runs(&runs)?;
        let out = arguments.get_one::<PathBuf>("out").expect("clap demands it");
        check_apart(out, arguments.get_many::<PathBuf>("run").into_iter().flatten())?;
        write_named(out, page.as_bytes())?;
        printer.note(&format!("{} runs: {}", runs.len(), out.display()));
        Ok(ExitCode::SUCCESS)
    }
}

/// A page replaces no file of the runs that it compares.
fn check_apart<'a>(out: &Path, mut runs: impl Iterator<Item = &'a PathBuf>) -> Result<(), Error> {
    let there = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    let own = |folder: &PathBuf| RUN_FILES.iter().any(|name| folder.join(name).canonicalize().is_ok_and(|file| file == there));
    match runs.find(|folder| own(folder)) {
        None => Ok(()),
        Some(folder) => {
            let message = format!("`--out {}` is a file of the run `{}`", out.display(), folder.display());
            Err(Error::recipe(message).hint("name another file".to_owned()))
        }
    }
}
