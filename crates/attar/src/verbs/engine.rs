//! `attar engine`: the process in which a real engine runs. Not for people.

use std::process::ExitCode;

use attar_recipe::Error;
use clap::{ArgMatches, Command};

use super::Verb;
use crate::{environment::Environment, printer::Printer};

pub(super) struct Engine;

impl Verb for Engine {
    fn name(&self) -> &'static str {
        attar_eval::onnxruntime::VERB
    }

    fn command(&self) -> Command {
        Command::new(self.name()).about("Serve a real engine to another attar").hide(true)
    }

    fn examples(&self) -> &'static [&'static str] {
        &[]
    }

    fn run(&self, _: &ArgMatches, _: &Environment, _: &Printer) -> Result<ExitCode, Error> {
        attar_eval::engine::serve(std::io::stdin().lock(), std::io::stdout().lock())
            .map_err(|e| Error::input("the other attar went away").because(&e))?;
        Ok(ExitCode::SUCCESS)
    }
}
