//! Weights whose numbers vanish in codes: found by row and by group, refused unless the recipe says that they may.

use crate::{
    checkpoint::{copy, edit},
    room::Room,
    snapshot::Session,
};

/// `[32, 48]`.
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const COLUMNS: usize = 48;
const ROW: usize = 3;
const QUANTIZE: [&str; 8] = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "out"];

/// A room with a small checkpoint, in which these columns of one row are `factor` times what they were.
fn faint(columns: std::ops::Range<usize>, factor: f32) -> Room {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    edit(&room, |raw| {
        let start = raw.range(DOWN).start;
        for at in columns.map(|column| ROW * COLUMNS + column) {
            let bytes = raw.data[start + 4 * at..][..4].try_into().expect("four bytes");
            raw.poke(DOWN, at, f32::from_le_bytes(bytes) * factor);
        }
    });
    room
}

#[test]
fn rows_and_groups_that_vanish_are_refused() {
    let mut session = Session::new("lost");
    session.note("a row below the smallest f16", &faint(0..COLUMNS, 1e-12).attar(&QUANTIZE).exits(3));
    session.note("a group below the smallest f16", &faint(16..32, 1e-12).attar(&QUANTIZE).exits(3));
    let room = faint(16..32, 1e-12);
    let said = room.attar(&[&QUANTIZE[..], &["--scale-dtype", "int6"]].concat()).exits(3);
    session.note("a group below the smallest code of a scale", &said);
    let per_tensor = ["quantize", "model", "--grid", "int4", "--group", "tensor", "--out", "out"];
    session.note("a row far below the others under one scale", &faint(0..COLUMNS, 1e-3).attar(&per_tensor).exits(3));
    session.check();
}

#[test]
fn f32_scales_hold_what_f16_loses() {
    for factor in [1e-12, 1e-25, 1e-33] {
        faint(0..COLUMNS, factor).attar(&[&QUANTIZE[..], &["--scale-dtype", "f32"]].concat()).exits(0);
    }
}

#[test]
fn what_a_recipe_may_lose_is_listed_in_the_report() {
    let room = faint(16..32, 1e-12);
    let recipe = r#"
recipe = 1
model = "model"
output = "out"

[[step]]
kind = "quantize"
grid = "int4"
group = 16
lost = "report"

[[export]]
target = "checkpoint"
"#;
    room.write("recipe.toml", recipe);
    room.attar(&["run", "recipe.toml"]).exits(0);
    let report = room.json("out/report.json");
    let losses = report["variants"][0]["losses"].as_array().expect("weights are listed");
    let (lossy, others): (Vec<_>, Vec<_>) = losses.iter().partition(|weight| weight["name"] == "blocks.0.mlp.down");
    let lossy = lossy[0];
    assert_eq!((&lossy["lost"], &lossy["first"][0]["row"], &lossy["first"][0]["group"]), (&1.into(), &ROW.into(), &1.into()));
    assert!(
        !others.is_empty()
            && others.iter().all(|weight| weight["lost"].is_null() && weight["worst"][0]["snr_db"].as_f64() > Some(5.0))
    );
    let text = room.read("out/report.md");
    assert!(text.contains("| - | blocks.0.mlp.down | row 3, group 1 (columns 16..32) | became zeros | 1 in all |"), "{text}");
}
