//! `attar fuse MODEL`: what the passes make of a model's graph; with `--out`, the step as every other.

use std::{path::PathBuf, process::ExitCode};

use attar_compile::pass;
use attar_graph::{Graph, Node};
use attar_model::Model;
use attar_recipe::{Error, FusionReport, fusion_table, verb_schema};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Verb, draw, path, print_recipe_argument, run_text, step};
use crate::{environment::Environment, printer::Printer, settings};

pub(super) struct Fuse;

/// Of the step and of the verb.
const NAME: &str = "fuse";

impl Verb for Fuse {
    fn name(&self) -> &'static str {
        NAME
    }

    fn command(&self) -> Command {
        let command = step::command(NAME)
            .visible_alias("fuse-ops")
            .long_about(
                "Fuse the nodes of the graph into what a device computes as one. Shows what each pass did; with `--text`, the \
                 graph instead; with `--out`, runs the step `fuse` on its own, which compares logits and writes a checkpoint folder.",
            )
            .arg(Arg::new("text").long("text").help("Print the fused graph in text form").action(ArgAction::SetTrue))
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("DIR")
                    .help("Folder to write, made if need be")
                    .conflicts_with("text")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(print_recipe_argument().requires("out"));
        settings::flags(command, &schema())
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let model = path(arguments, "model");
        if arguments.contains_id("out") {
            let text = step::recipe(NAME, arguments);
            return run_text(&format!("attar {NAME} {}", model.display()), &text, arguments, environment, printer);
        }
        let settings = pass::Fuse::deserialize(settings::table(&schema(), arguments));
        let settings = settings.map_err(|error| Error::recipe("the settings cannot be used").because(&error))?;
        let (graph, reports) = settings.run(&Model::open(model)?.graph)?;
        if printer.json {
            let passes: Vec<Value> =
                reports.iter().map(|r| json!({ "pass": r.name, "changes": r.changes, "nodes": r.nodes })).collect();
            printer.value(&json!({ "passes": passes, "graph": graph.to_string() }));
        } else if arguments.get_flag("text") {
            printer.data(&graph.to_string());
        } else {
            let fusions: Vec<FusionReport> = reports.iter().map(FusionReport::of).collect();
            let table = fusion_table(fusions.iter().map(|fusion| ("", fusion)));
            // There is one variant, and it has no name.
            let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row[1..].to_vec()).collect();
            printer.data(&draw(&table.head[1..], &rows));
            printer.data(&draw(&["blocks", "nodes", "what they do"], &blocks(&graph)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn schema() -> Value {
    verb_schema(NAME).expect("a verb of a step that exists")
}

/// One row for neighbouring blocks of the same ops: the blocks, how many nodes each has, what they are.
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
