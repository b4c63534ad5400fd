//! The output folder and the lock: nothing that attar did not write is touched, nothing runs on other inputs than locked.

use std::fs;

use crate::{checkpoint::copy, room::Room, snapshot::Session};

const RECIPE: &str = r#"recipe = 1
model = "model"
output = "out"

[[step]]
kind = "quantize"
grid = "int4"
group = 16

[[export]]
target = "checkpoint"
"#;

/// A room with a small checkpoint and a recipe that works.
fn ready() -> Room {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    room.write("recipe.toml", RECIPE);
    room
}

#[test]
fn what_is_in_the_way_stays_as_it_was() {
    let mut session = Session::new("output-in-the-way");
    let room = ready();
    fs::create_dir(room.path("out")).unwrap();
    room.write("out/thesis.txt", "three years of work");
    let before = room.files("out");
    session.note("a folder with other content", &room.attar(&["run", "recipe.toml"]).exits(2));
    session.note("the same, planned", &room.attar(&["plan", "recipe.toml"]).exits(2));
    let verb = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "out"];
    session.note("the same, by a verb", &room.attar(&verb).exits(2));
    assert_eq!(room.files("out"), before);
    assert!(!room.path("out/.attar").exists() && !room.path("recipe.lock").exists());
    fs::remove_dir_all(room.path("out")).unwrap();
    room.write("out", "a file");
    session.note("a file", &room.attar(&["run", "recipe.toml"]).exits(3));
    assert_eq!(room.read("out"), "a file");
    session.check();
}

#[test]
fn an_empty_folder_is_as_good_as_none() {
    let room = ready();
    fs::create_dir(room.path("out")).unwrap();
    room.attar(&["run", "recipe.toml"]).exits(0);
    assert!(room.path("out/manifest.json").exists());
}

#[test]
fn the_output_of_another_recipe_stays_as_it_was() {
    let mut session = Session::new("output-of-another");
    let room = ready();
    room.attar(&["run", "recipe.toml"]).exits(0);
    let before = room.files("out");
    room.write("other.toml", RECIPE);
    session.note("by a recipe of another name", &room.attar(&["run", "other.toml"]).exits(2));
    let verb = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "out"];
    session.note("by a verb", &room.attar(&verb).exits(2));
    assert_eq!(room.files("out"), before);
    assert!(!room.path("other.lock").exists());
    session.check();
}

#[test]
fn a_failed_run_promises_nothing() {
    let room = ready();
    room.attar(&["run", "recipe.toml"]).exits(0);
    crate::checkpoint::edit(&room, |raw| raw.poke("model.layers.0.mlp.down_proj.weight", 0, f32::NAN));
    room.attar(&["run", "recipe.toml"]).exits(3);
    for promise in ["manifest.json", "report.json", "report.md"] {
        assert!(!room.path("out").join(promise).exists(), "{promise} speaks of another run");
    }
}

#[test]
fn locked() {
    let mut session = Session::new("locked");
    let room = ready();
    let locked = ["run", "recipe.toml", "--locked"];
    session.note("no lock", &room.attar(&locked).exits(2));
    assert!(room.files("out").is_empty());
    room.attar(&["run", "recipe.toml"]).exits(0);
    let lock = room.read("recipe.lock");
    for promised in ["lock = 1", "tool = \"attar ", "path = \"model/config.json\"", "path = \"model/model.safetensors\""] {
        assert!(lock.contains(promised), "{promised}\n{lock}");
    }
    room.attar(&locked).exits(0);
    let finished = room.files("out");

    room.write("recipe.toml", &RECIPE.replace("int4", "int8"));
    session.note("another recipe than locked", &room.attar(&locked).exits(2));
    room.write("recipe.toml", RECIPE);

    let config = room.read("model/config.json");
    room.write("model/config.json", &format!("{config}\n"));
    session.note("another input than locked", &room.attar(&locked).exits(2));
    room.write("model/config.json", &config);

    room.write("model/generation_config.json", "{}");
    session.note("one input more than locked", &room.attar(&locked).exits(2));
    fs::remove_file(room.path("model/generation_config.json")).unwrap();

    let tool = lock.lines().find(|line| line.starts_with("tool = ")).unwrap();
    room.write("recipe.lock", &lock.replace(tool, "tool = \"attar 0.0.1\""));
    session.note("locked by another version", &room.attar(&locked).exits(2));
    room.write("recipe.lock", "lock = [");
    session.note("a lock that is none", &room.attar(&locked).exits(2));
    assert_eq!(room.files("out"), finished, "what the refused runs found is still there");

    room.write("recipe.lock", &lock);
    room.attar(&locked).exits(0);
    session.check();
}
