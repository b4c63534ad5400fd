//! `attar compile MODEL --calibration TEXT --device NAME --out DIR`: runs the step on its own and writes no checkpoint.

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
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let text = step::recipe_of(NAME, arguments, &[]) + &step::data(arguments);
        run_text(&format!("attar {NAME} {}", path(arguments, "model").display()), &text, arguments, environment, printer)
    }
}
