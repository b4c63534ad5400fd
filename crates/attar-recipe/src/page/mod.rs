//! `report.html`: what runs found, for people. One file without scripts and without anything from outside.
//!
//! The page of a run and that of a comparison are the same page, of one run or of several.

mod charts;
mod difference;

use std::{fs, path::Path};

use attar_compile::report::MARK;
use attar_eval::{Against, Evaluation, Metric, Outcome, Status, TASKS, Task};
use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use serde_json::Value;

use self::{
    charts::{Cell, Course, Curve, Figure, Point, bars, courses, distribution, heat, pareto},
    difference::{html, marked},
};
use crate::{
    Error, Report, Result,
    lock::Input,
    report::{BESIDE, FORMAT, Timed, VariantReport, WAYS, Way, latencies, runner},
    shown::shown,
    table::{Table, bytes},
};

/// A run with all that a page tells of it.
pub struct RunReport {
    /// Its folder's name, where there are several.
    name: String,
    report: Report,
    inputs: Vec<Input>,
}

/// The page of a run.
pub(crate) fn of_run(report: &Report, inputs: &[Input]) -> String {
    page(&report.recipe, &[One { name: "", report, inputs }])
}

/// The page of several runs.
///
/// # Errors
/// If there is none.
pub fn of_runs(runs: &[RunReport]) -> Result<String> {
    if runs.is_empty() {
        return Err(Error::recipe("no run was given to compare".to_owned()));
    }
    let ones: Vec<One<'_>> = runs.iter().map(|run| One { name: &run.name, report: &run.report, inputs: &run.inputs }).collect();
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    Ok(page(&names.join(" · "), &ones))
}

impl RunReport {
    /// Of the output folder of a finished run.
    ///
    /// # Errors
    /// If the folder holds no report, or one that cannot be read.
    pub fn read(folder: &Path) -> Result<RunReport> {
        let file = |name: &str| -> Result<Option<Vec<u8>>> {
            let path = folder.join(name);
            match fs::read(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::input(format!("cannot read `{}`", path.display())).because(&error)),
            }
        };
        let unusable = |name: &str, error: serde_json::Error| {
            Error::input(format!("`{}` is no report", folder.join(name).display())).because(&error)
        };
        let Some(text) = file("report.json")? else {
            let error = Error::input(format!("`{}` holds no finished run: there is no `report.json`", folder.display()));
            return Err(error.hint("`attar run` leaves one in its output folder".to_owned()));
        };
        let version = serde_json::from_slice::<Value>(&text).map_err(|e| unusable("report.json", e))?["report"].as_u64();
        if version != Some(FORMAT.into()) {
            let found = version.map_or("no version".into(), |version| format!("version {version}"));
            let error = Error::input(format!("`{}` has {found} of the format", folder.join("report.json").display()));
            return Err(error.hint(format!("this attar reads version {FORMAT}")));
        }
        let mut report: Report = serde_json::from_slice(&text).map_err(|e| unusable("report.json", e))?;
        let timed = file("measured.json")?;
        let timed = timed.map(|text| serde_json::from_slice::<Timed>(&text).map_err(|e| unusable("measured.json", e)));
        report.timed = timed.transpose()?;
        let manifest = file("manifest.json")?.map(|text| serde_json::from_slice::<Value>(&text));
        let manifest = manifest.transpose().map_err(|e| unusable("manifest.json", e))?;
        let inputs = manifest.map(|mut manifest| serde_json::from_value(manifest["inputs"].take()).unwrap_or_default());
        let name = folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned());
        Ok(RunReport { name, report, inputs: inputs.unwrap_or_default() })
    }
}

/// A run, as a page tells of it.
struct One<'a> {
    name: &'a str,
    report: &'a Report,
    inputs: &'a [Input],
}

#[derive(Serialize)]
struct Header {
    passed: bool,
    verdict: String,
    about: String,
}

