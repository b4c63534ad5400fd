//! `attar sweep RECIPE`.

use std::process::ExitCode;

use attar_recipe::{Error, LockMode, Points, Request};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    Verb, draw,
    given::{recipe, recipe_arguments},
};
use crate::{environment::Environment, interrupt, printer::Printer, progress::Bars};

pub(super) struct Sweep;

impl Verb for Sweep {
    fn name(&self) -> &'static str {
        "sweep"
    }

    fn command(&self) -> Command {
        let bits = |name: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name("BITS").help(help).value_parser(clap::value_parser!(f64))
        };
        recipe_arguments(Command::new("sweep"))
            .about("Predict quality against size over a range of budgets")
            .long_about("Predict quality against size over a range of budgets.\n\nThe recipe must have a `quantize` step with `bits` or `bytes`. The loss of each choice is predicted once and kept in the recipe's store. Writes `sweep.json` and `sweep.svg` to the recipe's output folder.")
            .arg(
                Arg::new("points")
                    .long("points")
                    .value_name("N")
                    .help("Number of budgets")
                    .default_value("9")
                    .value_parser(clap::value_parser!(u16)),
            )
            .arg(bits("from", "Smallest budget, in bits per selected weight [default: the smallest possible]"))
            .arg(bits("to", "Largest budget, in bits per selected weight [default: the largest possible]"))
            .arg(
                Arg::new("measure")
                    .long("measure")
                    .help("Also quantize the model at each budget and run the recipe's evals")
                    .action(ArgAction::SetTrue),
            )
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar sweep budget.toml --points 3"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let (recipe, _) = recipe(arguments)?;
        let points = Points {
            count: usize::from(*arguments.get_one::<u16>("points").expect("it has a default")),
            from: arguments.get_one("from").copied(),
            to: arguments.get_one("to").copied(),
            measure: arguments.get_flag("measure"),
        };
        let picture = recipe.output().join("sweep.svg");
        let engines = environment.engines();
        interrupt::stop_between_units();
        let bars = Bars::new(printer);
        let sweep = attar_recipe::sweep(
            recipe,
            points,
            &Request { lock: LockMode::None, engines: &engines, observer: &bars, max_memory: environment.max_memory },
        )?;
        drop(bars);
        if printer.json {
            printer.value(&sweep);
        } else if !printer.quiet {
            let table = sweep.table();
            printer.data(&draw(table.head, &table.rows));
            printer.data(&format!("done: {}", picture.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
