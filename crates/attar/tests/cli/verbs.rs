//! The verbs as typed: what works, works, prints what it should and nothing else, and writes what it promises.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::{
    room::{ATTAR, Room, assert_same_files},
    snapshot::Session,
};

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-valid.txt";

/// The quickstart on less text.
const RECIPE: &str = r#"recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[[variant]]
name = "int8"
[[variant.step]]
kind = "quantize"
grid = "int8"
group = 64

[[variant]]
name = "int4"
[[variant.step]]
kind = "quantize"
grid = "int4"
group = 64

[[export]]
target = "onnx"

[[export]]
target = "checkpoint"

[[eval]]
name = "shakespeare"
task = "perplexity"
data = "testdata/evals/shakespeare-valid.txt"
tokens = 1024
window = 256

[[gate]]
metric = "shakespeare/perplexity"
variant = "int8"
worse_at_most = "0.5%"
"#;

#[test]
fn a_recipe_gives_what_it_promises() {
    let mut session = Session::new("run");
    let room = Room::new();
    room.write("recipe.toml", RECIPE);
    let said = room.attar(&["run", "recipe.toml"]).exits(0);
    let told = "digest inputs\nint8: quantize\nint8: write onnx\nint8: verify onnx\n";
    assert!(said.stderr.starts_with(told), "a line per stage where there is no terminal: {}", said.stderr);
    assert_eq!(room.attar(&["run", "recipe.toml", "--quiet"]).exits(0).stderr, "");
    assert!(said.stdout.trim_end().ends_with("passed: out/report.md"), "{}", said.stdout);
    let files = room.files("out");
    let promised = ["manifest.json", "report.json", "report.md", "int8/onnx/model.onnx", "int8/onnx/model.onnx.data"];
    let more =
        ["int4/onnx/model.onnx", "int4/onnx/tokenizer.json", "int4/checkpoint/model.safetensors", "int4/checkpoint/attar.json"];
    for file in promised.iter().chain(&more) {
        assert!(files.contains_key(*file), "{file}: {:?}", files.keys());
    }
    let (report, manifest) = (room.json("out/report.json"), room.json("out/manifest.json"));
    assert_eq!((&report["report"], &report["passed"], &manifest["manifest"]), (&1.into(), &true.into(), &1.into()));
    let artifacts = manifest["artifacts"].as_array().unwrap();
    assert_eq!(artifacts.len(), 4);
    for artifact in artifacts {
        check_artifact(artifact, &files);
    }
    let quiet = room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    let json = room.attar(&["run", "recipe.toml", "--json"]).exits(0);
    assert_eq!(json.json(), report);
    assert_eq!(json.stdout, room.read("out/report.json"));
    session.note("an artifact, inspected", &room.attar(&["inspect", "out/int4/onnx"]).exits(0));
    let inspected = room.attar(&["inspect", "out"]).exits(0).stdout;
    for summary in ["onnx int8/onnx: ", "checkpoint int8/checkpoint: ", "onnx int4/onnx: ", "checkpoint int4/checkpoint: "] {
        assert!(inspected.contains(summary), "{inspected}");
    }
    assert_eq!(room.attar(&["inspect", "out", "--json"]).exits(0).json(), manifest);
    let store = room.attar(&["inspect", "out/.attar/store"]).exits(0).stdout;
    assert!(
        store.contains("out/.attar/store: 114 blobs, "),
        "28 units, what each lost, and an eval for each of 2 variants\n{store}"
    );
    session.check();
}

/// A manifest's artifact names the files that are there, with their sizes, and every weight.
fn check_artifact(artifact: &Value, files: &BTreeMap<String, Vec<u8>>) {
    let folder = artifact["folder"].as_str().expect("a path");
    for file in artifact["files"].as_array().expect("a list") {
        let bytes = &files[&format!("{folder}/{}", file["name"].as_str().expect("a name"))];
        assert_eq!(file["bytes"], bytes.len());
    }
    let tensors = artifact["tensors"].as_array().expect("a list");
    let quantized = |tensor: &&Value| tensor["encoding"].as_str().expect("a name").starts_with("int");
    assert_eq!(tensors.iter().filter(quantized).count(), 4 * 7, "{folder}");
}

