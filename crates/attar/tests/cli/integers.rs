//! Integer-only models: what LiteRT makes of them, and what Vela compiles for Ethos-U.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use attar_eval::{Places, compiler, engine};

use crate::room::{Room, repository, skip};

/// The folder of the engines, if LiteRT and Vela are in it.
fn engines() -> Option<OsString> {
    let engines = std::env::var_os("ATTAR_ENGINES").unwrap_or_default();
    let wanted = [engine("litert").expect("it is registered"), compiler("vela").expect("it is registered")];
    let places = Places::read(wanted, |_| None, |name| (name == "ATTAR_ENGINES").then(|| engines.clone()));
    for engine in wanted {
        if places.find(engine).is_err() {
            skip(&format!("there is no {} in ATTAR_ENGINES: `cargo xtask engines` installs it", engine.title));
            return None;
        }
    }
    Some(engines)
}

fn shared(model: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("ATTAR_SHARED").unwrap_or_default());
    if !folder.join("models").join(model).exists() {
        skip(&format!("there is no {model} in ATTAR_SHARED"));
        return None;
    }
    Some(folder)
}

/// Runs a recipe and returns its report.
fn run(engines: &OsString, recipe: &str) -> serde_json::Value {
    let room = Room::new();
    room.write("recipe.toml", recipe);
    let mut command = room.command(&["run", "recipe.toml", "--quiet"]);
    command.env("ATTAR_ENGINES", engines);
    room.finish(command).exits(0);
    room.json("out/report.json")
}

/// All operators of both calls, or of one, are on the NPU of every device that was asked for.
fn compiled_whole(report: &serde_json::Value, devices: usize, least: u64) {
    let evals = report["evals"].as_array().expect("a list");
    let predicted: Vec<&serde_json::Value> = evals.iter().filter_map(|eval| eval.pointer("/outcome/predicted/notes")).collect();
    assert_eq!(predicted.len(), devices, "{report:#}");
    for notes in predicted {
        let notes: Vec<&str> = notes.as_array().expect("a list").iter().filter_map(serde_json::Value::as_str).collect();
        let operators =
            notes.iter().filter_map(|note| note.split_once(" operators, all on the NPU")?.0.rsplit(' ').next()?.parse().ok());
        let operators: Vec<u64> = operators.collect();
        assert!(!operators.is_empty() && operators.iter().all(|count| *count >= least), "{notes:?}");
    }
}

fn predicted_for(devices: &[&str]) -> String {
    devices.iter().map(|device| format!("[[predict]]\ncompiler = \"vela\"\ndevice = \"{device}\"\nprompt = 32\n")).collect()
}

const DEVICES: [&str; 3] = ["ethos-u55-256", "ethos-u65-512", "ethos-u85-1024"];

/// As the recipe that is shipped says, with its gates.
#[test]
fn a_decoder_of_integers_runs_in_litert_and_is_compiled_whole_for_ethos_u() {
    let Some(engines) = engines() else { return };
    let text = std::fs::read_to_string(repository().join("recipes/shakespeare-ethos-u.toml")).expect("it is shipped");
    let report = run(&engines, &text.replace("target/shakespeare-ethos-u", "out"));
    compiled_whole(&report, 3, 200);
}

#[test]
fn a_decoder_of_a_microcontroller_is_compiled_whole_for_ethos_u() {
    let (Some(engines), Some(shared)) = (engines(), shared("stories260k")) else { return };
    let recipe = integers(&shared.join("models/stories260k"), &shared.join("data/lm/stories260k-STORY.txt"), 128, "");
    let more = "[[export]]\nfor = \"ethos-u55\"\ncontext = 64\nprefill = 16\n";
    compiled_whole(&run(&engines, &(recipe + more + &predicted_for(&DEVICES))), 3, 200);
}

