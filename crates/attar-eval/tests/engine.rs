//! The real engine in a child process: right answers where it is installed, clear errors and no hang where it is not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use attar_eval::{Error, Mode, OnnxRuntime, Runner, Window, alone, onnxruntime};

/// The example of this crate, which `cargo test` builds beside its tests.
fn host() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let host = tests.parent().unwrap().with_file_name("examples").join(format!("engine{}", std::env::consts::EXE_SUFFIX));
    assert!(host.exists(), "{} is built by `cargo test -p attar-eval`, or with `--examples`", host.display());
    host
}

/// The virtual environment with the engines, where there is one.
fn engines() -> Option<PathBuf> {
    let engines = std::env::var_os("ATTAR_ENGINES").map(PathBuf::from).filter(|root| root.join("bin/python").exists());
    if engines.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: ATTAR_ENGINES names no virtual environment");
    }
    engines
}

struct Toy {
    folder: tempfile::TempDir,
    library: PathBuf,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

const VOCABULARY: usize = 50;

impl Toy {
    fn new() -> Option<Toy> {
        let engines = engines()?;
        let Some(library) = onnxruntime::find(std::slice::from_ref(&engines)) else {
            let _ = writeln!(std::io::stderr(), "skipped: {} has no onnxruntime", engines.display());
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/toy_decoder.py");
        let made = Command::new(engines.join("bin/python")).arg(script).arg(folder.path()).status().unwrap();
        assert!(made.success(), "toy_decoder.py");
        let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        let tokens = bytes("tokens.u32").chunks(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect();
        let logits = bytes("logits.f32").chunks(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
        Some(Toy { folder, library, tokens, logits })
    }

    fn engine(&self, mode: Mode) -> OnnxRuntime {
        let mut engine = OnnxRuntime::new(&self.library, self.folder.path(), mode, host());
        engine.threads = Some(1);
        engine.timeout = Duration::from_secs(60);
        engine
    }
}

fn window(tokens: &[u32]) -> Window {
    Window { tokens: tokens.to_vec(), scored: 0..tokens.len() - 1 }
}

/// The same engine on the same numbers, with one thread or several.
const SAME: f32 = 1e-5;

#[test]
fn rows_are_those_of_the_engines_own_python() {
    let Some(toy) = Toy::new() else { return };
    for mode in [Mode::Exact, Mode::Default] {
        let engine = toy.engine(mode);
        let windows = [window(&toy.tokens), window(&toy.tokens[5..9]), window(&toy.tokens)];
        let mut logits = engine.start(&windows, &|_, _| {}).unwrap();
        let mut rows = Vec::new();
        for window in [0, 1, 2] {
            for part in [2..4, 0..1] {
                assert_eq!(logits.rows(window, part.clone(), &mut rows).unwrap(), VOCABULARY);
                assert_eq!(rows.len(), part.len() * VOCABULARY);
                if window != 1 {
                    let want = &toy.logits[part.start * VOCABULARY..part.end * VOCABULARY];
                    assert!(rows.iter().zip(want).all(|(got, want)| (got - want).abs() < SAME), "{mode}");
                }
            }
        }
        let mut sibling = engine.start(&windows, &|_, _| {}).unwrap();
        let measured = alone(&windows, &mut *logits, Some(&mut *sibling), &|_, _| {}).unwrap();
        assert_eq!(measured.agreement.unwrap().max_logit_difference, 0.0);
    }
}

#[test]
fn the_cache_changes_no_token() {
    let Some(toy) = Toy::new() else { return };
    let engine = toy.engine(Mode::Exact);
    let mut heard = Vec::new();
    let said = engine.generate(&toy.tokens[..5], 12, &[], &mut |token| heard.push(token)).unwrap();
    assert_eq!((said.len(), &heard), (12, &said));
    let whole = [window(&[&toy.tokens[..5], &said].concat())];
    let mut logits = engine.start(&whole, &|_, _| {}).unwrap();
    let mut rows = Vec::new();
    logits.rows(0, 4..16, &mut rows).unwrap();
    let greedy: Vec<u32> =
        rows.chunks(VOCABULARY).map(|row| (0..50).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32).collect();
    assert_eq!(greedy, said);
    let stopped = engine.generate(&toy.tokens[..5], 12, &[said[2]], &mut |_| {}).unwrap();
    let end = said.iter().position(|token| *token == said[2]).unwrap();
    assert_eq!(stopped, said[..=end]);
    assert!(matches!(engine.generate(&[], 1, &[], &mut |_| {}), Err(Error::EmptyPrompt)));
}

fn failure(engine: &OnnxRuntime) -> Error {
    let windows = [window(&[1, 2])];
    engine.start(&windows, &|_, _| {}).and_then(|mut logits| logits.rows(0, 0..1, &mut Vec::new())).unwrap_err()
}

#[test]
fn a_token_outside_the_vocabulary_is_the_engines_error() {
    let Some(toy) = Toy::new() else { return };
    let windows = [window(&[1, 2, 5000])];
    let engine = toy.engine(Mode::Exact);
    let error = engine.start(&windows, &|_, _| {}).unwrap().rows(0, 0..1, &mut Vec::new()).unwrap_err();
    assert!(matches!(&error, Error::Engine { doing: "running tokens", message } if message.contains("5000")), "{error}");
}

#[test]
fn a_broken_model_is_the_engines_error() {
    let Some(toy) = Toy::new() else { return };
    std::fs::remove_file(toy.folder.path().join("model.onnx.data")).unwrap();
    let error = failure(&toy.engine(Mode::Exact));
    assert!(
        matches!(&error, Error::Engine { doing: "loading the model", message } if message.contains("model.onnx.data")),
        "{error}"
    );
    std::fs::write(toy.folder.path().join("model.onnx"), "no model").unwrap();
    assert!(matches!(failure(&toy.engine(Mode::Exact)), Error::Engine { doing: "loading the model", .. }));
}

#[test]
fn another_library_is_an_error_that_names_it() {
    let Some(toy) = Toy::new() else { return };
    let mut engine = toy.engine(Mode::Exact);
    engine.library = toy.library.with_file_name("libonnxruntime_providers_shared.so");
    let error = failure(&engine);
    assert!(matches!(&error, Error::Engine { message, .. } if message.contains("OrtGetApiBase")), "{error}");
}

/// A folder with a file for a library and one for a model; whatever fails here, fails before they are looked at.
fn without_engine(host: &Path) -> (tempfile::TempDir, OnnxRuntime) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), "").unwrap();
    let library = folder.path().join("libonnxruntime.so.1.0.0");
    std::fs::write(&library, "no library").unwrap();
    let mut engine = OnnxRuntime::new(library, folder.path(), Mode::Exact, host);
    engine.timeout = Duration::from_secs(20);
    (folder, engine)
}

#[test]
fn a_file_that_is_no_library_is_an_error_that_names_it() {
    let (_folder, engine) = without_engine(&host());
    let error = failure(&engine);
    assert!(
        matches!(&error, Error::Engine { message, .. } if message.contains("libonnxruntime.so.1.0.0") && message.contains("file too short")),
        "{error}"
    );
}

#[test]
fn files_that_are_missing_are_named_before_anything_starts() {
    let (folder, engine) = without_engine(Path::new("/nowhere/host"));
    assert!(matches!(failure(&engine), Error::EngineStart { .. }));
    std::fs::remove_file(folder.path().join("model.onnx")).unwrap();
    assert!(matches!(failure(&engine), Error::NoFile { what: "the artifact's model", .. }));
    std::fs::remove_file(&engine.library).unwrap();
    assert!(matches!(failure(&engine), Error::NoFile { what: "the library of onnxruntime", .. }));
}

/// `tests/hosts.sh` under one of its names. A link: a file that was just written may be busy when others fork.
#[cfg(unix)]
fn pretender(name: &str) -> (tempfile::TempDir, OnnxRuntime) {
    let (folder, mut engine) = without_engine(Path::new(""));
    engine.host = folder.path().join(name);
    std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts.sh"), &engine.host).unwrap();
    (folder, engine)
}

#[cfg(unix)]
#[test]
fn a_child_that_never_answers_runs_into_the_time_limit() {
    for name in ["hangs", "leaves-a-child"] {
        let (_folder, mut engine) = pretender(name);
        engine.timeout = Duration::from_millis(500);
        let start = Instant::now();
        let error = failure(&engine);
        assert!(matches!(&error, Error::EngineTimeout { stderr, .. } if stderr == "thinking\n"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(4), "a grandchild holds the pipes for 5 seconds");
    }
}

#[cfg(unix)]
#[test]
fn a_child_that_ends_is_reported_with_its_last_words() {
    for (name, how) in [("fails", "exit status: 3"), ("crashes", "signal: 9")] {
        let error = failure(&pretender(name).1);
        let right =
            matches!(&error, Error::EngineDied { stderr, status, .. } if stderr == "out of luck\n" && status.contains(how));
        assert!(right, "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_host_that_says_something_else_is_quoted() {
    let error = failure(&pretender("talks").1);
    assert!(matches!(&error, Error::Protocol { found, .. } if found.contains("usage:")), "{error}");
}
