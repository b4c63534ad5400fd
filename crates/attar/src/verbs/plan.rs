//! `attar plan RECIPE`.

use std::{collections::BTreeMap, process::ExitCode};

use attar_compress::kind;
use attar_model::Summary;
use attar_recipe::{ActivationReport, Error, PROFILES, PlannedVariant, fusion_table, what_was_read};
use clap::{Arg, ArgAction, ArgMatches, Command, builder::PossibleValuesParser};

use super::{
    Verb, draw,
    given::{recipe, recipe_arguments},
};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Plan;

impl Verb for Plan {
    fn name(&self) -> &'static str {
        "plan"
    }

    fn command(&self) -> Command {
        recipe_arguments(Command::new("plan"))
            .about("Check a recipe and show what it would do, without doing it")
            .long_about(
                "Check a recipe and show what it would do, without doing it.\n\n\
                 Lists the tensors that each step changes, bits per weight, bytes to be written, evals, gates, and an upper \
                 estimate of memory. Reports every mistake that `attar run` would report before starting.",
            )
            .arg(
                Arg::new("tensors")
                    .long("tensors")
                    .help("List every tensor instead of grouping those of all blocks")
                    .action(ArgAction::SetTrue),
            )
            .arg(
                Arg::new("for")
                    .long("for")
                    .value_name("DEVICE")
                    .help("Check that this device would take what the recipe makes, as `for` in an export does")
                    .value_parser(PossibleValuesParser::new(PROFILES.iter().map(|profile| profile.name))),
            )
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar plan recipe.toml",
            "attar plan recipe.toml --set step.1.grid=int8",
            "attar plan recipe.toml --tensors",
            "attar plan recipe.toml --for intel-npu",
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let (mut recipe, _) = recipe(arguments)?;
        if let Some(device) = arguments.get_one::<String>("for") {
            recipe = recipe.with_export_for(device)?;
        }
        let mut plan = attar_recipe::plan(&recipe, &environment.engines())?;
        plan.check_memory(environment.max_memory)?;
        plan.read = plan.read.map(Summary::with_digests).transpose()?;
        if printer.json {
            printer.value(&plan);
            return plan.blocked.map_or(Ok(ExitCode::SUCCESS), Err);
        }
        let parameters = plan.parameters.map(|count| format!(", {count} parameters")).unwrap_or_default();
        printer.data(&format!("{} ({}){parameters}", plan.model, plan.architecture));
        if let Some(read) = &plan.read {
            printer.data(what_was_read(read).trim_end());
        }
        for variant in &plan.variants {
            printer.data(&describe(variant, arguments.get_flag("tensors")));
        }
        plan.calibration.iter().for_each(|text| printer.data(text));
        for eval in &plan.evals {
            printer.data(&format!("measure {eval}"));
        }
        for prediction in &plan.predictions {
            printer.data(&format!("predict by {prediction}"));
        }
        printer.data(&format!("gates: {}; peak memory: about {} at most", plan.gates, attar_recipe::bytes(plan.peak_memory)));
        for note in &plan.notes {
            printer.data(&format!("note: {note}"));
        }
        for missing in &plan.missing {
            printer.data(&format!("missing: {missing}"));
        }
        plan.blocked.map_or(Ok(ExitCode::SUCCESS), Err)
    }
}

/// Tensors of one kind, shape and encoding.
#[derive(Default)]
struct Kind {
    count: usize,
    bits_per_weight: f64,
    bytes: u64,
}

fn describe(variant: &PlannedVariant, every_tensor: bool) -> String {
    let mut kinds: BTreeMap<[String; 4], Kind> = BTreeMap::new();
    for tensor in &variant.tensors {
        let name = if every_tensor { tensor.name.clone() } else { kind(&tensor.name) };
        let entry = kinds.entry([name, format!("{:?}", tensor.dims), tensor.from.clone(), tensor.to.clone()]).or_default();
        *entry = Kind { count: entry.count + 1, bits_per_weight: tensor.bits_per_weight, bytes: entry.bytes + tensor.bytes };
    }
    let rows: Vec<Vec<String>> = kinds
        .into_iter()
        .map(|([name, dims, from, to], kind)| {
            let bits = format!("{:.4}", kind.bits_per_weight);
            vec![name, kind.count.to_string(), dims, from, to, bits, attar_recipe::bytes(kind.bytes)]
        })
        .collect();
    let name = if variant.name.is_empty() { "model" } else { &variant.name };
    let mut text = format!(
        "\n{name}: {:.3} bits per quantized weight, {:.3} bits per weight overall\n",
        variant.quantized_bits_per_weight, variant.bits_per_weight
    );
    if !rows.is_empty() {
        text += &draw(&["weight", "count", "shape", "from", "to", "bits", "bytes"], &rows);
    }
    if !variant.findings.activations.is_empty() {
        text += &draw(
            &["activation read by", "count", "width", "codes/scale"],
            &activations(&variant.findings.activations, every_tensor),
        );
    }
    if !variant.findings.fusions.is_empty() {
        let table = fusion_table(variant.findings.fusions.iter().map(|fusion| (variant.name.as_str(), fusion)));
        text += &draw(table.head, &table.rows);
    }
    for export in &variant.exports {
        // What is made of plans has a size when they are there.
        let size = if export.bytes > 0 { format!(": {}", attar_recipe::bytes(export.bytes)) } else { String::new() };
        text += &format!("write {} to {}{size}\n", export.target, export.folder);
    }
    text
}

/// Activations of one kind, width and encoding, in running order.
fn activations(all: &[ActivationReport], each: bool) -> Vec<Vec<String>> {
    let mut kinds: Vec<([String; 3], usize)> = Vec::new();
    for activation in all {
        let name = |feed: &String| if each { feed.clone() } else { kind(feed) };
        let feeds: Vec<String> = activation.feeds.iter().map(name).collect();
        let row = [feeds.join(", "), activation.width.to_string(), activation.encoding.clone()];
        match kinds.iter_mut().find(|(known, _)| *known == row) {
            Some((_, count)) => *count += 1,
            None => kinds.push((row, 1)),
        }
    }
    kinds.into_iter().map(|([feeds, width, encoding], count)| vec![feeds, count.to_string(), width, encoding]).collect()
}
