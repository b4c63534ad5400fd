//! `attar run RECIPE`.

use std::process::ExitCode;

use attar_recipe::{Error, LockMode, Recipe};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Verb, path, path_argument, run_recipe};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Run;

impl Verb for Run {
    fn name(&self) -> &'static str {
        "run"
    }

    fn command(&self) -> Command {
        Command::new("run")
            .about("Run a recipe: transform, write, verify, measure, judge, report")
            .long_about("Run a recipe: transform, write, verify, measure, judge, report.\n\nPaths in the recipe are relative to the current folder. A run that was killed goes on where it stopped when the same command is given again.")
            .arg(path_argument("RECIPE", "The recipe, a TOML file"))
            .arg(Arg::new("locked").long("locked").help("Refuse to run if the recipe's lock file is missing or disagrees").action(ArgAction::SetTrue))
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let recipe = Recipe::read(path(arguments, "recipe"))?;
        let lock = if arguments.get_flag("locked") { LockMode::Require } else { LockMode::Update };
        run_recipe(&recipe, lock, environment, printer)
    }
}
