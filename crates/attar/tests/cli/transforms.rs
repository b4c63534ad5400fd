//! Steps that change weights and not the function: what they keep, what they are good for, what they refuse.

use std::{process::Stdio, thread::sleep, time::Duration};

use serde_json::Value;

use crate::{
    checkpoint::{Llama, copy, edit},
    engine::engines,
    room::{Room, Said, assert_same_files, skip},
    snapshot::Session,
};

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-train.txt";

const ROTATE: &str = "kind = \"rotate\"\nmlp = true\n";
const AWQ: &str = "kind = \"smooth\"\nmethod = \"awq\"\ngrid = \"int3\"\n";
const SMOOTHQUANT: &str = "kind = \"smooth\"\nmethod = \"smoothquant\"\n";
const GPTAQ: &str = "kind = \"quantize\"\ngrid = \"int3\"\nalgorithm = \"gptaq\"\nscales = \"mse\"\n";
const GPTQ: &str = "kind = \"quantize\"\ngrid = \"int3\"\nalgorithm = \"gptq\"\nscales = \"mse\"\n";

/// A run of `model` through steps, calibrated on `text`.
fn recipe(model: &str, text: &str, windows: [usize; 2], steps: &[&str]) -> String {
    let [samples, length] = windows;
    let head = format!(
        "recipe = 1\nmodel = \"{model}\"\noutput = \"out\"\n\n[data.calibration]\npath = \"{text}\"\nsamples = {samples}\nlength = {length}\n"
    );
    steps.iter().fold(head, |all, step| format!("{all}\n[[step]]\n{step}"))
}

fn eval(data: &str, window: usize, tokens: usize) -> String {
    format!("\n[[eval]]\nname = \"text\"\ndata = \"{data}\"\nwindow = {window}\ntokens = {tokens}\n")
}

fn report(room: &Room, recipe: &str) -> Value {
    room.write("recipe.toml", recipe);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    room.json("out/report.json")
}

fn kl(report: &Value) -> f64 {
    let found = report.pointer("/evals/0/outcome/measured/against_base/kl_mean/value");
    found.and_then(Value::as_f64).expect("the KL divergence was measured")
}

#[test]
fn a_step_says_how_little_it_changed() {
    let room = Room::new();
    let steps = [ROTATE, AWQ, SMOOTHQUANT];
    let report = report(&room, &(recipe(MODEL, TEXT, [8, 128], &steps) + &eval(TEXT, 128, 1024)));
    assert!(kl(&report) < 1e-6, "{}", kl(&report));
    let transforms = report.pointer("/variants/0/transforms").and_then(Value::as_array).expect("every step reports");
    let named: Vec<&str> = transforms.iter().filter_map(|t| t["step"].as_str()).collect();
    assert_eq!(named, ["rotate", "smooth", "smooth"]);
    for transform in transforms {
        let off = transform["logits_off"].as_f64().expect("it was measured");
        assert!(off > 0.0 && off < 1e-5, "{transform}");
    }
    let sites = transforms[1]["sites"].as_array().expect("sites are listed");
    assert_eq!(sites.len(), 4 * 4);
    assert!(sites.iter().any(|site| site["error"].as_f64().is_some_and(|error| error < 0.9)), "{sites:?}");
}

/// At 3 bits, rotation and GPTQ towards the float model's outputs take away more than half of what rounding costs.
#[test]
fn rotation_and_gptq_recover_what_rounding_loses() {
    let room = Room::new();
    let run = |steps: &[&str]| {
        kl(&report(&room, &(recipe(MODEL, TEXT, [32, 256], steps) + &eval("testdata/evals/shakespeare-valid.txt", 256, 4096))))
    };
    let (rtn, both) = (run(&["kind = \"quantize\"\ngrid = \"int3\"\n"]), run(&[ROTATE, GPTAQ]));
    assert!(both < 0.5 * rtn, "rtn {rtn}, rotate and gptq {both}");
}

