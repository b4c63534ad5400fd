//! `attar run RECIPE`.

use std::process::ExitCode;

use attar_recipe::{Error, LockMode};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    Verb,
    given::{recipe, recipe_arguments},
    run_recipe,
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
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar run recipe.toml",
            "attar run recipe.toml --set step.1.grid=int8 --output out-int8",
            "attar run recipe.toml --locked --json > report.json",
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let (recipe, lock) = recipe(arguments)?;
        let lock = match (arguments.get_flag("locked"), lock) {
            (true, LockMode::None) => {
                return Err(Error::recipe("a recipe from standard input has no lock file".to_owned())
                    .hint("leave `--locked` out".to_owned()));
            }
            (true, _) => LockMode::Require,
            (false, lock) => lock,
        };
        run_recipe(&recipe, lock, environment, printer)
    }
}
