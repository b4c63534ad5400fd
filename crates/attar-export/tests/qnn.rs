//! Folders of target `qnn`, read back, and on Qualcomm's HTP library for x86-64 with nothing left to the CPU.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod engines;
#[expect(dead_code, reason = "shared with other targets")]
mod real;
#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod tiny;

use std::{fs, path::Path};

use attar_export::{Artifact, Error, Format, Qnn, Side, Soc, target};
use attar_graph::Graph;
use serde_json::{Value, json};
use tiny::{Model, Tiny, difference, tokens};

/// What the processor's f16 changes of the logits of two layers, as a share of the largest. Measured at 7e-3, and at 2.2e-2 with weights
/// of 2 bits.
const HALF: f32 = 3e-2;

fn format() -> Qnn {
    Qnn { context: Some(24), prefill: Some(6), ..Qnn::default() }
}

fn export(model: &Model, format: Qnn, folder: &Path) -> Artifact {
    let plan = format.check(&model.graph).unwrap();
    format.check_side(&model.side).unwrap();
    let artifact = format.write(&model.input(), folder, &mut |_, _| ()).unwrap();
    assert_eq!(plan.tensors, artifact.tensors, "the plan is what is written");
    artifact
}

fn verify(model: &Model, artifact: &Artifact, folder: &Path) -> attar_export::Result<attar_export::Verification> {
    let before = |name: &str, rows, out: &mut [f32]| Ok(tiny::rows_before(&model.graph, name, rows, out));
    format().verify(&model.input(), artifact, folder, Some(&before))
}

fn run(cases: &[Value]) -> Option<Vec<Value>> {
    engines::run("onnxruntime-qnn", "tests/in_qnn.py", cases)
}

fn describe(tiny: &Tiny) -> String {
    format!("linear {}, table {}, head {:?}, inner {}", tiny.linear, tiny.table, tiny.head, tiny.inner)
}

/// A padded part of a prompt, a whole one, and single tokens.
fn calls(text: &[u32]) -> Value {
    let mut calls = vec![json!({ "tokens": text[..4], "padding": 2 }), json!({ "tokens": text[4..10], "padding": 0 })];
    calls.extend((10..text.len()).map(|at| json!({ "tokens": [text[at]], "padding": 0 })));
    Value::Array(calls)
}

fn logits(result: &Value) -> Vec<Vec<f32>> {
    let calls: Vec<Vec<Vec<f32>>> = serde_json::from_value(result["logits"].clone()).unwrap();
    calls.into_iter().flatten().collect()
}