#[test]
fn rotation_and_gptq_recover_what_rounding_loses_in_a_model_of_odd_width() {
    let Some(shared) =
        std::env::var_os("ATTAR_SHARED").map(std::path::PathBuf::from).filter(|s| s.join("models/stories260k").exists())
    else {
        return skip("stories260k is absent");
    };
    let at = |name: &str| shared.join(name).display().to_string();
    let room = Room::new();
    let run = |steps: &[&str]| {
        let recipe = recipe(&at("models/stories260k"), &at("data/lm/stories260k-STORY.txt"), [16, 128], steps);
        kl(&report(&room, &(recipe + &eval(&at("data/lm/tinystories_sample.txt"), 128, 1280))))
    };
    let row = |step: &str| format!("{step}group = \"row\"\n");
    let (rtn, both) = (run(&[&row("kind = \"quantize\"\ngrid = \"int3\"\n")]), run(&[ROTATE, &row(GPTAQ)]));
    assert!(both < 0.5 * rtn, "rtn {rtn}, rotate and gptq {both}");
}

#[test]
fn a_transformed_model_runs_in_the_real_engine() {
    let Some(engines) = engines() else { return };
    let room = Room::new();
    let steps = [ROTATE, AWQ, "kind = \"quantize\"\ngrid = \"int4\"\n"];
    let text =
        eval("testdata/evals/shakespeare-valid.txt", 128, 512) + "runners = [\"onnxruntime\"]\n\n[[export]]\ntarget = \"onnx\"\n";
    room.write("recipe.toml", &(recipe(MODEL, TEXT, [8, 128], &steps) + &text));
    let mut command = room.command(&["run", "recipe.toml", "--quiet"]);
    command.env("ATTAR_ENGINES", engines);
    room.finish(command).exits(0);
    let report = room.json("out/report.json");
    let off = report.pointer("/evals/0/outcome/measured/agreement/relative").and_then(Value::as_f64).expect("both ran");
    assert!(off < 1e-4, "{off}");
}

/// Four kinds of units, in two variants that share some.
fn everything() -> String {
    let variant = |name: &str, steps: &[&str]| {
        let head = format!("\n[[variant]]\nname = \"{name}\"\n");
        steps.iter().fold(head, |all, step| format!("{all}[[variant.step]]\n{step}"))
    };
    recipe(MODEL, TEXT, [24, 128], &[])
        + &variant("both", &[ROTATE, AWQ, GPTQ])
        + &variant("smooth", &[SMOOTHQUANT, "kind = \"quantize\"\ngrid = \"int4\"\n"])
        + "\n[[export]]\ntarget = \"checkpoint\"\n\n[[export]]\ntarget = \"onnx\"\n"
}

