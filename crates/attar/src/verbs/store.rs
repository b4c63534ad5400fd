//! `attar store`: what to do with a store that runs share.

use std::{path::Path, process::ExitCode, time::Duration};

use attar_recipe::{Error, bytes};
use attar_tensor::{Collected, FolderStore, Keep, Lease, Store as _};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::{Verb, draw, path, path_argument};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Store;

impl Verb for Store {
    fn name(&self) -> &'static str {
        "store"
    }

    fn command(&self) -> Command {
        Command::new("store")
            .about("Maintain a store of finished work that runs share")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(collect_command())
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar store gc store --dry-run", "attar store gc store --older-than 12h"]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let ("gc", arguments) = arguments.subcommand().expect("clap demands one") else { unreachable!("clap knows only this") };
        let root = path(arguments, "store");
        let age: Age = *arguments.get_one("older-than").expect("it has a default");
        let dry_run = arguments.get_flag("dry-run");
        let store = FolderStore::existing(root)?;
        let collected = store.collect_garbage(Keep::Used(age.0), dry_run)?;
        show(root, &collected, &store.leases()?, dry_run, printer);
        Ok(ExitCode::SUCCESS)
    }
}

fn collect_command() -> Command {
    Command::new("gc")
        .about("Delete what no run needs any more")
        .long_about(
            "Delete what no run needs any more: blobs that no run has used for a while, blobs that no line of the journal names, and what killed runs left incomplete. Blobs that a running attar uses are never deleted, so this can run at any time, on any machine that shares the store. What is deleted is made again when a run needs it.",
        )
        .arg(path_argument("STORE", "The store: the folder that recipes name as `store`"))
        .arg(
            Arg::new("older-than")
                .long("older-than")
                .value_name("AGE")
                .help("Delete blobs that no run has used for this long: a number of s, min, h, d or w")
                .default_value("30d")
                .value_parser(|text: &str| text.parse::<Age>()),
        )
        .arg(Arg::new("dry-run").long("dry-run").help("Show what would be deleted, and delete nothing").action(ArgAction::SetTrue))
}

/// A time span on the command line.
#[derive(Clone, Copy)]
struct Age(Duration);

/// Units of time and their seconds.
const UNITS: [(&str, u64); 5] = [("s", 1), ("min", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];

impl std::str::FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Age, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let seconds = UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, seconds)| seconds);
        let span = number.parse::<u64>().ok().zip(seconds).and_then(|(n, seconds)| n.checked_mul(*seconds));
        span.map(|seconds| Age(Duration::from_secs(seconds))).ok_or_else(|| "expected an age like `30d`, `12h` or `0s`".into())
    }
}

fn show(root: &Path, collected: &Collected, leases: &[Lease], dry_run: bool, printer: &Printer) {
    if printer.json {
        let running: Vec<_> = leases
            .iter()
            .map(|lease| json!({ "pid": lease.pid, "host": lease.host, "since": lease.since, "blobs": lease.blobs.len() }))
            .collect();
        return printer.value(&json!({
            "store": root, "dry_run": dry_run, "freed_bytes": collected.freed(), "collected": collected, "running": running,
        }));
    }
    if printer.quiet {
        return;
    }
    let rows = [
        ("kept", &collected.kept),
        ("of these, in use", &collected.leased),
        ("not used for long", &collected.expired),
        ("not in the journal", &collected.unreachable),
        ("incomplete", &collected.incomplete),
    ];
    let rows: Vec<Vec<String>> =
        rows.iter().map(|(what, total)| vec![(*what).into(), total.count.to_string(), bytes(total.bytes)]).collect();
    printer.data(&draw(&["blobs", "number", "bytes"], &rows));
    for lease in leases {
        printer.data(&format!("in use by process {} on {}: {} blobs", lease.pid, lease.host, lease.blobs.len()));
    }
    let verb = if dry_run { "would free" } else { "freed" };
    printer.data(&format!("{}: {verb} {}, {} journal lines", root.display(), bytes(collected.freed()), collected.journal_lines));
}

#[cfg(test)]
mod tests {
    use super::Age;

    #[test]
    fn ages_have_a_unit() {
        let seconds = |text: &str| text.parse::<Age>().map(|age| age.0.as_secs()).ok();
        assert_eq!(["0s", "5min", "12h", "30d", "2 w"].map(seconds), [0, 300, 43_200, 2_592_000, 1_209_600].map(Some));
        assert_eq!(["30", "d", "", "-1d", "1.5d", "3y", "99999999999999999999d", "9999999999999999999w"].map(seconds), [None; 8]);
    }
}
