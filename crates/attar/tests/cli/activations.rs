//! Activations and caches in integers on a real model: what they cost, what the report says, what stops a run.

use serde_json::Value;

use crate::{
    checkpoint::{copy, edit},
    room::Room,
};

const CALIBRATION: &str = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 16\nlength = 256\n\n";

/// Variants of the step alone: the weights stay as they are, so that the damage is that of the activations.
const VARIANTS: [(&str, &str); 8] = [
    ("dynamic-8", ""),
    ("dynamic-16", "bits = 16"),
    ("static-minmax", "mode = \"static\""),
    ("static-percentile", "mode = \"static\"\nobserver = \"percentile\""),
    ("static-mse", "mode = \"static\"\nobserver = \"mse\""),
    ("static-channel", "mode = \"static\"\ngranularity = \"channel\""),
    ("cache-8", "select = []\nkv = \"int8\""),
    ("cache-4", "select = []\nkv = \"int4\""),
];

fn recipe(model: &str) -> String {
    let mut text = format!("recipe = 1\nmodel = \"{model}\"\noutput = \"out\"\n\n{CALIBRATION}");
    for (name, lines) in VARIANTS {
        text += &format!("[[variant]]\nname = \"{name}\"\n[[variant.step]]\nkind = \"activations\"\n{lines}\n\n");
    }
    text + "[[eval]]\nname = \"plays\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 256\ntokens = 4096\n"
}

fn kl(report: &Value, variant: &str) -> f64 {
    let evals = report["evals"].as_array().expect("evals are a list");
    let of = evals.iter().find(|eval| eval["variant"] == variant).expect("every variant is measured");
    of["outcome"]["measured"]["against_base"]["kl_mean"]["value"].as_f64().expect("the KL divergence was measured")
}

/// Bounds are some 1.5 times what was measured.
#[test]
fn activations_in_integers_cost_what_they_should() {
    let room = Room::new();
    room.write("recipe.toml", &recipe("testdata/models/shakespeare-1m"));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    let found: Vec<(&str, f64)> = VARIANTS.iter().map(|(name, _)| (*name, kl(&report, name))).collect();
    let of = |name: &str| found.iter().find(|(variant, _)| *variant == name).expect("it is one of them").1;
    assert!(of("dynamic-8") < 8e-4 && of("dynamic-16") < 1e-7, "{found:?}");
    assert!(of("dynamic-8") < of("static-minmax") && of("static-channel") < of("static-minmax"), "{found:?}");
    assert!(of("static-minmax") < 0.011, "{found:?}");
    assert!(["static-mse", "static-percentile"].iter().all(|name| of(name) < 0.7 * of("static-minmax")), "{found:?}");
    assert!(of("cache-8") < 6e-5 && of("cache-4") < 0.02, "{found:?}");
    worst_first(&report, &room.read("out/report.md"));
}

fn worst_first(report: &Value, markdown: &str) {
    for variant in report["variants"].as_array().expect("variants are a list") {
        let activations = variant["activations"].as_array().expect("all of them have some");
        let noise: Vec<f64> = activations.iter().map(|a| a["snr_db"].as_f64().expect("measured on the text")).collect();
        assert!(noise.is_sorted() && noise.iter().all(|snr| (8.0..110.0).contains(snr)), "{noise:?}");
        let cache = variant["name"].as_str().is_some_and(|name| name.starts_with("cache"));
        assert_eq!(activations.len(), 4 * if cache { 2 } else { 4 }, "four blocks");
        // What is too wide for a table is a list.
        let name = variant["name"].as_str().unwrap_or("?");
        let starts = [format!("| {name} | b"), format!("- {name}, b")];
        let rows = markdown.lines().filter(|line| starts.iter().any(|start| line.starts_with(start)));
        let shown: Vec<&str> =
            rows.filter_map(|row| row[name.len() + 2..].trim_start_matches([' ', '|', ',']).split([' ', ';']).next()).collect();
        let wanted: Vec<&str> = activations.iter().take(10).filter_map(|a| a["name"].as_str()).collect();
        assert_eq!(shown, wanted, "the worst ten of {}", variant["name"]);
    }
}

/// Without a text nothing is measured, and nothing is needed.
#[test]
fn dynamic_scales_need_no_text() {
    let room = Room::new();
    let model = "testdata/models/shakespeare-1m";
    room.attar(&["activations", model, "--kv", "int8", "--out", "small"]).exits(0);
    let graph = room.read("small/graph.ir");
    assert!(graph.contains("b0.key_turned.int8 = quantize b0.key_turned {bits = 8}"), "{graph}");
    assert_eq!(room.json("small/report.json")["variants"][0]["activations"][0].get("snr_db"), None);
    // What was written is a model: it can be measured, quantized and exported.
    room.attar(&["quantize", "small", "--grid", "int4", "--out", "smaller"]).exits(0);
    room.attar(&["export", "smaller", "--target", "onnx", "--out", "onnx"]).exits(0);
    let again = room.attar(&["activations", "small", "--out", "twice"]).exits(2);
    again.says("in integers already");
}

