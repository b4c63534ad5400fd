//! `attar generate MODEL_OR_ARTIFACT --prompt TEXT`: greedy, to see with one's own eyes that a model still speaks.

use std::process::ExitCode;

use attar_eval::{Generation, Reference, Runner};
use attar_model::{Config, Tokenizer};
use attar_recipe::{Error, Existing};
use clap::{Arg, ArgMatches, Command};

use super::{
    Verb, ignore_argument, open, path, path_argument,
    written::{Chosen, device, mode, runner_flags},
};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Generate;

impl Verb for Generate {
    fn name(&self) -> &'static str {
        "generate"
    }

    fn command(&self) -> Command {
        let command = Command::new("generate")
            .about("Continue a text with a model, or with a written artifact in its real engine")
            .long_about("Continue a text greedily: always the likeliest token. A checkpoint runs in the reference, an artifact in an engine that opens it.")
            .arg(path_argument("MODEL_OR_ARTIFACT", "A checkpoint, or the folder of an artifact"))
            .arg(Arg::new("prompt").long("prompt").value_name("TEXT").required(true).help("The text; special tokens are written as text, `\\n` is a new line"))
            .arg(Arg::new("tokens").long("tokens").value_name("N").default_value("64").value_parser(clap::value_parser!(usize)).help("Stop after so many tokens"))
            .arg(ignore_argument());
        runner_flags(command)
    }

    fn examples(&self) -> &'static [&'static str] {
        &[r#"attar generate int4 --prompt "Once upon a time" --tokens 12"#]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let subject = Chosen::at(path(arguments, "model_or_artifact"), arguments)?;
        let prompt = arguments.get_one::<String>("prompt").expect("clap demands it").replace("\\n", "\n");
        let limit = *arguments.get_one::<usize>("tokens").expect("it has a default");
        match subject.engine {
            Some(engine) => {
                Existing::check_whole(&subject.path)?;
                let existing = Existing::open(&subject.path)?;
                let tokenizer = existing.tokenizer()?;
                let artifact =
                    existing.run_by(engine, mode(arguments, engine)?, &environment.engines())?.on(device(arguments))?;
                generate(&artifact, &tokenizer, &existing.config, &prompt, limit, printer)
            }
            None => {
                let model = open(&subject.path, arguments)?;
                generate(&Reference::new(&model), &model.tokenizer()?, &model.config, &prompt, limit, printer)
            }
        }
    }
}

fn generate(
    runner: &dyn Runner,
    tokenizer: &Tokenizer,
    config: &Config,
    prompt: &str,
    limit: usize,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    let tokens = tokenizer.encode_prompt(prompt)?;
    if tokens.is_empty() {
        return Err(Error::recipe("the prompt has no tokens").hint("give some text with `--prompt`".to_owned()));
    }
    let room = config.context.unwrap_or(usize::MAX).saturating_sub(tokens.len());
    if room == 0 {
        let context = config.context.unwrap_or_default();
        let message = format!("the prompt has {} tokens, and the model's context is {context}", tokens.len());
        return Err(Error::recipe(message).hint("shorten it: the next token needs room, too".to_owned()));
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
    let generated = runner.generate(&tokens, &Generation::greedy(limit.min(room), &config.eos), &mut each)?;
    if printer.json {
        printer.value(&serde_json::json!({ "prompt": tokens, "tokens": generated, "text": tokenizer.decode(&generated)? }));
    } else {
        printer.piece("\n");
    }
    if generated.len() == room && room < limit {
        printer.note(&format!("stopped after {room} tokens, at the end of the model's context"));
    }
    Ok(ExitCode::SUCCESS)
}
