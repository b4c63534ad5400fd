//! `ci`: everything that must hold before a merge. Stages run in order and the first failure ends the run; the very
//! last line is the tests' closing line.

use std::time::{Duration, Instant};

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;
use crate::engines;
use crate::page;
use crate::processor;
use crate::smollm2;
use crate::system;
use crate::tally::Tally;
use crate::test;
use crate::venv;

struct Stage {
    name: &'static str,
    run: fn(&Checkout, &mut Tally) -> Result<(), Failure>,
}

static STAGES: &[Stage] = &[
    Stage { name: "format", run: |checkout, _| child::run(child::cargo(checkout).args(["fmt", "--all", "--check"])) },
    Stage { name: "clippy", run: |checkout, _| child::run(child::cargo(checkout).args(CLIPPY)) },
    Stage { name: "engines", run: |checkout, _| engines::run(checkout, &[]) },
    Stage { name: "compilers", run: |_, _| compilers() },
    Stage { name: "browser", run: |_, _| system::ensure(page::BROWSER, page::BROWSER) },
    Stage { name: "smollm2", run: |checkout, _| checkpoint(checkout) },
    Stage { name: "test", run: tests },
    Stage { name: "haswell", run: |checkout, tally| processor::count(checkout, &processor::HASWELL, &[], tally) },
    Stage { name: "docs", run: |checkout, _| child::run(child::cargo(checkout).args(DOC).env("RUSTDOCFLAGS", "-Dwarnings")) },
    Stage { name: "quickstart", run: |checkout, _| child::run(child::cargo(checkout).args(QUICKSTART)) },
];

const CLIPPY: &[&str] = &["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"];
const DOC: &[&str] = &["doc", "--workspace", "--no-deps", "--release"];
/// The README's first command, word for word.
const QUICKSTART: &[&str] = &["run", "--release", "--", "run", "recipes/quickstart.toml"];

pub(crate) fn run(checkout: &Checkout, _arguments: &[String]) -> Result<(), Failure> {
    let (mut tally, mut times) = (Tally::default(), Vec::new());
    let done = STAGES.iter().try_for_each(|stage| {
        eprintln!("\n== {} ==", stage.name);
        let start = Instant::now();
        let done = (stage.run)(checkout, &mut tally);
        times.push((stage, start.elapsed(), done.is_ok()));
        done
    });
    eprintln!();
    for (stage, time, succeeded) in times {
        eprintln!("{}", timing(stage.name, time, succeeded));
    }
    test::close(done, &tally)
}

/// What the target `c` is compiled and run with, apart from the C compiler that Rust needs itself.
fn compilers() -> Result<(), Failure> {
    let wanted =
        [("clang", "clang libclang-rt-dev"), ("arm-none-eabi-gcc", "gcc-arm-none-eabi"), ("qemu-system-arm", "qemu-system-arm")];
    wanted.into_iter().try_for_each(|(program, package)| system::ensure(program, package))
}

/// The larger checkpoint, only where the folder beside the repository says that the larger tests are wanted.
fn checkpoint(checkout: &Checkout) -> Result<(), Failure> {
    if checkout.shared.is_some() {
        return smollm2::run(checkout, &[]);
    }
    eprintln!("left out: there is no `../shared`");
    Ok(())
}

/// All tests. Those of `../shared/cases` run its scripts, which need packages of their own.
fn tests(checkout: &Checkout, tally: &mut Tally) -> Result<(), Failure> {
    if checkout.shared.is_none() {
        return test::count(checkout, &[], &[BOARD], tally);
    }
    let python = venv::ensure(&checkout.target.join("cases-venv"), CASES)?;
    test::count(checkout, &[], &[("ATTAR_CASES_PYTHON", &python.to_string_lossy()), BOARD], tally)
}

/// Tests on an emulated board fail where it is missing.
const BOARD: (&str, &str) = ("ATTAR_BOARD", "1");

const CASES: &[&str] = &["numpy==2.4.6", "ml_dtypes==0.6.0", "tokenizers==0.23.3", "gguf==0.19.0"];

fn timing(name: &str, time: Duration, succeeded: bool) -> String {
    format!("{name:12} {:7.1} s{}", time.as_secs_f64(), if succeeded { "" } else { "  failed" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_stage_is_marked_in_the_times() {
        assert_eq!(timing("clippy", Duration::from_millis(61_240), true), "clippy          61.2 s");
        assert_eq!(timing("test", Duration::from_millis(500), false), "test             0.5 s  failed");
    }
}