#[test]
fn a_run_that_was_killed_between_any_units_ends_with_the_same_bytes() {
    let whole = Room::new();
    whole.write("recipe.toml", &everything());
    whole.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let wanted = whole.files("out");
    let lines =
        |room: &Room| std::fs::read_to_string(room.path("out/.attar/store/journal")).map_or(0, |text| text.lines().count());
    let all = lines(&whole);
    let mut killed = 0;
    for stop in (1..all).step_by(all / 6) {
        let room = Room::new();
        room.write("recipe.toml", &everything());
        let mut command = room.command(&["run", "recipe.toml", "--quiet"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("attar starts");
        while lines(&room) < stop && child.try_wait().expect("it is ours").is_none() {
            sleep(Duration::from_millis(1));
        }
        child.kill().expect("it is ours");
        killed += usize::from(!child.wait().expect("it is ours").success());
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        assert_same_files(&wanted, &room.files("out"), &format!("killed after {stop} of {all} units"));
    }
    assert!(killed > 3, "most runs were over before their kill");
}

#[test]
fn threads_and_repetition_change_no_byte() {
    let run = |threads: &str| {
        let room = Room::new();
        room.write("recipe.toml", &everything());
        room.attar(&["run", "recipe.toml", "--quiet", "--threads", threads]).exits(0);
        let first = room.files("out");
        room.attar(&["run", "recipe.toml", "--quiet", "--threads", threads]).exits(0);
        assert_same_files(&first, &room.files("out"), "the second time");
        first
    };
    let one = run("1");
    assert_same_files(&one, &run("2"), "threads");
    assert_same_files(&one, &run("5"), "threads");
}

#[test]
fn mistakes_are_shown_where_they_stand() {
    let mut session = Session::new("transforms");
    let room = Room::new();
    let mut mistaken = |title: &str, steps: &[&str], wanted: &str| {
        let text = recipe(MODEL, TEXT, [8, 128], steps);
        session.note(title, &shown(&room, &text, wanted));
    };
    mistaken("a misspelt key", &["kind = \"rotate\"\nresidul = true\n"], "residul");
    mistaken("a seed that is none", &["kind = \"rotate\"\nseed = -1\n"], "-1");
    mistaken("nothing to turn", &["kind = \"rotate\"\nresidual = false\nvalue = false\n"], "false\nvalue");
    mistaken("turned after rounding", &["kind = \"quantize\"\ngrid = \"int8\"\n", "kind = \"rotate\"\n"], "\"rotate\"");
    mistaken("scaled after rounding", &["kind = \"quantize\"\ngrid = \"int8\"\n", SMOOTHQUANT], "\"smooth\"");
    mistaken("no method", &["kind = \"smooth\"\n"], "[[step]]");
    mistaken("a misspelt method", &["kind = \"smooth\"\nmethod = \"awk\"\n"], "\"awk\"");
    mistaken("a method without its grid", &["kind = \"smooth\"\nmethod = \"awq\"\n"], "\"awq\"");
    mistaken("another method's setting", &[&format!("{AWQ}alpha = 0.5\n")], "0.5");
    mistaken("more than all", &[&format!("{SMOOTHQUANT}alpha = 1.5\n")], "1.5");
    mistaken("a group that does not divide", &[&format!("{AWQ}group = 96\n")], "96");
    session.check();
}

/// A plan and a run say the same, and show the mistake at the last place where `wanted` stands.
#[track_caller]
fn shown(room: &Room, recipe: &str, wanted: &str) -> Said {
    room.write("recipe.toml", recipe);
    let said = room.attar(&["plan", "recipe.toml"]).exits(2);
    assert_eq!(room.attar(&["run", "recipe.toml"]).exits(2).stderr, said.stderr);
    assert!(!room.path("out").exists(), "nothing is made for a recipe with mistakes");
    let at = recipe.rfind(wanted).expect("the recipe has it");
    let line = recipe[..at].matches('\n').count() + 1;
    assert!(said.stderr.contains(&format!(" recipe.toml:{line}:")), "wanted line {line}\n{}", said.stderr);
    said
}

#[test]
fn a_plan_says_that_the_head_is_no_longer_tied() {
    let room = Room::new();
    room.write("recipe.toml", &recipe(MODEL, TEXT, [8, 128], &["kind = \"rotate\"\ntables = \"f16\"\n"]));
    let said = room.attar(&["plan", "recipe.toml", "--json"]).exits(0).json();
    let tensors = said.pointer("/variants/0/tensors").and_then(Value::as_array).expect("tensors are planned");
    let head = tensors.iter().find(|tensor| tensor["name"] == "lm_head").expect("the head changes");
    assert_eq!((head["from"].as_str(), head["to"].as_str()), (Some("bf16, tied to embedding"), Some("f16")));
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    let room = Room::new();
    copy(&room, "shakespeare-1m");
    edit(&room, |raw| raw.poke("model.layers.1.input_layernorm.weight", 3, f32::MAX));
    room.write("recipe.toml", &recipe("model", TEXT, [8, 128], &[AWQ]));
    room.attar(&["run", "recipe.toml"]).exits(3).says("`b1.");
    room.write("recipe.toml", &recipe("model", TEXT, [8, 128], &["kind = \"rotate\"\n"]));
    room.attar(&["run", "recipe.toml"]).exits(3).says("not finite");
    assert!(!room.path("out/manifest.json").exists());
}

/// Without a text the check looks at tokens without sense; a width of 88 = 11 x 8 has no Hadamard matrix of ours.
#[test]
fn a_rotation_needs_no_text_and_takes_any_width() {
    let room = Room::new();
    Llama { hidden: 88, intermediate: 52, blocks: 2, vocabulary: 300, shards: 2 }.write(&room.path("model"));
    room.attar(&["rotate", "model", "--mlp", "--seed", "7", "--out", "turned"]).exits(0);
    let report = room.json("turned/report.json");
    let off = report.pointer("/variants/0/transforms/0/logits_off").and_then(Value::as_f64).expect("it was measured");
    assert!(off > 0.0 && off < 1e-4, "{off}");
    room.attar(&["inspect", "turned"]).exits(0);
    room.attar(&["rotate", "turned", "--out", "again"]).exits(0);
    room.attar(&["smooth", "model", "--method", "awq", "--out", "scaled"]).exits(2).says("grid");
}
