//! `attar eval MODEL_OR_ARTIFACT --task perplexity --data FILE`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_eval::{DEFAULT_TASK, Evaluation, Outcome, PRESETS, TASKS, Task, task};
use attar_recipe::{Error, LockMode, Recipe, Report, Request};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use super::{
    Verb, draw, ignore_argument, ignored, model_value, path, path_argument, print_recipe_argument,
    written::{Chosen, device, mode, runner_flags},
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
                    .help("What to measure; `perplexity` with --data, and five kinds of text of attar's own (`domains`) without")
                    .value_parser(PossibleValuesParser::new(names())),
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
        let subject = Chosen::at(path(arguments, "model_or_artifact"), arguments)?;
        let settings = settings::table(&schema(), arguments);
        let unnamed = if settings.contains_key("data") { DEFAULT_TASK } else { WITHOUT_DATA };
        let name = arguments.get_one::<String>("task").map_or(unnamed, String::as_str);
        let preset = PRESETS.iter().find(|preset| preset.name == name);
        let task = preset.map_or_else(|| task(name), |preset| Ok(preset.task))?;
        check_foreign(name, task, &settings)?;
        let text = recipe(name, arguments, &subject, &settings)?;
        if arguments.get_flag("print-recipe") {
            printer.data(&text);
            return Ok(ExitCode::SUCCESS);
        }
        let recipe = Recipe::parse(Path::new(&format!("attar eval {}", subject.path.display())), &text)?;
        let (bars, engines) = (Bars::new(printer), environment.engines());
        let request = Request { lock: LockMode::None, engines: &engines, observer: &bars, max_memory: environment.max_memory };
        let measured = attar_recipe::evaluate(&recipe, &request)?;
        drop(bars);
        measured.into_iter().for_each(|evaluation| show(task, evaluation, printer));
        Ok(ExitCode::SUCCESS)
    }
}

/// What is measured where nothing is named.
const WITHOUT_DATA: &str = "domains";

/// Tasks, and those with the settings of a data set.
fn names() -> Vec<&'static str> {
    TASKS.iter().map(|task| task.name).chain(PRESETS.iter().map(|preset| preset.name)).collect()
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
    all
}

/// The flags are those of all tasks together; one of another task has no meaning.
fn check_foreign(name: &str, task: &Task, settings: &toml::Table) -> Result<(), Error> {
    let known = (task.schema)();
    match settings.keys().find(|key| known["properties"].get(key.as_str()).is_none()) {
        None => Ok(()),
        Some(foreign) => Err(Error::recipe(format!("the task `{name}` has no setting `--{}`", foreign.replace('_', "-")))),
    }
}

/// Called by its task: it has no other name.
fn show(task: &Task, evaluation: Evaluation, printer: &Printer) {
    let Outcome::Measured(measured) = &evaluation.outcome else { return };
    if printer.json {
        return printer.value(measured);
    }
    let count = measured.number(task.count).unwrap_or(0.0);
    let told = measured.read::<serde_json::Value>().map(|mut value| value["answers"].take()).unwrap_or_default();
    for answer in told.as_array().into_iter().flatten() {
        let text = |key: &str| answer[key].as_str().unwrap_or_default();
        printer.data(&format!("> {}\n{}\n", text("prompt").replace('\n', "\n> "), text("answer")));
    }
    for (_, table) in Report::evals(&[Evaluation { eval: task.name.into(), ..evaluation }]) {
        let (head, rows) = telling(table.head, table.rows);
        printer.data(&draw(&head, &rows));
    }
    printer.data(&format!("{count} {}", task.counted));
}

/// Without those of the first columns, which say what is measured, that say the same in all rows, and without columns of nothing.
fn telling<'h>(head: &[&'h str], rows: Vec<Vec<String>>) -> (Vec<&'h str>, Vec<Vec<String>>) {
    let same = |column: usize| rows.len() > 1 && rows.iter().all(|row| row[column] == rows[0][column]);
    let empty = |column: usize| rows.iter().all(|row| row[column] == "-");
    let tells = |column: &usize| if *column < NAMING { !same(*column) } else { !empty(*column) };
    let told: Vec<usize> = (0..head.len()).filter(tells).collect();
    let row = |row: &Vec<String>| told.iter().map(|column| row[*column].clone()).collect();
    (told.iter().map(|column| head[*column]).collect(), rows.iter().map(row).collect())
}

/// Columns that say what is measured: the eval, the variant and the runner.
const NAMING: usize = 3;

/// The recipe that measures the same.
fn recipe(task: &str, arguments: &ArgMatches, subject: &Chosen, settings: &toml::Table) -> Result<String, Error> {
    let Chosen { path: subject, engine, .. } = subject;
    let baseline = arguments.get_one::<PathBuf>("baseline").map(|path| toml::Value::from(path.display().to_string()));
    let mut eval = toml::Table::from_iter([("name".to_owned(), "eval".into()), ("task".to_owned(), task.into())]);
    let head = match *engine {
        None => vec![("model", model_value(subject, &ignored(arguments))), ("baseline", baseline.unwrap_or(false.into()))],
        Some(engine) => {
            eval.insert("runners".into(), vec![engine.name].into());
            // What takes times is about what users get, unless another mode is asked for.
            let timed =
                PRESETS.iter().find(|preset| preset.name == task).map_or_else(|| attar_eval::task(task), |p| Ok(p.task))?.timed;
            if !timed || arguments.value_source("mode").is_some() {
                eval.insert("modes".into(), vec![mode(arguments, engine)?.to_string()].into());
            }
            eval.extend(device(arguments).map(|device| ("device".to_owned(), device.into())));
            std::iter::once(("artifact", subject.display().to_string().into()))
                .chain(baseline.map(|path| ("baseline", path)))
                .collect()
        }
    };
    eval.extend(settings.clone());
    Ok(super::recipe_text(&head, Path::new("attar-eval"), &[("eval", eval)]))
}
