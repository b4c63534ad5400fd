//! Gates that do not hold: exit code 1, the artifact is kept, the report says why.

use std::fs;

use serde_json::Value;

use crate::{room::Room, snapshot::Session};

fn recipe(eval: &str, gate: &str) -> String {
    format!(
        r#"recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[[step]]
kind = "quantize"
grid = "int4"
group = 64

[[export]]
target = "onnx"

[[eval]]
name = "shakespeare"
task = "perplexity"
data = "testdata/evals/shakespeare-valid.txt"
window = 128
tokens = 512
{eval}
[[gate]]
metric = "shakespeare/perplexity"
{gate}
"#
    )
}

/// The one verdict of the report, which is on the disk beside the artifact.
#[track_caller]
fn verdict(room: &Room) -> Value {
    let report = room.json("out/report.json");
    assert_eq!(report["passed"], report["gates"][0]["status"] == "passed");
    for file in ["manifest.json", "report.md", "onnx/model.onnx", "onnx/model.onnx.data"] {
        assert!(room.path("out").join(file).exists(), "{file} is kept");
    }
    report["gates"][0].clone()
}

#[test]
fn a_gate_that_fails() {
    let mut session = Session::new("gate-failed");
    let room = Room::new();
    room.write("recipe.toml", &recipe("", "drop_at_most = \"0%\""));
    session.note("nothing may be lost, and something is", &room.attar(&["run", "recipe.toml"]).exits(1));
    let failed = verdict(&room);
    assert_eq!((failed["status"].as_str(), failed["limit"].as_f64()), (Some("failed"), Some(0.0)));
    assert!(failed["measured"].as_f64() > Some(0.0), "{failed}");
    let reason = failed["reason"].as_str().unwrap();
    assert!(room.read("out/report.md").contains(reason), "the page for people says why");
    assert!(room.read("out/report.md").lines().next().unwrap().ends_with(": FAILED"));

    let json = room.attar(&["run", "recipe.toml", "--json"]).exits(1);
    assert_eq!(json.stdout, room.read("out/report.json"), "a failed gate is a report, not an error");
    session.note("the same, and nothing but errors", &room.attar(&["run", "recipe.toml", "--quiet"]).exits(1));
    session.check();
}

#[test]
fn every_bound_can_fail_and_pass() {
    let room = Room::new();
    for (gate, code) in [
        ("drop_at_most = \"50%\"", 0),
        ("drop_at_most = 0.5", 0),
        ("drop_at_most = 0.0", 1),
        ("at_most = 1000", 0),
        ("at_most = 1.5", 1),
        ("at_least = 1.5", 0),
        ("at_least = 1000", 1),
    ] {
        room.write("recipe.toml", &recipe("", gate));
        room.attar(&["run", "recipe.toml"]).exits(code);
        assert_eq!(verdict(&room)["status"], if code == 0 { "passed" } else { "failed" }, "{gate}");
    }
}

#[test]
fn a_gate_on_an_engine_that_is_not_here_is_not_passed() {
    let mut session = Session::new("gate-not-run");
    let room = Room::new();
    let eval = "runners = [\"reference\", \"onnxruntime\"]\n";
    room.write("recipe.toml", &recipe(eval, "runner = \"onnxruntime\"\nat_most = 1000"));
    session.note("planned", &room.attar(&["plan", "recipe.toml"]).exits(0));
    session.note("run", &room.attar(&["run", "recipe.toml"]).exits(1));
    assert_eq!(verdict(&room)["status"], "not-run");
    assert!(room.read("out/report.md").contains("NOT RUN"));
    session.check();
}

#[test]
fn an_eval_without_its_engine_fails_the_run_unless_it_is_not_required() {
    let mut session = Session::new("engine-missing");
    let room = Room::new();
    let engine = "[[eval]]\nname = \"engine\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\n\
                  window = 128\ntokens = 256\nrunners = [\"onnxruntime\"]\n";
    room.write("recipe.toml", &recipe(&format!("\n{engine}"), "at_most = 1000"));
    session.note("required", &room.attar(&["run", "recipe.toml"]).exits(3));
    assert!(!room.path("out/manifest.json").exists());
    room.write("recipe.toml", &recipe(&format!("\n{engine}required = false\n"), "at_most = 1000"));
    session.note("not required", &room.attar(&["run", "recipe.toml"]).exits(0));
    let report = room.json("out/report.json");
    let skipped = &report["evals"][1]["outcome"]["skipped"];
    assert!(skipped["reason"].as_str().unwrap().contains("ONNX Runtime is not installed"), "{report}");

    fs::remove_dir_all(room.path("out")).unwrap();
    session.note("an engine folder without an engine", &{
        let mut command = room.command(&["run", "recipe.toml", "--quiet"]);
        command.env("ATTAR_ENGINES", "testdata");
        room.finish(command).exits(0)
    });
    session.check();
}
