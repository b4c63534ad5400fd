//! A step as a verb: `attar quantize MODEL --grid int4 --out DIR`.

use std::{path::PathBuf, process::ExitCode};

use attar_recipe::{
    Error,
    step::{STEPS, StepKind},
    verb_schema,
};
use clap::{Arg, ArgMatches, Command};

use super::{
    MODEL, Verb, ignore_argument, ignored, one_shot, out_argument, path, path_argument, print_recipe_argument, run_text,
};
use crate::{environment::Environment, printer::Printer, settings};

/// The flags that choose a text that steps read, and the table of the recipe that they stand for.
struct TextFlags {
    /// The table below `[data]`, and the flag for its path.
    name: &'static str,
    heading: &'static str,
    help: &'static str,
    /// Settings that are words, each with its help.
    words: &'static [(&'static str, &'static str)],
    /// Settings that are counts, each with its help.
    counts: &'static [(&'static str, &'static str)],
}

const CALIBRATION: TextFlags = TextFlags {
    name: "calibration",
    heading: "Calibration",
    help: "UTF-8 text, for algorithms that observe activations; `mixture` is attar's own: prose, chat, code, tables and languages; with \
           `generate` the model writes it itself [default: mixture, where one is needed]",
    words: &[],
    counts: &[
        ("samples", "Windows to draw from the text [default: 128]"),
        ("length", "Tokens per window [default: 512, or the model's context where that is shorter]"),
    ],
};

const TRAINING: TextFlags = TextFlags {
    name: "train",
    heading: "Training text",
    help: "UTF-8 text to train on",
    words: &[
        ("field", "Which text of each JSON object to take, where the file has one a line (JSONL)"),
        ("messages", "Which dialogue of each JSON object to take, in the words of the model's chat template"),
    ],
    counts: &[
        ("samples", "Windows to draw from the text [default: all that it has]"),
        ("length", "Tokens per window [default: 512]"),
        ("held_out", "Windows to keep aside, or their share: what is learned is judged on them [default: 4]"),
    ],
};

/// Attar's own calibration texts, in the place of a path.
const MIXTURE: &str = "mixture";

/// What the model writes itself, likewise.
const GENERATE: &str = "generate";

impl TextFlags {
    fn of(step: &str) -> &'static TextFlags {
        if STEPS.iter().any(|kind| kind.name == step && kind.trains) { &TRAINING } else { &CALIBRATION }
    }

    fn add_to(&'static self, command: Command) -> Command {
        let path = Arg::new(self.name).long(self.name).value_name("FILE").help(self.help).help_heading(self.heading);
        let flag = |name: &'static str, help, value| {
            let arg = Arg::new(name).long(name.replace('_', "-")).value_name(value).help(help).help_heading(self.heading);
            // Without a text for calibration, there is attar's own.
            if self.name == CALIBRATION.name { arg } else { arg.requires(self.name) }
        };
        let words = self.words.iter().map(|(name, help)| flag(name, *help, "NAME"));
        let counts = self.counts.iter().map(|(name, help)| flag(name, *help, "N").value_parser(number));
        command.arg(path.value_parser(clap::value_parser!(PathBuf))).args(words).args(counts)
    }

    /// The table of the recipe as text, if something of it was given.
    fn data(&self, arguments: &ArgMatches) -> Option<String> {
        let path = arguments.get_one::<PathBuf>(self.name);
        let mut table = toml::Table::new();
        match path.map(|path| path.display().to_string()) {
            Some(own) if self.name == CALIBRATION.name && own == MIXTURE => {}
            Some(own) if self.name == CALIBRATION.name && own == GENERATE => {
                let source = toml::Table::from_iter([("kind".to_owned(), GENERATE.into())]);
                table.insert("sources".to_owned(), vec![source].into());
            }
            Some(path) => {
                table.insert("path".to_owned(), path.into());
            }
            None => {}
        }
        for (name, _) in self.words {
            table.extend(arguments.get_one::<String>(name).map(|word| ((*name).to_owned(), word.clone().into())));
        }
        for (name, _) in self.counts {
            table.extend(arguments.get_one::<toml::Value>(name).map(|n| ((*name).to_owned(), n.clone())));
        }
        if path.is_none() && table.is_empty() {
            return None;
        }
        let named = |name: &str, table: toml::Table| toml::Table::from_iter([(name.to_owned(), table.into())]);
        let text = toml::to_string(&named("data", named(self.name, table))).expect("settings are TOML");
        Some(format!("\n{text}"))
    }
}

/// A whole number, or a share.
fn number(text: &str) -> Result<toml::Value, String> {
    let whole = text.parse::<u32>().map(|n| i64::from(n).into());
    whole.or_else(|error| text.parse::<f64>().ok().filter(|n| (0.0..1.0).contains(n)).map(Into::into).ok_or(error.to_string()))
}

/// A step whose flags are its settings.
impl Verb for StepKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn command(&self) -> Command {
        verb(self.name)
    }

    fn examples(&self) -> &'static [&'static str] {
        self.examples
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let text = recipe(self.name, arguments) + &data(self.name, arguments);
        run_text(&format!("attar {} {}", self.name, path(arguments, "model").display()), &text, arguments, environment, printer)
    }
}

/// The verb of a step, with the folder that it writes, its text and its settings.
pub(super) fn verb(step: &'static str) -> Command {
    let command = TextFlags::of(step).add_to(command(step).arg(out_argument()).arg(print_recipe_argument()));
    settings::flags(command, &verb_schema(step).expect("a verb of a step that exists"))
}

/// The command of a step, with the model that it applies to.
pub(super) fn command(step: &'static str) -> Command {
    let kind = STEPS.iter().find(|kind| kind.name == step).expect("a verb of a step that exists");
    Command::new(step)
        .about(kind.about)
        .long_about(format!(
            "{}.\n\nRuns the step `{step}` on its own and writes a checkpoint folder, which every other command can read.",
            kind.about
        ))
        .arg(path_argument("MODEL", MODEL))
        .arg(ignore_argument())
}

/// The recipe that runs one step and writes a checkpoint folder.
pub(super) fn recipe(step: &str, arguments: &ArgMatches) -> String {
    let export = toml::Table::from_iter([("target".to_owned(), "checkpoint".into()), ("folder".to_owned(), ".".into())]);
    recipe_of(step, arguments, &[("export", export)])
}

/// The recipe of one step and further sections.
pub(super) fn recipe_of(step: &str, arguments: &ArgMatches, more: &[(&str, toml::Table)]) -> String {
    let schema = verb_schema(step).expect("a verb of a step that exists");
    let mut table = toml::Table::from_iter([("kind".to_owned(), step.into())]);
    table.extend(settings::table(&schema, arguments));
    let sections: Vec<(&str, toml::Table)> = std::iter::once(("step", table)).chain(more.iter().cloned()).collect();
    one_shot(path(arguments, "model"), &ignored(arguments), path(arguments, "out"), &sections)
}

/// The table of the text that a step was given, if it was.
pub(super) fn data(step: &str, arguments: &ArgMatches) -> String {
    TextFlags::of(step).data(arguments).unwrap_or_default()
}