#[test]
fn static_scales_are_weights_of_the_model() {
    let room = Room::new();
    let text = "testdata/evals/shakespeare-train.txt";
    let model = "testdata/models/shakespeare-1m";
    let flags = ["--mode", "static", "--bits", "16", "--asymmetric", "--granularity", "channel"];
    let calibration = ["--calibration", text, "--samples", "4", "--length", "128", "--out", "small"];
    room.attar(&[&["activations", model], &flags[..], &calibration[..]].concat()).exits(0);
    let inspected = room.attar(&["inspect", "small", "--json"]).exits(0).json();
    let tensors = inspected["tensors"].as_array().expect("tensors are a list");
    let of = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name).expect("scales and zeros are tensors");
    assert_eq!((&of("b3.gated.scale")["encoding"], &of("b3.gated.zero")["encoding"]), (&"f32".into(), &"i16".into()));
    assert_eq!(of("b3.gated.scale")["dims"], serde_json::json!([384]));
}

#[test]
fn a_plan_says_what_becomes_integers() {
    let room = Room::new();
    let step = "[[step]]\nkind = \"activations\"\nmode = \"static\"\nbits = 16\nkv = \"int4\"\n";
    let head = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n\n";
    room.write("recipe.toml", &format!("{head}{CALIBRATION}{step}"));
    let said = room.attar(&["plan", "recipe.toml"]).exits(0);
    for wanted in ["blocks.*.attention.query, blocks.*.attention.key, blocks.*.attention.value", "int16/tensor", "int4/token"] {
        assert!(said.stdout.contains(wanted), "{}", said.stdout);
    }
    assert_eq!(
        room.attar(&["plan", "recipe.toml", "--json"]).exits(0).json()["variants"][0]["activations"].as_array().map(Vec::len),
        Some(24)
    );
    assert!(!room.path("out").exists());
}

/// Block, value and way out are named.
#[test]
fn activations_that_overflow_stop_the_run() {
    let room = Room::new();
    copy(&room, "shakespeare-1m");
    let huge: Vec<u8> = (0..384 * 128).flat_map(|_| 3e38f32.to_le_bytes()).collect();
    edit(&room, |raw| raw.replace("model.layers.1.mlp.up_proj.weight", "F32", &[384, 128], &huge));
    room.write("recipe.toml", &recipe("model"));
    let said = room.attar(&["run", "recipe.toml"]).exits(3);
    for wanted in ["blocks.1", "b1.gated", "not finite", "hint"] {
        assert!(said.stderr.contains(wanted), "{}", said.stderr);
    }
    assert!(!room.path("out/manifest.json").exists());
}

/// Where 8 bits lose most, and 16 elsewhere within a budget.
fn chosen(room: &Room, settings: &str) -> Value {
    let text = format!(
        "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n\n{CALIBRATION}\
         [[step]]\nkind = \"activations\"\nmode = \"static\"\nselect = [\"**\"]\n{settings}\n\n\
         [[eval]]\nname = \"plays\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 256\ntokens = 4096\n"
    );
    room.write("recipe.toml", &text);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    room.json("out/report.json")
}

fn widths(report: &Value) -> &Value {
    &report["variants"][0]["widths"][0]
}

fn measured(report: &Value) -> f64 {
    report["evals"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|eval| eval["outcome"]["measured"]["against_base"]["kl_mean"]["value"].as_f64())
        .next_back()
        .expect("measured")
}

