//! Every architecture in every layout of every target: written, read back, opened in the real engine, compared.

use attar_export::{LiteRtLm, Qnn, TARGETS};
use attar_model::{ARCHITECTURES, Architecture};

use super::{
    checkpoints::{self, folders, name, open, reference},
    *,
};

/// Weights of linear layers in a form that both layouts hold and every width of the tiny checkpoints fits.
const CODES: &str = "int4/g16/short";

/// The same graph over weights that are made up, those of linear layers in codes.
fn in_codes(model: &Model, folder: &Path) -> Model {
    checkpoints::in_codes(model, folder, CODES)
}

/// The calls of a text: a decoder is given its end token by token, so that what its caches hold counts.
fn calls(artifact: &Artifact, text: &[u32]) -> Vec<Value> {
    let caches = artifact.inputs.iter().any(|port| port.name.starts_with("past_key_values.") || port.name == "beam_idx");
    let prompt = if caches { text.len() - 3 } else { text.len() };
    let mut calls = vec![call(&[text[..prompt].to_vec()], &[0], 0)];
    calls.extend((prompt..text.len()).map(|at| call(&[vec![text[at]]], &[0], at)));
    calls
}

/// What the engine returned in all calls.
fn returned(result: &Value, what: &str) -> Vec<Vec<f32>> {
    assert!(result.get("error").is_none(), "{what}: {}", result["error"]);
    let calls = result["logits"].as_array().unwrap().iter();
    calls.flat_map(|call| serde_json::from_value::<Vec<Vec<f32>>>(call.clone()).unwrap_or_else(|_| rows(&call[0]))).collect()
}

