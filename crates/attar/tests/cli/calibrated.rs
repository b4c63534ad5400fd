//! Algorithms that see activations: better than those that do not, and clear about what they lack.

use crate::room::Room;

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

#[test]
fn an_algorithm_that_sees_activations_needs_a_text() {
    let room = Room::new();
    let whole = recipe("gptq", "");
    let start = whole.find("[data.calibration]").expect("it is there");
    let end = whole.find("[[step]]").expect("it is there");
    room.write("recipe.toml", &format!("{}{}", &whole[..start], &whole[end..]));
    for verb in ["plan", "run"] {
        let said = room.attar(&[verb, "recipe.toml"]).exits(2);
        said.says("[data.calibration]");
    }
    assert!(!room.path("out/manifest.json").exists());
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

#[test]
fn a_table_has_no_inputs_to_see() {
    let room = Room::new();
    room.write("recipe.toml", &recipe("gptq", "select = [\"embedding\"]"));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("looked up");
}
