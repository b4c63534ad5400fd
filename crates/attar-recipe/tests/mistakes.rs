//! Mistakes in recipes: each is refused at its own place, in plain words, with a way out, before any work.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use attar_recipe::{Engines, Error, Recipe, plan};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

const EVAL: &str = "[[eval]]\nname = \"text\"\ndata = \"DATA/evals/shakespeare-valid.txt\"\nwindow = 64\n";
const DRIFT: &str = "[[eval]]\nname = \"drift\"\ntask = \"embedding-drift\"\ndata = \"DATA/evals/shakespeare-valid.txt\"\n";
const ONNX: &str = "[[export]]\ntarget = \"onnx\"\n";

/// With the folder of the test data in place of `DATA`.
fn planned(text: &str) -> Result<(), Error> {
    let text = text.replace("DATA", &data().display().to_string());
    plan(&Recipe::parse(Path::new("r.toml"), &text)?, &Engines::default()).map(drop)
}

fn recipe(head: &str, rest: &[&str]) -> String {
    format!("recipe = 1\n{head}\n{}", rest.concat())
}

const MODEL: &str = "model = \"DATA/models/shakespeare-1m\"\noutput = \"/nonexistent/out\"";

/// The recipe is refused where `at` is, the last time, with a message and a hint that have these words.
#[track_caller]
fn refused(text: &str, at: &str, message: &str, hint: &str) {
    let error = planned(text).expect_err(text);
    assert_eq!(error.exit_code(), 2, "{text}\n{}", error.render(false));
    let place = error.place.as_ref().unwrap_or_else(|| panic!("no place: {}", error.message));
    let found = &place.text[place.span.start..];
    let wanted = text.rfind(at).map(|start| text[start..].replace("DATA", &data().display().to_string())).unwrap();
    assert_eq!(found.len(), wanted.len(), "wanted at `{at}`\n{}", error.render(false));
    let said = format!("{}: {}", error.message, error.causes.join(": "));
    assert!(said.contains(message), "wanted {message:?}\n{}", error.render(false));
    assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "wanted {hint:?}\n{}", error.render(false));
}

#[test]
fn a_good_recipe_is_planned() {
    planned(&recipe(MODEL, &[EVAL])).unwrap();
    planned(&recipe(&format!("{MODEL}\nbaseline = false"), &[EVAL])).unwrap();
    planned(&recipe(&format!("{MODEL}\nbaseline = \"DATA/models/shakespeare-1m\""), &[EVAL])).unwrap();
    planned(&recipe(&format!("{MODEL}\nstore = \"/nonexistent/out/.attar/store\""), &[EVAL])).unwrap();
}

#[test]
fn paths_are_not_empty() {
    for key in ["output", "store", "baseline"] {
        let head = format!("model = \"DATA/models/shakespeare-1m\"\n{key} = \"\"");
        let head = if key == "output" { head } else { format!("{head}\noutput = \"/nonexistent/out\"") };
        refused(&recipe(&head, &[]), "\"\"", &format!("`{key}` is empty"), "write a path");
    }
    refused(&recipe(MODEL, &["[[eval]]\nname = \"text\"\ndata = \"\"\n"]), "\"\"", "`data` is empty", "write a path");
    refused(&recipe(MODEL, &["[data.calibration]\npath = \"\"\n"]), "\"\"", "`path` is empty", "write a path");
}

#[test]
fn nothing_that_is_kept_or_measured_lies_where_a_run_writes() {
    let store = |store: &str| recipe(&format!("{MODEL}\nstore = \"{store}\""), &[]);
    for inside in ["/nonexistent/out/store", "/nonexistent/out", "/nonexistent/other/../out/store"] {
        refused(&store(inside), &format!("\"{inside}\""), "the store is in the output folder", "a folder of its own");
    }
    refused(&store("/nonexistent"), "\"/nonexistent\"", "the output folder is in the store", "a folder of its own");
    let head = "artifact = \"/nonexistent/onnx\"\noutput = \"/nonexistent/onnx/out\"";
    let eval = format!("{EVAL}runners = [\"onnxruntime\"]\n");
    refused(&recipe(head, &[&eval]), "\"/nonexistent/onnx/out\"", "`output` is in `/nonexistent/onnx`", "of its own");
}