#[test]
fn settings_of_the_command_line_replace_those_of_the_recipe() {
    let room = Room::new();
    let recipe = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\n";
    room.write("r.toml", recipe);
    let run = ["run", "r.toml", "--set", "step.1.grid=int8", "--set", "step.1.group = 32", "--output", "there"];
    room.attar(&run).exits(0);
    let report = room.json("there/report.json");
    assert_eq!(report["variants"][0]["tensors"][0]["encoding"], "int8/g32");
    assert!(!room.path("out").exists() && !room.path("r.lock").exists());
    room.attar(&["plan", "r.toml", "--set", "step.1.gird=int8"]).exits(2).says("`gird`");
    room.attar(&["plan", "r.toml", "--set", "step.2.grid=int8"]).exits(2).says("`step` has 1");
    room.attar(&["run", "r.toml", "--locked", "--output", "x"]).exits(2).says("cannot be used with");
    room.attar(&["run", "-", "--locked"]).exits(2).says("standard input");
    // A pipe.
    room.finish(room.other_command("sh", &["-c", "exec \"$0\" run - --output piped < r.toml", ATTAR])).exits(0);
    assert!(room.path("piped/manifest.json").exists() && !room.path("standard input.lock").exists());
}

#[test]
fn a_plan_does_nothing() {
    let mut session = Session::new("plan");
    let room = Room::new();
    room.write("recipe.toml", RECIPE);
    session.note("a plan", &room.attar(&["plan", "recipe.toml"]).exits(0));
    let every = room.attar(&["plan", "recipe.toml", "--tensors"]).exits(0).stdout;
    assert_eq!(every.matches("blocks.3.mlp.down").count(), 2, "{every}");
    let plan = room.attar(&["plan", "recipe.toml", "--json"]).exits(0).json();
    assert_eq!(plan["variants"].as_array().unwrap().len(), 2);
    room.write("missing.toml", &RECIPE.replace(TEXT, "nowhere.txt"));
    session.note("data that is missing", &room.attar(&["plan", "missing.toml"]).exits(3));
    room.write("groups.toml", &RECIPE.replace("group = 64", "group = 96"));
    session.note("groups that do not divide", &room.attar(&["plan", "groups.toml"]).exits(2));
    assert!(!room.path("out").exists());
    assert!(!room.path("recipe.lock").exists());

    // What was planned is what comes.
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    for (planned, done) in plan["variants"].as_array().unwrap().iter().zip(report["variants"].as_array().unwrap()) {
        assert_eq!(planned["bits_per_weight"], done["bits_per_weight"]);
        assert_eq!(planned["tensors"].as_array().unwrap().len(), done["tensors"].as_array().unwrap().len());
        for (planned, done) in planned["exports"].as_array().unwrap().iter().zip(done["artifacts"].as_array().unwrap()) {
            assert_eq!((&planned["target"], &planned["folder"]), (&done["target"], &done["folder"]));
            // What is planned are the weights; the files that go with them are copies.
            let length = |name: &str| {
                let path = room.path("out").join(done["folder"].as_str().unwrap()).join(name);
                path.metadata().map_or(0.0, |file| file.len() as f64)
            };
            let copied: f64 = ["config.json", "tokenizer.json", "generation_config.json"].into_iter().map(length).sum();
            let (planned, done) = (planned["bytes"].as_f64().unwrap(), done["bytes"].as_f64().unwrap() - copied);
            assert!((planned / done - 1.0).abs() < 0.1, "planned {planned}, written {done}");
        }
    }
    session.check();
}

const QUANTIZE: [&str; 8] = ["quantize", MODEL, "--grid", "int4", "--group", "64", "--out", "small"];
const EVAL: [&str; 8] = ["--task", "perplexity", "--data", TEXT, "--tokens", "1024", "--window", "256"];

