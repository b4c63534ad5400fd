//! Budgets: met closely, spent well, predicted truly, and refused at their own line.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::room::Room;

const HEAD: &str = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n";

const CALIBRATION: &str = "\n[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 32\nlength = 128\n";

const EVAL: &str = "\n[[eval]]\nname = \"plays\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 256\ntokens = 4096\n";

fn recipe(step: &str) -> String {
    format!("{HEAD}{CALIBRATION}\n[[step]]\nkind = \"quantize\"\nscales = \"mse\"\n{step}\n")
}

fn report(text: &str) -> Value {
    let room = Room::new();
    room.write("recipe.toml", text);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    room.json("out/report.json")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn kl(report: &Value) -> f64 {
    number(&report["evals"][0]["outcome"]["measured"]["against_base"]["kl_mean"]["value"])
}

fn allocation(report: &Value) -> &Value {
    &report["variants"][0]["allocations"][0]
}

/// What each weight is predicted to lose.
fn predicted(report: &Value) -> BTreeMap<String, f64> {
    let choices = allocation(report)["choices"].as_array().expect("a table of choices");
    choices.iter().map(|c| (c["name"].as_str().expect("a name").to_owned(), number(&c["predicted"]))).collect()
}

/// At the bits of a uniform format, choosing loses at least a sixth less than the format; and the sum of the predictions
/// is the measured divergence to a third.
#[test]
fn choices_under_a_budget_beat_the_uniform_format_of_the_same_size() {
    let uniform = report(&(recipe("grid = \"int3\"\ngroup = 64\nselect = [\"**\"]") + EVAL));
    let budget = "bits = 3.25\nselect = [\"**\"]\nchoices = [\"int2/g32\", \"int2/g64\", \"int3/g32\", \"int3/g64\", \"int4/g64\", \"int5/g64\"]";
    let mixed = report(&(recipe(budget) + EVAL));
    let (bits, allowed) = (number(&mixed["variants"][0]["quantized_bits_per_weight"]), 3.25);
    assert!(bits <= allowed && bits >= 0.99 * allowed, "{bits}");
    assert!(kl(&mixed) < 0.83 * kl(&uniform), "mixed {}, uniform {}", kl(&mixed), kl(&uniform));
    let ratio = number(&allocation(&mixed)["predicted"]) / kl(&mixed);
    assert!((0.67..1.5).contains(&ratio), "predicted over measured: {ratio}");
    assert_eq!(number(&allocation(&mixed)["bits_per_weight"]), bits);
}

fn ranks(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| values.iter().filter(|other| *other < v).count() as f64).collect()
}

/// Spearman's.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() - 1) as f64 / 2.0;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

/// What gradients predict for one tensor at a time is what a run with that tensor quantized measures.
#[test]
fn predictions_rank_weights_as_measured_divergences_do() {
    let of = |sensitivity: &str| {
        let step = format!(
            "bits = 4\nselect = [\"**\"]\nkeep = [\"blocks.{{2,3}}.**\"]\nchoices = [\"int3/g64\"]\nsensitivity = \"{sensitivity}\""
        );
        predicted(&report(&recipe(&step)))
    };
    let (fisher, exact) = (of("fisher"), of("kl"));
    assert!(fisher.len() >= 15 && fisher.keys().eq(exact.keys()));
    let (fisher, exact): (Vec<f64>, Vec<f64>) = (fisher.into_values().collect(), exact.into_values().collect());
    let found = rank_correlation(&fisher, &exact);
    assert!(found >= 0.9, "{found}");
    let ratio = fisher.iter().sum::<f64>() / exact.iter().sum::<f64>();
    assert!((0.8..1.25).contains(&ratio), "{ratio}");
}

