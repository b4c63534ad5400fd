//! Models that became smaller in shape: what every later command makes of them, what a budget finds, what is refused.

use serde_json::Value;

use crate::{
    room::{Room, assert_same_files, repository},
    snapshot::Session,
};

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-train.txt";

/// A run of the small model through steps, and more sections.
fn recipe(steps: &[&str], more: &str) -> String {
    let head = format!(
        "recipe = 1\nmodel = \"{MODEL}\"\noutput = \"out\"\n\n[data.calibration]\npath = \"{TEXT}\"\nsamples = 16\nlength = 128\n"
    );
    steps.iter().fold(head, |all, step| format!("{all}\n[[step]]\n{step}\n")) + more
}

const HALF: &str = "kind = \"prune\"\nmlp = 192\nheads = 2\nkv_heads = 1\nblocks = 3\nends = 1";
const EVAL: &str = "\n[[eval]]\nname = \"text\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 128\ntokens = 1024\n";

fn pruned(room: &Room, text: &str) -> Value {
    room.write("recipe.toml", text);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    room.json("out/report.json")["variants"][0]["prunings"][0].clone()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("`{path}` is a number in {value}"))
}

#[test]
fn a_pruned_model_is_an_ordinary_one() {
    let room = Room::new();
    let steps = [HALF, "kind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\nalgorithm = \"gptaq\""];
    let exports = "\n[[export]]\ntarget = \"checkpoint\"\n[[export]]\ntarget = \"onnx\"\n[[export]]\ntarget = \"openvino\"\n";
    let found = pruned(&room, &recipe(&steps, &(exports.to_owned() + EVAL)));
    let (before, after) = (&found["before"], &found["after"]);
    // 4 blocks of 4 query and 2 key-value heads of 32 and 384 channels; 3 of 2 and 1 and 192.
    assert_eq!(number(before, "/parameters"), 918_656.0);
    let block = |heads: u32, key_heads: u32, mlp: u32| f64::from(128 * 32 * (2 * heads + 2 * key_heads) + 3 * 128 * mlp + 256);
    let outside = 918_656.0 - 4.0 * block(4, 2, 384);
    assert_eq!(number(after, "/parameters"), outside + 3.0 * block(2, 1, 192));
    assert_eq!(number(after, "/kv_bytes"), 2.0 * 2.0 * 3.0 * 32.0);
    assert_eq!(number(after, "/blocks"), 3.0);
    assert!(number(after, "/bytes") < 0.6 * number(before, "/bytes") && number(after, "/macs") < 0.6 * number(before, "/macs"));
    let kl = number(&found, "/divergence");
    assert!(kl > 0.05 && kl < 2.0, "{kl}");
    for folder in ["checkpoint", "onnx", "openvino"] {
        assert!(room.path(&format!("out/{folder}/artifact.json")).exists(), "{folder}");
    }
    let evals = room.json("out/report.json")["evals"].clone();
    let measured =
        evals.as_array().and_then(|evals| evals.iter().find(|eval| eval["variant"] == "")).unwrap_or(&evals[0]).clone();
    assert!(
        number(&measured, "/outcome/measured/against_base/kl_mean/value") > 0.05,
        "held against the model of the recipe: {measured}"
    );
    let said = room.attar(&["inspect", "out/checkpoint"]).exits(0).stdout;
    assert!(said.contains("blocks.2.mlp.down") && !said.contains("blocks.3."), "blocks are numbered through: {said}");
}

/// Every pruner with and without a fit: the fit always helps, and the default choice is the best.
#[test]
fn fitting_makes_every_choice_better() {
    let room = Room::new();
    let kl = |method: &str, fit: &str| {
        let step = format!("kind = \"prune\"\nmlp = 192\nmethod = \"{method}\"\nfit = \"{fit}\"");
        number(&pruned(&room, &recipe(&[&step], "")), "/divergence")
    };
    let mut fitted = Vec::new();
    for method in ["obs", "activation", "wanda", "magnitude", "fluctuation"] {
        let (as_it_is, layer) = (kl(method, "none"), kl(method, "layer"));
        assert!(layer < 0.8 * as_it_is, "{method}: {layer} fitted, {as_it_is} as it is");
        fitted.push(layer);
    }
    assert!(fitted[1..].iter().all(|other| fitted[0] < *other), "{fitted:?}");
}

