//! The suite of ENGINES: every engine gives right answers where it is installed, and clear errors and no hang where it is
//! not, or where its process misbehaves. What an engine makes of the models that we write is tested by `attar`'s own tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use attar_eval::{
    Artifact, ENGINES, Engine, Error, Generation, Installation, Mode, Output, Places, Rows, Runner, Window,
    engine::{Home, Worker},
    perplexity::alone,
};

/// The example of this crate, which `cargo test` builds beside its tests.
fn host() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let host = tests.parent().unwrap().with_file_name("examples").join(format!("engine{}", std::env::consts::EXE_SUFFIX));
    assert!(host.exists(), "{} is built by `cargo test -p attar-eval`, or with `--examples`", host.display());
    host
}

fn skip(reason: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// The engines of `ATTAR_ENGINES`, where there are any.
fn installed() -> Vec<Installation> {
    let places = Places::read(ENGINES.iter().copied(), |_| None, |name| std::env::var_os(name));
    let find =
        |engine: &&'static Engine| places.find(engine).map_err(|error| skip(format!("{error}; {}", error.hint().unwrap()))).ok();
    ENGINES.iter().filter_map(find).collect()
}

/// A decoder of one layer that we did not write, and its logits by ONNX Runtime's own Python.
struct Toy {
    folder: tempfile::TempDir,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

const VOCABULARY: usize = 50;

/// Made once for all tests. It takes the environment with the onnx package.
fn toy() -> Option<&'static Toy> {
    static TOY: OnceLock<Option<Toy>> = OnceLock::new();
    let made = TOY.get_or_init(|| {
        let python = PathBuf::from(std::env::var_os("ATTAR_ENGINES")?).join("onnxruntime/bin/python");
        python.exists().then(|| Toy::make(&python))
    });
    if made.is_none() {
        skip("ATTAR_ENGINES has no environment `onnxruntime`, which makes the model");
    }
    made.as_ref()
}

impl Toy {
    fn make(python: &Path) -> Toy {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/toy_decoder.py");
        let made = Command::new(python).arg(script).arg(folder.path()).status().unwrap();
        assert!(made.success(), "toy_decoder.py");
        let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        let tokens = bytes("tokens.u32").chunks(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect();
        let logits = bytes("logits.f32").chunks(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
        Toy { folder, tokens, logits }
    }

    fn in_engine(&self, installation: &Installation, mode: Mode) -> Artifact {
        artifact(installation, self.folder.path(), mode)
    }
}

fn artifact(installation: &Installation, folder: &Path, mode: Mode) -> Artifact {
    let mut artifact = Artifact::new(installation.clone(), folder, mode, host());
    artifact.threads = Some(1);
    artifact.timeout = Duration::from_secs(120);
    artifact
}

fn window(tokens: &[u32]) -> Window {
    Window { tokens: tokens.to_vec(), scored: 0..tokens.len() - 1 }
}

/// Two engines, or one with other threads, that add up f32 numbers of the size 1 in another order.
const SAME: f32 = 1e-4;

#[test]
fn every_engine_gives_the_same_rows_continues_from_its_cache_and_names_its_errors() {
    let Some(toy) = toy() else { return };
    for installation in of_onnx() {
        for mode in installation.engine.modes {
            let engine = toy.in_engine(&installation, *mode);
            let windows = [window(&toy.tokens), window(&toy.tokens[5..9]), window(&toy.tokens)];
            let mut logits = engine.start(Output::Logits.into(), &windows, &|_, _| {}).unwrap();
            rows_are_right(toy, &mut *logits, *mode);
            if *mode == Mode::Exact {
                let mut sibling = engine.start(Output::Logits.into(), &windows, &|_, _| {}).unwrap();
                let measured = alone(&windows, &mut *logits, Some(&mut *sibling), &|_, _| {}).unwrap();
                assert_eq!(measured.agreement.unwrap().max_logit_difference, 0.0, "{installation:?}");
            }
        }
        the_cache_changes_no_token(toy, &toy.in_engine(&installation, Mode::Exact));
        let error = toy.in_engine(&installation, Mode::Exact).start(Output::Embedding.into(), &[], &|_, _| {}).err().unwrap();
        assert_eq!(error.to_string(), "the model has no output `sentence_embedding`; it has `logits`");
        let mut elsewhere = toy.in_engine(&installation, Mode::Exact);
        elsewhere.device = "ABACUS".into();
        assert!(matches!(failure(&elsewhere), Error::Engine { message, .. } if message.contains("ABACUS")));
    }
}

/// Engines that open what the toy is.
fn of_onnx() -> impl Iterator<Item = Installation> {
    let opens = |installation: &Installation| installation.engine.opens.iter().any(|opens| opens.target.starts_with("onnx"));
    installed().into_iter().filter(opens)
}

fn rows_are_right(toy: &Toy, logits: &mut dyn Rows, mode: Mode) {
    let mut rows = Vec::new();
    for window in [0, 1, 2] {
        for part in [2..4, 0..1] {
            assert_eq!(logits.rows(window, part.clone(), &mut rows).unwrap(), VOCABULARY);
            assert_eq!(rows.len(), part.len() * VOCABULARY);
            if window != 1 && mode == Mode::Exact {
                let want = &toy.logits[part.start * VOCABULARY..part.end * VOCABULARY];
                let off = rows.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
                assert!(off < SAME, "{off}");
            }
        }
    }
}

fn the_cache_changes_no_token(toy: &Toy, engine: &Artifact) {
    let mut heard = Vec::new();
    let said = engine.generate(&toy.tokens[..5], &Generation::greedy(12, &[]), &mut |token| heard.push(token)).unwrap();
    assert_eq!((said.len(), &heard), (12, &said));
    let whole = [window(&[&toy.tokens[..5], &said].concat())];
    let mut logits = engine.start(Output::Logits.into(), &whole, &|_, _| {}).unwrap();
    let mut rows = Vec::new();
    logits.rows(0, 4..16, &mut rows).unwrap();
    let greedy: Vec<u32> =
        rows.chunks(VOCABULARY).map(|row| (0..50).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32).collect();
    assert_eq!(greedy, said);
    let stopped = engine.generate(&toy.tokens[..5], &Generation::greedy(12, &[said[2]]), &mut |_| {}).unwrap();
    let end = said.iter().position(|token| *token == said[2]).unwrap();
    assert_eq!(stopped, said[..=end]);
    assert!(matches!(engine.generate(&[], &Generation::greedy(1, &[]), &mut |_| {}), Err(Error::EmptyPrompt)));
}

fn failure(engine: &Artifact) -> Error {
    let windows = [window(&[1, 2])];
    engine
        .start(Output::Logits.into(), &windows, &|_, _| {})
        .and_then(|mut logits| logits.rows(0, 0..1, &mut Vec::new()))
        .unwrap_err()
}

#[test]
fn a_broken_model_is_the_engines_error() {
    let Some(toy) = toy() else { return };
    for installation in of_onnx() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["model.onnx", "genai_config.json"] {
            std::fs::copy(toy.folder.path().join(name), folder.path().join(name)).unwrap();
        }
        let title = installation.engine.title;
        let said = |error: Error| match error {
            Error::Engine { title: by, doing: "loading the model", message } if by == title => message,
            error => panic!("{error}"),
        };
        let message = said(failure(&artifact(&installation, folder.path(), Mode::Exact)));
        assert!(message.contains("model.onnx"), "{title}, weights are missing: {message}");
        std::fs::write(folder.path().join("model.onnx"), "no model").unwrap();
        said(failure(&artifact(&installation, folder.path(), Mode::Exact)));
    }
}

#[test]
fn another_library_is_an_error_that_names_it() {
    for installation in installed().into_iter().filter(|installation| is_library(installation.engine)) {
        let other = installation.library.with_file_name("libonnxruntime_providers_shared.so");
        let (folder, mut engine) = without_engine(installation.engine, &host());
        engine.installation.library = other;
        let error = failure(&engine);
        assert!(matches!(&error, Error::Engine { message, .. } if message.contains("OrtGetApiBase")), "{error}");
        drop(folder);
    }
}

fn is_library(engine: &Engine) -> bool {
    matches!((&engine.worker, &engine.home), (Worker::Library(_), Home::Wheel(_)))
}

/// A folder with a file for everything that an engine needs, none of which is what it should be.
fn without_engine(engine: &'static Engine, host: &Path) -> (tempfile::TempDir, Artifact) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(engine.opens[0].file), "").unwrap();
    let library = folder.path().join("libengine.so.1.0.0");
    std::fs::write(&library, "no library").unwrap();
    let interpreter = Some(host.to_owned());
    let installation = Installation { engine, library, interpreter, version: String::new(), runner: Vec::new() };
    let mut artifact = Artifact::new(installation, folder.path(), Mode::Exact, host);
    artifact.timeout = Duration::from_secs(20);
    (folder, artifact)
}

#[test]
fn a_file_that_is_no_library_is_an_error_that_names_it() {
    for engine in ENGINES.iter().filter(|engine| is_library(engine)) {
        let error = failure(&without_engine(engine, &host()).1);
        assert!(
            matches!(&error, Error::Engine { message, .. } if message.contains("libengine.so.1.0.0") && message.contains("file too short")),
            "{error}"
        );
    }
}

#[test]
fn files_that_are_missing_are_named_before_anything_starts() {
    for engine in ENGINES {
        let (folder, artifact) = without_engine(engine, Path::new("/nowhere/host"));
        assert!(matches!(failure(&artifact), Error::EngineStart { .. }));
        std::fs::remove_file(folder.path().join(engine.opens[0].file)).unwrap();
        assert!(matches!(failure(&artifact), Error::NoFile { what: "the artifact's model", .. }));
        std::fs::remove_file(&artifact.installation.library).unwrap();
        assert!(matches!(failure(&artifact), Error::NoFile { what: "the engine's library", .. }));
    }
}

/// `tests/hosts.sh` under one of its names, in place of an engine's worker. A link: a file that was just written may be
/// busy when others fork.
#[cfg(unix)]
fn pretender(engine: &'static Engine, name: &str) -> (tempfile::TempDir, Artifact) {
    let (folder, mut artifact) = without_engine(engine, Path::new(""));
    artifact.host = folder.path().join(name);
    artifact.installation.interpreter = Some(artifact.host.clone());
    std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts.sh"), &artifact.host).unwrap();
    (folder, artifact)
}

#[cfg(unix)]
#[test]
fn a_worker_that_never_answers_runs_into_the_time_limit() {
    for engine in ENGINES {
        for name in ["hangs", "leaves-a-child"] {
            let (_folder, mut artifact) = pretender(engine, name);
            artifact.timeout = Duration::from_millis(1500);
            let start = Instant::now();
            let error = failure(&artifact);
            assert!(matches!(&error, Error::EngineTimeout { stderr, .. } if stderr == "thinking\n"), "{error}");
            assert!(start.elapsed() < Duration::from_secs(4), "a grandchild holds the pipes for 5 seconds");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_worker_that_ends_is_reported_with_its_last_words() {
    for engine in ENGINES {
        for (name, how) in [("fails", "exit status: 3"), ("crashes", "signal: 9")] {
            let error = failure(&pretender(engine, name).1);
            let right =
                matches!(&error, Error::EngineDied { stderr, status, .. } if stderr == "out of luck\n" && status.contains(how));
            assert!(right, "{error}");
            assert!(error.to_string().contains(engine.title), "{error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_worker_that_says_something_else_is_quoted() {
    for engine in ENGINES {
        let error = failure(&pretender(engine, "talks").1);
        assert!(matches!(&error, Error::Protocol { found, .. } if found.contains("usage:")), "{error}");
    }
}

#[test]
fn names_are_usable_and_requirements_belong_to_engines() {
    for engine in ENGINES {
        assert!(
            engine.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "{} is a flag and a variable",
            engine.name
        );
        assert!(!engine.opens.is_empty() && !engine.devices.is_empty() && !engine.modes.is_empty());
        assert_eq!(ENGINES.iter().filter(|other| other.name == engine.name).count(), 1);
    }
    for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("engines").read_dir().unwrap() {
        let entry = entry.unwrap().path();
        let name = entry.file_stem().unwrap().to_str().unwrap();
        // What needs more than an environment of Python has a folder.
        let file = if entry.is_dir() { entry.join("wheel.txt") } else { entry.clone() };
        let engine =
            attar_eval::engine::installed().find(|engine| engine.name == name).unwrap_or_else(|| panic!("no engine is {name}"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), engine.pins, "{}", file.display());
        assert!(
            engine.tested().is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit())),
            "{}",
            file.display()
        );
    }
}
