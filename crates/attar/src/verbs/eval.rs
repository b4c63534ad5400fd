//! `attar eval MODEL_OR_ARTIFACT --task perplexity --data FILE`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_eval::{Evaluation, Measurements, Mode, Outcome, Perplexity, Reference, Runner};
use attar_model::Model;
use attar_recipe::{Error, ErrorKind, Observer, Report};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use super::{Verb, draw, path, path_argument, print_recipe_argument};
use crate::{environment::Environment, printer::Printer, progress::Bars, settings, verbs::generate::Artifact};

pub(super) struct Eval;

impl Verb for Eval {
    fn name(&self) -> &'static str {
        "eval"
    }

    fn command(&self) -> Command {
        let command = Command::new("eval")
            .about("Measure a model, or a written artifact in its real engine")
            .long_about("Measure a model by the reference run, or a written artifact in its real engine.\n\nWith `--baseline`, also how far it is from that checkpoint: perplexity ratio, KL divergence, top-1 agreement.")
            .arg(path_argument("MODEL_OR_ARTIFACT", "A checkpoint, or a folder with `model.onnx`"))
            .arg(
                Arg::new("task")
                    .long("task")
                    .value_name("TASK")
                    .help("What to measure")
                    .default_value("perplexity")
                    .value_parser(PossibleValuesParser::new(attar_eval::TASKS.iter().map(|task| task.name))),
            )
            .arg(
                Arg::new("baseline")
                    .long("baseline")
                    .value_name("MODEL")
                    .help("Compare with this checkpoint")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("mode")
                    .long("mode")
                    .help("For artifacts: keep activations exact, or let the engine do as it does by default")
                    .default_value("exact")
                    .value_parser(["exact", "default"]),
            )
            .arg(print_recipe_argument());
        settings::flags(command, &schema())
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar eval int4 --data text.txt --window 256 --tokens 2048 --baseline model"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let subject = path(arguments, "model_or_artifact");
        let table = settings::table(&schema(), arguments);
        if arguments.get_flag("print-recipe") {
            printer.data(&recipe(arguments, subject, &table)?);
            return Ok(ExitCode::SUCCESS);
        }
        let task: Perplexity = table.try_into().map_err(|e: toml::de::Error| Error::recipe(e.message().to_owned()))?;
        let baseline = arguments.get_one::<PathBuf>("baseline").map(|path| Model::open(path)).transpose()?;
        let bars = Bars::new(printer);
        let (runner, mode, measured) = match Artifact::open(subject)? {
            Some(artifact) => {
                let mode =
                    if arguments.get_one::<String>("mode").is_some_and(|m| m == "default") { Mode::Default } else { Mode::Exact };
                let engine = artifact.engine(environment, mode)?;
                let windows = task.windows_of(&artifact.tokenizer, &artifact.config)?;
                ("onnxruntime", Some(mode), measure(&engine, &windows, baseline.as_ref(), &bars)?)
            }
            None => {
                let model = Model::open(subject)?;
                let windows = task.windows(&model)?;
                ("reference", None, measure(&Reference::new(&model), &windows, baseline.as_ref(), &bars)?)
            }
        };
        drop(bars);
        show(runner, mode, measured, printer);
        Ok(ExitCode::SUCCESS)
    }
}

fn schema() -> serde_json::Value {
    attar_recipe::task_schema("perplexity").expect("the task exists")
}

fn measure(
    runner: &dyn Runner,
    windows: &[attar_eval::Window],
    baseline: Option<&Model>,
    bars: &Bars<'_>,
) -> Result<Measurements, Error> {
    bars.stage("eval", windows.len() as u64);
    let scored = |done: u64, _: u64| bars.advance(done, "");
    let mut logits = runner.start(windows, &|_, _| {})?;
    Ok(match baseline {
        None => attar_eval::alone(windows, &mut *logits, None, &scored)?,
        Some(base) => {
            let base = Reference::new(base);
            let mut base = base.start(windows, &|_, _| {})?;
            attar_eval::compare(windows, &mut *base, &mut *logits, None, &scored)?
        }
    })
}

fn show(runner: &str, mode: Option<Mode>, measured: Measurements, printer: &Printer) {
    if printer.json {
        return printer.value(&measured);
    }
    let tokens = measured.tokens;
    let outcome = Outcome::Measured(Box::new(measured));
    let evaluation = Evaluation { eval: "perplexity".into(), variant: None, runner: runner.into(), mode, outcome };
    let table = Report::evals(&[evaluation]);
    printer.data(&draw(table.head, &table.rows));
    printer.data(&format!("{tokens} tokens scored"));
}

/// The recipe that measures the same; an artifact is measured by the recipe that makes it.
fn recipe(arguments: &ArgMatches, subject: &Path, task: &toml::Table) -> Result<String, Error> {
    if subject.join("model.onnx").exists() {
        let error = Error {
            kind: ErrorKind::Recipe,
            ..Error::input("recipes measure the artifacts that they make, and this one is made already")
        };
        return Err(error
            .hint("add `runners = [\"reference\", \"onnxruntime\"]` to the `[[eval]]` of the recipe that made it".to_owned()));
    }
    let mut eval = toml::Table::from_iter([("name".to_owned(), toml::Value::from("eval"))]);
    let name = arguments.get_one::<String>("task").expect("it has a default");
    eval.insert("task".into(), name.as_str().into());
    eval.extend(task.clone());
    Ok(super::one_shot(subject, Path::new("attar-eval"), &[("eval", eval)]))
}
