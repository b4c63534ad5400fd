//! `attar man DIR`.

use std::process::ExitCode;

use attar_recipe::Error;
use clap::{ArgMatches, Command};

use super::{Verb, path, path_argument};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Man;

impl Verb for Man {
    fn name(&self) -> &'static str {
        "man"
    }

    fn command(&self) -> Command {
        Command::new("man")
            .about("Write the manual pages")
            .arg(path_argument("DIR", "Folder for the pages, created if it does not exist"))
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar man man1"]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, _: &Printer) -> Result<ExitCode, Error> {
        let folder = path(arguments, "dir");
        let failed = |e: std::io::Error| Error::input(format!("cannot write to `{}`", folder.display())).because(&e);
        std::fs::create_dir_all(folder).map_err(failed)?;
        clap_mangen::generate_to(crate::command(), folder).map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}
