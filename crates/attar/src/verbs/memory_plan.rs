//! `attar memory-plan FILE`: places the buffers of a file.

use std::{path::Path, process::ExitCode};

use attar_compile::memory::{
    Effort, Entries, Heights, Method, Outcome, Placement, Problem, Reason, Solution, memory_map, minimise, read_csv, solve,
    validate, write_csv,
};
use attar_recipe::{Error, Size};
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
        let entries = read(file)?;
        let effort = Effort { nodes: *arguments.get_one("nodes").expect("it has a default") };
        let capacity = arguments.get_one::<Size>("capacity").map(|size| size.0);
        let plan = Plan::find(&entries, capacity, effort)?;
        if let Answer::Placed { placement, .. } = &plan.answer {
            check(&entries, capacity, placement);
            let write = |name: &str, text: &dyn Fn() -> String| match arguments.get_one::<std::path::PathBuf>(name) {
                Some(path) => write(path, &text()),
                None => Ok(()),
            };
            write("out", &|| write_csv(&entries, placement))?;
            write("map", &|| memory_map(&entries, placement, capacity.unwrap_or(0)))?;
        }
        if printer.json {
            printer.value(&plan.json(file, &entries));
        } else if !printer.quiet {
            printer.data(&plan.text(file, &entries));
        }
        Ok(if matches!(plan.answer, Answer::Placed { .. }) { ExitCode::SUCCESS } else { ExitCode::from(GATE_FAILED) })
    }
}

fn read(path: &Path) -> Result<Entries, Error> {
    let broken = |e: &dyn std::error::Error| Error::input(format!("`{}` cannot be used", path.display())).because(e);
    let bytes = std::fs::read(path).map_err(|e| broken(&e))?;
    read_csv(&bytes).map_err(|e| broken(&e))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    attar_tensor::write_atomically(path, |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))
        .map_err(|e: attar_tensor::Error| Error::input(format!("`{}` cannot be written", path.display())).because(&e))
}

/// A placement that does not hold is a bug of the planner; nothing of it is written.
fn check(entries: &Entries, capacity: Option<u64>, placement: &Placement) {
    let capacity = capacity.unwrap_or(placement.height);
    let checked = validate(&Problem { buffers: entries.buffers.clone(), capacity }, placement);
    assert_eq!(checked, Ok(()), "the planner's placement does not hold");
}

enum Answer {
    /// No placement is lower than `at_least`, where that was asked for.
    Placed {
        placement: Placement,
        method: Method,
        at_least: Option<u64>,
    },
    Infeasible(Reason),
    Undecided,
}

struct Plan {
    capacity: Option<u64>,
    max_live: u64,
    nodes: u64,
    answer: Answer,
}

impl Plan {
    fn find(entries: &Entries, capacity: Option<u64>, effort: Effort) -> Result<Plan, Error> {
        let problem = Problem { buffers: entries.buffers.clone(), capacity: capacity.unwrap_or(0) };
        let broken = |e: attar_compile::Error| Error::input("the buffers cannot be placed").because(&e);
        let (answer, nodes) = match capacity {
            Some(_) => {
                let Solution { outcome, nodes } = solve(&problem, effort).map_err(broken)?;
                let answer = match outcome {
                    Outcome::Placed(placement, method) => Answer::Placed { placement, method, at_least: None },
                    Outcome::Infeasible(reason) => Answer::Infeasible(reason),
                    Outcome::Undecided => Answer::Undecided,
                };
                (answer, nodes)
            }
            None => match minimise(&problem, effort).map_err(broken)? {
                Ok(Heights { placement, method, at_least, nodes }) => {
                    (Answer::Placed { placement, method, at_least: Some(at_least) }, nodes)
                }
                Err(reason) => (Answer::Infeasible(reason), 0),
            },
        };
        Ok(Plan { capacity, max_live: problem.max_live(), nodes, answer })
    }

    fn text(&self, file: &Path, entries: &Entries) -> String {
        let capacity = self.capacity.map_or(String::new(), |capacity| format!(", capacity {capacity} B"));
        let head =
            format!("{}: {} buffers, at most {} B live at once{capacity}", file.display(), entries.ids.len(), self.max_live);
        let nodes = self.nodes;
        match &self.answer {
            Answer::Placed { placement, method, at_least } => {
                let least = match at_least {
                    Some(least) if *least == placement.height => ", the least there is".to_owned(),
                    Some(least) => format!("; at least {least} B are needed"),
                    None => String::new(),
                };
                let lost = 100.0 * fragmentation(placement.height, self.max_live);
                format!("{head}\nheight {} B{least}, {lost:.2}% fragmentation; {method}, {nodes} nodes", placement.height)
            }
            Answer::Infeasible(reason) => format!("{head}\nFAILED: it does not fit: {}", told(reason, entries)),
            Answer::Undecided => format!("{head}\nFAILED: not decided within {nodes} nodes"),
        }
    }

    fn json(&self, file: &Path, entries: &Entries) -> Value {
        let mut value = json!({
            "path": file, "buffers": entries.ids.len(), "capacity": self.capacity, "max_live": self.max_live, "nodes": self.nodes,
        });
        let more = match &self.answer {
            Answer::Placed { placement, method, at_least } => {
                let offsets: Map<String, Value> =
                    entries.ids.iter().zip(&placement.offsets).map(|(id, offset)| (id.clone(), json!(offset))).collect();
                json!({
                    "outcome": "placed", "height": placement.height, "at_least": at_least, "method": method.to_string(),
                    "fragmentation": fragmentation(placement.height, self.max_live), "offsets": offsets,
                })
            }
            Answer::Infeasible(reason) => {
                json!({ "outcome": "infeasible", "reason": told(reason, entries), "blamed": blamed(reason, entries) })
            }
            Answer::Undecided => json!({ "outcome": "undecided" }),
        };
        let object = value.as_object_mut().expect("it was made as one");
        object.extend(more.as_object().cloned().unwrap_or_default());
        value
    }
}

/// The share of the height that is above what lives at once.
fn fragmentation(height: u64, max_live: u64) -> f64 {
    (height - max_live) as f64 / height as f64
}

fn blamed<'a>(reason: &Reason, entries: &'a Entries) -> Vec<&'a str> {
    let indices = match reason {
        Reason::MaxLive(peak) => peak.buffers.clone(),
        Reason::Collision { one, other } => vec![*one, *other],
        Reason::Above { buffer, .. } => vec![*buffer],
        Reason::Exhausted { subset, .. } => subset.clone(),
    };
    indices.into_iter().map(|buffer| entries.ids[buffer].as_str()).collect()
}

fn told(reason: &Reason, entries: &Entries) -> String {
    let names = blamed(reason, entries);
    let list = format!("`{}`", names.join("`, `"));
    match reason {
        Reason::MaxLive(peak) => format!("at time {} {} B live, of {} buffers: {list}", peak.time, peak.bytes, names.len()),
        Reason::Collision { .. } => format!("{list} are fixed and overlap"),
        Reason::Above { end, .. } => format!("{list} is fixed and ends at {end}"),
        Reason::Exhausted { irreducible: true, .. } => {
            format!("the search looked everywhere; these {} buffers do not fit, and any fewer of them do: {list}", names.len())
        }
        Reason::Exhausted { .. } => format!("the search looked everywhere; these {} buffers do not fit: {list}", names.len()),
    }
}