/// Sixteen bits go where they help: a fifth more bytes take most of what 8 bits lose, and the prediction is what is measured.
#[test]
fn bits_are_spent_where_they_help() {
    let room = Room::new();
    let eight = measured(&chosen(&room, ""));
    let report = chosen(&room, "bits = \"auto\"\nbudget = { bytes = \"20%\" }");
    let (found, fisher) = (measured(&report), widths(&report).clone());
    assert!(found < 0.5 * eight, "{found} of {eight}");
    let number = |key: &str| fisher[key].as_f64().expect("a number");
    assert!((number("predicted_least") / eight - 1.0).abs() < 0.35, "{} predicted, {eight} measured", fisher["predicted_least"]);
    assert!((number("predicted") / found - 1.0).abs() < 0.35, "{} predicted, {found} measured", fisher["predicted"]);
    assert!(number("spent") <= number("allowed") && number("allowed") <= 1.2 * number("least"), "{fisher}");
    assert_eq!(number("most"), 2.0 * number("least"));
    let wide = |report: &Value| -> Vec<String> {
        let activations = report["variants"][0]["activations"].as_array().expect("a list");
        let sixteen = activations.iter().filter(|a| a["encoding"].as_str().is_some_and(|text| text.starts_with("int16/")));
        let mut names: Vec<String> = sixteen.filter_map(|a| a["name"].as_str().map(Into::into)).collect();
        names.sort();
        names
    };
    let sixteen = |widths: &Value| -> Vec<String> {
        let choices = widths["choices"].as_array().expect("a list").iter().filter(|choice| choice["bits"] == 16);
        let mut names: Vec<String> = choices.filter_map(|choice| choice["name"].as_str().map(Into::into)).collect();
        names.sort();
        names
    };
    assert!(!wide(&report).is_empty() && wide(&report) == sixteen(&fisher), "{fisher}");
    assert!(room.read("out/report.md").contains("## Bits of activations: `bytes = \"20%\"`"));
    // Gradients foretell what is measured one activation at a time.
    let report = chosen(&room, "bits = \"auto\"\nbudget = { bytes = \"20%\" }\nsensitivity = \"kl\"");
    let kl = widths(&report);
    for (one, other) in fisher["choices"].as_array().into_iter().flatten().zip(kl["choices"].as_array().into_iter().flatten()) {
        let ratio = one["losses"][0].as_f64().zip(other["losses"][0].as_f64()).map(|(one, other)| one / other);
        assert!(one["name"] == other["name"] && ratio.is_some_and(|ratio| (0.6..1.7).contains(&ratio)), "{one} {other}");
    }
    // Cycles are those of a device: int16 at half the rate doubles a product.
    let report = chosen(&room, "bits = \"auto\"\nbudget = { cycles = 0.3, device = \"generic-npu\" }");
    let cycles = widths(&report);
    assert_eq!(cycles["most"].as_u64(), cycles["least"].as_u64().map(|least| 2 * least));
    assert!(cycles["spent"].as_u64() <= cycles["allowed"].as_u64() && measured(&report) < 0.5 * eight, "{cycles}");
}

/// An encoder predicts no tokens: how far its embeddings move decides, unless noise is asked for.
#[test]
fn encoders_spend_bits_by_the_drift_of_their_embeddings() {
    let room = Room::new();
    let run = |model: &str, more: &[&str]| {
        let text = ["--samples", "2", "--calibration", "testdata/evals/shakespeare-train.txt"];
        let bits = ["--mode", "static", "--bits", "auto", "--budget", "bytes=60%", "--out", "out"];
        room.attar(&[&["activations", model], &bits[..], &text, more].concat())
    };
    let bert = "testdata/models/tiny-bert";
    run(bert, &["--sensitivity", "fisher"]).exits(2).says("an encoder predicts none");
    run("testdata/models/shakespeare-1m", &["--sensitivity", "drift"]).exits(2).says("compares embeddings");
    for (more, sensitivity) in [(&["--sensitivity", "noise"][..], "noise"), (&[], "drift")] {
        run(bert, more).exits(0);
        assert!(room.read("out/graph.ir").contains(".int16 = quantize"));
        let report = room.json("out/report.json");
        let found = widths(&report);
        let [chosen, least] = ["predicted", "predicted_least"].map(|key| found[key].as_f64().expect("a sum of losses"));
        assert_eq!(found["sensitivity"], sensitivity);
        assert!(chosen > 0.0 && chosen < 0.7 * least, "{sensitivity}: {chosen} of {least}");
    }
}

#[test]
fn budgets_of_activations_that_mean_nothing_are_refused() {
    let room = Room::new();
    for (settings, said) in [
        (&["--bits", "auto"][..], "needs a budget"),
        (&["--budget", "bytes=10%"], "`--budget` says nothing without"),
        (&["--sensitivity", "kl"], "`--sensitivity` says nothing without"),
        (&["--bits", "auto", "--budget", "bytes=10%", "--budget", "cycles=10%"], "bounds one of `cycles` and `bytes`"),
        (&["--bits", "auto", "--budget", "cycles=10%"], "`budget.cycles` says nothing without `budget.device`"),
        (
            &["--bits", "auto", "--budget", "bytes=10%", "--budget", "device=generic-npu"],
            "`budget.device` says nothing without `budget.cycles`",
        ),
        (&["--bits", "auto", "--budget", "bytes=few"], "`budget.bytes` is \"few\", and is to be a share of 0 or more"),
        (&["--bits", "auto", "--budget", "cycles=10%", "--budget", "device=nothing"], "no device is named `nothing`"),
        (
            &[
                "--bits",
                "auto",
                "--budget",
                "cycles=10%",
                "--budget",
                "device=generic-npu",
                "--budget",
                "set=numerics.activations=8",
            ],
            "does not multiply 8-bit weights with 16-bit activations",
        ),
        (
            &["--bits", "auto", "--budget", "cycles=10%", "--budget", "device=generic-npu", "--granularity", "channel"],
            "products with a scale per channel have no cycles in integers",
        ),
        (&["--bits", "auto", "--budget", "bytes=10%", "--values", "all"], "`--values` does not go with `--bits auto`"),
        (&["--bits", "12"], "found `12`, expected 8, 16 or \"auto\""),
    ] {
        let all = ["activations", "testdata/models/shakespeare-1m", "--mode", "static", "--out", "out"];
        room.attar(&[&all[..], settings].concat()).exits(2).says(said);
    }
    assert!(!room.path("out").exists());
}
