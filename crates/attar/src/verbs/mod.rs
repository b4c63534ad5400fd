//! The verbs, one file each (steps share one).

mod bench;
mod compare;
mod compile;
mod completions;
mod draw;
mod engine;
mod eval;
mod export;
mod flags;
mod fuse;
mod generate;
mod given;
mod inspect;
mod list;
mod man;
mod memory_plan;
mod plan;
mod predict;
mod run;
mod schema;
mod simulate;
mod step;
mod store;
mod sweep;
mod tile;
mod written;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_eval::Status;
use attar_model::{Model, OpenOptions, Pattern};
use attar_recipe::{Error, LockMode, Recipe, Report, Request, step::STEPS};
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Table as Settings;

use draw::draw;

use crate::{environment::Environment, interrupt, printer::Printer, progress::Bars};

/// A subcommand.
pub(crate) trait Verb: Sync {
    fn name(&self) -> &'static str;
    fn command(&self) -> Command;
    /// Commands for the end of its help. A test runs all of them, in the order of [`verbs`].
    fn examples(&self) -> &'static [&'static str];
    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error>;
}

/// Every verb, in the order of the help: those of recipes, the steps that are verbs as they are, all others.
pub(crate) fn verbs() -> impl Iterator<Item = &'static dyn Verb> {
    let steps = STEPS.iter().filter(|kind| kind.is_verb).map(|kind| *kind as &dyn Verb);
    OF_RECIPES.iter().copied().chain(steps).chain(OTHERS.iter().copied())
}

static OF_RECIPES: &[&dyn Verb] = &[&run::Run, &plan::Plan, &sweep::Sweep];

static OTHERS: &[&dyn Verb] = &[
    &fuse::Fuse,
    &tile::Tile,
    &compile::Compile,
    &simulate::Simulate,
    &compare::Compare,
    &export::Export,
    &eval::Eval,
    &bench::Bench,
    &generate::Generate,
    &predict::Predict,
    &inspect::Inspect,
    &list::DEVICES,
    &list::ENGINES,
    &list::TARGETS,
    &list::PROFILES,
    &list::GRIDS,
    &memory_plan::MemoryPlan,
    &store::Store,
    &schema::Schema,
    &completions::Completions,
    &man::Man,
    &engine::Engine,
];

/// The help of every argument that takes a model.
const MODEL: &str = "A Hugging Face folder, a GGUF file, or a checkpoint folder written by attar";

/// The exit code of a failed gate.
const GATE_FAILED: u8 = 1;

/// What a verb says of an error: one that was given no recipe speaks of its flags.
pub(crate) fn said_by(verb: &'static dyn Verb, arguments: &ArgMatches, error: Error) -> Error {
    match OF_RECIPES.iter().any(|other| other.name() == verb.name()) {
        true => error,
        false => flags::in_flags(error, &verb.command(), arguments),
    }
}

/// A verb as clap knows it: its own command, with its examples.
pub(crate) fn command(verb: &'static dyn Verb) -> Command {
    match verb.examples() {
        [] => verb.command(),
        examples => verb.command().after_help(format!("Examples:\n  {}", examples.join("\n  "))),
    }
}

fn path_argument(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name.to_lowercase()).value_name(name).help(help).required(true).value_parser(clap::value_parser!(PathBuf))
}

fn path<'a>(arguments: &'a ArgMatches, name: &str) -> &'a Path {
    arguments.get_one::<PathBuf>(name).expect("clap demands it")
}

fn out_argument() -> Arg {
    Arg::new("out")
        .long("out")
        .value_name("DIR")
        .help("Output folder, created if it does not exist")
        .required(true)
        .value_parser(clap::value_parser!(PathBuf))
}

/// What of a checkpoint may be left out.
fn ignore_argument() -> Arg {
    Arg::new("ignore")
        .long("ignore")
        .value_name("PATTERN")
        .help("Leave stored tensors, or keys of the configuration (`config.KEY`), out on purpose; may be repeated")
        .action(ArgAction::Append)
}

fn ignored(arguments: &ArgMatches) -> Vec<String> {
    arguments.get_many::<String>("ignore").into_iter().flatten().cloned().collect()
}

/// Opens a checkpoint as the arguments say.
fn open(path: &Path, arguments: &ArgMatches) -> Result<Model, Error> {
    let options = OpenOptions { ignore: ignored(arguments).into_iter().map(Pattern::new).collect() };
    Ok(Model::open_with(path, &options)?)
}

fn print_recipe_argument() -> Arg {
    Arg::new("print-recipe")
        .long("print-recipe")
        .help("Print the equivalent recipe, and do nothing else")
        .action(ArgAction::SetTrue)
}

/// A recipe of one step or export, as text.
fn one_shot(model: &Path, ignored: &[String], out: &Path, sections: &[(&str, Settings)]) -> String {
    recipe_text(&[("model", model_value(model, ignored))], out, sections)
}

/// A checkpoint, and what of it is left out, as recipes write it.
fn model_value(model: &Path, ignored: &[String]) -> toml::Value {
    let path = toml::Value::from(model.display().to_string());
    match ignored {
        [] => path,
        some => Settings::from_iter([("path".to_owned(), path), ("ignore".to_owned(), some.to_vec().into())]).into(),
    }
}