/// A plan for the same device stands beside what Vela predicts, in the report and on the page.
#[test]
fn what_vela_predicts_stands_beside_a_plan_for_the_same_device() {
    let Some(engines) = engines() else { return };
    let room = Room::new();
    room.write("recipe.toml", BESIDE);
    let mut command = room.command(&["run", "recipe.toml", "--quiet"]);
    command.env("ATTAR_ENGINES", engines);
    room.finish(command).exits(0);
    let report = room.json("out/report.json");
    let vela = report["evals"].as_array().expect("a list").iter().find(|eval| eval["runner"] == "vela").expect("it predicted");
    let calls = vela.pointer("/outcome/predicted/calls").and_then(serde_json::Value::as_array).expect("a list");
    let told = |key: &str| calls.iter().filter_map(|call| call[key].as_u64()).collect::<Vec<u64>>();
    assert_eq!((told("rows"), told("past")), (vec![32, 1], vec![32, 32]));
    let phases = report.pointer("/variants/0/compilations/0/phases").and_then(serde_json::Value::as_array).expect("a list");
    let [page, text] = ["out/report.html", "out/report.md"].map(|name| room.read(name));
    let (_, table) = text.split_once("## Predictions for a device, side by side").expect("there is such a table");
    for (phase, call) in phases.iter().zip(calls) {
        let (run, ours, theirs) = (call["name"].as_str().expect("a name"), &phase["cycles"], &call["cycles"]);
        let row = format!("| ethos-u65-512 | {run} | cycles | {ours} | {theirs} |");
        assert!(table.contains(&row) && ours.as_u64() > Some(0) && theirs.as_u64() > Some(0), "{row}\n{table}");
        assert!(page.contains(&format!(">{theirs}<")), "the page has it, too");
    }
}

const BESIDE: &str = r#"recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[data.calibration]
path = "testdata/evals/shakespeare-valid.txt"
samples = 4
length = 64

[[step]]
kind = "quantize"
select = ["**"]
grid = "int8"
group = "row"
scale_dtype = "f32"
positive_scales = true

[[variant]]
name = "plan"
[[variant.step]]
kind = "activations"
mode = "static"
[[variant.step]]
kind = "compile"
device = "ethos-u65-512"
goal = "latency"
seq = 32
prove = 1

[[variant]]
name = "integers"
[[variant.step]]
kind = "activations"
mode = "static"
values = "all"
asymmetric = true

[[export]]
for = "ethos-u65"
variant = "integers"
context = 32
prefill = 32

[[predict]]
compiler = "vela"
device = "ethos-u65-512"
prompt = 32
"#;

/// Sentences are as near to each other as people say, no less than before.
#[test]
fn an_encoder_of_integers_is_as_good_as_it_was() {
    let (Some(engines), Some(shared)) = (engines(), shared("minilm-l6-v2-f16")) else { return };
    let text = shared.join("data/lm/wikitext2-valid.txt");
    let recipe = integers(&shared.join("models/minilm-l6-v2-f16"), &text, 64, "wide = [\"blocks.*.mlp.down\"]\n");
    let data = shared.join("data/sts/2016.headlines.test.tsv");
    let eval = format!(
        "[[eval]]\nname = \"headlines\"\ntask = \"sts\"\ndata = {data:?}\nrunners = [\"reference\", \"litert\"]\nmodes = [\"default\"]\n"
    );
    let more = "[[export]]\nfor = \"ethos-u85\"\ntokens = 64\n";
    let report = run(&engines, &(recipe + more + &eval + &predicted_for(&DEVICES)));
    compiled_whole(&report, 3, 400);
    let evals = report["evals"].as_array().expect("a list").iter();
    let measured = evals.filter(|eval| eval["runner"] == "litert").filter_map(|eval| {
        let of = |at: &str| eval.pointer(&format!("/outcome/measured/{at}spearman/value"))?.as_f64();
        Some([of("")?, of("against_base/")?])
    });
    let measured: Vec<[f64; 2]> = measured.collect();
    assert!(matches!(measured[..], [[litert, float]] if (litert - float).abs() <= 0.005), "{measured:?}");
}

fn integers(model: &Path, text: &Path, length: usize, more: &str) -> String {
    format!(
        "recipe = 1\nmodel = {model:?}\noutput = \"out\"\n[data.calibration]\npath = {text:?}\nsamples = 16\nlength = {length}\n\
         [[step]]\nkind = \"quantize\"\nselect = [\"**\"]\ngrid = \"int8\"\ngroup = \"row\"\nscale_dtype = \"f32\"\npositive_scales = true\n\
         [[step]]\nkind = \"activations\"\nmode = \"static\"\nvalues = \"all\"\nasymmetric = true\n{more}"
    )
}

