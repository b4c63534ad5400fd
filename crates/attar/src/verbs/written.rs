//! A folder that was exported, as the verbs that run a model find it: which engines open it, and how it speaks.

use std::path::{Path, PathBuf};

use attar_eval::{ENGINES, Engine, Mode, REFERENCE};
use attar_export::C;
use attar_recipe::{Error, Existing, RunnerKind, emit_plans, holds_plans};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use super::export::PLANS;
use crate::environment::engine_flags;

/// Adds `--runner`, `--mode`, `--device` and the engines' own flags.
pub(super) fn runner_flags(command: Command) -> Command {
    let names = [REFERENCE, COMPILED].into_iter().chain(ENGINES.iter().map(|engine| engine.name));
    let runner = Arg::new("runner")
        .long("runner")
        .value_name("NAME")
        .help("Runner [default: the reference for a checkpoint, the first engine that opens it for an artifact]")
        .value_parser(PossibleValuesParser::new(names));
    let mode = Arg::new("mode")
        .long("mode")
        .help("For artifacts: keep activations exact, or let the engine do as it does by default [default: exact, where the engine can]")
        .value_parser(["exact", "default"]);
    let device = Arg::new("device")
        .long("device")
        .value_name("NAME")
        .help("For artifacts: the engine's device, such as GPU; `attar engines` lists them [default: CPU]");
    engine_flags(command.arg(runner).arg(mode).arg(device))
}

/// The device that was asked for.
pub(super) fn device(arguments: &ArgMatches) -> Option<&str> {
    arguments.get_one::<String>("device").map(String::as_str)
}

/// The mode that was asked for, or the most exact one that the engine has.
pub(super) fn mode(arguments: &ArgMatches, engine: &Engine) -> Result<Mode, Error> {
    let asked = match arguments.get_one::<String>("mode").map(String::as_str) {
        None => return Ok(engine.modes.first().copied().unwrap_or(Mode::Default)),
        Some("default") => Mode::Default,
        Some(_) => Mode::Exact,
    };
    match engine.modes.contains(&asked) {
        true => Ok(asked),
        false => Err(Error::recipe(format!("{} has no mode `{asked}`", engine.name)).hint("leave `--mode` out".to_owned())),
    }
}

/// The name of the runner of compiled models: the engine that opens the target [`PLANS`].
const COMPILED: &str = "compiled";

/// The engine that runs what is made from plans.
fn of_plans() -> &'static Engine {
    let opens = |engine: &&&Engine| engine.opens.iter().any(|opens| opens.target == PLANS);
    ENGINES.iter().find(opens).expect("an engine opens it")
}

/// What is to be run, and by which engine; none if by the reference.
pub(super) struct Chosen {
    pub(super) path: PathBuf,
    pub(super) engine: Option<&'static Engine>,
    /// Plans become C in a folder of their own, for as long as they are run.
    _scratch: Option<tempfile::TempDir>,
}

impl Chosen {
    /// What is at `path`: a checkpoint, an artifact, or the plans of a compiled model.
    pub(super) fn at(path: &Path, arguments: &ArgMatches) -> Result<Chosen, Error> {
        let runner = arguments.get_one::<String>("runner").map(|name| if name == COMPILED { of_plans().name } else { name });
        // Only if it is asked for: beside the plans in a folder may be the checkpoint that they were made from.
        let asked = runner == Some(of_plans().name);
        if asked && Existing::engines(path).next().is_none() && holds_plans(path)? {
            let scratch = tempfile::tempdir().map_err(|source| {
                Error::from(attar_tensor::Error::Io { action: "create", path: std::env::temp_dir(), source })
            })?;
            emit_plans(path, &C::default(), scratch.path(), &mut |_, _| ())?;
            let (path, engine) = (scratch.path().to_owned(), Some(of_plans()));
            return Ok(Chosen { path, engine, _scratch: Some(scratch) });
        }
        Ok(Chosen { path: path.into(), engine: chosen(path, runner, arguments)?, _scratch: None })
    }
}

/// The engine that is to run what is at `path`; none if the reference is.
fn chosen(path: &Path, runner: Option<&str>, arguments: &ArgMatches) -> Result<Option<&'static Engine>, Error> {
    let fitting = || Existing::engines(path).next();
    if fitting().is_none() {
        // Without the file that an engine opens, an artifact would be taken for a checkpoint.
        Existing::check_whole(path)?;
    }
    let engine = match runner {
        None => fitting(),
        Some(name) => RunnerKind::named(name)?.engine(),
    };
    match engine {
        Some(engine) => Existing::check(path, engine)?,
        None if fitting().is_some() => {
            let message = format!("the reference cannot open `{}`, which is an artifact", path.display());
            return Err(Error::recipe(message).hint("run the reference on the model that it was made from".to_owned()));
        }
        None if device(arguments).is_some() => {
            return Err(Error::recipe("the reference has no devices".to_owned()).hint("leave `--device` out".to_owned()));
        }
        None => {}
    }
    Ok(engine)
}
