//! The same verbs on written artifacts, in the real engines of `ATTAR_ENGINES`: in exact mode they say what the reference
//! says. That every engine opens every tiny model is tested in `attar-eval`.

use std::{ffi::OsString, fs};

use attar_eval::{ENGINES, Engine, Mode, Places};

use crate::room::{Room, Said, skip};

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-valid.txt";

/// Two ways of adding up f32 differ by this share of a perplexity at most.
const SAME_PERPLEXITY: f64 = 1e-4;

/// The same where an engine rounds activations to int8 or f16, whatever is asked for.
const LIKE_PERPLEXITY: f64 = 2e-2;

/// The folder of the engines, if `engine` is in it.
fn engines_with(engine: &'static Engine) -> Option<OsString> {
    let engines = std::env::var_os("ATTAR_ENGINES").unwrap_or_default();
    let places = Places::read(ENGINES.iter().copied(), |_| None, |name| (name == "ATTAR_ENGINES").then(|| engines.clone()));
    match places.find(engine) {
        Ok(_) => Some(engines),
        Err(_) => {
            skip(&format!("{} is not in ATTAR_ENGINES: `cargo xtask engines` installs what is tested", engine.title));
            None
        }
    }
}

/// The folder of the engines, if the one that recipes use most is in it.
pub(crate) fn engines() -> Option<OsString> {
    engines_with(ENGINES[0])
}

fn attar(room: &Room, engines: &OsString, arguments: &[&str]) -> Said {
    let mut command = room.command(arguments);
    command.env("ATTAR_ENGINES", engines);
    room.finish(command).exits(0)
}

#[test]
fn every_engine_continues_and_measures_as_the_reference_does() {
    for engine in ENGINES {
        let Some(engines) = engines_with(engine) else { continue };
        let room = Room::new();
        let exact = engine.modes.contains(&Mode::Exact);
        let (form, tokens, tolerance): (&[&str], _, _) = match exact {
            true => (&["--grid", "int8", "--group", "64"], "32", SAME_PERPLEXITY),
            false => (&["--grid", "int4", "--group", "32", "--positive-scales"], "8", LIKE_PERPLEXITY),
        };
        room.attar(&[&["quantize", MODEL, "--out", "small"], form].concat()).exits(0);
        let speak = |subject: &str, more: &[&str]| {
            let arguments = ["generate", subject, "--prompt", "KING HENRY:\\n", "--tokens", tokens];
            attar(&room, &engines, &[&arguments, more].concat()).stdout
        };
        let measure = |subject: &str, more: &[&str]| {
            let arguments =
                ["eval", subject, "--data", TEXT, "--tokens", "512", "--window", "128", "--baseline", MODEL, "--json"];
            attar(&room, &engines, &[&arguments, more].concat()).json()
        };
        let (said, measured) = (speak("small", &[]), measure("small", &[]));
        assert!(said.starts_with(if exact { "They are the city of my soul and my soul," } else { "They are" }), "{said}");
        for target in engine.opens.iter().map(|opens| opens.target) {
            let exported = room.attar(&["export", "small", "--target", target, "--out", target]);
            if exported.stderr.contains("takes encoders") {
                continue;
            }
            exported.exits(0);
            assert_eq!(speak(target, &["--runner", engine.name]), said, "{}, {target}", engine.name);
            let by_engine = measure(target, &["--runner", engine.name]);
            for pointer in ["/perplexity/value", "/against_base/top1_agreement/value"] {
                let value = |measured: &serde_json::Value| measured.pointer(pointer).and_then(|v| v.as_f64()).expect(pointer);
                let (reference, engine) = (value(&measured), value(&by_engine));
                assert!((engine / reference - 1.0).abs() < tolerance, "{pointer}: {reference} and {engine}");
            }
            if exact {
                answers_as_the_reference(&room, &engines, engine, target);
            }
            is_timed(&room, &engines, engine, target);
        }
    }
}

