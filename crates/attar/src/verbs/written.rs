//! A folder that was exported, as the verbs that run a model find it: which engines open it, and how it speaks.

use std::path::{Path, PathBuf};

use attar_eval::{ENGINES, Engine, Mode, REFERENCE, engine::Artifact};
use attar_model::{Config, Tokenizer};
use attar_recipe::{Error, RunnerKind};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use crate::environment::{Environment, engine_flags};

/// An artifact that some engine opens.
pub(super) struct Written {
    pub(super) folder: PathBuf,
    pub(super) tokenizer: Tokenizer,
    pub(super) config: Config,
}

/// Adds `--runner`, `--mode` and the engines' own flags.
pub(super) fn runner_flags(command: Command) -> Command {
    let names = [REFERENCE].into_iter().chain(ENGINES.iter().map(|engine| engine.name));
    let runner = Arg::new("runner")
        .long("runner")
        .value_name("NAME")
        .help("What runs it [default: the reference for a checkpoint, the first engine that opens it for an artifact]")
        .value_parser(PossibleValuesParser::new(names));
    let mode = Arg::new("mode")
        .long("mode")
        .help("For artifacts: keep activations exact, or let the engine do as it does by default")
        .default_value("exact")
        .value_parser(["exact", "default"]);
    engine_flags(command.arg(runner).arg(mode))
}

/// The mode that was asked for.
fn mode(arguments: &ArgMatches) -> Mode {
    match arguments.get_one::<String>("mode").is_some_and(|mode| mode == "default") {
        true => Mode::Default,
        false => Mode::Exact,
    }
}

/// Whether an engine opens what is at `path`.
fn opens(engine: &Engine, path: &Path) -> bool {
    engine.opens.iter().any(|opens| path.join(opens.file).exists())
}

/// The engine that is to run what is at `path`; none if the reference is.
pub(super) fn chosen(path: &Path, arguments: &ArgMatches) -> Result<Option<&'static Engine>, Error> {
    let fitting = || ENGINES.iter().copied().filter(|engine| opens(engine, path));
    let Some(name) = arguments.get_one::<String>("runner") else { return Ok(fitting().next()) };
    let runner = RunnerKind::named(name)?;
    match runner.engine() {
        Some(engine) if !opens(engine, path) => {
            let files: Vec<String> = engine.opens.iter().map(|opens| format!("`{}`", opens.file)).collect();
            let targets: Vec<&str> = engine.opens.iter().map(|opens| opens.target).collect();
            let message = format!("{} cannot open `{}`: there is no {}", engine.title, path.display(), files.join(" or "));
            Err(Error::recipe(message).hint(format!("export it first: `attar export --target {}`", targets.join("|"))))
        }
        None if fitting().next().is_some() => {
            let message = format!("the reference cannot open `{}`, which is an artifact", path.display());
            Err(Error::recipe(message).hint("run the reference on the model that it was made from".to_owned()))
        }
        found => Ok(found),
    }
}

impl Written {
    /// The artifact at `folder`.
    pub(super) fn open(folder: &Path) -> Result<Written, Error> {
        let config_path = folder.join("config.json");
        let text = std::fs::read(&config_path)
            .map_err(|e| Error::input(format!("cannot read `{}`", config_path.display())).because(&e))?;
        let json = serde_json::from_slice(&text)
            .map_err(|e| Error::input(format!("`{}` is not JSON", config_path.display())).because(&e))?;
        let config = Config::from_json(&config_path, json)?;
        let rows = config.json["vocab_size"].as_u64().and_then(|rows| usize::try_from(rows).ok());
        let tokenizer = Tokenizer::open(&folder.join("tokenizer.json"))?.within(rows);
        Ok(Written { folder: folder.into(), tokenizer, config })
    }

    /// The artifact in an engine.
    pub(super) fn run_by(
        &self,
        engine: &'static Engine,
        arguments: &ArgMatches,
        environment: &Environment,
    ) -> Result<Artifact, Error> {
        let engines = environment.engines();
        Ok(Artifact::new(engines.find(engine)?, &self.folder, mode(arguments), engines.host))
    }
}