#[test]
fn what_a_verb_writes_the_others_read() {
    let mut session = Session::new("verbs");
    let room = Room::new();
    session.note("quantize", &room.attar(&QUANTIZE).exits(0));
    session.note("inspect", &room.attar(&["inspect", "small"]).exits(0));
    let graph = room.attar(&["inspect", "small", "--graph"]).exits(0).stdout;
    assert!(graph.starts_with("graph llama(") && graph.contains("weight(\"blocks.0.mlp.up\": [384, 128] int4/g64)"), "{graph}");
    let json = room.attar(&["inspect", "small", "--json"]).exits(0).json();
    assert_eq!(json["parameters"], 918_656);

    session.note("eval", &room.attar(&[&["eval", "small"], &EVAL[..]].concat()).exits(0));
    session.note(
        "eval against the checkpoint",
        &room.attar(&[&["eval", "small", "--baseline", MODEL], &EVAL[..]].concat()).exits(0),
    );
    let measured = room.attar(&[&["eval", "small", "--json"], &EVAL[..]].concat()).exits(0).json();
    room.write("recipe.toml", RECIPE);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let in_the_recipe = &room.json("out/report.json")["evals"][1]["outcome"]["measured"]["perplexity"];
    assert_eq!(&measured["perplexity"], in_the_recipe, "the same weights, the same text, the same number");

    session.note("export what was quantized", &room.attar(&["export", "small", "--target", "onnx", "--out", "onnx"]).exits(0));
    let one_by_one = &room.files("onnx")["model.onnx.data"];
    assert!(*one_by_one == room.files("out")["int4/onnx/model.onnx.data"], "in two verbs or in one recipe: the same bytes");
    session.note("export straight", &room.attar(&["export", MODEL, "--target", "onnx", "--out", "plain"]).exits(0));
    assert!(room.path("plain/model.onnx").exists());
    let nbits = ["export", "small", "--target", "onnx", "--layout", "matmul-nbits", "--out", "nbits"];
    session.note("export in another layout", &room.attar(&nbits).exits(0));
    session
        .note("quantize what is quantized", &room.attar(&["quantize", "small", "--grid", "int3", "--out", "smaller"]).exits(2));
    session.check();
}

#[test]
fn a_printed_recipe_does_the_same_as_its_verb() {
    let mut session = Session::new("print-recipe");
    let room = Room::new();
    let onnx = ["export", MODEL, "--target", "onnx", "--layout", "matmul-nbits", "--out", "small"];
    for (verb, arguments) in [("quantize", QUANTIZE.as_slice()), ("export", onnx.as_slice())] {
        let printed = room.attar(&[arguments, &["--print-recipe"]].concat()).exits(0);
        session.note(verb, &printed);
        assert!(!room.path("small").exists(), "to print is to do nothing");
        room.attar(arguments).exits(0);
        let by_verb = room.files("small");
        fs::remove_dir_all(room.path("small")).unwrap();
        room.write("printed.toml", &printed.stdout);
        room.attar(&["run", "printed.toml"]).exits(0);
        let by_recipe = room.files("small");
        fs::remove_dir_all(room.path("small")).unwrap();
        let artifacts = |files: BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
            // The report and the manifest name the recipe.
            files.into_iter().filter(|(name, _)| !name.starts_with("report.") && name != "manifest.json").collect()
        };
        assert_same_files(&artifacts(by_verb), &artifacts(by_recipe), verb);
    }
    let printed = room.attar(&[&["eval", MODEL, "--print-recipe"], &EVAL[..]].concat()).exits(0);
    session.note("eval", &printed);
    let measured = room.attar(&[&["eval", MODEL, "--json"], &EVAL[..]].concat()).exits(0).json();
    room.write("printed.toml", &printed.stdout);
    let report = room.attar(&["run", "printed.toml", "--json"]).exits(0).json();
    assert_eq!(report["evals"][0]["outcome"]["measured"]["perplexity"], measured["perplexity"]);
    session.check();
}

#[test]
fn an_eval_is_a_recipe_of_a_model_or_of_an_artifact() {
    let mut session = Session::new("eval-recipe");
    let room = Room::new();
    room.attar(&["export", MODEL, "--target", "onnx", "--out", "onnx", "--quiet"]).exits(0);
    let artifact = ["eval", "onnx", "--baseline", MODEL, "--mode", "default", "--print-recipe"];
    let printed = room.attar(&[&artifact, &EVAL[..]].concat()).exits(0);
    session.note("an artifact", &printed);
    room.write("printed.toml", &printed.stdout);
    session.note("its plan", &room.attar(&["plan", "printed.toml"]).exits(3));
    session.note("a model", &room.attar(&[&["eval", MODEL, "--baseline", MODEL, "--print-recipe"], &EVAL[..]].concat()).exits(0));
    let drift = ["eval", "testdata/models/tiny-bert", "--task", "embedding-drift", "--data", TEXT];
    session.note("nothing to drift from", &room.attar(&drift).exits(2));
    session.note("no window", &room.attar(&["eval", MODEL, "--data", TEXT, "--window", "0"]).exits(2));
    session.note("a word for a number", &room.attar(&["eval", MODEL, "--data", TEXT, "--window", "many"]).exits(2));
    assert!(!room.path("attar-eval").exists(), "an eval writes nothing");
    session.check();
}

