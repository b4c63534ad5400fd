//! `as`: the engine tests on another processor. The tests and the compiler run natively; only the processes that hold an
//! engine run in QEMU's user-mode emulator, so that a minute is enough.
//!
//! Why: a runtime picks its kernels by the processor it finds. An artifact must compute the same with every one of them,
//! and a machine with the newest instructions shows nothing of what older ones do.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;
use crate::engines;
use crate::tally::Tally;
use crate::test;

/// The variable that holds the words in front of an engine's command line.
const RUNNER: &str = "ATTAR_ENGINE_RUNNER";

/// The tests that start engines.
const TESTS: &[&str] = &["--test", "onnx", "--test", "engine"];

/// A processor that can be emulated.
pub(crate) struct Processor {
    /// Its name on the command line.
    name: &'static str,
    /// The emulator and its arguments.
    runner: &'static [&'static str],
}

/// AVX2 without VNNI and AVX-512. The features that are switched off are those that the emulator lacks and would warn about.
pub(crate) static HASWELL: Processor =
    Processor { name: "haswell", runner: &["qemu-x86_64", "-cpu", "Haswell-v4,-pcid,-x2apic,-tsc-deadline,-invpcid,-spec-ctrl"] };

static PROCESSORS: &[&Processor] = &[&HASWELL];

/// The verb: a processor's name, and then what `test` takes.
pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    let (name, arguments) = arguments.split_first().ok_or_else(|| unknown(""))?;
    let processor = PROCESSORS.iter().find(|processor| processor.name == name).ok_or_else(|| unknown(name))?;
    engines::run(checkout, &[])?;
    let mut tally = Tally::default();
    let done = count(checkout, processor, arguments, &mut tally);
    test::close(done, &tally)
}

/// Runs the engine tests with their engines on that processor; with `arguments`, the tests that these select. An emulator
/// that is missing is a failure, never a skip.
pub(crate) fn count(checkout: &Checkout, on: &Processor, arguments: &[String], tally: &mut Tally) -> Result<(), Failure> {
    ensure(on.runner[0])?;
    let tests: Vec<String> = TESTS.iter().map(|word| (*word).to_owned()).collect();
    let arguments = if arguments.is_empty() { &tests } else { arguments };
    test::count(checkout, arguments, &[(RUNNER, &on.runner.join(" "))], tally)
}

fn unknown(name: &str) -> Failure {
    let known: Vec<&str> = PROCESSORS.iter().map(|processor| processor.name).collect();
    Failure::Usage(format!("`as` takes the name of a processor, found `{name}`; known: {}", known.join(", ")))
}

/// Installs the emulator where it is missing and the caller may.
fn ensure(emulator: &str) -> Result<(), Failure> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Failure::Broken("other x86-64 processors are emulated on x86-64 only".to_owned()));
    }
    if on_path(emulator, &folders()) {
        return Ok(());
    }
    let missing = format!("`{emulator}` is not installed\nhint: on Debian and Ubuntu, `apt install qemu-user`");
    if !on_path("apt-get", &folders()) || !is_root()? {
        return Err(Failure::Broken(missing));
    }
    child::run(Command::new("apt-get").args(["update", "-qq"]))?;
    child::run(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends", "qemu-user"]))?;
    if on_path(emulator, &folders()) { Ok(()) } else { Err(Failure::Broken(missing)) }
}

fn is_root() -> Result<bool, Failure> {
    Ok(child::output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

fn on_path(program: &str, folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| Path::new(folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_where_it_is_and_nowhere_else() {
        let sh = [PathBuf::from("/nowhere"), PathBuf::from("/bin")];
        assert!(on_path("sh", &sh) && !on_path("sh", &sh[..1]));
    }

    #[test]
    fn an_unknown_processor_is_wrong_usage_that_names_the_known() {
        let Failure::Usage(message) = unknown("hazwell") else { panic!("usage") };
        assert!(message.contains("hazwell") && message.contains("haswell"), "{message}");
    }
}