/// A recipe of these keys and sections, as text.
fn recipe_text(head: &[(&str, toml::Value)], out: &Path, sections: &[(&str, Settings)]) -> String {
    let mut root = Settings::new();
    root.insert("recipe".into(), 1.into());
    root.extend(head.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    root.insert("output".into(), out.display().to_string().into());
    root.insert("keep_store".into(), false.into());
    for (name, settings) in sections {
        root.insert((*name).into(), toml::Value::Array(vec![toml::Value::Table(settings.clone())]));
    }
    toml::to_string(&root).expect("settings are TOML")
}

/// Runs, or prints, a recipe that was built from a command line. `title` takes the place of its path in messages.
fn run_text(
    title: &str,
    text: &str,
    arguments: &ArgMatches,
    environment: &Environment,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    if arguments.get_flag("print-recipe") {
        printer.data(text);
        return Ok(ExitCode::SUCCESS);
    }
    run_recipe(&Recipe::parse(Path::new(title), text)?, LockMode::None, environment, printer)
}

fn run_recipe(recipe: &Recipe, lock: LockMode, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
    let report = made(recipe, lock, environment, printer)?;
    show(&report, recipe.output(), printer);
    Ok(code(&report))
}

/// Runs a recipe.
fn made(recipe: &Recipe, lock: LockMode, environment: &Environment, printer: &Printer) -> Result<Report, Error> {
    let engines = environment.engines();
    interrupt::stop_between_units();
    let bars = Bars::new(printer);
    attar_recipe::run(recipe, &Request { lock, engines: &engines, observer: &bars, max_memory: environment.max_memory })
}

/// Writes a file that was named on the command line: whole or not at all, through links, and into what is no file, such as a pipe, as it comes.
fn write_named(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let unwritten = |e: std::io::Error| Error::input(format!("cannot write `{}`", path.display())).because(&e);
    let there = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if there.exists() && !there.is_file() {
        let mut file = std::fs::OpenOptions::new().write(true).open(&there).map_err(unwritten)?;
        return file.write_all(bytes).map_err(unwritten);
    }
    attar_tensor::write_atomically(&there, |to| to.write_all(bytes).map_err(unwritten))
}

/// Fails where a file that a flag names has no folder, is the file of an earlier flag, or lies in `taken`.
fn check_written(arguments: &ArgMatches, flags: &[&str], taken: &Path) -> Result<(), Error> {
    let whole = |path: &Path| {
        // What is written through a link is what it leads to.
        if let Ok(there) = path.canonicalize() {
            return there;
        }
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
        let folder = absolute.parent().and_then(|folder| folder.canonicalize().ok());
        folder.zip(absolute.file_name()).map_or(absolute.clone(), |(folder, name)| folder.join(name))
    };
    let mut earlier = vec![whole(taken)];
    for name in flags {
        let Some(path) = arguments.get_one::<PathBuf>(name) else { continue };
        let own = whole(path);
        if earlier.iter().any(|taken| own.starts_with(taken)) {
            let hint = "give it a file of its own".to_owned();
            return Err(Error::recipe(format!("`--{name} {}` would be written over something else", path.display())).hint(hint));
        }
        let folder = own.parent().map_or(Ok(()), |folder| std::fs::metadata(folder).map(|_| ()));
        folder.map_err(|error| Error::input(format!("cannot write `{}`", path.display())).because(&error))?;
        earlier.push(own);
    }
    Ok(())
}

/// What a finished run ends with.
fn code(report: &Report) -> ExitCode {
    if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::from(GATE_FAILED) }
}

fn show(report: &Report, output: &Path, printer: &Printer) {
    if printer.json {
        return printer.value(&report.whole());
    }
    if printer.quiet {
        return failed_gates(report).for_each(|gate| printer.failure(&gate));
    }
    let of_times = report.timed.iter().flat_map(|timed| Report::evals(&timed.evals)).map(|(_, table)| table);
    let judged = [report.timed_gate_table()].into_iter().filter(|table| !table.rows.is_empty());
    for table in report.tables().into_iter().map(|(_, table)| table).chain(of_times).chain(judged) {
        printer.data(&draw(table.head, &table.rows));
    }
    let verdict = match (report.verdicts().next().is_none(), report.all_passed()) {
        (true, _) => "done:",
        (false, true) => "passed:",
        (false, false) => "FAILED: at least one gate failed, see",
    };
    printer.data(&format!("{verdict} {}", output.join("report.md").display()));
    if let Some(way) = report.ways.first() {
        printer.data(&format!("the first way out: attar run {}", output.join(&way.recipe).display()));
    }
}

/// A line for each gate that did not pass.
fn failed_gates(report: &Report) -> impl Iterator<Item = String> + '_ {
    let rows = report.gate_table().rows.into_iter().chain(report.timed_gate_table().rows);
    rows.zip(report.verdicts()).filter(|(_, verdict)| verdict.status != Status::Passed).map(|(row, _)| {
        let [metric, variant, runner, status, details] = &row[..] else { unreachable!("the table has five columns") };
        let variant = if variant == "-" { String::new() } else { format!(" of {variant}") };
        format!("{status}: {metric}{variant} by {runner}: {details}")
    })
}
