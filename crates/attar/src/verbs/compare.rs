//! `attar compare RUN… --out FILE`: a page of several finished runs. `attar compare PLAN PLAN`: two compiled plans beside each other.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_compile::{
    Manifest, Plan,
    plan::MAGIC,
    report::{Comparison, MARK, Settings, most_assumed},
};
use attar_recipe::{Error, RUN_FILES, RunReport, compare_runs, read_plan, unusable};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::json;

use super::{
    Verb,
    compile::{MANIFEST, read_manifest},
    write_named,
};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Compare;

impl Verb for Compare {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn command(&self) -> Command {
        Command::new("compare")
            .about("Compare finished runs on a page, or two compiled plans")
            .long_about(
                "Compare finished runs on a page, or two compiled plans.\n\n\
                 With --out, write a page that compares finished runs: sizes against quality, damage by layer, latency, answers \
                 side by side. Each run is the output folder of `attar run`. Of one run, the page is its `report.html`.\n\n\
                 Without --out, print two plans beside each other: latency, energy, bytes, memory, and what each operation takes. \
                 Each is a plan file, or a folder of `compile`, whose runs of the same name are compared. Cycles, times and \
                 energies are predictions.",
            )
            .arg(
                Arg::new("run")
                    .value_name("RUN_OR_PLAN")
                    .help("Output folders of finished runs; or two plan files or folders of plans")
                    .required(true)
                    .num_args(1..)
                    .value_parser(value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("FILE.html")
                    .help("The page of runs to write")
                    .value_parser(value_parser!(PathBuf)),
            )
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar compare out out-int8 --out compared.html", "attar compare plans small-sram"]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let given: Vec<&PathBuf> = arguments.get_many::<PathBuf>("run").into_iter().flatten().collect();
        match arguments.get_one::<PathBuf>("out") {
            Some(out) => compare_finished(&given, out, printer)?,
            None => compare_plans(&given, printer)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the page of finished runs.
fn compare_finished(folders: &[&PathBuf], out: &Path, printer: &Printer) -> Result<(), Error> {
    if let Some(plan) = folders.iter().find(|path| is_plan(path)) {
        let message = format!("`{}` is a plan file, not the output folder of a run", plan.display());
        return Err(Error::recipe(message).hint("plans are compared without `--out`".to_owned()));
    }
    let runs = folders.iter().map(|folder| RunReport::read(folder)).collect::<Result<Vec<RunReport>, Error>>()?;
    let page = compare_runs(&runs)?;
    check_apart(out, folders.iter().copied())?;
    write_named(out, page.as_bytes())?;
    printer.note(&format!("{} runs: {}", runs.len(), out.display()));
    Ok(())
}

/// A page replaces no file of the runs that it compares.
fn check_apart<'a>(out: &Path, mut runs: impl Iterator<Item = &'a PathBuf>) -> Result<(), Error> {
    let there = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    let own = |folder: &PathBuf| RUN_FILES.iter().any(|name| folder.join(name).canonicalize().is_ok_and(|file| file == there));
    match runs.find(|folder| own(folder)) {
        None => Ok(()),
        Some(folder) => {
            let message = format!("`--out {}` is a file of the run `{}`", out.display(), folder.display());
            Err(Error::recipe(message).hint("name another file".to_owned()))
        }
    }
}

/// Whether a file begins as plan files do.
fn is_plan(path: &Path) -> bool {
    use std::io::Read;
    let mut begin = [0; MAGIC.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == *MAGIC
}

/// A plan, its file, and what its folder says of it.
struct Given {
    /// The run, of a plan in a folder: `prefill`.
    name: String,
    path: PathBuf,
    plan: Plan,
    settings: Settings,
}

/// Prints two plans, or the plans of two folders, beside each other.
fn compare_plans(given: &[&PathBuf], printer: &Printer) -> Result<(), Error> {
    let [first, second] = given else {
        let hint = "two plans are compared; for a page of finished runs, add `--out FILE.html`".to_owned();
        return Err(Error::recipe(format!("expected two plans, found {}", given.len())).hint(hint));
    };
    let pairs = pairs(first, second)?;
    let mut found = Vec::new();
    for [one, two] in &pairs {
        let settings = [one, two].map(|given| given.settings.clone());
        // Which of them cannot run is found by trying each alone.
        for given in [one, two] {
            attar_compile::simulate::time(&given.plan, &given.plan.rates).map_err(|e| unusable(&given.path, &e))?;
        }
        found.push(Comparison::new([&one.plan, &two.plan], settings).map_err(|e| unusable(&one.path, &e))?);
    }
    if printer.json {
        printer
            .value(&json!({ "first": first.display().to_string(), "second": second.display().to_string(), "compared": found }));
        return Ok(());
    }
    for ([one, two], comparison) in pairs.iter().zip(&found) {
        printer.data(&format!("first: {}\nsecond: {}", one.path.display(), two.path.display()));
        show(comparison, printer);
    }
    Ok(())
}

/// The plans to compare: two files, or those of two folders that have the same name.
fn pairs(first: &Path, second: &Path) -> Result<Vec<[Given; 2]>, Error> {
    for path in [first, second] {
        std::fs::metadata(path).map_err(|e| Error::input(format!("cannot read `{}`", path.display())).because(&e))?;
    }
    match (first.is_dir(), second.is_dir()) {
        (false, false) => Ok(vec![[of_file(first)?, of_file(second)?]]),
        (true, true) => {
            let (firsts, mut seconds) = (of_folder(first)?, of_folder(second)?);
            let mut pairs = Vec::new();
            for one in firsts {
                if let Some(at) = seconds.iter().position(|two| two.name == one.name) {
                    pairs.push([one, seconds.remove(at)]);
                }
            }
            match pairs.is_empty() {
                false => Ok(pairs),
                true => {
                    let message = format!("`{}` and `{}` have no plan of the same name", first.display(), second.display());
                    Err(Error::recipe(message).hint("name the two plan files to compare".to_owned()))
                }
            }
        }
        (folder, _) => {
            let folder = if folder { first } else { second };
            let message = format!("`{}` is a folder, and the other is a plan file", folder.display());
            Err(Error::recipe(message).hint(format!("name a plan in it, such as `{}`", folder.join("prefill.plan").display())))
        }
    }
}

/// A plan file; its settings are those that the folder around it was made with.
fn of_file(path: &Path) -> Result<Given, Error> {
    let plan = read_plan(path)?;
    let stem = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let around = path.parent().filter(|folder| folder.join(MANIFEST).exists());
    let manifest = around.and_then(|folder| read_manifest(folder).ok()).filter(|manifest| manifest.device == plan.device);
    Ok(Given { name: stem, path: path.into(), plan, settings: manifest.map(settings).unwrap_or_default() })
}

/// The plans of a folder of `compile`, or of the run that it is a part of.
fn of_folder(folder: &Path) -> Result<Vec<Given>, Error> {
    let inner = folder.join("compiled");
    let folder = [folder, &inner].into_iter().find(|folder| folder.join(MANIFEST).is_file()).ok_or_else(|| {
        let message =
            format!("`{}` holds no compiled plans: expected `{MANIFEST}` in it or in its folder `compiled`", folder.display());
        Error::input(message).hint("to compare finished runs on a page, add `--out FILE.html`".to_owned())
    })?;
    let manifest = read_manifest(folder)?;
    let names: Vec<String> = manifest.runs.iter().map(|run| run.name.clone()).collect();
    let settings = settings(manifest);
    let given = |name: String| {
        let path = folder.join(format!("{name}.plan"));
        Ok(Given { plan: read_plan(&path)?, name, path, settings: settings.clone() })
    };
    names.into_iter().map(given).collect()
}

fn settings(manifest: Manifest) -> Settings {
    let goal = manifest.goal.and_then(|goal| Some(json!(goal).as_str()?.to_owned()));
    Settings { goal, set: manifest.set }
}

fn show(comparison: &Comparison, printer: &Printer) {
    for table in [comparison.figures(), comparison.table()] {
        printer.data(&table.to_string());
    }
    for (which, side) in ["first", "second"].into_iter().zip(&comparison.plans) {
        match &side.predicted.from {
            Some(from) => {
                if let Some(most) = most_assumed(from) {
                    printer.data(&format!("{MARK} {which} plan: {most}"));
                }
            }
            None => printer.data(&format!(
                "{which} plan: how well its numbers are known cannot be said, for `{}` comes with attar with other numbers, or not at all.",
                side.device
            )),
        }
    }
}