#[test]
fn a_recipe_is_about_a_model_or_an_artifact() {
    refused(&recipe("output = \"out\"", &[]), "recipe = 1", "the recipe has no `model`", "`artifact`");
    let both = "model = \"m\"\nartifact = \"a\"\noutput = \"out\"";
    refused(&recipe(both, &[]), "\"a\"", "`model` and `artifact` exclude each other", "leave one of them out");
    let artifact = "artifact = \"/nonexistent/a\"\noutput = \"out\"";
    refused(&recipe(artifact, &[ONNX]), "[[export]]", "measured as it is", "as `model`");
    refused(&recipe(artifact, &["[[step]]\nkind = \"fuse\"\n"]), "[[step]]", "measured as it is", "as `model`");
    refused(&recipe(artifact, &[EVAL]), "[[eval]]", "the reference cannot open an artifact", "runners");
    refused(&recipe(&format!("{MODEL}\nbaseline = true"), &[]), "true", "expected the path of a checkpoint", "");
    refused(&recipe(&format!("{MODEL}\nbaseline = 4"), &[]), "4", "found `4`, expected the path", "");
    let table = "output = \"/nonexistent/out\"\n[model]\npth = \"m\"";
    refused(&recipe(table, &[]), "pth", "`model` has no key `pth`", "did you mean `path`?");
    let table = format!("{MODEL}\n[baseline]\npath = \"m\"\nignored = []");
    refused(&recipe(&table, &[]), "ignored", "`ignored` is not known", "did you mean `ignore`?");
}

#[test]
fn runners_and_modes_are_lists_of_different_names() {
    let eval = |line: &str| recipe(MODEL, &[ONNX, EVAL, line, "\n"]);
    refused(&eval("runners = []"), "[]", "the list is empty", "leave `runners` out");
    refused(&eval("modes = []"), "[]", "the list is empty", "leave `modes` out");
    refused(&eval("runners = [\"reference\", \"reference\"]"), "\"reference\"]", "`reference` is there twice", "");
    refused(&eval("runners = [\"onnxruntime\"]\nmodes = [\"exact\", \"exact\"]"), "\"exact\"]", "`exact` is there twice", "");
}

#[test]
fn options_belong_to_their_target() {
    let export = |lines: &str| recipe(MODEL, &["[[export]]\n", lines, "\n"]);
    let other = "target = \"checkpoint\"\nlayout = \"dequantize-linear\"";
    refused(&export(other), "layout", "(`checkpoint`) has no key `layout`", "known: target, folder");
    refused(&export("target = \"onnx\"\nlayuot = \"x\""), "layuot", "has no key `layuot`", "did you mean `layout`?");
    refused(&export("target = \"onnx\"\nlayout = \"x\""), "\"x\"", "known: `dequantize-linear`, `matmul-nbits`", "");
    refused(&export("target = \"onx\""), "\"onx\"", "unknown target \"onx\"", "did you mean `onnx`?");
    refused(&export("layout = \"dequantize-linear\""), "[[export]]", "target", "");
}

#[test]
fn a_device_is_one_of_the_engines() {
    let eval = |line: &str| recipe(MODEL, &[ONNX, EVAL, line, "\n"]);
    refused(&eval("device = \"CPU\""), "\"CPU\"", "`device` is for engines, and only the reference runs", "leave `device` out");
    let engine = "runners = [\"reference\", \"openvino\"]\ndevice =";
    refused(&eval(&format!("{engine} \"TPU\"")), "\"TPU\"", "openvino has no device `TPU`", "CPU, GPU, NPU");
    Recipe::parse(Path::new("r.toml"), &eval(&format!("{engine} \"gpu\""))).expect("the case of letters does not matter");
}