#[derive(Default, Serialize)]
struct Section {
    title: String,
    figures: Vec<Drawn>,
    tables: Vec<Shown>,
    prompts: Vec<Prompt>,
    /// Texts to copy, each with what it is.
    snippets: Vec<[String; 2]>,
}

#[derive(Serialize)]
struct Drawn {
    svg: String,
    caption: String,
    widths: [u32; 2],
}

impl From<Figure> for Drawn {
    fn from(figure: Figure) -> Drawn {
        Drawn { svg: figure.svg, caption: figure.caption, widths: figure.widths }
    }
}

#[derive(Serialize)]
struct Shown {
    title: String,
    folded: bool,
    head: Vec<String>,
    rows: Vec<Vec<Text>>,
}

#[derive(Serialize)]
struct Text {
    text: String,
    class: &'static str,
}

#[derive(Serialize)]
struct Prompt {
    summary: String,
    prompt: String,
    answers: Vec<Told>,
}

#[derive(Serialize)]
struct Told {
    who: String,
    html: String,
}

fn page(title: &str, runs: &[One<'_>]) -> String {
    let headers: Vec<Header> = runs.iter().map(header).collect();
    let sections: Vec<Section> = [sizes, gates, evaluated, timed, kept, predicted, planned, answers, found, made_of]
        .iter()
        .flat_map(|section| section(runs))
        .filter(|section| !section.figures.is_empty() || !section.tables.is_empty() || !section.prompts.is_empty())
        .collect();
    let mut jinja = Environment::new();
    jinja.set_trim_blocks(true);
    jinja.set_lstrip_blocks(true);
    jinja.set_keep_trailing_newline(true);
    jinja.set_auto_escape_callback(|_| AutoEscape::Html);
    jinja.add_template("page", include_str!("page.html")).expect("the template is right: a test renders it");
    let page = jinja.get_template("page").expect("it was just added");
    let mut tools: Vec<&str> = runs.iter().map(|run| run.report.tool.as_str()).collect();
    tools.dedup();
    let context = serde_json::json!({
        "title": shown(title),
        "style": include_str!("page.css"),
        "runs": headers,
        "sections": sections,
        "footer": format!("Made by {}.", tools.join(", ")),
    });
    page.render(context).expect("the template is right: a test renders it")
}

/// The verdict and what it is about.
fn header(run: &One<'_>) -> Header {
    let report = run.report;
    let (mut passed, mut all) = (0, 0);
    for verdict in report.verdicts() {
        all += 1;
        passed += usize::from(verdict.status == Status::Passed);
    }
    let named = if run.name.is_empty() { String::new() } else { format!("{}: ", run.name) };
    let verdict = match all {
        0 => format!("{named}no gates were asked."),
        all if passed == all => format!("{named}all {all} gates hold."),
        all => format!("{named}{} of {all} gates do not hold.", all - passed),
    };
    let parameters = report.model.parameters.map(|count| format!(", {count} parameters")).unwrap_or_default();
    let left_out = if report.model.left_out.is_empty() {
        String::new()
    } else {
        format!(" Left out: {}.", report.model.left_out.join("; "))
    };
    let set = report.instruction_set.as_ref().map(|set| format!(" Computed with {set}.")).unwrap_or_default();
    let about =
        format!("{} ({}){parameters}. Recipe {}.{set}{left_out}", report.model.path, report.model.architecture, report.recipe);
    Header { passed: report.all_passed(), verdict: shown(&verdict), about: shown(&about) }
}

/// A variant's name with its run's.
fn named(run: &One<'_>, variant: &str) -> String {
    let parts: Vec<&str> = [run.name, variant].into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "model".into() } else { parts.join(" / ") }
}

