//! `attar memory-plan FILE`: places the buffers of a file.

use std::{path::Path, process::ExitCode};

use attar_compile::{
    memory::{Answer, Effort, Entries, Planned, write_csv},
    report::memory_map,
};
use attar_recipe::{Error, Size, place_buffers, read_buffers};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Map, Value, json};

use super::{GATE_FAILED, Verb, path, path_argument};
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
            .about("Place buffers in a memory so that none that live at once overlap")
            .long_about("Place buffers in a memory so that none that live at once overlap.\n\nThe file has the form of the minimalloc benchmarks: a header `id,lower,upper,size` in any order, and a row for each buffer, which needs `size` bytes from time `lower` to before time `upper`. Other columns are read over. Greedy orders come first, then an exact search. Exit code 0 means that a placement was found and checked; 1 that none fits, or that none was found within `--nodes`.")
            .arg(path_argument("FILE", "The buffers, a CSV file"))
            .arg(
                Arg::new("capacity")
                    .long("capacity")
                    .value_name("SIZE")
                    .help("Bytes that there are, like `1 MiB` [default: as few as can be]")
                    .value_parser(|text: &str| text.parse::<Size>()),
            )
            .arg(
                Arg::new("nodes")
                    .long("nodes")
                    .value_name("N")
                    .help("Nodes to search before giving up")
                    .default_value("10000000")
                    .value_parser(value_parser!(u64).range(1..)),
            )
            .arg(file("out", "File to write: the buffers with their offsets, as CSV"))
            .arg(file("map", "File to write: the placement as a picture, as SVG"))
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let file = path(arguments, "file");
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
        .map_err(|e: attar_tensor::Error| Error::input(format!("`{}` cannot be written", path.display())).because(&e))
}

fn for_people(plan: &Planned, file: &Path, entries: &Entries) -> String {
    let capacity = plan.capacity.map_or(String::new(), |capacity| format!(", capacity {capacity} B"));
    let head = format!("{}: {} buffers, at most {} B live at once{capacity}", file.display(), entries.ids.len(), plan.max_live);
    let Answer::Placed { placement, method, at_least } = &plan.answer else {
        return format!("{head}\nFAILED: {}", plan.failure(entries).expect("nothing was placed"));
    };
    let least = match at_least {
        Some(least) if *least == placement.height => ", the least there is".to_owned(),
        Some(least) => format!("; at least {least} B are needed"),
        None => String::new(),
    };
    let (nodes, lost) = (plan.nodes, 100.0 * plan.fragmentation().expect("it was placed"));
    format!("{head}\nheight {} B{least}, {lost:.2}% fragmentation; {method}, {nodes} nodes", placement.height)
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