fn rows(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Texts longer than the windows and the first context of any tiny checkpoint.
#[test]
fn every_architecture_agrees_with_its_reference_run_in_every_layout() {
    let (mut cases, mut wanted, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 20);
    for folder in folders() {
        let plain = open(&folder);
        let quantized_folder = tempfile::tempdir().unwrap();
        let quantized = in_codes(&plain, quantized_folder.path());
        for (model, form) in [(&plain, "as it is"), (&quantized, CODES)] {
            let reference = reference(model, &text);
            for onnx in ways() {
                let what = format!("{} {form}, {}, {}", name(&folder), onnx.layout, onnx.style);
                let target = tempfile::tempdir().unwrap();
                let artifact = export(model, onnx, target.path());
                verify(model, &artifact, target.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
                cases.push(case(target.path(), onnx, &calls(&artifact, &text)));
                wanted.push((reference.clone(), what));
                kept.push(target);
            }
        }
    }
    for results in [run_engine(&cases), run_openvino(&cases)].into_iter().flatten() {
        let refused = |result: &Value| {
            let error = result.get("error").map(Value::to_string).unwrap_or_default();
            REFUSED_BY_OPENVINO.iter().any(|refusal| error.contains(refusal))
        };
        for (result, (wanted, what)) in results.iter().zip(&wanted).filter(|(result, _)| !refused(result)) {
            assert_close(&returned(result, what), wanted, what);
        }
        let refused = results.iter().filter(|result| refused(result)).count();
        assert!(refused * 5 < results.len(), "{refused} of {} refused", results.len());
    }
}

#[test]
fn every_architecture_agrees_with_its_reference_run_in_openvino() {
    let (mut cases, mut wanted, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 20);
    for folder in folders() {
        let plain = open(&folder);
        let quantized_folder = tempfile::tempdir().unwrap();
        let quantized = in_codes(&plain, quantized_folder.path());
        for (model, form) in [(&plain, "as it is"), (&quantized, CODES)] {
            let (what, target) = (format!("{} {form}", name(&folder)), tempfile::tempdir().unwrap());
            let format = OpenVino::default();
            let written = format.write(&model.input(), target.path(), &mut |_, _| ());
            let artifact = written.unwrap_or_else(|error| panic!("{what}: {error}"));
            format.verify(&model.input(), &artifact, target.path(), None).unwrap_or_else(|error| panic!("{what}: {error}"));
            cases.push(json!({ "model": target.path().join("openvino_model.xml"), "calls": calls(&artifact, &text) }));
            wanted.push((reference(model, &text), what));
            kept.push(target);
        }
    }
    let Some(results) = run_openvino(&cases) else { return };
    for (result, (wanted, what)) in results.iter().zip(&wanted) {
        assert_close(&returned(result, what), wanted, what);
    }
}

/// LiteRT rounds what products with codes read to int8.
const ROUNDED_BY_LITERT: f32 = 0.1;

#[test]
fn every_decoder_agrees_with_its_reference_run_in_litert() {
    let (mut cases, mut wanted, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    // The prompt is one part, for a long-rope turns what parts before the end of its first context read in another way.
    let (text, prompt): (Vec<u32>, usize) = (tokens(9, 20), 17);
    for folder in folders().into_iter().filter(|folder| name(folder) != "tiny-bert") {
        let plain = open(&folder);
        let quantized_folder = tempfile::tempdir().unwrap();
        let quantized = checkpoints::in_codes(&plain, quantized_folder.path(), "int8/row/positive");
        for (model, codes) in [(&plain, false), (&quantized, true)] {
            let (what, target) = (format!("{} in LiteRT, in codes: {codes}", name(&folder)), tempfile::tempdir().unwrap());
            let format = LiteRtLm { context: Some(24), prefill: vec![1, 20] };
            let written = format.write(&model.input(), target.path(), &mut |_, _| ());
            let artifact = written.unwrap_or_else(|error| panic!("{what}: {error}"));
            format.verify(&model.input(), &artifact, target.path(), None).unwrap_or_else(|error| panic!("{what}: {error}"));
            cases.push(json!({ "model": target.path().join("model.litertlm"), "tokens": text, "prompt": prompt }));
            wanted.push((reference(model, &text)[prompt..].to_vec(), what, codes));
            kept.push(target);
        }
    }
    let Some(results) = engines::run("litert", "tests/in_litert.py", &cases) else { return };
    for (result, (wanted, what, codes)) in results.iter().zip(&wanted) {
        assert!(result.get("error").is_none(), "{what}: {}", result["error"]);
        let found = rows(&result["logits"]);
        match codes {
            false => assert_close(&found, wanted, what),
            true => {
                let off = difference(&found, wanted, what);
                assert!(off <= ROUNDED_BY_LITERT, "{what}: off by {off}");
            }
        }
    }
}

/// What the f16 of the processor changes.
const IN_HALVES: f32 = 3e-2;

/// A prompt in a part that is filled up, and then token by token.
#[test]
fn every_decoder_agrees_with_its_reference_run_on_hexagon() {
    let (mut cases, mut wanted, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 20);
    for folder in folders().into_iter().filter(|folder| name(folder) != "tiny-bert") {
        let quantized_folder = tempfile::tempdir().unwrap();
        let model = in_codes(&open(&folder), quantized_folder.path());
        let (what, target) = (format!("{} on Hexagon", name(&folder)), tempfile::tempdir().unwrap());
        let format = Qnn { context: Some(24), prefill: Some(18), ..Qnn::default() };
        let written = format.write(&model.input(), target.path(), &mut |_, _| ());
        let artifact = written.unwrap_or_else(|error| panic!("{what}: {error}"));
        format.verify(&model.input(), &artifact, target.path(), None).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut calls = vec![json!({ "tokens": text[..17], "padding": 1 })];
        calls.extend(text[17..].iter().map(|token| json!({ "tokens": [token], "padding": 0 })));
        cases.push(json!({ "folder": target.path(), "calls": calls }));
        wanted.push((reference(&model, &text), what));
        kept.push(target);
    }
    let Some(results) = engines::run("onnxruntime-qnn", "tests/in_qnn.py", &cases) else { return };
    let mut wrong = Vec::new();
    for (result, (wanted, what)) in results.iter().zip(&wanted) {
        if let Some(error) = result.get("error") {
            wrong.push(format!("{what}: {error}"));
            continue;
        }
        let found: Vec<Vec<f32>> = result["logits"].as_array().unwrap().iter().flat_map(rows).collect();
        let off = difference(&found, wanted, what);
        wrong.extend((off > IN_HALVES).then(|| format!("{what}: off by {off}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A text that fills the call, and a shorter one; weights as they are, and in codes.
#[test]
fn every_encoder_agrees_with_its_reference_run_on_hexagon() {
    let (mut cases, mut wanted, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for folder in folders().into_iter().filter(|folder| name(folder) == "tiny-bert") {
        let plain = open(&folder);
        let quantized_folder = tempfile::tempdir().unwrap();
        let quantized = in_codes(&plain, quantized_folder.path());
        for (model, form) in [(&plain, "as it is"), (&quantized, CODES)] {
            let (what, target) = (format!("{} {form} on Hexagon", name(&folder)), tempfile::tempdir().unwrap());
            let format = Qnn { tokens: Some(20), ..Qnn::default() };
            format.check(&model.graph).unwrap_or_else(|error| panic!("{what}: {error}"));
            let written = format.write(&model.input(), target.path(), &mut |_, _| ());
            let artifact = written.unwrap_or_else(|error| panic!("{what}: {error}"));
            format.verify(&model.input(), &artifact, target.path(), None).unwrap_or_else(|error| panic!("{what}: {error}"));
            let texts: [Vec<u32>; 2] = [tokens(9, 20), tokens(8, 13)];
            let calls: Vec<Value> = texts.iter().map(|text| json!({ "tokens": text })).collect();
            cases.push(json!({ "folder": target.path(), "calls": calls }));
            wanted.push((texts.map(|text| reference(model, &text)), what));
            kept.push(target);
        }
    }
    let Some(results) = engines::run("onnxruntime-qnn", "tests/in_qnn.py", &cases) else { return };
    let mut wrong = Vec::new();
    for (result, (wanted, what)) in results.iter().zip(&wanted) {
        let Some(outputs) = result["outputs"].as_array() else {
            wrong.push(format!("{what}: {}", result["error"]));
            continue;
        };
        for (output, wanted) in outputs.iter().zip(wanted) {
            let off = difference(&rows(output), wanted, what);
            wrong.extend((off > IN_HALVES).then(|| format!("{what}: off by {off}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One row, that of the last token, whatever comes behind the head.
#[test]
fn every_decoder_can_return_the_last_logits_alone() {
    let text: Vec<u32> = tokens(9, 12);
    let (mut cases, mut wanted, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for folder in folders() {
        let model = open(&folder);
        let last = Onnx { logits: Logits::Last, ..onnx() };
        if name(&folder) == "tiny-bert" {
            assert!(matches!(last.check(&model.graph), Err(Error::Kind { .. })), "an encoder has no logits");
            continue;
        }
        for style in [Style::Fused, Style::Standard, Style::Plain] {
            let (onnx, target) = (Onnx { style, ..last }, tempfile::tempdir().unwrap());
            export(&model, onnx, target.path());
            cases.push(case(target.path(), onnx, &[call(from_ref(&text), &[0], 0)]));
            wanted.push((reference(&model, &text).pop().unwrap(), format!("{}, {style}", name(&folder))));
            kept.push(target);
        }
    }
    let Some(results) = run_engine(&cases) else { return };
    for (result, (wanted, what)) in results.iter().zip(&wanted) {
        assert_close(&logits(result, 0, 0), from_ref(wanted), what);
    }
}

#[test]
fn every_architecture_is_written_and_read_back_by_every_target() {
    for folder in folders() {
        let model = open(&folder);
        for target in TARGETS {
            let out = tempfile::tempdir().unwrap();
            let format = target.default_format().expect("the suite knows no option that has to be given");
            let what = format!("{} by {}", name(&folder), target.name);
            if format.needs_plans() {
                let refused = format.write(&model.input(), out.path(), &mut |_, _| ());
                assert!(matches!(refused, Err(Error::Compiled { .. })), "{what}: there are no plans");
                continue;
            }
            if matches!(format.check(&model.graph), Err(Error::Kind { .. })) {
                let generates = ["onnx-genai", "litert-lm"].contains(&target.name);
                assert!(generates && name(&folder) == "tiny-bert", "{what}: of no other kind");
                continue;
            }
            let written = format.write(&model.input(), out.path(), &mut |_, _| ());
            let artifact = written.unwrap_or_else(|error| panic!("{what}: {error}"));
            format.verify(&model.input(), &artifact, out.path(), None).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn every_architecture_has_a_tiny_checkpoint_to_export() {
    let built: Vec<&str> = folders().iter().map(|folder| Architecture::of(&open(folder).graph).unwrap().names[0]).collect();
    for architecture in ARCHITECTURES {
        let name = architecture.names[0];
        assert!(built.contains(&name), "`{name}` has no checkpoint `testdata/models/tiny-…`, so no target is tested with it");
    }
}

#[test]
fn an_encoder_is_written_without_caches_and_with_all_its_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let bert = folders().into_iter().find(|folder| name(folder) == "tiny-bert").unwrap();
    let artifact = export(&open(&bert), plain(), folder.path());
    let names = |ports: &[attar_export::Port]| ports.iter().map(|port| port.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&artifact.inputs), ["input_ids", "attention_mask", "position_ids", "token_type_ids"]);
    assert_eq!(names(&artifact.outputs), ["sentence_embedding"]);
    assert_eq!(artifact.inputs[1].dims, ["batch_size", "sequence_length"]);
}

/// A text that is padded on the right has the embedding that it has alone.
#[test]
fn padding_changes_no_embedding() {
    let bert = folders().into_iter().find(|folder| name(folder) == "tiny-bert").unwrap();
    let model = open(&bert);
    let openvino = tempfile::tempdir().unwrap();
    OpenVino::default().write(&model.input(), openvino.path(), &mut |_, _| ()).unwrap();
    let (long, short) = (tokens(3, 9), tokens(4, 5));
    let padded: Vec<u32> = short.iter().copied().chain([0; 4]).collect();
    let mut call = call(&[long.clone(), padded], &[0, 0], 0);
    call["attention_mask"][1] = json!([1, 1, 1, 1, 1, 0, 0, 0, 0]);
    let ours = json!({ "model": openvino.path().join("openvino_model.xml"), "calls": [&call] });
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    for onnx in ways() {
        let folder = tempfile::tempdir().unwrap();
        export(&model, onnx, folder.path());
        cases.push(case(folder.path(), onnx, from_ref(&call)));
        kept.push(folder);
    }
    let results = [run_engine(&cases), run_openvino(&cases), run_openvino(&[ours])];
    for result in results.into_iter().flatten().flatten() {
        let found = returned(&result, "padded");
        assert_close(&found[..1], &reference(&model, &long), "the long text");
        assert_close(&found[1..], &reference(&model, &short), "the padded text");
    }
}
