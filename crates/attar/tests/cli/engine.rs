//! The same verbs on written artifacts, in the real ONNX Runtime of `ATTAR_ENGINES`.

use std::{ffi::OsString, fs, path::Path};

use crate::room::{Room, Said, skip};

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-valid.txt";

/// Two ways of adding up f32 differ by this share of a perplexity at most.
const SAME_PERPLEXITY: f64 = 1e-4;

/// The virtual environment with ONNX Runtime in it.
pub(crate) fn engines() -> Option<OsString> {
    let engines = std::env::var_os("ATTAR_ENGINES").unwrap_or_default();
    let mut pythons = fs::read_dir(Path::new(&engines).join("lib")).into_iter().flatten().flatten();
    let found = pythons.any(|python| python.path().join("site-packages/onnxruntime").is_dir());
    if !found {
        skip("there is no ONNX Runtime in ATTAR_ENGINES: `cargo xtask engines` installs it");
    }
    found.then_some(engines)
}

fn attar(room: &Room, engines: &OsString, arguments: &[&str]) -> Said {
    let mut command = room.command(arguments);
    command.env("ATTAR_ENGINES", engines);
    room.finish(command).exits(0)
}

#[test]
fn an_artifact_in_the_real_engine_says_what_the_reference_says() {
    let Some(engines) = engines() else { return };
    let room = Room::new();
    room.attar(&["quantize", MODEL, "--grid", "int8", "--group", "64", "--out", "small"]).exits(0);
    room.attar(&["export", "small", "--target", "onnx", "--out", "onnx"]).exits(0);
    let speak = |subject: &str| {
        let arguments = ["generate", subject, "--prompt", "KING HENRY:\\n", "--tokens", "32"];
        attar(&room, &engines, &arguments).stdout
    };
    assert_eq!(speak("small"), speak("onnx"));
    assert!(speak("onnx").starts_with("They are the city of my soul and my soul,"), "{}", speak("onnx"));
    let measure = |subject: &str| {
        let arguments = ["eval", subject, "--data", TEXT, "--tokens", "512", "--window", "128", "--baseline", MODEL, "--json"];
        attar(&room, &engines, &arguments).json()
    };
    let (reference, engine) = (measure("small"), measure("onnx"));
    for pointer in ["/perplexity/value", "/against_base/top1_agreement/value"] {
        let value = |measured: &serde_json::Value| measured.pointer(pointer).and_then(|v| v.as_f64()).expect(pointer);
        let (reference, engine) = (value(&reference), value(&engine));
        assert!((engine / reference - 1.0).abs() < SAME_PERPLEXITY, "{pointer}: {reference} and {engine}");
    }
}

#[test]
fn a_recipe_measures_and_judges_what_the_real_engine_says() {
    let Some(engines) = engines() else { return };
    let room = Room::new();
    let recipe = fs::read_to_string(crate::room::repository().join("recipes/quickstart.toml")).unwrap();
    let mut recipe: toml::Table = toml::from_str(&recipe).unwrap();
    recipe["output"] = "out".into();
    recipe["variant"].as_array_mut().unwrap().retain(|variant| variant["name"].as_str() != Some("int8"));
    let gate = |metric: &str, bound: &str, limit: f64| {
        let mut gate = toml::Table::new();
        gate.insert("metric".into(), metric.into());
        gate.insert("runner".into(), "onnxruntime".into());
        gate.insert("mode".into(), "exact".into());
        gate.insert(bound.into(), limit.into());
        toml::Value::Table(gate)
    };
    recipe["eval"].as_array_mut().unwrap().remove(0);
    recipe["eval"][0].as_table_mut().unwrap().insert("tokens".into(), 512.into());
    recipe["gate"] =
        toml::Value::Array(vec![gate("engine/perplexity", "drop_at_most", 0.2), gate("engine/top1", "at_least", 0.5)]);
    room.write("recipe.toml", &toml::to_string(&recipe).unwrap());
    let report = attar(&room, &engines, &["run", "recipe.toml", "--json"]).json();
    assert_eq!((&report["passed"], report["gates"].as_array().unwrap().len()), (&true.into(), 4));
    for eval in report["evals"].as_array().unwrap() {
        let agreement = &eval["outcome"]["measured"]["agreement"];
        let relative = agreement["relative"].as_f64().expect("both were measured");
        assert!(relative < if eval["mode"] == "exact" { 1e-4 } else { 0.2 }, "{eval}");
    }
}
