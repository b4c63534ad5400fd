//! A step as a verb: `attar quantize MODEL --grid int4 --out DIR`.

use std::{path::PathBuf, process::ExitCode};

use attar_recipe::{
    Error,
    step::{STEPS, StepKind},
    verb_schema,
};
use clap::{Arg, ArgMatches, Command};

use super::{
    MODEL, Verb, ignore_argument, ignored, one_shot, out_argument, path, path_argument, print_recipe_argument, run_text,
};
use crate::{environment::Environment, printer::Printer, settings};

/// The heading of the flags that choose the calibration text.
const CALIBRATION: &str = "Calibration";

/// A step whose flags are its settings.
impl Verb for StepKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn command(&self) -> Command {
        verb(self.name)
    }

    fn examples(&self) -> &'static [&'static str] {
        self.examples
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let text = recipe(self.name, arguments) + &data(arguments);
        run_text(&format!("attar {} {}", self.name, path(arguments, "model").display()), &text, arguments, environment, printer)
    }
}

/// The verb of a step, with the folder that it writes, its text and its settings.
pub(super) fn verb(step: &'static str) -> Command {
    let command = command(step)
        .arg(out_argument())
        .arg(print_recipe_argument())
        .arg(
            Arg::new("calibration")
                .long("calibration")
                .value_name("FILE")
                .help("UTF-8 text, for algorithms that observe activations")
                .help_heading(CALIBRATION)
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(count("samples", "Windows to draw from the text [default: 128]"))
        .arg(count("length", "Tokens per window [default: 512]"));
    settings::flags(command, &verb_schema(step).expect("a verb of a step that exists"))
}

/// The command of a step, with the model that it applies to.
pub(super) fn command(step: &'static str) -> Command {
    let kind = STEPS.iter().find(|kind| kind.name == step).expect("a verb of a step that exists");
    Command::new(step)
        .about(kind.about)
        .long_about(format!(
            "{}.\n\nRuns the step `{step}` on its own and writes a checkpoint folder, which every other command can read.",
            kind.about
        ))
        .arg(path_argument("MODEL", MODEL))
        .arg(ignore_argument())
}

/// The recipe that runs one step and writes a checkpoint folder.
pub(super) fn recipe(step: &str, arguments: &ArgMatches) -> String {
    let export = toml::Table::from_iter([("target".to_owned(), "checkpoint".into()), ("folder".to_owned(), ".".into())]);
    recipe_of(step, arguments, &[("export", export)])
}

/// The recipe of one step and further sections.
pub(super) fn recipe_of(step: &str, arguments: &ArgMatches, more: &[(&str, toml::Table)]) -> String {
    let schema = verb_schema(step).expect("a verb of a step that exists");
    let mut table = toml::Table::from_iter([("kind".to_owned(), step.into())]);
    table.extend(settings::table(&schema, arguments));
    let sections: Vec<(&str, toml::Table)> = std::iter::once(("step", table)).chain(more.iter().cloned()).collect();
    one_shot(path(arguments, "model"), &ignored(arguments), path(arguments, "out"), &sections)
}

/// `[data.calibration]` as text, if a calibration text was given.
pub(super) fn data(arguments: &ArgMatches) -> String {
    let text = |table| format!("\n[data.calibration]\n{}", toml::to_string(&table).expect("settings are TOML"));
    calibration(arguments).map(text).unwrap_or_default()
}

fn count(name: &'static str, help: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).value_name("N").help(help).help_heading(CALIBRATION);
    arg.requires("calibration").value_parser(clap::value_parser!(u32))
}

/// The settings of `[data.calibration]`, if a calibration text was given.
fn calibration(arguments: &ArgMatches) -> Option<toml::Table> {
    let path = arguments.get_one::<PathBuf>("calibration")?;
    let mut table = toml::Table::from_iter([("path".to_owned(), path.display().to_string().into())]);
    for name in ["samples", "length"] {
        table.extend(arguments.get_one::<u32>(name).map(|n| (name.to_owned(), toml::Value::from(i64::from(*n)))));
    }
    Some(table)
}