/// Every form is read back to the bit from both graphs and computed as the reference does, or refused before any work.
#[test]
fn every_scheme_agrees_with_the_reference_run() {
    let text = tokens(1, 13);
    let (mut cases, mut kept, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let windows = Tiny { linear: "int4/g32", window: Some(5), key_heads: 1, ..Tiny::default() };
    let all = tiny::everywhere().into_iter().chain(tiny::standard_only()).chain([windows]);
    for tiny in all {
        if let Err(error) = format().check(&tiny.graph()) {
            assert!(matches!(&error, Error::Weight { .. }) && error.hint().is_some(), "{}: {error}", describe(&tiny));
            refused.push(describe(&tiny));
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let model = tiny.build(folder.path());
        let artifact = export(&model, format(), folder.path());
        let verification = verify(&model, &artifact, folder.path()).unwrap_or_else(|e| panic!("{}: {e}", describe(&tiny)));
        let all: usize = artifact.tensors.iter().map(|t| t.dims.iter().product::<usize>()).sum();
        assert_eq!(verification.weights, all as u64);
        cases.push(json!({ "folder": folder.path(), "calls": calls(&text) }));
        kept.push((folder, model.reference(&text, 0, None).0, describe(&tiny)));
    }
    assert!(kept.len() > 8 && !refused.is_empty(), "{refused:#?}");
    let Some(results) = run(&cases) else { return };
    let mut wrong = Vec::new();
    for (result, (_, wanted, what)) in results.iter().zip(&kept) {
        if let Some(error) = result.get("error") {
            wrong.push(format!("{what}: {error}"));
            continue;
        }
        let off = difference(&logits(result), wanted, what);
        wrong.extend((off > HALF).then(|| format!("{what}: off by {off}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The provider takes any number for a chip: what the binary was made for is read back from it.
#[test]
fn context_binaries_are_for_the_chip_that_was_asked_for() {
    let chips = [(Soc::Sm8550, "73"), (Soc::Sm8650, "75"), (Soc::Sm8750, "79"), (Soc::Sm8850, "81")];
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    for (soc, _) in chips {
        let folder = tempfile::tempdir().unwrap();
        let model = Tiny { linear: "int4/g32", ..Tiny::default() }.build(folder.path());
        export(&model, Qnn { soc, ..format() }, folder.path());
        cases.push(json!({ "folder": folder.path(), "calls": [], "soc": soc }));
        kept.push(folder);
    }
    let Some(results) = run(&cases) else { return };
    for (result, (soc, arch)) in results.iter().zip(chips) {
        assert!(result.get("error").is_none(), "{soc:?}: {}", result["error"]);
        let (made, name) = (&result["embedded"], json!(soc));
        assert_eq!(
            (made["soc_type"].as_str().map(str::to_lowercase), &made["arch"]),
            (name.as_str().map(Into::into), &json!(arch))
        );
        assert_eq!(made["vtcm_size"].as_str().and_then(|text| text.parse::<u64>().ok()), Some(8 << 20), "{soc:?}");
    }
}

#[test]
fn both_graphs_share_one_file_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = export(&Tiny { linear: "int4/g32", ..Tiny::default() }.build(folder.path()), format(), folder.path());
    let names: Vec<&str> = artifact.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["prefill.onnx", "decode.onnx", "model.onnx.data", "qnn.json"]);
    assert_eq!(artifact.inputs[0].dims, ["1", "1"]);
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join("qnn.json")).unwrap()).unwrap();
    assert_eq!((&config["context"], &config["prefill"]), (&json!(24), &json!(6)));
    assert_eq!(config["provider_options"], json!({ "soc_model": "69", "htp_arch": "79" }));
}

#[test]
fn what_the_processor_cannot_be_given_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny::default().build(folder.path());
    let sized = |context, prefill| Qnn { context, prefill, ..Qnn::default() };
    for (format, words) in [
        (sized(Some(41), Some(8)), "`context` of target `qnn` is 41; at most the 40 tokens that the model takes"),
        (sized(Some(1), Some(1)), "`context` of target `qnn` is 1"),
        (sized(Some(16), Some(16)), "`prefill` of target `qnn` is 16; from 1 to 15 tokens"),
        (sized(None, Some(0)), "`prefill` of target `qnn` is 0"),
    ] {
        let error = format.check_side(&model.side).expect_err("refused");
        assert!(matches!(error, Error::Option { .. }) && error.to_string().contains(words), "{error}");
    }
    let rounded = tiny::in_integers().into_iter().next().unwrap();
    let error = format().check(&rounded.graph()).expect_err("refused");
    assert!(error.to_string().contains("values = \"linear\"") && error.hint().is_some(), "{error}");
    assert!(matches!(format().check(&Tiny { cache: false, ..Tiny::default() }.graph()), Err(Error::Kind { .. })));
    let error = (target("qnn").unwrap().parse)(json!({ "soc": "sm9999" })).err().unwrap().to_string();
    assert!(error.contains("sm8750"), "{error}");
}

/// The residual stream of real models has values in the thousands, whose squares are no f16.
#[test]
fn norms_of_large_values_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny { linear: "int4/g32", ..Tiny::default() };
    let text = tiny.text().replace("    x = embedding", "    rows = embedding");
    let text = text.replace("bf16)\n  }\n  block blocks.0", "bf16)\n    x = scale rows {by = 20000}\n  }\n  block blocks.0");
    let graph = Graph::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let source = tiny::source(&graph, &folder.path().join("weights.safetensors"));
    let model = Model { graph, source, side: Side { context: Some(40), ..Side::default() } };
    export(&model, format(), folder.path());
    let tokens = tokens(1, 13);
    let Some(results) = run(&[json!({ "folder": folder.path(), "calls": calls(&tokens) })]) else { return };
    assert!(results[0].get("error").is_none(), "{}", results[0]["error"]);
    let off = difference(&logits(&results[0]), &model.reference(&tokens, 0, None).0, "large values");
    assert!(off <= HALF, "off by {off}");
}

/// A position times a frequency is no f16 from some hundred on.
#[test]
fn far_positions_are_turned_by_the_right_angles() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Tiny { linear: "int4/g32", ..Tiny::default() }.build(folder.path());
    model.side.context = Some(2000);
    export(&model, Qnn { context: Some(600), prefill: Some(590), ..Qnn::default() }, folder.path());
    let tokens = tokens(1, 592);
    let calls = [&tokens[..590], &tokens[590..591], &tokens[591..]].map(|part| json!({ "tokens": part, "padding": 0 }));
    let Some(results) = run(&[json!({ "folder": folder.path(), "calls": calls })]) else { return };
    assert!(results[0].get("error").is_none(), "{}", results[0]["error"]);
    let off = difference(&logits(&results[0]), &model.reference(&tokens, 0, None).0, "far positions");
    assert!(off <= HALF, "off by {off}");
}