#[test]
fn a_budget_measures_shapes_and_takes_the_best() {
    let room = Room::new();
    let step = "kind = \"prune\"\nends = 1\nmultiple = 32\ntarget = { parameters = \"600k\" }";
    let found = pruned(&room, &recipe(&[step], ""));
    let candidates = found["candidates"].as_array().expect("they are listed");
    assert!(candidates.len() > 3 && candidates.len() <= 10, "{candidates:?}");
    let kls: Vec<f64> = candidates.iter().map(|candidate| number(candidate, "/divergence")).collect();
    let best =
        candidates.iter().min_by(|a, b| number(a, "/divergence").total_cmp(&number(b, "/divergence"))).expect("there are some");
    assert_eq!(found["after"], best["size"], "{kls:?}");
    assert!((number(&found, "/divergence") - number(best, "/divergence")).abs() < 1e-9);
    for candidate in candidates {
        assert!(number(candidate, "/mlp") >= 128.0, "no fewer than a third: {candidate}");
        assert!(number(candidate, "/size/parameters") <= 600_000.0 && number(candidate, "/mlp") % 32.0 == 0.0, "{candidate}");
    }
}

/// The latency of a candidate is what `compile` plans for the quantized model.
#[test]
fn a_budget_of_latency_is_that_of_the_compiled_model() {
    let room = Room::new();
    let target = "target = { latency = 0.00006, device = \"generic-npu\", set = [\"sram=256KiB\"] }";
    let steps = [
        &format!("kind = \"prune\"\nends = 1\nmultiple = 32\n{target}"),
        "kind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"",
        "kind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"\nselect = [\"embedding\", \"lm_head\"]",
        "kind = \"activations\"\nmode = \"static\"\nselect = [\"**\"]",
        "kind = \"compile\"\ndevice = \"generic-npu\"\nset = [\"sram=256KiB\"]",
    ];
    let found = pruned(&room, &recipe(&steps, ""));
    let candidates = found["candidates"].as_array().expect("they are listed");
    assert!(
        candidates.len() > 1 && candidates.iter().all(|candidate| number(candidate, "/latency") <= 0.00006),
        "{candidates:?}"
    );
    let best = candidates.iter().find(|candidate| candidate["size"] == found["after"]).expect("one was made");
    let report = room.json("out/report.json");
    let phases = report["variants"][0]["compilations"][0]["phases"].as_array().expect("it was compiled").clone();
    let decode = phases.iter().find(|phase| phase["name"] == "decode").expect("decoding is planned");
    assert_eq!(number(decode, "/latency"), number(best, "/latency"));
}

/// Where blocks may differ, the whole is measured against the best uniform shape.
#[test]
fn widths_vary_within_the_budget_where_that_loses_less() {
    let room = Room::new();
    let step =
        "kind = \"prune\"\nblocks = 4\nheads = 4\nkv_heads = 2\nmultiple = 32\nvary = true\ntarget = { parameters = \"700k\" }";
    let found = pruned(&room, &recipe(&[step], "\n[[export]]\ntarget = \"onnx\"\n"));
    let candidates = found["candidates"].as_array().expect("they are listed");
    let [uniform, varied] = candidates.as_slice() else { panic!("one shape and its variation: {candidates:?}") };
    let widths: Vec<u64> = varied["widths"].as_array().expect("listed").iter().filter_map(Value::as_u64).collect();
    assert!(widths.len() == 4 && widths.iter().any(|width| *width != widths[0]), "{widths:?}");
    assert!(number(varied, "/size/parameters") <= 700_000.0 && number(varied, "/divergence") < number(uniform, "/divergence"));
    assert_eq!(found["after"], varied["size"]);
    room.write("recipe.toml", &recipe(&[step], "\n[[export]]\ntarget = \"safetensors\"\n"));
    let said = room.attar(&["plan", "recipe.toml"]).exits(2);
    assert!(said.stderr.contains("channels in its MLP"), "{}", said.stderr);
}

/// A narrower residual stream is an ordinary model, and the fit is worth more than half of what is lost.
#[test]
fn the_residual_stream_becomes_narrower() {
    let room = Room::new();
    let kl = |method: &str, fit: &str| {
        let step = format!("kind = \"prune\"\nhidden = 112\nmethod = \"{method}\"\nfit = \"{fit}\"");
        let found = pruned(&room, &recipe(&[&step], "\n[[export]]\ntarget = \"safetensors\"\n"));
        assert_eq!(room.json("out/safetensors/config.json")["hidden_size"], 112);
        assert_eq!(found["layers"][0]["after"], 112, "{found}");
        number(&found, "/divergence")
    };
    let (as_it_is, fitted) = (kl("obs", "none"), kl("obs", "layer"));
    assert!(fitted < 0.6 * as_it_is, "{fitted} fitted, {as_it_is} as it is");
    for method in ["activation", "wanda", "magnitude", "fluctuation"] {
        assert!(kl(method, "layer").is_finite());
    }
    room.attar(&["eval", "out/safetensors", "--data", TEXT, "--tokens", "256", "--quiet"]).exits(0);
}

/// The least that can be met is met, and one less is not.
#[test]
fn a_budget_that_no_shape_meets_is_told_the_nearest() {
    let room = Room::new();
    let plan = |parameters: u64| {
        let step = format!("kind = \"prune\"\ntarget = {{ parameters = {parameters} }}");
        room.write("recipe.toml", &recipe(&[&step], ""));
        room.attar(&["plan", "recipe.toml"])
    };
    let said = plan(1000).exits(2).stderr;
    let least =
        said.split("`parameters = ").nth(2).and_then(|rest| rest.split('`').next()?.parse().ok()).expect("the hint names it");
    plan(least).exits(0);
    plan(least - 1).exits(2);
}

#[test]
fn a_model_whose_activations_are_integers_keeps_its_shape() {
    let room = Room::new();
    let arguments =
        ["activations", MODEL, "--calibration", TEXT, "--samples", "4", "--length", "64", "--out", "integers", "--quiet"];
    room.attar(&arguments).exits(0);
    for verb in [["prune", "--mlp", "192"], ["distill", "--labels", "1"]] {
        let text = if verb[0] == "prune" { "--calibration" } else { "--train" };
        let said = room.attar(&[verb[0], "integers", verb[1], verb[2], text, TEXT, "--length", "64", "--out", "out"]).exits(2);
        assert!(said.stderr.contains("activations are quantized"), "{}", said.stderr);
    }
}

#[test]
fn a_verb_prunes_and_repeats_itself() {
    let room = Room::new();
    for out in ["one", "two"] {
        let arguments =
            ["prune", MODEL, "--target", "macs=700k", "--calibration", TEXT, "--samples", "16", "--length", "128", "--quiet"];
        room.attar(&[arguments.as_slice(), &["--out", out]].concat()).exits(0);
    }
    assert_same_files(&room.files("one"), &room.files("two"), "the same command gives the same files");
    room.attar(&["eval", "one", "--data", TEXT, "--tokens", "256", "--quiet"]).exits(0);
    let target = ["latency=0.00006", "device=generic-npu", "set=sram=256KiB", "set=dram.bandwidth=12GB/s"];
    let flags: Vec<&str> = target.iter().flat_map(|pair| ["--target", *pair]).collect();
    let said = room.attar(&[&["prune", MODEL, "--calibration", TEXT, "--out", "three", "--print-recipe"], &flags[..]].concat());
    assert!(said.exits(0).stdout.contains("\"sram=256KiB\","), "a key that is a list is repeated");
}

/// The recipe of the guide: half of the parameters, trained for some seconds, in 4 bits, with gates on what is lost.
#[test]
fn the_shakespeare_student_passes_its_gates() {
    let room = Room::new();
    let recipe = repository().join("recipes/shakespeare-student.toml").display().to_string();
    room.attar(&["run", &recipe, "--output", "student", "--quiet"]).exits(0);
    let config = room.json("student/float/safetensors/config.json");
    let sizes = ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim"];
    assert_eq!(sizes.map(|key| config[key].as_u64()), [4, 2, 1, 144, 32].map(Some), "{config}");
    assert!(room.path("student/float/safetensors/tokenizer.json").exists());
    assert!(room.path("student/int4/onnx/artifact.json").exists() && !room.path("student/int4/safetensors").exists());
    let report = room.json("student/report.json");
    let held_out = report["variants"][0]["distillations"][0].clone();
    assert_eq!(report["passed"], true, "{held_out}");
}

#[test]
fn layers_that_differ_stay_in_attars_own_folders() {
    let room = Room::new();
    let step = "kind = \"prune\"\nblocks = 3\nends = 1\ndepth = \"attention\"";
    let export = |target: &str| format!("\n[[export]]\ntarget = \"{target}\"\n");
    room.write("recipe.toml", &recipe(&[step], &export("safetensors")));
    let said = room.attar(&["plan", "recipe.toml"]).exits(2);
    assert!(said.stderr.contains("`blocks.2` has 0 attentions"), "{}", said.stderr);
    room.write("recipe.toml", &recipe(&[step], &export("checkpoint")));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    room.attar(&["eval", "out/checkpoint", "--data", TEXT, "--tokens", "256", "--quiet"]).exits(0);
}

#[test]
fn an_export_can_be_of_one_variant() {
    let room = Room::new();
    let text = recipe(
        &[],
        "\n[[variant]]\nname = \"a\"\n[[variant]]\nname = \"b\"\n[[export]]\ntarget = \"checkpoint\"\nvariant = \"b\"\n",
    );
    room.write("recipe.toml", &text);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    assert!(room.path("out/b/checkpoint").exists() && !room.path("out/a").exists());
    room.write("recipe.toml", &text.replace("variant = \"b\"", "variant = \"c\""));
    let said = room.attar(&["plan", "recipe.toml"]).exits(2);
    assert!(said.stderr.contains("no variant is named `c`"), "{}", said.stderr);
}

#[test]
fn above_its_bound_nothing_is_written() {
    let room = Room::new();
    let step = format!("{HALF}\nmax_kl = 0.01");
    room.write("recipe.toml", &recipe(&[&step], "\n[[export]]\ntarget = \"checkpoint\"\n"));
    let said = room.attar(&["run", "recipe.toml", "--quiet"]).exits(1);
    assert!(said.stderr.contains("nats per token") && said.stderr.contains("max_kl"), "{}", said.stderr);
    assert!(!room.path("out/checkpoint").exists() && !room.path("out/manifest.json").exists());
}

#[test]
fn mistakes_are_found_in_the_plan() {
    let room = Room::new();
    let mut session = Session::new("prune-mistakes");
    let quantize = "kind = \"quantize\"\ngrid = \"int4\"\ngroup = 64";
    let cases: &[(&str, &[&str])] = &[
        ("nothing to remove", &["kind = \"prune\""]),
        ("more channels than there are", &["kind = \"prune\"\nmlp = 500"]),
        ("heads that do not divide", &["kind = \"prune\"\nheads = 3"]),
        ("more key-value heads than there are", &["kind = \"prune\"\nkv_heads = 4"]),
        ("blocks at the ends", &["kind = \"prune\"\nblocks = 3"]),
        ("a budget that no shape meets", &["kind = \"prune\"\ntarget = { parameters = 1000 }"]),
        ("a multiple that is more than there are", &["kind = \"prune\"\nmultiple = 500\ntarget = { parameters = \"600k\" }"]),
        ("a setting that means nothing alone", &["kind = \"prune\"\nmlp = 192\nends = 1"]),
        ("the teacher is the model itself", &["kind = \"distill\""]),
        ("two budgets", &["kind = \"prune\"\ntarget = { parameters = \"1M\", bytes = \"1 MB\" }"]),
        ("a bound that nothing is below", &["kind = \"prune\"\nmlp = 192\nmax_kl = 0"]),
        ("a wider residual stream", &["kind = \"prune\"\nhidden = 129"]),
        ("a narrower stream, and more", &["kind = \"prune\"\nhidden = 96\nmlp = 192"]),
        ("a latency without a device", &["kind = \"prune\"\ntarget = { latency = 0.001 }"]),
        ("a device without a latency", &["kind = \"prune\"\ntarget = { parameters = \"600k\", device = \"generic-npu\" }"]),
        ("an unknown device", &["kind = \"prune\"\ntarget = { latency = 0.001, device = \"generic-np\" }"]),
        ("a latency that no shape meets", &["kind = \"prune\"\ntarget = { latency = 1e-9, device = \"generic-npu\" }"]),
        ("widths that vary without a budget", &["kind = \"prune\"\nmlp = 192\nvary = true"]),
        ("widths that add nothing to the cache", &["kind = \"prune\"\nvary = true\ntarget = { kv_bytes = 400 }"]),
        ("after quantization", &[quantize, "kind = \"prune\"\nmlp = 192"]),
        ("a shape that a later step would break", &["kind = \"prune\"\nmlp = 200", quantize]),
    ];
    for (title, steps) in cases {
        room.write("recipe.toml", &recipe(steps, ""));
        session.note(title, &room.attar(&["plan", "recipe.toml"]).exits(2));
    }
    room.write("recipe.toml", &recipe(&[HALF], "").replace("samples = 16", "samples = 1"));
    session.note("one window", &room.attar(&["plan", "recipe.toml"]).exits(2));
    session.check();
}
