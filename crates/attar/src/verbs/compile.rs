//! `attar compile MODEL --calibration TEXT --device NAME --out DIR`: the step on its own, and no checkpoint.

use std::process::ExitCode;

use attar_recipe::Error;
use clap::{ArgMatches, Command};

use super::{Verb, path, run_text, step};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Compile;

const NAME: &str = "compile";

impl Verb for Compile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn command(&self) -> Command {
        step::verb(NAME).long_about(
            "Compile the blocks of the model for a device: fuse, tile, plan memory, and prove the plan. The model's weights \
             and activations are in integers already; the text gives the ranges of what lies between, and the prompt of the \
             proof. Writes plans, their text form and the proof into the folder `compiled`.",
        )
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let text = step::recipe_of(NAME, arguments, &[]) + &step::data(arguments);
        run_text(&format!("attar {NAME} {}", path(arguments, "model").display()), &text, arguments, environment, printer)
    }
}
