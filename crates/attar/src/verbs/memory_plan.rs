//! `attar memory-plan FILE`: places the buffers of a file.

use std::{path::Path, process::ExitCode};

use attar_compile::{
    memory::{Answer, Effort, Entries, Planned, write_csv},
    report::memory_map,
};
use attar_recipe::{Error, Size, place_buffers, read_buffers};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Map, Value, json};

use super::{GATE_FAILED, Verb, check_written, path, path_argument};
use crate::{environment::Environment, printer::Printer};

pub(super) struct MemoryPlan;

impl Verb for MemoryPlan {
    fn name(&self) -> &'static str {
        "memory-plan"
    }

    fn command(&self) -> Command {
        let file = |name: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name("FILE").help(help).value_parser(value_parser!(std::path::PathBuf))
        };
        Command::new("memory-plan")
            .about("Place buffers in a memory so that no two live buffers overlap")
            .long_about("Place buffers in a memory so that no two live buffers overlap.\n\nThe input is a CSV file in the format of the minimalloc benchmarks: a header with the columns `id,lower,upper,size` in any order, and one row per buffer. A buffer takes `size` bytes and is live from time `lower` until just before time `upper`. Other columns are ignored. Greedy heuristics run first, then an exact search. Exit code 0: a placement was found and verified. Exit code 1: no placement exists, or none was found within `--nodes`.")
            .arg(path_argument("FILE", "CSV file with the buffers"))
            .arg(
                Arg::new("capacity")
                    .long("capacity")
                    .value_name("SIZE")
                    .help("Size of the memory, such as `1 MiB` [default: as small as possible]")
                    .value_parser(|text: &str| text.parse::<Size>()),
            )
            .arg(
                Arg::new("nodes")
                    .long("nodes")
                    .value_name("N")
                    .help("Search nodes to visit before giving up")
                    .default_value("10000000")
                    .value_parser(value_parser!(u64).range(1..)),
            )
            .arg(file("out", "Write the buffers with their offsets to this CSV file"))
            .arg(file("map", "Draw the placement to this SVG file"))
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar memory-plan buffers.csv", r#"attar memory-plan buffers.csv --capacity "64 B" --out placed.csv --map placed.svg"#]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let file = path(arguments, "file");
        check_written(arguments, &["out", "map"], file)?;
        let entries = read_buffers(file)?;
        let effort = Effort { nodes: *arguments.get_one("nodes").expect("it has a default") };
        let capacity = arguments.get_one::<Size>("capacity").map(|size| size.0);
        let plan = place_buffers(&entries, capacity, effort)?;
        if let Answer::Placed { placement, .. } = &plan.answer {
            let write = |name: &str, text: &dyn Fn() -> String| match arguments.get_one::<std::path::PathBuf>(name) {
                Some(path) => write(path, &text()),
                None => Ok(()),
            };
            write("out", &|| write_csv(&entries, placement))?;
            write("map", &|| memory_map(&entries, placement, capacity.unwrap_or(0)))?;
        }
        if printer.json {
            printer.value(&for_machines(&plan, file, &entries));
        } else if !printer.quiet {
            printer.data(&for_people(&plan, file, &entries));
        }
        Ok(if matches!(plan.answer, Answer::Placed { .. }) { ExitCode::SUCCESS } else { ExitCode::from(GATE_FAILED) })
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    attar_tensor::write_atomically(path, |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))
        .map_err(|e: attar_tensor::Error| Error::input(format!("cannot write `{}`", path.display())).because(&e))
}

fn for_people(plan: &Planned, file: &Path, entries: &Entries) -> String {
    let capacity = plan.capacity.map_or(String::new(), |capacity| format!(", capacity {capacity} B"));
    let head =
        format!("{}: {} buffers, at most {} B live at any time{capacity}", file.display(), entries.ids.len(), plan.max_live);
    let Answer::Placed { placement, method, at_least } = &plan.answer else {
        return format!("{head}\nFAILED: {}", plan.failure(entries).expect("nothing was placed"));
    };
    let least = match at_least {
        Some(least) if *least == placement.height => " (optimal)".to_owned(),
        Some(least) => format!(" (lower bound {least} B)"),
        None => String::new(),
    };
    let (nodes, lost) = (plan.nodes, 100.0 * plan.fragmentation().expect("it was placed"));
    format!("{head}\nheight {} B{least}, {lost:.2}% fragmentation; {method}, {nodes} search nodes", placement.height)
}

fn for_machines(plan: &Planned, file: &Path, entries: &Entries) -> Value {
    let mut value = json!({
        "path": file, "buffers": entries.ids.len(), "capacity": plan.capacity, "max_live": plan.max_live, "nodes": plan.nodes,
    });
    let more = match &plan.answer {
        Answer::Placed { placement, method, at_least } => {
            let offsets: Map<String, Value> =
                entries.ids.iter().zip(&placement.offsets).map(|(id, offset)| (id.clone(), json!(offset))).collect();
            json!({
                "outcome": "placed", "height": placement.height, "at_least": at_least, "method": method.to_string(),
                "fragmentation": plan.fragmentation(), "offsets": offsets,
            })
        }
        Answer::Infeasible(reason) => {
            json!({ "outcome": "infeasible", "reason": reason.told(entries), "blamed": reason.blamed(entries) })
        }
        Answer::Undecided => json!({ "outcome": "undecided" }),
    };
    let object = value.as_object_mut().expect("it was made as one");
    object.extend(more.as_object().cloned().unwrap_or_default());
    value
}