/// A table with the run's name before its cells, where there are several.
fn table(runs: &[One<'_>], title: &str, folded: bool, of: impl Fn(&Report) -> Option<Table>) -> Option<Shown> {
    let several = runs.len() > 1;
    let (mut head, mut rows) = (Vec::new(), Vec::new());
    for run in runs {
        let Some(table) = of(run.report) else { continue };
        if head.is_empty() {
            head = table.head.iter().map(|cell| (*cell).to_owned()).collect();
        }
        for row in table.rows {
            let name = several.then(|| run.name.to_owned());
            rows.push(name.into_iter().chain(row).map(cell).collect());
        }
    }
    if several {
        head.insert(0, "run".into());
    }
    (!rows.is_empty()).then(|| Shown { title: title.into(), folded, head, rows })
}

fn cell(text: String) -> Text {
    let class = match text.as_str() {
        "passed" => "passed",
        "FAILED" | "NOT RUN" | "CANNOT TELL" => "failed",
        long if long.chars().count() > 60 => "text",
        _ => "",
    };
    Text { text: shown(&text), class }
}

/// Sizes against qualities, and the variants.
fn sizes(runs: &[One<'_>]) -> Vec<Section> {
    let mut figures = Vec::new();
    for (eval, task, metric) in qualities(runs) {
        let mut points: Vec<Point> = Vec::new();
        for run in runs {
            let mut seen: Vec<&str> = Vec::new();
            for evaluation in run.report.evals.iter().filter(|e| e.eval == eval && e.task == task.name) {
                let Outcome::Measured(measured) = &evaluation.outcome else { continue };
                let variant = evaluation.variant.as_deref().unwrap_or_default();
                // Of a variant's runners, the first: points of the others would hide it.
                if seen.contains(&variant) {
                    continue;
                }
                seen.push(variant);
                let size = run.report.variants.iter().find(|v| v.name == variant).and_then(|v| size(run.report, v));
                let (Some(size), Some(quality)) = (size, measured.estimate(metric.at)) else { continue };
                let who = match evaluation.runner.as_str() {
                    attar_eval::REFERENCE => String::new(),
                    engine => format!(", {engine}"),
                };
                let name = shown(&format!("{}{who}", named(run, variant)));
                points.push(Point { name, size, quality: quality.value, error: quality.standard_error });
            }
        }
        points.retain(|point| point.quality.is_finite());
        if points.len() > 1 {
            let lower = matches!(metric.better, attar_eval::Better::Lower);
            figures.push(pareto(&points, &shown(&format!("{eval}/{}", metric.name)), lower).into());
        }
    }
    let tables = table(runs, "", false, |report| Some(report.variant_table())).into_iter().collect();
    vec![Section { title: "Sizes and quality".into(), figures, tables, ..Section::default() }]
}

/// Evals with what they tell of quality: the first number that is held against the baseline, or the first.
fn qualities<'r>(runs: &[One<'r>]) -> Vec<(&'r str, &'static Task, &'static Metric)> {
    let mut found: Vec<(&str, &Task, &Metric)> = Vec::new();
    for evaluation in runs.iter().flat_map(|run| &run.report.evals) {
        let Outcome::Measured(measured) = &evaluation.outcome else { continue };
        let Some(task) = TASKS.iter().find(|task| task.name == evaluation.task) else { continue };
        let there = |metric: &&Metric| metric.column.is_some() && metric.value(measured).is_some();
        let against = task.metrics.iter().filter(there).find(|metric| metric.against == Against::Base);
        let Some(metric) = against.or_else(|| task.metrics.iter().find(there)) else { continue };
        if !found.iter().any(|(eval, _, _)| *eval == evaluation.eval) {
            found.push((&evaluation.eval, task, metric));
        }
    }
    found
}

/// Megabytes of a variant's smallest artifact, or of its weights.
fn size(report: &Report, variant: &VariantReport) -> Option<f64> {
    let written = variant.artifacts.iter().map(|artifact| artifact.bytes as f64).min_by(f64::total_cmp);
    let weights = || Some(report.model.parameters? as f64 * variant.bits_per_weight / 8.0);
    Some(written.or_else(weights)? / 1e6)
}

