//! Names from files are shown, never obeyed: by a terminal, by a page.

use serde_json::json;

use crate::{
    checkpoint::{configure, copy, edit},
    room::{Room, Said},
};

const NAME: &str = "\u{1b}[2J\u{9b}31m<script>|\u{202e}x";

/// Nothing that a terminal obeys is on either stream, and the name is.
fn is_harmless(said: &Said) {
    for text in [&said.stdout, &said.stderr] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
    }
    let all = format!("{}{}", said.stdout, said.stderr);
    assert!(all.contains("\\u{1b}[2J\\u{9b}31m") || all.contains("\\u001b[2J\\u009b31m"), "{all}");
}

fn room() -> Room {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    room
}

#[test]
fn names_in_messages_are_escaped() {
    let room = room();
    configure(&room, "architectures", json!([NAME]));
    for arguments in [&["inspect", "model"][..], &["--json", "inspect", "model"], &["plan", "recipe.toml"]] {
        room.write("recipe.toml", "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n[[export]]\ntarget = \"checkpoint\"\n");
        is_harmless(&room.attar(arguments).exits(3));
    }
}

#[test]
fn names_of_tensors_are_escaped_wherever_they_are_listed() {
    let room = room();
    edit(&room, |raw| raw.replace(NAME_OF_GATE, "F23", &[48, 32], &[0; 48 * 32]));
    edit(&room, |raw| {
        let gate = raw.header.as_object_mut().expect("headers are objects").remove(NAME_OF_GATE).expect("it is there");
        raw.header[NAME] = gate;
    });
    let said = room.attar(&["inspect", "model"]);
    assert!(!said.stderr.contains('\u{1b}') && !said.stdout.contains('\u{1b}'), "{}{}", said.stdout, said.stderr);
}

const NAME_OF_GATE: &str = "model.layers.1.mlp.gate_proj.weight";

#[test]
fn names_in_reports_are_text() {
    let room = room();
    let path = "a<script>|b";
    std::fs::rename(room.path("model"), room.path(path)).expect("the room is writable");
    room.attar(&["quantize", path, "--grid", "int4", "--group", "16", "--out", "out"]).exits(0);
    let report = room.read("out/report.md");
    assert!(report.contains("a&lt;script&gt;\\|b") && !report.contains("<script>"), "{report}");
}
