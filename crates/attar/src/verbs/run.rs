//! `attar run RECIPE`.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_recipe::{Error, LockMode, Recipe, Report};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{
    Verb, code, failed_gates,
    given::{recipe, recipe_arguments},
    made, show, write_named,
};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Run;

impl Verb for Run {
    fn name(&self) -> &'static str {
        "run"
    }

    fn command(&self) -> Command {
        recipe_arguments(Command::new("run"))
            .about("Run a recipe: transform, export, verify, evaluate, check gates, report")
            .long_about("Run a recipe: transform, export, verify, evaluate, check gates, report.\n\nPaths in the recipe are relative to the current folder. To resume a run that was killed, run the same command again. The digests of the recipe and its inputs are recorded in a lock file next to the recipe; `--locked` fails if they have changed. A recipe from standard input, or with `--set` or `--output`, has no lock file.")
            .arg(
                Arg::new("locked")
                    .long("locked")
                    .help("Fail if the recipe's lock file is missing or does not match")
                    .conflicts_with_all(["set", "output"])
                    .action(ArgAction::SetTrue),
            )
            .arg(
                Arg::new("junit")
                    .long("junit")
                    .value_name("FILE")
                    .help("Also write the gates as test cases, in JUnit's XML")
                    .value_parser(value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("format")
                    .long("format")
                    .value_name("FORMAT")
                    .help("What is printed: tables, or annotations of GitHub Actions, which also get the report in the job's summary")
                    .default_value("text")
                    .value_parser(["text", "github"]),
            )
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar run recipe.toml",
            "attar run recipe.toml --set step.1.grid=int8 --output out-int8",
            "attar run recipe.toml --locked --json > report.json",
            "attar run recipe.toml --junit gates.xml",
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let done = ran(arguments, environment, printer);
        if let (Err(error), true) = (&done, arguments.get_one::<String>("format").is_some_and(|format| format == "github")) {
            printer.data(&format!("::error title=attar::{}", inline(&error.message)));
        }
        done
    }
}

fn ran(arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
    let (recipe, lock) = recipe(arguments)?;
    let lock = match (arguments.get_flag("locked"), lock) {
        (true, LockMode::None) => {
            return Err(
                Error::recipe("a recipe from standard input has no lock file".to_owned()).hint("leave `--locked` out".to_owned())
            );
        }
        (true, _) => LockMode::Require,
        (false, lock) => lock,
    };
    if let Some(file) = arguments.get_one::<PathBuf>("junit") {
        check_junit(file, &recipe)?;
    }
    let report = made(&recipe, lock, environment, printer)?;
    if let Some(file) = arguments.get_one::<PathBuf>("junit") {
        write_named(file, report.junit().as_bytes())?;
    }
    match arguments.get_one::<String>("format").map(String::as_str) {
        Some("github") => annotate(&report, environment, printer)?,
        _ => show(&report, recipe.output(), printer),
    }
    Ok(code(&report))
}

/// What cannot be written is known before hours of work.
fn check_junit(file: &Path, recipe: &Recipe) -> Result<(), Error> {
    recipe.check_apart(file, "--junit")?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let error = Error::input(format!("`--junit {}`: there is no folder `{}`", file.display(), folder.display()));
        return Err(error.hint("make it first".to_owned()));
    }
    Ok(())
}

/// One line; these characters would end a command or a property.
fn inline(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Workflow commands of GitHub Actions, and the report in the summary of the job.
fn annotate(report: &Report, environment: &Environment, printer: &Printer) -> Result<(), Error> {
    for gate in failed_gates(report) {
        printer.data(&format!("::error title=gate::{}", inline(&gate)));
    }
    let verdict = if report.all_passed() { "every gate passed" } else { "at least one gate failed" };
    printer.data(&format!("::notice title=attar::{}: {verdict}", inline(&report.recipe)));
    let Some(summary) = &environment.step_summary else { return Ok(()) };
    let unwritten = |e: std::io::Error| Error::input(format!("cannot write `{}`", summary.display())).because(&e);
    let mut file = OpenOptions::new().append(true).create(true).open(summary).map_err(unwritten)?;
    file.write_all(report.markdown().as_bytes()).map_err(unwritten)
}
