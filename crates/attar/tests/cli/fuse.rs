//! Fused graphs on a real model: the numbers they keep, what can be done with them, what is refused.

use serde_json::Value;

use crate::room::{Room, assert_same_files};

const MODEL: &str = "testdata/models/shakespeare-1m";

const INTEGERS: &str =
    "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 32\n\n[[step]]\nkind = \"activations\"\nkv = \"int8\"\n\n";

const EVAL: &str = "[[eval]]\nname = \"plays\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 128\ntokens = 1024\n";

/// Weights in codes and activations in integers, as they are and fused; both as ONNX.
fn both_ways() -> String {
    let variants = "[[variant]]\nname = \"apart\"\n\n[[variant]]\nname = \"fused\"\n[[variant.step]]\nkind = \"fuse\"\n\n";
    format!("recipe = 1\nmodel = \"{MODEL}\"\noutput = \"out\"\n\n{INTEGERS}{variants}[[export]]\ntarget = \"onnx\"\n\n{EVAL}")
}

/// The outcome of the eval of a variant, with all its digits.
fn outcome<'r>(report: &'r Value, variant: &str) -> &'r Value {
    let evals = report["evals"].as_array().expect("evals are a list");
    &evals.iter().find(|eval| eval["variant"] == variant).expect("every variant is measured")["outcome"]
}

#[test]
fn a_fused_model_measures_to_the_bit_what_it_did() {
    let room = Room::new();
    room.write("recipe.toml", &both_ways());
    let plan = room.attar(&["plan", "recipe.toml"]).exits(0);
    assert!(plan.stdout.contains("residual_norm"), "{}", plan.stdout);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    assert!(outcome(&report, "fused")["measured"]["perplexity"]["value"].is_f64(), "{report}");
    assert_eq!(outcome(&report, "fused"), outcome(&report, "apart"));
    let fused = &report["variants"][1];
    assert_eq!((&fused["transforms"][0]["step"], &fused["transforms"][0]["logits_off"]), (&"fuse".into(), &0.0.into()));
    let nodes = |at: usize, key: &str| fused["fusions"][at][key].as_u64().expect("passes count nodes");
    let passes = fused["fusions"].as_array().map_or(0, Vec::len);
    assert_eq!((nodes(0, "before"), nodes(passes - 1, "after")), (87 + 4 * 6, 4 * 7 + 3));
    assert!(room.read("out/report.md").contains("## Passes over the graph"));
}

/// An exporter sees what was fused as it was.
#[test]
fn the_export_of_a_fused_model_has_the_weights_it_had() {
    let room = Room::new();
    room.write("recipe.toml", &both_ways().replace(EVAL, ""));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let data = |variant: &str| std::fs::read(room.path(&format!("out/{variant}/onnx/model.onnx.data"))).expect("it was written");
    assert!(data("apart") == data("fused"), "the same tensors at the same places");
    let length =
        |variant: &str| std::fs::metadata(room.path(&format!("out/{variant}/onnx/model.onnx"))).expect("it is there").len();
    assert_eq!(length("apart"), length("fused"), "the same nodes, some in another order");
}

#[test]
fn a_fused_folder_is_a_model_like_any_other() {
    let room = Room::new();
    room.attar(&["quantize", MODEL, "--grid", "int8", "--group", "64", "--out", "small"]).exits(0);
    room.attar(&["fuse-ops", "small", "--out", "fused"]).exits(0);
    assert!(room.read("fused/graph.ir").contains("b0.qkv = fused qkv b0.attention_in, "));
    let said = |folder: &str| room.attar(&["generate", folder, "--prompt", "KING HENRY:\\n", "--tokens", "24"]).exits(0).stdout;
    assert_eq!(said("fused"), said("small"));
    room.attar(&["fuse", "fused", "--out", "again"]).exits(0);
    assert_eq!(room.read("again/graph.ir"), room.read("fused/graph.ir"));
    room.attar(&["export", "fused", "--target", "onnx", "--out", "onnx"]).exits(0);
    // Layers that are inside a kernel are no longer there to be quantized.
    let refused = room.attar(&["quantize", "fused", "--grid", "int4", "--out", "smaller"]).exits(2);
    refused.says("the graph is fused, and `quantize` looks for the layers in it");
}

#[test]
fn a_step_behind_a_fused_graph_is_refused_where_it_stands() {
    let room = Room::new();
    let head = format!("recipe = 1\nmodel = \"{MODEL}\"\noutput = \"out\"\n\n[[step]]\nkind = \"fuse\"\n\n");
    room.write("recipe.toml", &format!("{head}[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n"));
    let refused = room.attar(&["plan", "recipe.toml"]).exits(2);
    refused.says("recipe.toml:9");
    assert!(!room.path("out").exists());
}

#[test]
fn the_verb_shows_what_passes_do_and_writes_nothing() {
    let room = Room::new();
    let before = room.files(".").len();
    let table = room.attar(&["fuse", MODEL]).exits(0).stdout;
    assert!(table.contains("qkv, attention, linear_add"), "{table}");
    let text = room.attar(&["fuse", MODEL, "--text"]).exits(0).stdout;
    assert!(text.contains("= fused attention b3.qkv (qkv) {"), "{text}");
    let json = room.attar(&["fuse", MODEL, "--json"]).exits(0).json();
    assert_eq!(json["graph"], text.as_str());
    let of = |name: &str| json["passes"].as_array().and_then(|all| all.iter().find(|pass| pass["pass"] == name)).cloned();
    assert_eq!(of("gated").expect("it ran")["changes"], serde_json::json!(["b0.gated", "b1.gated", "b2.gated", "b3.gated"]));
    assert_eq!(of("fold_norms"), None, "it rounds");
    let one = room.attar(&["fuse", MODEL, "--passes", "gated", "--text"]).exits(0).stdout;
    assert!(one.contains("fused gated") && !one.contains("fused qkv"), "{one}");
    assert_eq!(room.files(".").len(), before);
}

/// Gains go into plain weights, which are f32 then, and are the same ones; the tied table keeps its norm.
#[test]
fn folded_norms_are_part_of_the_weights_that_are_written() {
    let room = Room::new();
    room.attar(&["fuse", MODEL, "--passes", "fold_norms", "--out", "folded"]).exits(0);
    let transform = &room.json("folded/report.json")["variants"][0]["transforms"][0];
    let off = transform["logits_off"].as_f64().expect("it was measured");
    assert!(off > 0.0 && off < 1e-5, "{transform}");
    assert_eq!(transform["weights"], 4 * (2 + 5));
    let graph = room.read("folded/graph.ir");
    assert!(graph.contains("weight(\"blocks.0.mlp_norm\": [128] f32 = tensor(\"blocks.0.attention_norm\"))"), "{graph}");
    assert!(graph.contains("weight(\"final_norm\": [128] bf16)"), "{graph}");
    let folder = room.files("folded");
    room.attar(&["fuse", MODEL, "--passes", "fold_norms", "--out", "folded"]).exits(0);
    assert_same_files(&room.files("folded"), &folder, "the same command gives the same files");
}
