//! `attar generate MODEL_OR_ARTIFACT --prompt TEXT`: greedy, to see with one's own eyes that a model still speaks.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_eval::{Mode, OnnxRuntime, Reference, Runner};
use attar_model::{Config, Model, Tokenizer};
use attar_recipe::Error;
use clap::{Arg, ArgMatches, Command};

use super::{Verb, path, path_argument};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Generate;

impl Verb for Generate {
    fn name(&self) -> &'static str {
        "generate"
    }

    fn command(&self) -> Command {
        Command::new("generate")
            .about("Continue a text with a model, or with a written artifact in its real engine")
            .long_about("Continue a text greedily: always the likeliest token. A checkpoint runs in the reference, a folder with `model.onnx` in ONNX Runtime.")
            .arg(path_argument("MODEL_OR_ARTIFACT", "A checkpoint, or a folder with `model.onnx`"))
            .arg(Arg::new("prompt").long("prompt").value_name("TEXT").required(true).help("The text; special tokens are written as text, `\\n` is a new line"))
            .arg(Arg::new("tokens").long("tokens").value_name("N").default_value("64").value_parser(clap::value_parser!(usize)).help("Stop after so many tokens"))
            .arg(Arg::new("mode").long("mode").default_value("exact").value_parser(["exact", "default"]).help("For artifacts: keep activations exact, or let the engine do as it does by default"))
    }

    fn examples(&self) -> &'static [&'static str] {
        &[r#"attar generate int4 --prompt "Once upon a time" --tokens 12"#]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let subject = path(arguments, "model_or_artifact");
        let prompt = arguments.get_one::<String>("prompt").expect("clap demands it").replace("\\n", "\n");
        let limit = *arguments.get_one::<usize>("tokens").expect("it has a default");
        let mode = if arguments.get_one::<String>("mode").is_some_and(|m| m == "default") { Mode::Default } else { Mode::Exact };
        match Artifact::open(subject)? {
            Some(artifact) => {
                let engine = artifact.engine(environment, mode)?;
                generate(&engine, &artifact.tokenizer, &artifact.config.eos, &prompt, limit, printer)
            }
            None => {
                let model = Model::open(subject)?;
                generate(&Reference::new(&model), &model.tokenizer()?, &model.config.eos, &prompt, limit, printer)
            }
        }
    }
}

fn generate(
    runner: &dyn Runner,
    tokenizer: &Tokenizer,
    stop: &[u32],
    prompt: &str,
    limit: usize,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    let tokens = tokenizer.encode(prompt)?;
    if tokens.is_empty() {
        return Err(Error::recipe("the prompt has no tokens").hint("give some text with `--prompt`".to_owned()));
    }
    let mut known: Vec<u32> = Vec::new();
    let mut shown = 0;
    let mut each = |token: u32| {
        known.push(token);
        // A character can take several tokens: what is not whole yet ends in the replacement character.
        let text = tokenizer.decode(&known).unwrap_or_default();
        if !printer.json && !text.ends_with('\u{fffd}') && text.is_char_boundary(shown) {
            printer.piece(&text[shown..]);
            shown = text.len();
        }
    };
    let generated = runner.generate(&tokens, limit, stop, &mut each)?;
    if printer.json {
        printer.value(&serde_json::json!({ "prompt": tokens, "tokens": generated, "text": tokenizer.decode(&generated)? }));
    } else {
        printer.piece("\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// A folder that a real engine loads.
pub(super) struct Artifact {
    pub(super) folder: PathBuf,
    pub(super) tokenizer: Tokenizer,
    pub(super) config: Config,
}

impl Artifact {
    /// The artifact at `path`, if it is one.
    pub(super) fn open(path: &Path) -> Result<Option<Artifact>, Error> {
        if !path.join("model.onnx").exists() {
            return Ok(None);
        }
        let config_path = path.join("config.json");
        let text = std::fs::read(&config_path)
            .map_err(|e| Error::input(format!("cannot read `{}`", config_path.display())).because(&e))?;
        let json = serde_json::from_slice(&text)
            .map_err(|e| Error::input(format!("`{}` is not JSON", config_path.display())).because(&e))?;
        let config = Config::from_json(&config_path, json)?;
        let tokenizer = Tokenizer::open(&path.join("tokenizer.json"))?;
        Ok(Some(Artifact { folder: path.into(), tokenizer, config }))
    }

    /// The engine that runs it.
    pub(super) fn engine(&self, environment: &Environment, mode: Mode) -> Result<OnnxRuntime, Error> {
        let engines = environment.engines();
        let library = engines.onnxruntime.clone().ok_or_else(|| engines.onnxruntime_missing())?;
        Ok(OnnxRuntime::new(library, &self.folder, mode, engines.host))
    }
}