#[test]
fn a_budget_without_a_text_is_spent_by_the_weights_alone_and_says_so() {
    let room = Room::new();
    room.write("recipe.toml", &format!("{HEAD}\n[[step]]\nkind = \"quantize\"\nbits = 4\n"));
    room.attar(&["run", "recipe.toml"]).exits(0).says("by the error of the weights alone");
    let report = room.json("out/report.json");
    assert_eq!(allocation(&report)["sensitivity"], "weights");
    assert!(room.read("out/report.md").contains("Predicted loss (`weights`)"));
    let head = HEAD.replace("\"out\"", "\"other\"");
    room.write("fisher.toml", &format!("{head}\n[[step]]\nkind = \"quantize\"\nbits = 4\nsensitivity = \"fisher\"\n"));
    // One that looks at activations has attar's own text.
    assert!(room.attar(&["plan", "fisher.toml"]).exits(0).stdout.contains("calibration: windows of 512 tokens, 46 of prose"));
}

/// Tied tensors are one: the file is what the budget says.
#[test]
fn a_budget_in_bytes_counts_everything_once() {
    let room = Room::new();
    let export = "\n[[export]]\ntarget = \"checkpoint\"\n";
    room.write("recipe.toml", &(recipe("bytes = \"600 kB\"\nselect = [\"**\"]") + export));
    assert!(room.attar(&["plan", "recipe.toml"]).exits(0).stdout.contains("600000"));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    let bytes = number(&allocation(&report)["bytes"]);
    assert!((594_000.0..=600_000.0).contains(&bytes), "{bytes}");
    let stored = std::fs::metadata(room.path("out/checkpoint/model.safetensors")).expect("it was written").len() as f64;
    // Headers, and codes that fill whole bytes in each row.
    assert!(stored >= bytes && stored < bytes + 40_000.0, "{stored} beside {bytes}");
    let choices = allocation(&report)["choices"].as_array().expect("a table of choices");
    assert!(choices.iter().any(|c| c["name"] == "embedding") && choices.iter().all(|c| c["name"] != "lm_head"));
}

/// A table that is also the head has inputs to see as a head, and stays one tensor.
#[test]
fn a_tied_table_can_be_quantized_by_what_the_head_sees() {
    let step = |select: &str| recipe(&format!("select = {select}\ngrid = \"int4\"\ngroup = 64\nalgorithm = \"gptq\""));
    let found = report(&(step("[\"embedding\", \"lm_head\"]") + EVAL));
    let tensors = found["variants"][0]["tensors"].as_array().expect("a table of tensors");
    assert!(tensors.len() == 1 && tensors[0]["name"] == "embedding", "{tensors:?}");
    assert_eq!(number(&found["variants"][0]["quantized_bits_per_weight"]), 4.25);
    assert!((0.001..0.05).contains(&kl(&found)), "{}", kl(&found));
    let room = Room::new();
    room.write("recipe.toml", &step("[\"embedding\"]"));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("looked up");
}

#[test]
fn overrides_fix_formats_and_the_rest_of_the_budget_is_spent_on_the_others() {
    let room = Room::new();
    let step =
        "bits = 4\nsensitivity = \"weights\"\n\n[[step.override]]\nselect = [\"blocks.*.attention.value\"]\ngrid = \"int8\"";
    room.write("recipe.toml", &recipe(step));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    let choices = allocation(&report)["choices"].as_array().expect("a table of choices");
    let (values, others): (Vec<&Value>, Vec<&Value>) =
        choices.iter().partition(|c| c["name"].as_str().is_some_and(|name| name.ends_with("value")));
    assert!(!values.is_empty() && values.iter().all(|c| c["scheme"] == "int8/g64"));
    assert!(others.iter().any(|c| c["scheme"].as_str().is_some_and(|scheme| scheme.starts_with("int3"))));
    let bits = number(&allocation(&report)["bits_per_weight"]);
    assert!((3.96..=4.0).contains(&bits), "{bits}");
}

