//! Algorithms that see activations: better than those that do not, and clear about what they lack.

use serde_json::json;

use crate::{
    checkpoint::{copy, edit},
    room::Room,
};

fn recipe(algorithm: &str, more: &str) -> String {
    format!(
        "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n\n[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 32\nlength = 256\n\n[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\ngroup = 64\nalgorithm = \"{algorithm}\"\n{more}\n\n[[eval]]\nname = \"plays\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 256\ntokens = 4096\n"
    )
}

fn kl(algorithm: &str) -> f64 {
    let room = Room::new();
    room.write("recipe.toml", &recipe(algorithm, "scales = \"mse\""));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let text = std::fs::read_to_string(room.path("out/report.json")).expect("a run writes its report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report is JSON");
    let measured = &report["evals"][0]["outcome"]["measured"]["against_base"]["kl_mean"]["value"];
    measured.as_f64().expect("the KL divergence was measured")
}

/// GPTQ takes away at least a third of the divergence that rounding to nearest costs at 3 bits.
#[test]
fn gptq_is_better_than_rounding_to_nearest() {
    let (rtn, gptq) = (kl("rtn"), kl("gptq"));
    assert!(gptq < 0.67 * rtn, "rtn {rtn}, gptq {gptq}");
}

/// The recipe with another calibration text, or none.
fn seeing(text: &str) -> String {
    let whole = recipe("gptq", "");
    let start = whole.find("[data.calibration]").expect("it is there");
    let end = whole.find("[[step]]").expect("it is there");
    format!("{}{text}{}[[export]]\ntarget = \"checkpoint\"\n", &whole[..start], &whole[end..])
}

#[test]
fn an_algorithm_that_sees_activations_has_attars_own_text_where_none_is_named() {
    let room = Room::new();
    room.write("recipe.toml", &seeing(""));
    let mixture = "calibration: windows of 512 tokens, 46 of prose, 26 of chat, ";
    assert!(room.attar(&["plan", "recipe.toml"]).exits(0).stdout.contains(mixture));
    room.write("recipe.toml", &seeing("[data.calibration]\nsamples = 10\nlength = 64\n\n"));
    room.attar(&["run", "recipe.toml"])
        .exits(0)
        .says("calibration: windows of 64 tokens, 4 of prose, 2 of chat, 2 of code, 1 of tables, 1 of languages");
}

#[test]
fn a_model_writes_the_same_text_of_its_own_every_time() {
    let room = Room::new();
    let text = |seed: u32| {
        format!("[data.calibration]\nsources = [{{ kind = \"generate\" }}]\nsamples = 20\nlength = 48\nseed = {seed}\n\n")
    };
    room.write("recipe.toml", &seeing(&text(1)));
    let made = |folder: &str| {
        room.attar(&["run", "recipe.toml", "--output", folder]).exits(0);
        std::fs::read(room.path(folder).join("checkpoint/model.safetensors")).expect("it was written")
    };
    let first = made("first");
    assert_eq!(first, made("second"));
    room.write("recipe.toml", &seeing(&text(2)));
    assert_ne!(first, made("third"), "another seed, another text");
    room.write("recipe.toml", &seeing(&text(1)).replace("shakespeare-1m", "tiny-bert"));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("it is an encoder");
}

#[test]
fn a_text_that_was_seen_is_mentioned_where_it_is_measured() {
    let room = Room::new();
    // Of some 1,200 windows.
    let whole =
        recipe("rtn", "").replace("shakespeare-valid.txt", "shakespeare-train.txt").replace("samples = 32", "samples = 1000");
    room.write("recipe.toml", &whole);
    let said = room.attar(&["run", "recipe.toml"]).exits(0);
    said.says("windows share 24 tokens in a row or more with the calibration text");
    assert!(room.json("out/report.json")["notes"][0].as_str().is_some_and(|note| note.starts_with("eval `plays`: ")));
    assert!(room.read("out/report.md").contains("- eval `plays`: "));
    room.write("recipe.toml", &recipe("rtn", ""));
    let said = room.attar(&["run", "recipe.toml", "--output", "other"]).exits(0);
    assert!(!said.stderr.contains("with the calibration text"), "{}", said.stderr);
}

