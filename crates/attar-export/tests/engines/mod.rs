//! Engines by their own Python, in the environments that `ATTAR_ENGINES` has.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// The variable with the words in front of the command line of an engine.
const EMULATOR: &str = "ATTAR_ENGINE_RUNNER";

/// Runs cases in an engine's own Python by a script of this folder; `None` if `ATTAR_ENGINES` says of no engines.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn run(engine: &str, script: &str, cases: &[Value]) -> Option<Vec<Value>> {
    let Some(engines) = std::env::var_os("ATTAR_ENGINES") else {
        eprintln!("skipped: ATTAR_ENGINES is not set");
        return None;
    };
    if engine == "onnxruntime-qnn" && std::env::var_os(EMULATOR).is_some_and(|words| !words.is_empty()) {
        eprintln!("skipped: Qualcomm's library ends at once on an emulated processor");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let mut python = on_processor(&Path::new(&engines).join(engine).join("bin/python"))
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|_| panic!("ATTAR_ENGINES has no Python environment `{engine}`: `cargo xtask engines` makes it"));
    python.stdin.take().unwrap().write_all(&serde_json::to_vec(cases).unwrap()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// A program on the processor that `ATTAR_ENGINE_RUNNER` emulates (`cargo xtask as haswell`), or natively.
fn on_processor(program: &Path) -> Command {
    let runner = std::env::var(EMULATOR).unwrap_or_default();
    let words: Vec<&str> = runner.split_whitespace().collect();
    let Some((emulator, arguments)) = words.split_first() else { return Command::new(program) };
    let mut command = Command::new(emulator);
    command.args(arguments).arg(program);
    command
}
