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
            .about("Run a recipe: transform, export, verify, evaluate, check gates, report")
            .long_about("Run a recipe: transform, export, verify, evaluate, check gates, report.\n\nPaths in the recipe are relative to the current folder. To resume a run that was killed, run the same command again. The digests of the recipe and its inputs are recorded in a lock file next to the recipe; `--locked` fails if they have changed.")
            .arg(path_argument("RECIPE", "The recipe, a TOML file"))
            .arg(Arg::new("locked").long("locked").help("Fail if the recipe's lock file is missing or does not match").action(ArgAction::SetTrue))
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar run recipe.toml", "attar run recipe.toml --locked --json > report.json"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let recipe = Recipe::read(path(arguments, "recipe"))?;
        let lock = if arguments.get_flag("locked") { LockMode::Require } else { LockMode::Update };
        run_recipe(&recipe, lock, environment, printer)
    }
}
