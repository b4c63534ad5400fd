//! What is left out of a model is left out on purpose: by a recipe's `[model]` or by `--ignore`, and the report says so.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::{
    checkpoint::{configure, copy, edit},
    room::Room,
};

const BIAS: &str = "model.layers.1.self_attn.q_proj.bias";
const STEP: &str = "[[step]]\nkind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"\n[[export]]\ntarget = \"checkpoint\"\n";

/// A small Llama with a bias that its configuration does not mention.
fn biased() -> Room {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    edit(&room, |raw| {
        let start = raw.data.len();
        raw.data.extend_from_slice(&1f32.to_le_bytes().repeat(32));
        raw.header[BIAS] = json!({ "dtype": "F32", "shape": [32], "data_offsets": [start, start + 128] });
    });
    room
}

#[test]
fn a_dropped_tensor_is_an_error_with_a_way_out() {
    let room = biased();
    let quantize = ["quantize", "model", "--grid", "int8", "--group", "row", "--out", "out"];
    let said = room.attar(&quantize).exits(3);
    said.says(BIAS);
    said.says(&format!("add `--ignore {BIAS}`"));
    assert!(!room.path("out").exists());
    room.attar(&[&quantize[..], &["--ignore", "model.layers.*.self_attn.*.bias"]].concat()).exits(0);
    let without_tokenizer = "a tokenizer: there is no `tokenizer.json`";
    let left_out = json!([format!("`{BIAS}`, by `ignore`"), without_tokenizer]);
    assert_eq!(room.json("out/report.json")["model"]["left_out"], left_out);
    assert!(room.read("out/report.md").contains(&format!("Left out: `{BIAS}`")));
    for verb in [&["inspect", "model"][..], &["inspect", "model", "--graph"]] {
        room.attar(verb).exits(3).says(BIAS);
        room.attar(&[verb, &["--ignore", BIAS]].concat()).exits(0);
    }
    room.attar(&[&quantize[..], &["--ignore", "nothing.*"]].concat()).exits(3);
}

#[test]
fn a_recipe_says_what_is_ignored() {
    let room = biased();
    let recipe = |model: &str| format!("recipe = 1\noutput = \"out\"\n{model}\n{STEP}");
    room.write("r.toml", &recipe("model = \"model\""));
    room.attar(&["plan", "r.toml"]).exits(3).says(BIAS);
    room.write("r.toml", &recipe(&format!("[model]\npath = \"model\"\nignore = [\"{BIAS}\"]")));
    let plan = room.attar(&["plan", "r.toml"]).exits(0).stdout;
    for fact in
        ["what was read:", "head: the embedding (tied)", "yarn, factor 4", "biases of: none", "end of text: 2", "config.json: "]
    {
        assert!(plan.contains(fact), "`{fact}` is not in {plan}");
    }
    assert!(plan.contains(&format!("ignored: {BIAS}")) && plan.contains("model.safetensors: "), "{plan}");
    let read = &room.attar(&["plan", "r.toml", "--json"]).exits(0).json()["read"];
    assert_eq!((&read["tied"], read["files"][0]["digest"].as_str().map(str::len)), (&json!(true), Some(64)));
    room.attar(&["run", "r.toml"]).exits(0);
    room.attar(&["run", "r.toml", "--locked"]).exits(0);
    // Something else that is ignored is another recipe.
    room.write("r.toml", &recipe("[model]\npath = \"model\"\nignore = [\"**.bias\"]"));
    room.attar(&["run", "r.toml", "--locked"]).exits(2).says("the recipe has changed");
    room.write("r.toml", &recipe("[model]\npath = \"model\"\nignores = []"));
    let said = room.attar(&["plan", "r.toml"]).exits(2);
    said.says("`model` has no key `ignores`");
    said.says("did you mean `ignore`?");
    room.write("r.toml", &recipe("model = 7"));
    room.attar(&["plan", "r.toml"]).exits(2).says("the path of a checkpoint");
}

#[test]
fn a_key_that_changes_nothing_can_be_ignored() {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    configure(&room, "attention_multiplier", json!(0.5));
    let said = room.attar(&["inspect", "model"]).exits(3);
    said.says("`attention_multiplier = 0.5`");
    room.attar(&["inspect", "model", "--ignore", "config.attention_multiplier"]).exits(0);
}

#[test]
fn a_side_file_outside_the_folder_is_not_copied() {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    room.write("secret.json", "{\"token\": \"hunter2\"}");
    symlink(room.path("secret.json"), room.path("model/tokenizer_config.json")).unwrap();
    let said = room.attar(&["quantize", "model", "--grid", "int8", "--group", "row", "--out", "out"]).exits(3);
    said.says("not inside that folder");
    assert!(room.files("out").values().all(|bytes| !bytes.windows(7).any(|window| window == b"hunter2")));
}
