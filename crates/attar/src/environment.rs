//! What the machine offers and allows: every environment variable that attar reads, and the limit of memory.

use std::path::PathBuf;

use attar_eval::{Places, engine::installed};
use attar_recipe::Engines;
use clap::{Arg, ArgMatches, Command};

/// What the machine offers and allows.
pub(crate) struct Environment {
    /// Where engines may be: of each its flag and its variable, then `ATTAR_ENGINES` and `VIRTUAL_ENV`.
    places: Places,
    /// Bytes of memory that a run may take, by `--max-memory`.
    pub(crate) max_memory: Option<u64>,
    /// Where GitHub Actions collects the summary of a job.
    pub(crate) step_summary: Option<PathBuf>,
}

impl Environment {
    /// `arguments` are those of the verb, which may have a flag for each engine.
    pub(crate) fn read(arguments: &ArgMatches, max_memory: Option<u64>) -> Environment {
        let flag = |name: &str| arguments.try_get_one::<PathBuf>(name).ok().flatten().cloned();
        let step_summary = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()).map(PathBuf::from);
        Environment { places: Places::read(installed(), flag, |name| std::env::var_os(name)), max_memory, step_summary }
    }

    /// The real engines of this machine.
    pub(crate) fn engines(&self) -> Engines {
        Engines { places: self.places.clone(), host: std::env::current_exe().unwrap_or_else(|_| "attar".into()) }
    }
}

/// Adds a flag for each engine that says where it is.
pub(crate) fn engine_flags(command: Command) -> Command {
    command.args(installed().map(|engine| {
        Arg::new(engine.name)
            .long(engine.name)
            .value_name("PATH")
            .help(format!("Where {} is: {} [env: {}]", engine.title, engine.place(), engine.variable()))
            .value_parser(clap::value_parser!(PathBuf))
    }))
}