/// What was predicted is kept: another budget asks nothing anew, at any number of threads, and gives the same bytes as a
/// run from nothing.
#[test]
fn predictions_are_units_that_every_budget_shares() {
    let (room, fresh) = (Room::new(), Room::new());
    let step = |bits: f64| {
        recipe(&format!("bits = {bits}\nalgorithm = \"gptq\"\nselect = [\"blocks.0.**\"]"))
            .replace("output = \"out\"", "output = \"out\"\nstore = \"store\"")
    };
    room.write("recipe.toml", &step(3.5));
    room.attar(&["run", "recipe.toml", "--quiet", "--threads", "2"]).exits(0);
    let units = |room: &Room| room.read("store/journal").lines().count();
    let before = units(&room);
    room.write("recipe.toml", &step(4.5));
    room.attar(&["run", "recipe.toml", "--quiet", "--threads", "2"]).exits(0);
    // Seven matrices in new formats, what each lost, and what leaves their block.
    assert!(units(&room) <= before + 16, "{before}, {}", units(&room));
    fresh.write("recipe.toml", &step(4.5));
    fresh.attar(&["run", "recipe.toml", "--quiet", "--threads", "1"]).exits(0);
    assert_eq!(room.read("out/report.json"), fresh.read("out/report.json"));
}

#[test]
fn a_sweep_shows_the_front_and_draws_it() {
    let room = Room::new();
    room.write("recipe.toml", &(recipe("bits = 4\nselect = [\"blocks.**\"]") + EVAL));
    let said = room.attar(&["sweep", "recipe.toml", "--points", "4", "--from", "2.5", "--to", "5.5", "--measure"]).exits(0);
    assert!(said.stdout.contains("sweep.svg"));
    let sweep = room.json("out/sweep.json");
    let points = sweep["fronts"][0]["points"].as_array().expect("points").clone();
    let of = |key: &str| points.iter().map(|point| number(&point["allocation"][key])).collect::<Vec<f64>>();
    let (bits, predicted) = (of("bits_per_weight"), of("predicted"));
    assert!(bits.len() == 4 && bits.windows(2).all(|pair| pair[0] < pair[1]), "{bits:?}");
    assert!(predicted.windows(2).all(|pair| pair[0] > pair[1]), "{predicted:?}");
    let measured: Vec<f64> = points.iter().map(kl).collect();
    assert!(measured.windows(2).all(|pair| pair[0] > pair[1]), "{measured:?}");
    let picture = room.read("out/sweep.svg");
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n") && picture.matches("r=\"3.00\"").count() == 8);
    assert_eq!(room.attar(&["sweep", "recipe.toml", "--json", "--points", "3"]).exits(0).json()["sweep"], 1);
    room.write("plain.toml", &recipe("grid = \"int4\""));
    room.attar(&["sweep", "plain.toml"]).exits(2).says("has a budget");
}

#[test]
fn budgets_that_make_no_sense_are_refused_at_their_own_line() {
    let room = Room::new();
    let line = recipe("").lines().count();
    let refuse = |step: &str, offset: usize, says: &str| {
        room.write("recipe.toml", &recipe(step));
        let said = room.attar(&["plan", "recipe.toml"]).exits(2);
        said.says(says);
        said.says(&format!("recipe.toml:{}:", line + offset));
    };
    refuse("bits = 3.5\ngrid = \"int4\"", 1, "`grid` and `bits` exclude each other");
    refuse("group = 64\nbytes = \"1 MB\"", 0, "`group` and `bytes` exclude each other");
    refuse("bits = 3.5\nbytes = 1000", 1, "two budgets");
    refuse("grid = \"int4\"\nchoices = [\"int4/g64\"]", 1, "there is none");
    refuse("bits = 1.5", 0, "`bits = 2.");
    refuse("bytes = \"1 kB\"", 0, "can be met");
    refuse("bits = nan", 0, "can be met");
    refuse("bits = 3.5\nchoices = []", 1, "is empty");
    refuse("bits = 3.5\nchoices = [\"int4/g64\", \"int9/g64\"]", 1, "int9");
    refuse("bits = 3.5\nchoices = [\"int4/g100\"]", 1, "100");
    refuse("bytes = \"60 parsecs\"", 0, "60 MB");
    refuse("bits = 3.5\n\n[[step.override]]\nselect = [\"blocks.0.**\"]\ngroup = 32", 4, "override");
}