/// What the target cannot hold is said in the plan, with what would do.
#[test]
fn what_is_not_of_integers_alone_is_refused_in_the_plan() {
    let model = "testdata/models/shakespeare-1m";
    let room = Room::new();
    let refused = |recipe: &str, words: &[&str]| {
        room.write("recipe.toml", recipe);
        let said = room.attar(&["plan", "recipe.toml"]).exits(2);
        words.iter().for_each(|words| said.says(words));
        assert!(!room.path("out").exists());
    };
    let npu = "[[export]]\nfor = \"ethos-u55\"\n";
    let float = format!("recipe = 1\nmodel = \"{model}\"\noutput = \"out\"\n");
    refused(&format!("{float}{npu}"), &["has values in f32", "`values = \"all\"`"]);
    refused(&format!("{float}[[export]]\ntarget = \"tflite\"\ntokens = 64\n"), &["only encoders have it"]);
    let recipe = integers(Path::new(model), Path::new("testdata/evals/shakespeare-valid.txt"), 64, "");
    refused(&(recipe.replace("\"row\"", "32").replace("\"f32\"", "\"f16\"") + npu), &["set `group = \"row\"`"]);
    refused(&(recipe.replace("positive_scales = true\n", "") + npu), &["set `positive_scales = true`"]);
    refused(&(recipe.replace("mode = \"static\"\n", "") + npu), &["`mode = \"dynamic\"`"]);
    refused(&(recipe.clone() + "kv = \"int8\"\n" + npu), &["leave it out"]);
    refused(&(recipe.clone() + "wide = [\"blocks.*.mlp.dwon\"]\n" + npu), &["down"]);
    refused(&(recipe.clone() + npu + "tokens = 64\n"), &["only encoders have it"]);
    refused(&(recipe.clone() + npu + "context = 64\nprefill = 65\n"), &["at most the 64 tokens that the caches hold"]);
    refused(&(recipe.clone() + npu + "context = 100000\n"), &["at most the 512 tokens that the model takes"]);
    refused(&(recipe + npu + "lookups = \"beside\"\n"), &["outside"]);
}

/// Weights of 4 bits and activations of 16 in a trained model, on text: what Hexagon makes of it is the integers' result but for a five hundredth of the
/// largest logit. It was 5e-3 with a scale a row as it is, and with shares of keys that do not add up to 1.
#[test]
fn a_decoder_in_a16w4_is_near_its_integers_on_hexagon() {
    let engines = std::env::var_os("ATTAR_ENGINES").unwrap_or_default();
    let hexagon = engine("onnxruntime-qnn").expect("it is registered");
    if Places::read([hexagon], |_| None, |name| (name == "ATTAR_ENGINES").then(|| engines.clone())).find(hexagon).is_err() {
        return skip("there is no onnxruntime-qnn in ATTAR_ENGINES: `cargo xtask engines` installs it");
    }
    let report = run(&engines, HEXAGON);
    let gate = &report["gates"][0];
    assert_eq!((&gate["status"], &gate["gate"]["runner"]), (&"passed".into(), &"onnxruntime-qnn".into()), "{gate}");
    assert!(gate["measured"].as_f64().is_some_and(|off| off > 1e-5), "{gate}");
}

const HEXAGON: &str = r#"
recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[data.calibration]
path = "testdata/evals/shakespeare-train.txt"
samples = 16
length = 126

[[step]]
kind = "quantize"
select = ["**"]
grid = "int4"
group = "row"
scale_dtype = "f32"
positive_scales = true

[[step]]
kind = "activations"
mode = "static"
values = "linear"
bits = 16
select = ["**"]

[[export]]
target = "qnn"
context = 256
prefill = 126

[[eval]]
name = "plays"
task = "perplexity"
data = "testdata/evals/shakespeare-valid.txt"
window = 126
tokens = 504
runners = ["reference", "onnxruntime-qnn"]

[[gate]]
metric = "plays/agreement-logits"
runner = "onnxruntime-qnn"
at_most = 0.002
"#;
