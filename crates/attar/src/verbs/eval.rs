//! `attar eval MODEL_OR_ARTIFACT --task perplexity --data FILE`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_eval::{
    DEFAULT_TASK, Evaluation, Measurements, Mode, Outcome, Prepared, REFERENCE, Reference, Runner, Settings, Sides, TASKS, Task,
    task,
};
use attar_model::Model;
use attar_recipe::{Error, ErrorKind, Observer, Report};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use super::{
    Verb, draw, ignore_argument, ignored, open, path, path_argument, print_recipe_argument,
    written::{Written, chosen, runner_flags},
};
use crate::{environment::Environment, printer::Printer, progress::Bars, settings};

pub(super) struct Eval;

impl Verb for Eval {
    fn name(&self) -> &'static str {
        "eval"
    }

    fn command(&self) -> Command {
        let command = Command::new("eval")
            .about("Measure a model, or a written artifact in its real engine")
            .long_about("Measure a model by the reference run, or a written artifact in a real engine.\n\nWith `--baseline`, also how far it is from that checkpoint.")
            .arg(path_argument("MODEL_OR_ARTIFACT", "A checkpoint, or the folder of an artifact"))
            .arg(
                Arg::new("task")
                    .long("task")
                    .value_name("TASK")
                    .help("What to measure")
                    .default_value(DEFAULT_TASK)
                    .value_parser(PossibleValuesParser::new(TASKS.iter().map(|task| task.name))),
            )
            .arg(
                Arg::new("baseline")
                    .long("baseline")
                    .value_name("MODEL")
                    .help("Compare with this checkpoint")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(ignore_argument())
            .arg(print_recipe_argument());
        settings::flags(runner_flags(command), &schema())
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar eval int4 --data text.txt --window 256 --tokens 2048 --baseline model"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let subject = path(arguments, "model_or_artifact");
        let task = task(arguments.get_one::<String>("task").expect("it has a default"))?;
        let table = settings::table(&schema(), arguments);
        if arguments.get_flag("print-recipe") {
            printer.data(&recipe(arguments, subject, &table)?);
            return Ok(ExitCode::SUCCESS);
        }
        let settings = given(task, &table)?;
        let baseline = arguments.get_one::<PathBuf>("baseline").map(|path| Model::open(path)).transpose()?;
        let bars = Bars::new(printer);
        let (runner, mode, measured) = match chosen(subject, arguments)? {
            Some(engine) => {
                let written = Written::open(subject)?;
                let artifact = written.run_by(engine, arguments, environment)?;
                settings.check(&written.config)?;
                let prepared = settings.prepare(&written.tokenizer, &written.config)?;
                (engine.name, Some(artifact.mode), measure(&artifact, task, &*prepared, baseline.as_ref(), &bars)?)
            }
            None => {
                let model = open(subject, arguments)?;
                settings.check(&model.config)?;
                let prepared = settings.prepare(&model.tokenizer()?, &model.config)?;
                (REFERENCE, None, measure(&Reference::new(&model), task, &*prepared, baseline.as_ref(), &bars)?)
            }
        };
        drop(bars);
        show(task, runner, mode, measured, printer);
        Ok(ExitCode::SUCCESS)
    }
}

/// The settings of all tasks together: which of them a task has is checked when it is known.
fn schema() -> serde_json::Value {
    let mut all = serde_json::json!({ "type": "object", "properties": {}, "required": [] });
    for task in TASKS {
        let schema = (task.schema)();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let known = all["properties"].as_object_mut().expect("made above");
            known.entry(name.clone()).or_insert_with(|| property.clone());
        }
    }
    all["required"] = serde_json::json!(["data"]);
    all
}

/// The task's settings from the command line, where only flags that were given are in `table`.
fn given(task: &Task, table: &toml::Table) -> Result<Box<dyn Settings>, Error> {
    let known = (task.schema)();
    if let Some(foreign) = table.keys().find(|key| known["properties"].get(key.as_str()).is_none()) {
        return Err(Error::recipe(format!("the task `{}` has no setting `--{}`", task.name, foreign.replace('_', "-"))));
    }
    let table = serde_json::to_value(table).expect("settings are JSON");
    (task.parse)(table).map_err(|invalid| Error::recipe(invalid.to_string()))
}

fn measure(
    runner: &dyn Runner,
    task: &Task,
    prepared: &dyn Prepared,
    baseline: Option<&Model>,
    bars: &Bars<'_>,
) -> Result<Measurements, Error> {
    let windows = prepared.windows();
    bars.stage("eval", windows.len() as u64);
    let scored = |done: u64, _: u64| bars.advance(done, "");
    let mut rows = runner.start(task.output, windows, &|_, _| {})?;
    let base = baseline.map(Reference::new);
    let mut base = base.as_ref().map(|base| base.start(task.output, windows, &|_, _| {})).transpose()?;
    // Spelled out: a mapped option would not shorten the lifetime behind the trait object.
    let base: Option<&mut dyn attar_eval::Rows> = match &mut base {
        Some(base) => Some(&mut **base),
        None => None,
    };
    Ok(prepared.score(&mut Sides { model: &mut *rows, base, sibling: None }, &scored)?)
}

fn show(task: &Task, runner: &str, mode: Option<Mode>, measured: Measurements, printer: &Printer) {
    if printer.json {
        return printer.value(&measured);
    }
    let count = measured.number(task.count).unwrap_or(0.0);
    let outcome = Outcome::Measured(measured);
    let evaluation =
        Evaluation { eval: task.name.into(), task: task.name.into(), variant: None, runner: runner.into(), mode, outcome };
    for (_, table) in Report::evals(&[evaluation]) {
        printer.data(&draw(table.head, &table.rows));
    }
    printer.data(&format!("{count} {}", task.counted));
}

/// The recipe that measures the same; an artifact is measured by the recipe that makes it.
fn recipe(arguments: &ArgMatches, subject: &Path, task: &toml::Table) -> Result<String, Error> {
    if let Some(engine) = chosen(subject, arguments)? {
        let error = Error {
            kind: ErrorKind::Recipe,
            ..Error::input("recipes measure the artifacts that they make, and this one is made already")
        };
        return Err(error.hint(format!(
            "add `runners = [\"{REFERENCE}\", \"{}\"]` to the `[[eval]]` of the recipe that made it",
            engine.name
        )));
    }
    let mut eval = toml::Table::from_iter([("name".to_owned(), toml::Value::from("eval"))]);
    let name = arguments.get_one::<String>("task").expect("it has a default");
    eval.insert("task".into(), name.as_str().into());
    eval.extend(task.clone());
    Ok(super::one_shot(subject, &ignored(arguments), Path::new("attar-eval"), &[("eval", eval)]))
}