#[test]
fn generate_is_greedy() {
    let room = Room::new();
    let said = room.attar(&["generate", MODEL, "--prompt", "KING HENRY:\\n", "--tokens", "48"]).exits(0);
    // What transformers 5.5.4 says with `do_sample=False`, in f32.
    assert!(said.stdout.starts_with("They are the city of my soul and my soul,\n"), "{}", said.stdout);
    assert_eq!(said.stderr, "");
    let json = room.attar(&["generate", MODEL, "--prompt", "KING HENRY:\\n", "--tokens", "48", "--json"]).exits(0).json();
    assert_eq!(json["text"].as_str().unwrap().trim_end(), said.stdout.trim_end());
    assert!(json["tokens"].as_array().unwrap().len() <= 48);
}

#[test]
fn completions_manual_pages_and_help() {
    let room = Room::new();
    for (shell, sign) in [("bash", "complete -F _attar"), ("zsh", "#compdef attar"), ("fish", "complete -c attar")] {
        let said = room.attar(&["completions", shell]).exits(0);
        assert!(said.stdout.contains(sign) && said.stdout.contains("print-recipe"), "{shell}");
        assert_eq!(said.stderr, "");
    }
    room.attar(&["man", "pages"]).exits(0);
    let help = room.attar(&["--help"]).exits(0).stdout;
    for verb in ["run", "plan", "quantize", "export", "eval", "generate", "inspect", "schema", "completions", "man"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}\n{help}");
        assert!(room.read(&format!("pages/attar-{verb}.1")).contains(".TH"), "{verb}");
        room.attar(&[verb, "--help"]).exits(0);
    }
    assert!(room.read("pages/attar.1").contains(".TH"));
    assert_eq!(room.attar(&["--version"]).exits(0).stdout, concat!("attar ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let room = Room::new();
    let said = room.attar(&["inspect", "nowhere", "--json"]).exits(3);
    let error = said.json();
    assert_eq!((&error["exit_code"], &error["place"]), (&3.into(), &Value::Null));
    assert!(error["error"].as_str().unwrap().contains("nowhere"));
}

/// What there is to choose from. Which engines are found depends on the machine, and where they are on nothing else.
#[test]
fn lists_name_what_can_be_chosen() {
    let mut session = Session::new("lists");
    let room = Room::new();
    for list in ["devices", "engines", "targets", "grids"] {
        // Which compiler a machine has is its own affair.
        let mut command = room.command(&[list]);
        command.env("PATH", "/nowhere");
        session.note(list, &room.finish(command).exits(0));
    }
    session.check();
    let grids = room.attar(&["grids", "--json"]).exits(0).json();
    assert_eq!(grids[0], serde_json::json!({ "name": "int8", "bits": "8", "values": "evenly spaced" }));
}

/// A full disk behind the standard output is an error; a reader that has seen enough is none.
#[test]
fn results_that_could_not_be_written_are_an_error() {
    let room = Room::new();
    for arguments in [&["inspect", MODEL, "--json"][..], &["schema"], &["grids"], &["plan", "recipe.toml"]] {
        room.write("recipe.toml", RECIPE);
        let mut command = room.command(arguments);
        command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it"));
        let output = command.output().expect("attar starts");
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("cannot write to the standard output"), "{text}");
        let closed = format!("{ATTAR} {} | true; test ${{PIPESTATUS[0]}} = 0", arguments.join(" "));
        room.finish(room.other_command("bash", &["-c", &closed])).exits(0);
    }
}

/// Nobody can be told of an error if the standard error is closed or full; the exit code tells all the same.
#[test]
fn a_standard_error_that_is_gone_is_no_panic() {
    let room = Room::new();
    for gone in ["2>&-", "2>/dev/full"] {
        let command = format!("{ATTAR} inspect no-such-model {gone}");
        room.finish(room.other_command("bash", &["-c", &command])).exits(3);
    }
}