#[test]
fn a_text_that_is_too_short_or_absent_is_found_before_any_work() {
    let room = Room::new();
    room.write("short.txt", "Enter KING HENRY.\n");
    room.write("recipe.toml", &recipe("gptq", "").replace("testdata/evals/shakespeare-train.txt", "short.txt"));
    room.attar(&["run", "recipe.toml"]).exits(3).says("give more text");
    room.write("recipe.toml", &recipe("gptq", "").replace("testdata/evals/shakespeare-train.txt", "absent.txt"));
    room.attar(&["run", "recipe.toml"]).exits(3).says("absent.txt");
    assert!(!room.path("out/manifest.json").exists());
}

/// Nothing, blanks that the run's tokenizer keeps but that are too few, and a model whose tokenizer drops all of it.
#[test]
fn a_text_without_tokens_is_found_before_any_work() {
    let room = Room::new();
    room.write("empty.txt", "");
    room.write("recipe.toml", &recipe("gptq", "").replace("testdata/evals/shakespeare-train.txt", "empty.txt"));
    let said = room.attar(&["run", "recipe.toml"]).exits(3);
    said.says("`empty.txt` has 0 tokens");
    said.says("give more text");
    copy(&room, "shakespeare-1m");
    let mut tokenizer = room.json("model/tokenizer.json");
    tokenizer["normalizer"] = json!({ "type": "Replace", "pattern": { "Regex": "[^§]" }, "content": "" });
    room.write("model/tokenizer.json", &tokenizer.to_string());
    room.write("recipe.toml", &recipe("gptq", "").replace("testdata/models/shakespeare-1m", "model"));
    room.attar(&["run", "recipe.toml"]).exits(3).says("has 0 tokens");
    assert!(!room.path("out/manifest.json").exists());
}

/// Block, value and way out are named.
#[test]
fn activations_that_overflow_stop_the_run() {
    let room = Room::new();
    copy(&room, "shakespeare-1m");
    let huge: Vec<u8> = (0..128).flat_map(|_| 3e38f32.to_le_bytes()).collect();
    edit(&room, |raw| raw.replace("model.layers.1.input_layernorm.weight", "F32", &[128], &huge));
    for (algorithm, more) in [("gptq", ""), ("gptaq", ""), ("rtn", "[[step]]\nkind = \"recover\"")] {
        room.write("recipe.toml", &recipe(algorithm, more).replace("testdata/models/shakespeare-1m", "model"));
        let said = room.attar(&["run", "recipe.toml"]).exits(3);
        let value = if algorithm == "rtn" { "the loss" } else { "block `blocks.1`: `b1.attention_in`" };
        for wanted in ["block `", value, "not finite", "hint"] {
            assert!(said.stderr.contains(wanted), "{algorithm}: {}", said.stderr);
        }
    }
    assert!(!room.path("out/manifest.json").exists());
}

/// Inputs that are always zero are told of, and their weights are rounded to nearest; GPTQ is still the better one.
#[test]
fn inputs_that_are_always_zero_are_reported_and_do_no_harm() {
    let room = Room::new();
    copy(&room, "shakespeare-1m");
    let gain: Vec<u8> = (0..128).flat_map(|at| if at % 50 == 3 { 0f32 } else { 1.5 }.to_le_bytes()).collect();
    edit(&room, |raw| raw.replace("model.layers.1.input_layernorm.weight", "F32", &[128], &gain));
    let measured = |algorithm: &str| {
        room.write("recipe.toml", &recipe(algorithm, "").replace("testdata/models/shakespeare-1m", "model"));
        let said = room.attar(&["run", "recipe.toml"]).exits(0);
        let kl = &room.json("out/report.json")["evals"][0]["outcome"]["measured"]["against_base"]["kl_mean"]["value"];
        (said, kl.as_f64().expect("the KL divergence was measured"))
    };
    let ((_, rtn), (said, gptq)) = (measured("rtn"), measured("gptq"));
    said.says("`b1.attention_in`: 3 of 128 inputs are always zero");
    assert!(gptq < 0.8 * rtn, "rtn {rtn}, gptq {gptq}");
}

#[test]
fn a_limit_of_memory_that_is_too_low_for_a_block_is_found_before_any_work() {
    let room = Room::new();
    room.write("recipe.toml", &recipe("gptq", ""));
    for verb in ["plan", "run"] {
        let said = room.attar(&[verb, "recipe.toml", "--max-memory", "45 MB"]).exits(3);
        said.says("needs about");
        said.says("45.0 MB are allowed");
    }
    assert!(!room.path("out").exists());
}

#[test]
fn a_table_has_no_inputs_to_see() {
    let room = Room::new();
    room.write("recipe.toml", &recipe("gptq", "select = [\"embedding\"]"));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("looked up");
}
