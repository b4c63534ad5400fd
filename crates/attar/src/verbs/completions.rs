//! `attar completions SHELL`.

use std::process::ExitCode;

use attar_recipe::Error;
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

use super::Verb;
use crate::{environment::Environment, printer::Printer};

pub(super) struct Completions;

impl Verb for Completions {
    fn name(&self) -> &'static str {
        "completions"
    }

    fn command(&self) -> Command {
        Command::new("completions")
            .about("Print completions for a shell")
            .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(clap::value_parser!(Shell)))
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar completions zsh > _attar"]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let shell = *arguments.get_one::<Shell>("shell").expect("clap demands it");
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut crate::command(), "attar", &mut text);
        printer.data(&String::from_utf8_lossy(&text));
        Ok(ExitCode::SUCCESS)
    }
}
