//! Latencies of engines that fail under load: every request is accounted for.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, time::Duration};

use attar_eval::{Artifact, Bench, Installation, Mode, Scenario, bench::Request, engine};

/// `tests/flaky_host.py` under one of its names, in place of an engine.
fn flaky(name: &str, folder: &Path) -> Artifact {
    let engine = engine("onnxruntime").unwrap();
    let host = folder.join(name);
    std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flaky_host.py"), &host).unwrap();
    for file in ["library", "model.onnx"] {
        std::fs::write(folder.join(file), "").unwrap();
    }
    let (library, version) = (folder.join("library"), String::new());
    let installation = Installation { engine, library, interpreter: None, version, runner: Vec::new() };
    let mut artifact = Artifact::new(installation, folder, Mode::Default, host);
    artifact.timeout = Duration::from_millis(1500);
    artifact
}

fn asked(scenario: Scenario) -> Bench {
    let requests = vec![Request { prompt: 4, answer: 3 }; 6];
    Bench { scenario, requests, warm_up: 0, text: vec![1, 2, 3], seed: 1, meter: None }
}

#[test]
fn requests_that_fail_are_counted_and_the_others_answered() {
    for (name, why) in [("dies", "out of luck"), ("hangs", "1.5"), ("refuses", "out of luck")] {
        let folder = tempfile::tempdir().unwrap();
        let artifact = flaky(name, folder.path());
        let found = asked(Scenario::SingleStream).run(&artifact, &|_, _| {}).unwrap();
        // One that refuses lives on, and answers all others.
        let failed = if name == "refuses" { 1 } else { 2 };
        assert_eq!((found.requests, found.failed, found.e2e.samples), (6, failed, 6 - failed), "{name}");
        assert!(found.failure.as_ref().unwrap().contains(why), "{name}: {found:?}");
        assert_eq!((found.ttft.p50, found.tpot.p99, found.e2e.p50), (Some(0.5), Some(0.25), Some(1.0)), "{name}");
    }
}

#[test]
fn a_meter_is_read_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = flaky("answers", folder.path());
    let count = folder.path().join("count");
    std::fs::write(&count, "1").unwrap();
    // Each reading finds one joule more.
    let meter = format!("n=$(cat '{0}'); echo $((n + 1)) > '{0}'; echo $n", count.display());
    let found = Bench { meter: Some(meter), ..asked(Scenario::SingleStream) }.run(&artifact, &|_, _| {}).unwrap();
    let energy = found.energy.unwrap();
    assert_eq!((energy.joules, energy.joules_per_token), (1.0, 1.0 / 12.0), "four answers of three tokens");
    let broken = Bench { meter: Some("echo lots".into()), ..asked(Scenario::SingleStream) }.run(&artifact, &|_, _| {}).unwrap();
    assert!(broken.energy.is_none() && broken.notes.iter().any(|note| note.contains("energy was not measured")), "{broken:?}");
}

#[test]
fn streams_share_the_requests() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = flaky("answers", folder.path());
    let several = asked(Scenario::MultiStream { streams: 3 }).run(&artifact, &|_, _| {}).unwrap();
    assert!(several.e2e.samples > 0 && several.requests == 6);
    let open = asked(Scenario::Server { rate: 1e3, streams: 2 }).run(&artifact, &|_, _| {}).unwrap();
    assert!(open.overload, "answers take a second, and six of them are due at once");
}

#[test]
fn artifacts_are_compared_pair_by_pair() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let artifacts = [flaky("refuses", one.path()), flaky("refuses", other.path())];
    let found = asked(Scenario::SingleStream).compare(&artifacts, &|_, _| {}).unwrap();
    let ratios: Vec<_> = found.iter().map(|(_, ratio)| (ratio.median, ratio.pairs)).collect();
    assert_eq!(ratios, [(Some(1.0), 5), (Some(1.0), 5)], "a request that one did not answer is no pair");
}
