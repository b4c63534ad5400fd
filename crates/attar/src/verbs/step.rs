//! A step as a verb: `attar quantize MODEL --grid int4 --out DIR`.

use std::{path::PathBuf, process::ExitCode};

use attar_recipe::{Error, step::STEPS, verb_schema};
use clap::{Arg, ArgMatches, Command};

use super::{Verb, one_shot, out_argument, path, path_argument, print_recipe_argument, run_text};
use crate::{environment::Environment, printer::Printer, settings};

/// By the name of the step.
pub(super) struct StepVerb(pub(super) &'static str);

impl Verb for StepVerb {
    fn name(&self) -> &'static str {
        self.0
    }

    fn command(&self) -> Command {
        let kind = STEPS.iter().find(|kind| kind.name == self.0).expect("a verb of a step that exists");
        let command = Command::new(self.0)
            .about(kind.about)
            .long_about(format!(
                "{}: the step `{}` on its own, writing a checkpoint folder that every verb reads back.",
                kind.about, self.0
            ))
            .arg(path_argument("MODEL", "A Hugging Face folder, a GGUF file or a folder that attar wrote"))
            .arg(out_argument())
            .arg(print_recipe_argument());
        let command = command
            .arg(
                Arg::new("calibration")
                    .long("calibration")
                    .value_name("FILE")
                    .help("Text for algorithms that must see activations")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(count("samples", "Windows of that text to take [default: 128]"))
            .arg(count("length", "Tokens a window [default: 512]"));
        settings::flags(command, &(kind.schema)())
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let schema = verb_schema(self.0).expect("a verb of a step that exists");
        let mut step = toml::Table::new();
        step.insert("kind".into(), self.0.into());
        step.extend(settings::table(&schema, arguments));
        let export = toml::Table::from_iter([("target".to_owned(), "checkpoint".into()), ("folder".to_owned(), ".".into())]);
        let model = path(arguments, "model");
        let mut text = one_shot(model, path(arguments, "out"), &[("step", step), ("export", export)]);
        if let Some(calibration) = calibration(arguments) {
            text += &format!("\n[data.calibration]\n{}", toml::to_string(&calibration).expect("settings are TOML"));
        }
        run_text(&format!("attar {} {}", self.0, model.display()), &text, arguments, environment, printer)
    }
}

fn count(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").help(help).requires("calibration").value_parser(clap::value_parser!(u32))
}

/// `[data.calibration]`, if a text was given.
fn calibration(arguments: &ArgMatches) -> Option<toml::Table> {
    let path = arguments.get_one::<PathBuf>("calibration")?;
    let mut table = toml::Table::from_iter([("path".to_owned(), path.display().to_string().into())]);
    for name in ["samples", "length"] {
        table.extend(arguments.get_one::<u32>(name).map(|n| (name.to_owned(), toml::Value::from(i64::from(*n)))));
    }
    Some(table)
}