fn gates(runs: &[One<'_>]) -> Vec<Section> {
    let reproducible = table(runs, "", false, |report| Some(report.gate_table()));
    let of_times = table(runs, "On what was measured in this run", false, |report| Some(report.timed_gate_table()));
    let ways = table(runs, WAYS, false, |report| Some(report.way_table()));
    let snippet = |way: &Way| [format!("{} ({})", way.what, way.recipe), way.snippet.trim().to_owned()];
    vec![Section {
        title: "Gates".into(),
        tables: reproducible.into_iter().chain(of_times).chain(ways).collect(),
        snippets: runs.iter().flat_map(|run| &run.report.ways).map(snippet).collect(),
        ..Section::default()
    }]
}

fn evaluated(runs: &[One<'_>]) -> Vec<Section> {
    let mut titles: Vec<&'static str> = Vec::new();
    for (title, _) in runs.iter().flat_map(|run| Report::evals(&run.report.evals)) {
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    let of = |title: &'static str| {
        table(runs, title, false, |report| {
            Report::evals(&report.evals).into_iter().find(|(t, _)| *t == title).map(|(_, table)| table)
        })
    };
    let notes = runs.iter().flat_map(|run| run.report.notes.iter().map(|note| vec![cell(named(run, "")), cell(note.clone())]));
    let notes: Vec<Vec<Text>> = notes.collect();
    let head = ["run", "note"].map(str::to_owned).to_vec();
    let notes = (!notes.is_empty()).then(|| Shown { title: "Notes".into(), folded: false, head, rows: notes });
    let tables = titles.into_iter().filter_map(of).chain(notes).collect();
    vec![Section { title: "Measured quality".into(), tables, ..Section::default() }]
}

/// Latencies and memory of engines.
fn timed(runs: &[One<'_>]) -> Vec<Section> {
    let all: Vec<(&One<'_>, &Evaluation)> =
        runs.iter().flat_map(|run| run.report.timed.iter().flat_map(|t| &t.evals).map(move |e| (run, e))).collect();
    let measured: Vec<(String, attar_eval::Latencies)> = all
        .iter()
        .filter_map(|(run, evaluation)| {
            let who = runner(&evaluation.runner, evaluation.mode, evaluation.device.as_deref());
            let name = format!("{}, {}: {who}", evaluation.eval, named(run, evaluation.variant.as_deref().unwrap_or_default()));
            Some((shown(&name), latencies(evaluation)?))
        })
        .collect();
    let mut figures: Vec<Drawn> = Vec::new();
    type Times = fn(&attar_eval::Latencies) -> &attar_eval::bench::Percentiles;
    let kinds: [(&str, Times); 2] = [("time to the first token", |l| &l.ttft), ("time between tokens", |l| &l.tpot)];
    for (what, of) in kinds {
        let curves: Vec<Curve> = measured
            .iter()
            .map(|(name, l)| Curve { name: name.clone(), values: of(l).curve.iter().map(|s| 1e3 * s).collect() })
            .filter(|curve| curve.values.len() > 1)
            .collect();
        figures.extend((!curves.is_empty()).then(|| distribution(&curves, what).into()));
    }
    let mut peaks: Vec<(String, f64)> =
        measured.iter().filter_map(|(name, l)| Some((name.clone(), l.memory.peak? as f64 / 1e6))).collect();
    if !peaks.is_empty() {
        peaks.extend(runs.iter().flat_map(sizes_beside));
        let caption = "Peak resident memory of the engine's processes, in MB; beside it artifacts on disk, and the peaks of DRAM that are predicted.";
        figures.push(bars(&peaks, "MB", caption.into()).into());
    }
    let growing: Vec<Course> = measured
        .iter()
        .map(|(name, l)| {
            let points = l.memory.growth.iter().map(|grown| [grown.tokens as f64, grown.bytes as f64 / 1e6]).collect();
            Course { name: name.clone(), points }
        })
        .filter(|course| course.points.len() > 1)
        .collect();
    if !growing.is_empty() {
        let caption = "Resident memory of the engine with a text of so many tokens read: weights, and the growing cache of keys and values.";
        figures.push(courses(&growing, ["tokens", "memory, MB"], caption.into()).into());
    }
    let energy: Vec<(String, f64)> =
        measured.iter().filter_map(|(name, l)| Some((name.clone(), l.energy.as_ref()?.joules_per_token * 1e3))).collect();
    if !energy.is_empty() {
        figures.push(bars(&energy, "mJ", "Energy per token that was written, measured, in mJ.".into()).into());
    }
    let tables = table(runs, "", false, |report| {
        let evals = report.timed.as_ref()?.evals.clone();
        Report::evals(&evals).into_iter().next().map(|(_, table)| table)
    });
    let mut notes: Vec<Vec<Text>> = Vec::new();
    for (name, l) in &measured {
        notes.extend(
            l.overload.then(|| vec![cell(name.clone()), cell("overload: requests came faster than they were answered".into())]),
        );
        notes.extend(l.notes.iter().map(|note| vec![cell(name.clone()), cell(note.clone())]));
    }
    let machines = runs.iter().filter_map(|run| {
        let machine = &run.report.timed.as_ref()?.machine;
        let words = format!(
            "{}, {} cores, {} of memory, {}",
            machine.processor.as_deref().unwrap_or("unknown processor"),
            machine.cores,
            machine.memory.map_or("?".into(), bytes),
            machine.system.as_deref().unwrap_or("unknown system")
        );
        Some(vec![cell(named(run, "")), cell(words)])
    });
    let machines: Vec<Vec<Text>> = machines.collect();
    let extra = [("Notes", "what", notes), ("Machine", "run", machines)]
        .into_iter()
        .filter(|(_, _, rows)| !rows.is_empty())
        .map(|(title, first, rows)| Shown { title: title.into(), folded: false, head: vec![first.into(), "".into()], rows });
    let tables = tables.into_iter().chain(extra).collect();
    vec![Section { title: "Latency and memory, measured".into(), figures, tables, ..Section::default() }]
}

/// What memory that was measured is held against: the sizes of artifacts, and predicted peaks.
fn sizes_beside(run: &One<'_>) -> Vec<(String, f64)> {
    let artifacts =
        run.report.variants.iter().flat_map(|variant| variant.artifacts.iter().map(move |artifact| (variant, artifact)));
    let on_disk = artifacts.map(|(variant, artifact)| {
        (shown(&format!("{}: {} on disk", named(run, &variant.name), artifact.target)), artifact.bytes as f64 / 1e6)
    });
    let predicted = run.report.evals.iter().filter_map(|evaluation| {
        let Outcome::Predicted(prediction) = &evaluation.outcome else { return None };
        let name = format!("{}: {}", named(run, evaluation.variant.as_deref().unwrap_or_default()), evaluation.runner);
        Some((shown(&name), prediction.peak_dram? as f64 / 1e6))
    });
    on_disk.chain(predicted).collect()
}

/// How well weights are kept, as a strip of blocks and matrices, and what was not quantized.
fn kept(runs: &[One<'_>]) -> Vec<Section> {
    let mut sections = Vec::new();
    for run in runs {
        for variant in &run.report.variants {
            let cells: Vec<Cell> = variant
                .tensors
                .iter()
                .map(|tensor| {
                    let (block, matrix) = place(&tensor.name);
                    Cell {
                        block: shown(block),
                        matrix: shown(matrix),
                        snr: tensor.snr_db,
                        encoding: tensor.encoding.clone(),
                        bits: tensor.bits_per_weight,
                    }
                })
                .collect();
            let figures = if cells.is_empty() { Vec::new() } else { vec![heat(&cells).into()] };
            let plain = (!variant.plain.is_empty()).then(|| Shown {
                title: "Matrices that are not quantized".into(),
                folded: variant.plain.len() > 8,
                head: ["weight", "shape", "stored as"].map(str::to_owned).to_vec(),
                rows: variant
                    .plain
                    .iter()
                    .map(|weight| {
                        let dims: Vec<String> = weight.dims.iter().map(ToString::to_string).collect();
                        [weight.name.clone(), dims.join(" × "), weight.encoding.clone()].map(cell).into()
                    })
                    .collect(),
            });
            let title = match named(run, &variant.name).as_str() {
                "model" => "Damage by layer".to_owned(),
                name => format!("Damage by layer: {}", shown(name)),
            };
            sections.push(Section { title, figures, tables: plain.into_iter().collect(), ..Section::default() });
        }
    }
    sections
}

/// A canonical name as block and matrix.
fn place(name: &str) -> (&str, &str) {
    match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((block, matrix)) => (block, matrix),
        None => ("·", name),
    }
}

/// Predictions for devices.
fn predicted(runs: &[One<'_>]) -> Vec<Section> {
    let mut figures: Vec<Drawn> = Vec::new();
    for (metric, unit, scale) in
        [("latency", "ms", 1e3), ("energy-per-token", "mJ", 1e3), ("peak-sram", "KiB", 1.0 / 1024.0), ("peak-dram", "MB", 1e-6)]
    {
        let Ok(metric) = attar_eval::device_metric(metric) else { continue };
        let values: Vec<(String, f64)> = runs
            .iter()
            .flat_map(|run| run.report.evals.iter().map(move |evaluation| (run, evaluation)))
            .filter_map(|(run, evaluation)| {
                let Outcome::Predicted(prediction) = &evaluation.outcome else { return None };
                let name = format!("{}, {}", named(run, evaluation.variant.as_deref().unwrap_or_default()), evaluation.runner);
                let mark = if prediction.assumed.iter().any(|name| name == metric.name) { MARK } else { "" };
                Some((shown(&name) + mark, (metric.value)(prediction)? * scale))
            })
            .collect();
        if !values.is_empty() {
            let assumed = values.iter().any(|(name, _)| name.ends_with(MARK));
            let mark = if assumed { format!(" {MARK} rests on assumed numbers of the device.") } else { String::new() };
            figures.push(bars(&values, unit, format!("{}, in {unit}.{mark}", capitalized(metric.about))).into());
        }
    }
    let tables = table(runs, BESIDE, false, |report| Some(report.beside_table())).into_iter().collect();
    vec![Section { title: "Predicted for devices".into(), figures, tables, ..Section::default() }]
}

/// Pictures of compiled plans.
fn planned(runs: &[One<'_>]) -> Vec<Section> {
    let mut sections = Vec::new();
    for run in runs {
        for variant in &run.report.variants {
            for compiled in &variant.findings.compilations {
                let phases = compiled.phases.iter().flat_map(|phase| phase.pictures.iter().map(move |picture| (phase, picture)));
                let figures = phases.map(|(phase, picture)| Drawn {
                    svg: picture.svg.clone(),
                    caption: format!("{}, {}. {}", picture.title, shown(&phase.name), picture.caption),
                    widths: [640, 1100],
                });
                let title = shown(&format!("Plans of {} for {}", named(run, &variant.name), compiled.device));
                sections.push(Section { title, figures: figures.collect(), ..Section::default() });
            }
        }
    }
    sections
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

/// Prompts with the answers of all models, and what differs from the baseline's.
fn answers(runs: &[One<'_>]) -> Vec<Section> {
    let mut prompts: Vec<(String, Prompt)> = Vec::new();
    for run in runs {
        for evaluation in &run.report.evals {
            let Outcome::Measured(measured) = &evaluation.outcome else { continue };
            let Some(told) = measured.read::<Value>().and_then(|value| value.get("answers")?.as_array().cloned()) else {
                continue;
            };
            for (at, answer) in told.iter().enumerate() {
                let text = |key: &str| answer[key].as_str().map(shown);
                let (Some(prompt), Some(own)) = (text("prompt"), text("answer")) else { continue };
                let key = format!("{}/{at}/{prompt}", evaluation.eval);
                let baseline = text("baseline");
                if !prompts.iter().any(|(known, _)| *known == key) {
                    let line: String = prompt.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(90).collect();
                    let mut answers = Vec::new();
                    answers.extend(baseline.as_ref().map(|text| Told { who: "baseline".into(), html: html(text) }));
                    let references = answer["references"].as_array().into_iter().flatten().filter_map(Value::as_str);
                    answers.extend(references.map(|text| Told { who: "expected".into(), html: html(&shown(text)) }));
                    let summary = shown(&format!("{} {}: {line}", evaluation.eval, at + 1));
                    prompts.push((key.clone(), Prompt { summary, prompt, answers }));
                }
                let who = runner(&evaluation.runner, evaluation.mode, evaluation.device.as_deref());
                let name = named(run, evaluation.variant.as_deref().unwrap_or_default());
                let same = baseline.as_ref() == Some(&own);
                let who = shown(&format!("{name}, {who}{}", if same { ": the same" } else { "" }));
                let marked = baseline.as_ref().map_or_else(|| html(&own), |baseline| marked(&own, baseline));
                let (_, prompt) = prompts.iter_mut().find(|(known, _)| *known == key).expect("it is there or was just added");
                prompt.answers.push(Told { who, html: marked });
            }
        }
    }
    let prompts = prompts.into_iter().map(|(_, prompt)| prompt).collect();
    vec![Section { title: "Answers side by side".into(), prompts, ..Section::default() }]
}

/// What steps found: all other tables.
fn found(runs: &[One<'_>]) -> Vec<Section> {
    let mut titles: Vec<&'static str> = Vec::new();
    for (title, _) in runs.iter().flat_map(|run| run.report.finding_tables()) {
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    let of = |title: &'static str| {
        table(runs, title, true, |report| report.finding_tables().into_iter().find(|(t, _)| *t == title).map(|(_, table)| table))
    };
    vec![Section {
        title: "What the steps found".into(),
        tables: titles.into_iter().filter_map(of).collect(),
        ..Section::default()
    }]
}

/// Inputs and outputs with their digests.
fn made_of(runs: &[One<'_>]) -> Vec<Section> {
    let (mut inputs, mut outputs): (Vec<Vec<Text>>, Vec<Vec<Text>>) = Default::default();
    for run in runs {
        let row = |path: &str, size: u64, digest: String| {
            let name = (runs.len() > 1).then(|| run.name.to_owned());
            name.into_iter().chain([path.to_owned(), bytes(size), digest]).map(cell).collect::<Vec<Text>>()
        };
        inputs.extend(run.inputs.iter().map(|input| row(&input.path, input.bytes, input.digest.to_string())));
        let written = run.report.variants.iter().flat_map(|variant| &variant.artifacts);
        outputs.extend(written.map(|artifact| row(&artifact.folder, artifact.bytes, artifact.digest.to_string())));
        let recipe = [run.report.recipe.clone(), "-".into(), run.report.recipe_digest.to_string()];
        let name = (runs.len() > 1).then(|| run.name.to_owned());
        outputs.push(name.into_iter().chain(recipe).map(cell).collect());
    }
    let head = |first: &str| {
        let run = (runs.len() > 1).then(|| "run".to_owned());
        run.into_iter().chain([first, "size", "digest"].map(str::to_owned)).collect::<Vec<String>>()
    };
    let tables = [("Inputs", "file", inputs), ("Artifacts and recipe", "what", outputs)];
    let tables = tables.into_iter().filter(|(_, _, rows)| !rows.is_empty());
    let tables = tables.map(|(title, first, rows)| Shown { title: title.into(), folded: true, head: head(first), rows });
    vec![Section { title: "Inputs, digests".into(), tables: tables.collect(), ..Section::default() }]
}
