//! `attar schema`.

use std::process::ExitCode;

use attar_recipe::Error;
use clap::{ArgMatches, Command};

use super::Verb;
use crate::{environment::Environment, printer::Printer};

pub(super) struct Schema;

impl Verb for Schema {
    fn name(&self) -> &'static str {
        "schema"
    }

    fn command(&self) -> Command {
        Command::new("schema").about("Print the JSON Schema of recipes")
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar schema > recipe.schema.json"]
    }

    fn run(&self, _: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        printer.value(&attar_recipe::schema());
        Ok(ExitCode::SUCCESS)
    }
}
