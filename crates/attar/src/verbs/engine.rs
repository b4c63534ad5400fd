//! `attar engine NAME`: the process in which a real engine runs. Not for people.

use std::process::ExitCode;

use attar_eval::engine;
use attar_recipe::Error;
use clap::{Arg, ArgMatches, Command};

use super::Verb;
use crate::{environment::Environment, printer::Printer};

pub(super) struct Engine;

impl Verb for Engine {
    fn name(&self) -> &'static str {
        engine::VERB
    }

    fn command(&self) -> Command {
        let name = Arg::new("name").value_name("NAME").help("The engine").required(true);
        Command::new(self.name()).about("Serve a real engine to another attar").hide(true).arg(name)
    }

    fn examples(&self) -> &'static [&'static str] {
        &[]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, _: &Printer) -> Result<ExitCode, Error> {
        let engine = attar_eval::engine(arguments.get_one::<String>("name").expect("clap demands it"))?;
        engine::serve(engine, std::io::stdin().lock(), std::io::stdout().lock())
            .map_err(|e| Error::input("the other attar went away").because(&e))?;
        Ok(ExitCode::SUCCESS)
    }
}
