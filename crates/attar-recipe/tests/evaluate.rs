//! Recipes that only measure: a model against a baseline, and an artifact that was there before.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use attar_eval::{Measurements, Outcome};
use attar_recipe::{Engines, LockMode, Recipe, Request, Result, Silent, evaluate, plan, run};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn parsed(path: &Path, text: &str) -> Recipe {
    Recipe::parse(path, &text.replace("DATA", &data().display().to_string())).unwrap()
}

const EVAL: &str = "[[eval]]\nname = \"text\"\ndata = \"DATA/evals/shakespeare-valid.txt\"\nwindow = 64\ntokens = 256\n";

fn request<'a>(lock: LockMode, engines: &'a Engines) -> Request<'a> {
    Request { lock, engines, observer: &Silent, max_memory: None }
}

/// The only measurement of a recipe with these lines on top.
fn measured(head: &str) -> Measurements {
    let recipe = parsed(Path::new("r.toml"), &format!("recipe = 1\noutput = \"/nonexistent/out\"\n{head}\n{EVAL}"));
    let engines = Engines::default();
    let evals = evaluate(&recipe, &request(LockMode::None, &engines)).unwrap();
    let [only] = &evals[..] else { panic!("one eval by one runner: {evals:?}") };
    let Outcome::Measured(measured) = &only.outcome else { panic!("{only:?}") };
    measured.clone()
}

#[test]
fn a_model_is_compared_with_its_baseline_with_itself_or_with_nothing() {
    let model = "model = \"DATA/models/shakespeare-1m\"";
    let ratio = |measured: &Measurements| measured.number("/against_base/perplexity_ratio");
    let alone = measured(&format!("{model}\nbaseline = false"));
    assert_eq!(ratio(&alone), None);
    let itself = measured(model);
    assert_eq!((ratio(&itself), itself.number("/perplexity")), (Some(1.0), alone.number("/perplexity")));

    let folder = tempfile::tempdir().unwrap();
    let quantize = "[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\n[[export]]\ntarget = \"checkpoint\"\nfolder = \".\"\n";
    let small = folder.path().join("small");
    let recipe = parsed(Path::new("r.toml"), &format!("recipe = 1\n{model}\noutput = {small:?}\n{quantize}{EVAL}"));
    let engines = Engines::default();
    let report = run(&recipe, &request(LockMode::None, &engines)).unwrap();
    let Outcome::Measured(within) = &report.evals[0].outcome else { panic!("{:?}", report.evals) };
    let later = measured(&format!("model = {small:?}\nbaseline = \"DATA/models/shakespeare-1m\""));
    assert!(ratio(&later).unwrap() > 1.0);
    assert_eq!(&later, within, "measured where it was made, or later against its baseline: the same numbers");
}

#[test]
fn nothing_is_written_where_only_numbers_are_wanted() {
    let made = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n";
    let recipe = parsed(
        Path::new("r.toml"),
        &format!("recipe = 1\nmodel = \"DATA/models/shakespeare-1m\"\noutput = \"/nonexistent/out\"\n{made}{EVAL}"),
    );
    let engines = Engines::default();
    let error = evaluate(&recipe, &request(LockMode::None, &engines)).unwrap_err();
    assert!(error.message.starts_with("only a recipe of evals"), "{}", error.message);
}

/// An artifact of the small model, in a folder that stays.
fn artifact(folder: &Path) -> PathBuf {
    let output = folder.join("made");
    let text =
        format!("recipe = 1\nmodel = \"DATA/models/shakespeare-1m\"\noutput = {output:?}\n[[export]]\ntarget = \"onnx\"\n");
    let engines = Engines::default();
    run(&parsed(Path::new("made.toml"), &text), &request(LockMode::None, &engines)).unwrap();
    output.join("onnx")
}

#[test]
fn an_artifact_that_exists_is_planned_locked_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let onnx = artifact(folder.path());
    let (path, output) = (folder.path().join("measure.toml"), folder.path().join("out"));
    let runners = "runners = [\"onnxruntime\"]\nrequired = false\n";
    let text = |artifact: &Path| format!("recipe = 1\nartifact = {artifact:?}\noutput = {output:?}\n{EVAL}{runners}");
    let recipe = parsed(&path, &text(&onnx));
    let engines = Engines::default();
    let planned = plan(&recipe, &engines).unwrap();
    assert_eq!((planned.architecture.as_str(), planned.variants.len()), ("LlamaForCausalLM", 0));
    assert!(planned.parameters.unwrap() > 900_000);
    assert_eq!(planned.evals, ["exact", "default"].map(|mode| format!("text: perplexity with onnxruntime, {mode} mode")));

    // No engine is installed here: it is reported as not run, and what it would have opened is locked.
    let report = run(&recipe, &request(LockMode::Update, &engines)).unwrap();
    assert!(matches!(&report.evals[0].outcome, Outcome::Skipped { .. }) && report.variants.is_empty());
    assert_eq!(report.model.path, onnx.display().to_string());
    let lock = std::fs::read_to_string(folder.path().join("measure.lock")).unwrap();
    for name in ["model.onnx", "model.onnx.data", "config.json", "tokenizer.json"] {
        assert!(lock.contains(&onnx.join(name).display().to_string()), "{name}\n{lock}");
    }
    let locked = || -> Result<_> { run(&recipe, &request(LockMode::Require, &engines)) };
    locked().unwrap();
    let mut bytes = std::fs::read(onnx.join("model.onnx.data")).unwrap();
    bytes[0] ^= 1;
    std::fs::write(onnx.join("model.onnx.data"), bytes).unwrap();
    let error = locked().unwrap_err();
    assert!(error.message.contains("model.onnx.data` has the digest"), "{}", error.message);
    // Without its manifest, it is somebody else's, whose files the lock alone knows.
    let manifest = onnx.join("artifact.json");
    if manifest.exists() {
        std::fs::remove_file(manifest).unwrap();
    }
    let error = locked().unwrap_err();
    assert!(error.message.ends_with("model.onnx.data` has changed"), "{}", error.message);

    let error = plan(&parsed(&path, &text(&data().join("models/shakespeare-1m"))), &engines).unwrap_err();
    assert_eq!((error.exit_code(), error.place.is_some()), (2, true));
    assert!(error.message.starts_with("ONNX Runtime cannot open"), "{}", error.message);
    let error = plan(&parsed(&path, &text(Path::new("/nonexistent/onnx"))), &engines).unwrap_err();
    assert_eq!((error.exit_code(), error.place.is_some()), (3, true));
}
