//! `attar fuse MODEL`: shows what the fusion passes do to a model's graph; with `--out`, runs the step.

use std::{path::PathBuf, process::ExitCode};

use attar_compile::pass;
use attar_graph::{Graph, Node};
use attar_recipe::{Error, FusionReport, fusion_table, verb_schema};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Verb, draw, open, path, print_recipe_argument, run_text, step};
use crate::{environment::Environment, printer::Printer, settings};

pub(super) struct Fuse;

/// Name of the step and of the verb.
const NAME: &str = "fuse";

impl Verb for Fuse {
    fn name(&self) -> &'static str {
        NAME
    }

    fn command(&self) -> Command {
        let command = step::command(NAME)
            .visible_alias("fuse-ops")
            .long_about(
                "Fuse graph nodes into the operations that a device executes as one.\n\n\
                 Prints what each pass changed, or with `--text` the fused graph. With `--out`, runs the step `fuse` on its own: \
                 compares logits before and after, and writes a checkpoint folder.",
            )
            .arg(Arg::new("text").long("text").help("Print the fused graph in text form").action(ArgAction::SetTrue))
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("DIR")
                    .help("Output folder, created if it does not exist")
                    .conflicts_with("text")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(print_recipe_argument().requires("out"));
        settings::flags(command, &schema())
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar fuse model", "attar fuse model --text", "attar fuse model --out fused"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let model = path(arguments, "model");
        if arguments.contains_id("out") {
            let text = step::recipe(NAME, arguments);
            return run_text(&format!("attar {NAME} {}", model.display()), &text, arguments, environment, printer);
        }
        let settings = pass::Fuse::deserialize(settings::table(&schema(), arguments));
        let settings = settings.map_err(|error| Error::recipe("invalid settings").because(&error))?;
        let (graph, reports) = settings.run(&open(model, arguments)?.graph)?;
        if printer.json {
            let passes: Vec<Value> =
                reports.iter().map(|r| json!({ "pass": r.name, "changes": r.changes, "nodes": r.nodes })).collect();
            printer.value(&json!({ "passes": passes, "graph": graph.to_string() }));
        } else if arguments.get_flag("text") {
            printer.data(&graph.to_string());
        } else {
            let fusions: Vec<FusionReport> = reports.iter().map(FusionReport::of).collect();
            let table = fusion_table(fusions.iter().map(|fusion| ("", fusion)));
            // The only variant has no name: drop its column.
            let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row[1..].to_vec()).collect();
            printer.data(&draw(&table.head[1..], &rows));
            printer.data(&draw(&["blocks", "nodes", "operations"], &blocks(&graph)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn schema() -> Value {
    verb_schema(NAME).expect("a verb of a step that exists")
}

/// One row per run of blocks with the same operations: the blocks, nodes per block, the operations.
fn blocks(graph: &Graph) -> Vec<Vec<String>> {
    let word = |node: &Node| node.op.fused().map_or(node.op.def().name, |fused| fused.kind().name());
    let mut rows: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    for block in graph.blocks() {
        let (name, words) = (graph.block_name(block), graph.nodes_of(block).map(word).collect::<Vec<_>>());
        match rows.last_mut() {
            Some((names, same)) if *same == words => names.push(name),
            _ => rows.push((vec![name], words)),
        }
    }
    let names = |names: &[&str]| match names {
        [first, .., last] => format!("{first} to {last}"),
        _ => names.concat(),
    };
    rows.iter().map(|(blocks, words)| vec![names(blocks), words.len().to_string(), words.join(", ")]).collect()
}