#[test]
fn unknown_keys_are_named_before_missing_ones_at_every_depth() {
    let step = "[[step]]\nkind = \"quantize\"\ngird = \"int4\"\n";
    refused(&recipe(MODEL, &[step]), "gird", "has no key `gird`", "did you mean `grid`?");
    refused(&recipe(MODEL, &["[[eval]]\nnaem = \"text\"\n"]), "naem", "has no key `naem`", "did you mean `name`?");
    refused(&recipe(MODEL, &["[[variant]]\nnmae = \"small\"\n"]), "nmae", "has no key `nmae`", "did you mean `name`?");
    refused(&recipe(MODEL, &["[data.calibration]\nsample = 4\n"]), "sample", "has no key `sample`", "did you mean `samples`?");
    refused(&recipe(MODEL, &["[data.calibraton]\npath = \"x\"\n"]), "calibraton", "has no key", "did you mean `calibration`?");
    let within = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n[[step.override]]\nselect = [\"*\"]\ngird = \"int8\"\n";
    refused(&recipe(MODEL, &[within]), "gird", "has no key `gird`", "did you mean `grid`?");
    let gate = "[[gate]]\nmetric = \"text/kl\"\nat_mots = 1\n";
    refused(&recipe(MODEL, &[EVAL, gate]), "at_mots", "has no key `at_mots`", "did you mean `at_most`?");
    refused(&recipe("modle = \"m\"\noutput = \"out\"", &[]), "modle", "has no key `modle`", "did you mean `model`?");
}

#[test]
fn values_are_refused_in_plain_words() {
    let step = |line: &str| recipe(MODEL, &[&format!("[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n{line}\n")]);
    refused(&step("asymmetric = \"yes\""), "\"yes\"", "found `\"yes\"`, expected `true` or `false`", "");
    refused(&step("scales = \"msee\""), "\"msee\"", "`msee` is not known", "did you mean `mse`?");
    refused(&recipe(MODEL, &[EVAL, "bos = 3\n"]), "3\n", "found `3`, expected `true` or `false`", "");
    refused(&recipe(MODEL, &["[[eval]]\nname = \"text\"\n"]), "[[eval]]", "`data` is missing", "");
    let no_type_of_rust = ["usize", "f64", "variant", "invalid", "struct", "sequence"];
    for (line, at) in [("keep = 3", "3\n"), ("select = \"x\"", "\"x\""), ("override = 3", "3\n")] {
        let error = planned(&step(line)).unwrap_err();
        assert!(no_type_of_rust.iter().all(|word| !error.message.contains(word)), "{at}: {}", error.message);
    }
}

#[test]
fn calibration_windows_are_as_many_and_as_long_as_can_be() {
    let text = |line: &str| {
        recipe(MODEL, &[&format!("[data.calibration]\npath = \"DATA/evals/shakespeare-train.txt\"\n{line}\n"), EVAL])
    };
    planned(&text("samples = 2\nlength = 64")).unwrap();
    refused(&text("samples = 0"), "0\n[[eval", "1 or more windows", "");
    refused(&text("length = 0"), "0\n[[eval", "1 or more tokens", "");
    refused(&text("length = 1000000000000"), "1000000000000", "the model's context is", "");
    refused(&text("samples = 1000000000000"), "1000000000000", "at most", "");
}

#[test]
fn gates_point_at_what_is_wrong_with_them() {
    let gate = |lines: &str| recipe(MODEL, &[EVAL, "[[gate]]\n", lines, "\n"]);
    refused(&gate("metric = \"perplexity\"\nat_most = 1"), "\"perplexity\"", "is not `EVAL/METRIC`", "for example");
    refused(&gate("metric = \"text/perplexity\"\nat_most = inf"), "inf", "is not a bound", "");
    refused(&gate("metric = \"text/perplexity\"\ndrop_at_most = \"3 percent\""), "\"3 percent\"", "is not a bound", "");
    refused(&gate("metric = \"text/perplexity\"\ndrop_at_most = []"), "[]", "expected a share such as `\"3%\"`", "");
    refused(&gate("metric = \"text/kl\"\ndrop_at_most = 0.1"), "0.1", "has no meaning for `kl`", "at_most");
    refused(&gate("metric = \"text/kl\"\nat_most = 1\nat_least = 0"), "0\n", "exactly one of", "a gate for each");
    refused(&gate("metric = \"text/kl\""), "[[gate]]", "exactly one of", "");
}

#[test]
fn a_gate_that_no_runner_can_measure_is_refused() {
    let alone = format!("{MODEL}\nbaseline = false");
    let gate = |head: &str, more: &str, lines: &str| recipe(head, &[EVAL, more, "[[gate]]\n", lines, "\n"]);
    let kl = "metric = \"text/kl\"\nat_most = 1";
    refused(&gate(&alone, "", kl), "\"text/kl\"", "`kl` compares with a baseline, and there is none", "`baseline`");
    let drop = "metric = \"text/perplexity\"\ndrop_at_most = 0.1";
    refused(&gate(&alone, "", drop), "0.1", "compares with a baseline, and there is none", "`baseline`");
    planned(&gate(&alone, "", "metric = \"text/perplexity\"\nat_most = 100")).unwrap();

    let agreement = "metric = \"text/agreement-logits\"\nat_most = 1";
    refused(&gate(MODEL, "", agreement), "\"text/agreement-logits\"", "compares an engine with the reference", "as `runner`");
    let engine = format!("runners = [\"onnxruntime\"]\n{ONNX}");
    planned(&gate(MODEL, &engine, &format!("{agreement}\nrunner = \"onnxruntime\""))).unwrap();
    let artifact = "artifact = \"/nonexistent/a\"\noutput = \"/nonexistent/out\"";
    let of_artifact = gate(artifact, "runners = [\"onnxruntime\"]\n", &format!("{agreement}\nrunner = \"onnxruntime\""));
    refused(&of_artifact, "\"text/agreement-logits\"", "the reference, which cannot open an artifact", "makes the artifact");

    let mode = "metric = \"text/perplexity\"\nmode = \"exact\"\nat_most = 100";
    refused(&gate(MODEL, "", mode), "\"exact\"", "the reference has no modes", "leave `mode` out");
    let other = "metric = \"text/perplexity\"\nrunner = \"onnxruntime\"\nmode = \"default\"\nat_most = 100";
    let exact = format!("modes = [\"exact\"]\n{engine}");
    planned(&gate(MODEL, &engine, other)).unwrap();
    refused(&gate(MODEL, &exact, other), "\"default\"", "is not run by `onnxruntime` in mode `default`", "add it to `modes`");
}

#[test]
fn a_gate_on_predictions_wants_a_step_that_predicts() {
    let compile = "[[variant]]\nname = \"one\"\n[[variant.step]]\nkind = \"compile\"\n[[variant]]\nname = \"two\"\n";
    let gate = |lines: &str| recipe(MODEL, &[compile, "[[gate]]\nmetric = \"device/latency\"\nat_most = 1\n", lines, "\n"]);
    refused(&gate("variant = \"two\""), "\"two\"", "no step of the variant `two` predicts", "`compile`");
    refused(&gate("runner = \"onnxruntime\""), "\"onnxruntime\"", "`onnxruntime` predicts nothing", "leave `runner` out");
    refused(&gate("mode = \"exact\""), "\"exact\"", "has no modes", "leave `mode` out");
}

#[test]
fn drift_without_a_baseline_is_refused() {
    let encoder = "model = \"DATA/models/tiny-bert\"\noutput = \"/nonexistent/out\"";
    planned(&recipe(encoder, &[DRIFT])).unwrap();
    let alone = recipe(&format!("{encoder}\nbaseline = false"), &[DRIFT]);
    refused(&alone, "\"embedding-drift\"", "`embedding-drift` compares with a baseline, and there is none", "`baseline`");
}
