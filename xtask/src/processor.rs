//! `as`: tests on another processor. Where the kernel lets CPUID fault, the tests and the engines run natively with the
//! newer instructions hidden (`mask_avx512.c`). Elsewhere the processes that hold an engine run in QEMU's user-mode
//! emulator, and the tests themselves run natively.
//!
//! Why: a runtime picks its kernels by the processor it finds. An artifact must compute the same with every one of them,
//! and a machine with the newest instructions shows nothing of what older ones do.

use std::fs;
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;
use crate::engines;
use crate::system;
use crate::tally::Tally;
use crate::test;

/// The variable that holds the words in front of an engine's command line.
const RUNNER: &str = "ATTAR_ENGINE_RUNNER";

/// The variable that holds the words in front of a test's command line.
const TEST_RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// The library that hides AVX-512, AMX and VNNI.
const MASK: &str = include_str!("mask_avx512.c");

/// The tests that start engines.
const TESTS: &[&str] = &["--test", "onnx", "--test", "engine"];

/// A processor that tests can run as.
pub(crate) struct Processor {
    /// Its name on the command line.
    name: &'static str,
    /// The emulator and its arguments.
    emulator: &'static [&'static str],
}

/// AVX2 without VNNI and AVX-512. The features that are switched off are those that the emulator lacks and would warn about.
pub(crate) static HASWELL: Processor = Processor {
    name: "haswell",
    emulator: &["qemu-x86_64", "-cpu", "Haswell-v4,-pcid,-x2apic,-tsc-deadline,-invpcid,-spec-ctrl"],
};

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

/// Runs the engine tests on that processor; with `arguments`, the tests that these select. Where neither the mask nor the
/// emulator works, this fails: it never skips.
pub(crate) fn count(checkout: &Checkout, on: &Processor, arguments: &[String], tally: &mut Tally) -> Result<(), Failure> {
    let tests: Vec<String> = TESTS.iter().map(|word| (*word).to_owned()).collect();
    let arguments = if arguments.is_empty() { &tests } else { arguments };
    if let Some(mask) = mask(checkout)? {
        eprintln!("{}: natively, with newer instructions hidden", on.name);
        return test::count(checkout, arguments, &[(RUNNER, &mask), (TEST_RUNNER, &mask)], tally);
    }
    ensure(on.emulator[0])?;
    eprintln!("{}: engines run in {}", on.name, on.emulator[0]);
    test::count(checkout, arguments, &[(RUNNER, &on.emulator.join(" "))], tally)
}

/// The words in front of a command that hide newer instructions from it; nothing where the machine cannot do that.
fn mask(checkout: &Checkout) -> Result<Option<String>, Failure> {
    let faults = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.split_whitespace().any(|flag| flag == "cpuid_fault"));
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) || !faults || !system::has("cc") {
        return Ok(None);
    }
    let folder = checkout.target.join("mask");
    let (source, library) = (folder.join("mask_avx512.c"), folder.join("mask_avx512.so"));
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&source, MASK));
    written.map_err(|error| Failure::Broken(format!("cannot write `{}`: {error}", source.display())))?;
    child::run(Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source))?;
    let words = format!("env LD_PRELOAD={}", library.display());
    // Both variables are split at spaces.
    let works = !library.display().to_string().contains(' ')
        && Command::new("env")
            .arg(format!("LD_PRELOAD={}", library.display()))
            .arg("true")
            .status()
            .is_ok_and(|done| done.success());
    Ok(works.then_some(words))
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
    system::ensure(emulator, "qemu-user")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_processor_is_wrong_usage_that_names_the_known() {
        let Failure::Usage(message) = unknown("hazwell") else { panic!("usage") };
        assert!(message.contains("hazwell") && message.contains("haswell"), "{message}");
    }
}
