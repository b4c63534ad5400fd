//! `fuzz`: runs the fuzz targets of `fuzz/` with libFuzzer, under the address sanitizer.
//!
//! The targets are built here rather than by cargo-fuzz, so that nothing has to be installed and dependencies are those of
//! every other release build: only our own crates are built again, with coverage and the sanitizer (`fuzz/rustc`). Where
//! cargo-fuzz is installed, `cargo fuzz run TARGET` works on the same folder and builds everything.

use std::fs;
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;

/// Seconds that each target runs if none are given.
const SECONDS: &str = "60";

/// MiB that a target may take: a reader must not allocate what a header merely claims.
const MEMORY: &str = "1024";

/// Seconds that one input may take.
const LONGEST: &str = "20";

/// Coverage as libFuzzer reads it, and the address sanitizer. What is not ours is built without, which is sound for the two.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Zunstable-options -Cunsafe-allow-abi-mismatch=sanitizer";

pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    let known = targets(checkout)?;
    let (targets, seconds) = chosen(arguments, &known)?;
    if !cfg!(target_os = "linux") {
        return Err(Failure::Broken("the address sanitizer is set up for Linux only".into()));
    }
    build(checkout, &targets)?;
    targets.iter().try_for_each(|target| fuzz(checkout, target, seconds))
}

fn build(checkout: &Checkout, targets: &[&str]) -> Result<(), Failure> {
    let folder = checkout.root.join("fuzz");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&folder).env("CARGO_TARGET_DIR", &checkout.target);
    cargo.env("RUSTC_WRAPPER", folder.join("rustc")).env("ATTAR_FUZZ_FLAGS", FLAGS);
    child::run(cargo.args(["build", "--release"]).args(targets.iter().flat_map(|target| ["--bin", target])))
}

/// What a target finds lies in `target/fuzz/found/TARGET`, and ends the run.
fn fuzz(checkout: &Checkout, target: &str, seconds: &str) -> Result<(), Failure> {
    let folder = |name: &str| {
        let made = checkout.target.join("fuzz").join(name).join(target);
        fs::create_dir_all(&made).map(|()| made.clone()).map_err(|error| Failure::at(&made, &error))
    };
    let (corpus, found) = (folder("corpus")?, folder("found")?);
    let mut fuzzer = Command::new(checkout.target.join("release").join(target));
    fuzzer.current_dir(&checkout.root).arg(corpus).arg(seeds(checkout, target));
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-rss_limit_mb={MEMORY}"));
    fuzzer.arg(format!("-timeout={LONGEST}")).arg(format!("-artifact_prefix={}/", found.display()));
    child::run(fuzzer.args(["-print_final_stats=1", "-verbosity=1"]))
}

/// The committed inputs that a target starts from; the tests of our crates run them, too.
fn seeds(checkout: &Checkout, target: &str) -> std::path::PathBuf {
    checkout.root.join("testdata/fuzz").join(target)
}

/// The files of `fuzz/targets`.
fn targets(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let folder = checkout.root.join("fuzz/targets");
    let entries = fs::read_dir(&folder).map_err(|error| Failure::at(&folder, &error))?;
    let names = entries.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// Which targets run, and for how long: `[TARGET] [SECONDS]` in any order, all of them and a minute if not said.
fn chosen<'a>(arguments: &'a [String], known: &'a [String]) -> Result<(Vec<&'a str>, &'a str), Failure> {
    let (mut targets, mut seconds) = (Vec::new(), SECONDS);
    for argument in arguments {
        if argument.parse::<u32>().is_ok() {
            seconds = argument;
        } else if known.contains(argument) {
            targets.push(argument.as_str());
        } else {
            return Err(Failure::Usage(format!("there is no fuzz target `{argument}`: {}", known.join(", "))));
        }
    }
    if targets.is_empty() {
        targets.extend(known.iter().map(String::as_str));
    }
    Ok((targets, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn all_targets_run_for_a_minute_unless_told_otherwise() {
        let known = words("gguf ir");
        assert!(matches!(chosen(&[], &known), Ok((targets, "60")) if targets == ["gguf", "ir"]));
        assert!(matches!(chosen(&words("ir 600"), &known), Ok((targets, "600")) if targets == ["ir"]));
        assert!(matches!(chosen(&words("onyx"), &known), Err(Failure::Usage(_))));
    }

    #[test]
    fn every_target_has_seeds() {
        let checkout = Checkout::find();
        let known = targets(&checkout).unwrap_or_default();
        assert!(known.len() >= 10, "{known:?}");
        for target in known {
            let seeds = fs::read_dir(seeds(&checkout, &target)).map_or(0, Iterator::count);
            assert!(seeds > 0, "`testdata/fuzz/{target}` has no seeds");
        }
    }
}