/// Questions and prompts, which windows share their beginnings for.
fn answers_as_the_reference(room: &Room, engines: &OsString, engine: &Engine, target: &str) {
    let tasks: [&[&str]; 2] = [
        &["--task", "choice", "--data", "testdata/evals/choice.jsonl", "--shots", "2", "--samples"],
        &["--task", "generate", "--data", "testdata/evals/prompts.jsonl", "--tokens", "8"],
    ];
    for task in tasks {
        let measured =
            |subject: &str, more: &[&str]| attar(room, engines, &[&["eval", subject, "--json"], task, more].concat()).json();
        let (reference, own) = (measured("small", &[]), measured(target, &["--runner", engine.name]));
        let texts = |found: &serde_json::Value| found["answers"].clone();
        assert_eq!(texts(&own), texts(&reference), "{}, {target}", engine.name);
        let likelihoods = |found: &serde_json::Value| {
            let samples = found["samples"].as_array().cloned().unwrap_or_default();
            let all = samples.iter().flat_map(|s| s["log_likelihoods"].as_array().cloned().unwrap_or_default());
            all.map(|x| x.as_f64().expect("a number")).collect::<Vec<f64>>()
        };
        for (own, reference) in likelihoods(&own).iter().zip(likelihoods(&reference)) {
            assert!((own / reference - 1.0).abs() < SAME_PERPLEXITY, "{}, {target}: {own}, {reference}", engine.name);
        }
    }
}

fn is_timed(room: &Room, engines: &OsString, engine: &Engine, target: &str) {
    let lengths = ["--prompt-tokens", "6", "--answer-tokens", "3", "--requests", "4", "--warm-up", "1"];
    let arguments = ["bench", target, "--runner", engine.name, "--json"];
    let found = attar(room, engines, &[&arguments, &lengths[..]].concat()).json();
    let count = |times: &str| found[times]["samples"].as_u64().expect(times);
    assert_eq!([count("ttft"), count("tpot"), count("e2e")], [4, 8, 4], "{}, {target}", engine.name);
    let time = |pointer: &str| found.pointer(pointer).and_then(serde_json::Value::as_f64).expect(pointer);
    assert!(0.0 < time("/tpot/p50") && time("/ttft/p50") < time("/e2e/p50") && time("/e2e/p50") <= time("/e2e/p99"));
    assert!(time("/memory/peak") > 1e6 && time("/load_seconds") > 0.0 && found["failed"] == 0 && found["overload"] == false);
}

/// In the contributed operators of ONNX Runtime, which others read, too.
#[test]
fn every_engine_reads_the_layout_of_whole_products() {
    let room = Room::new();
    room.attar(&["quantize", MODEL, "--grid", "int4", "--group", "32", "--keep", "embedding", "--out", "small"]).exits(0);
    room.attar(&["export", "small", "--target", "onnx", "--layout", "matmul-nbits", "--out", "onnx"]).exits(0);
    for engine in ENGINES.iter().filter(|engine| engine.opens.iter().any(|opens| opens.target == "onnx")) {
        let Some(engines) = engines_with(engine) else { continue };
        let speak = |subject: &str, more: &[&str]| {
            let arguments = ["generate", subject, "--prompt", "KING HENRY:\\n", "--tokens", "12"];
            attar(&room, &engines, &[&arguments, more].concat()).stdout
        };
        assert_eq!(speak("onnx", &["--runner", engine.name]), speak("small", &[]), "{}", engine.name);
    }
}

#[test]
fn a_runner_that_cannot_open_its_subject_is_wrong_usage() {
    let room = Room::new();
    for engine in ENGINES {
        let said = room.attar(&["generate", MODEL, "--prompt", "x", "--runner", engine.name]).exits(2);
        assert!(said.stderr.contains(&format!("{} cannot open `{MODEL}`", engine.title)), "{}", said.stderr);
    }
    fs::create_dir(room.path("artifact")).unwrap();
    room.write(&format!("artifact/{}", ENGINES[0].opens[0].file), "");
    let said = room.attar(&["generate", "artifact", "--prompt", "x", "--runner", "reference"]).exits(2);
    assert!(said.stderr.contains("the reference cannot open `artifact`, which is an artifact"), "{}", said.stderr);
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
        toml::Value::Array(vec![gate("engine/perplexity", "worse_at_most", 0.2), gate("engine/top1", "at_least", 0.5)]);
    room.write("recipe.toml", &toml::to_string(&recipe).unwrap());
    let report = attar(&room, &engines, &["run", "recipe.toml", "--json"]).json();
    assert_eq!((&report["passed"], report["gates"].as_array().unwrap().len()), (&true.into(), 4));
    for eval in report["evals"].as_array().unwrap() {
        let agreement = &eval["outcome"]["measured"]["agreement"];
        let relative = agreement["relative"].as_f64().expect("both were measured");
        assert!(relative < if eval["mode"] == "exact" { 1e-4 } else { 0.2 }, "{eval}");
    }
}
