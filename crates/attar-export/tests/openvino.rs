//! Folders of target `openvino`, read back and in the real engine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod engines;
mod real;
#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod tiny;

use std::{fs, path::Path, slice::from_ref};

use attar_export::{Artifact, Defect, Error, Format, OpenVino, check_openvino};
use real::{encoded, greedy, shakespeare};
use serde_json::{Value, json};
use tiny::{Model, Tiny, call, difference, tokens};

/// Two layers of f32 products in another order; measured at 2e-6.
const TOLERANCE: f32 = 1e-5;

/// What 16 bits can change of the logits of six blocks of random weights.
const LOW_PRECISION: f32 = 0.15;

fn export(model: &Model, folder: &Path) -> Artifact {
    let plan = OpenVino::default().check(&model.graph).unwrap();
    let artifact = OpenVino::default().write(&model.input(), folder, &mut |_, _| ()).unwrap();
    assert_eq!((plan.tensors, plan.bytes), (artifact.tensors.clone(), artifact.files[1].bytes), "the plan is what is written");
    artifact
}

fn verify(model: &Model, artifact: &Artifact, folder: &Path) -> attar_export::Result<attar_export::Verification> {
    let before = |name: &str, rows, out: &mut [f32]| Ok(tiny::rows_before(&model.graph, name, rows, out));
    OpenVino::default().verify(&model.input(), artifact, folder, Some(&before))
}

fn case(folder: &Path, calls: &[Value]) -> Value {
    json!({ "model": folder.join("openvino_model.xml"), "calls": calls })
}

fn run(cases: &[Value]) -> Option<Vec<Value>> {
    engines::run("openvino", "tests/in_openvino.py", cases)
}

fn logits(result: &Value, call: usize, row: usize) -> Vec<Vec<f32>> {
    assert!(result.get("error").is_none(), "{}", result["error"]);
    serde_json::from_value(result["logits"][call][row].clone()).unwrap()
}

fn describe(tiny: &Tiny) -> String {
    format!("linear {}, table {}, head {:?}, inner {}", tiny.linear, tiny.table, tiny.head, tiny.inner)
}

/// Every scheme is read back to the bit and computed as the reference does, a prompt and then token by token, or refused before any work.
#[test]
fn every_scheme_agrees_with_the_reference_run() {
    let text = tokens(1, 9);
    let (mut cases, mut kept, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for tiny in tiny::everywhere().into_iter().chain(tiny::standard_only()) {
        if let Err(error) = OpenVino::default().check(&tiny.graph()) {
            assert!(matches!(&error, Error::Weight { .. }) && error.hint().is_some(), "{}: {error}", describe(&tiny));
            refused.push(describe(&tiny));
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let model = tiny.build(folder.path());
        let artifact = export(&model, folder.path());
        let verification = verify(&model, &artifact, folder.path()).unwrap_or_else(|e| panic!("{}: {e}", describe(&tiny)));
        let all: usize = artifact.tensors.iter().map(|t| t.dims.iter().product::<usize>()).sum();
        assert_eq!(verification.weights, all as u64);
        let mut calls = vec![call(&[text[..6].to_vec()], &[0], 0)];
        calls.extend((6..9).map(|i| call(&[text[i..=i].to_vec()], &[0], i)));
        cases.push(case(folder.path(), &calls));
        kept.push((folder, model.reference(&text, 0, None).0, describe(&tiny)));
    }
    assert!(
        refused.len() < kept.len()
            && refused
                .iter()
                .all(|what| ["short", "lut", "gauss", "mxfp4", "nvfp4", "g48", "97"].iter().any(|word| what.contains(word))),
        "{refused:#?}"
    );
    let Some(results) = run(&cases) else { return };
    let mut wrong = Vec::new();
    for (result, (_, wanted, what)) in results.iter().zip(&kept) {
        if let Some(error) = result.get("error") {
            wrong.push(format!("{what}: {error}"));
            continue;
        }
        let found: Vec<Vec<f32>> = (0..4).flat_map(|call| logits(result, call, 0)).collect();
        let off = difference(&found, wanted, what);
        wrong.extend((off > TOLERANCE).then(|| format!("{what}: off by {off}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A prompt and then token by token, so that what the cache holds counts.
#[test]
fn activations_in_integers_agree_with_the_reference_run() {
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    let text = tokens(6, 9);
    for tiny in tiny::in_integers() {
        let [folder, plain] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let model = tiny.build(folder.path());
        let artifact = export(&model, folder.path());
        let what = format!("{}, {:?}, kv {:?}", describe(&tiny), tiny.activations, tiny.kv);
        verify(&model, &artifact, folder.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut calls = vec![call(&[text[..6].to_vec()], &[0], 0)];
        calls.extend((6..9).map(|i| call(&[text[i..=i].to_vec()], &[0], i)));
        cases.push(case(folder.path(), &calls));
        let floats = Tiny { activations: None, kv: None, ..tiny.clone() }.build(plain.path());
        // 16 bits are worth too little to be seen in the logits.
        let wide = tiny.activations.is_some_and(|rounded| rounded.bits == 16);
        let seen = tiny.kv.is_some() || !wide;
        kept.push((folder, model.reference(&text, 0, None).0, seen.then(|| floats.reference(&text, 0, None).0), wide, what));
    }
    let Some(results) = run(&cases) else { return };
    for (result, (_, rounded, floats, wide, what)) in results.iter().zip(&kept) {
        let found: Vec<Vec<f32>> = (0..4).flat_map(|call| logits(result, call, 0)).collect();
        let off = difference(&found, rounded, what);
        assert!(off <= if *wide { tiny::ROUNDED_TOLERANCE } else { tiny::NARROW_TOLERANCE }, "{what}: off by {off}");
        if let Some(floats) = floats {
            let cost = difference(floats, rounded, what);
            assert!(off <= 0.1 * cost, "{what}: off by {off} where rounding is worth {cost}");
        }
    }
}

#[test]
fn padding_on_the_left_changes_nothing_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { linear: "int4/g32", window: Some(5), ..Tiny::default() }.build(folder.path());
    export(&model, folder.path());
    let (long, short) = (tokens(3, 8), tokens(4, 5));
    let padded: Vec<u32> = [0; 3].into_iter().chain(short[..3].iter().copied()).collect();
    let calls = [call(&[long[..6].to_vec(), padded], &[0, 3], 0), call(&[long[6..].to_vec(), short[3..].to_vec()], &[0, 3], 6)];
    let Some(results) = run(&[case(folder.path(), &calls)]) else { return };
    let (long, short) = (model.reference(&long, 0, None).0, model.reference(&short, 0, None).0);
    let close = |call, row, of: &[Vec<f32>], what: &str| {
        let found = logits(&results[0], call, row);
        let off = difference(&found[found.len() - of.len()..], of, what);
        assert!(off <= TOLERANCE, "{what}: off by {off}");
    };
    close(0, 0, &long[..6], "whole row");
    close(0, 1, &short[..3], "padded row");
    close(1, 0, &long[6..], "whole row, later");
    close(1, 1, &short[3..], "padded row, later");
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let files = [(); 2].map(|()| {
        let folder = tempfile::tempdir().unwrap();
        export(&Tiny { linear: "int4/g32/asymmetric", ..Tiny::default() }.build(folder.path()), folder.path()).files
    });
    assert_eq!(files[0], files[1]);
}

/// Each byte that holds a number is compared; the rest is found by the digest.
#[test]
fn a_changed_byte_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { linear: "int4/g32/asymmetric", table: "int8/g32", ..Tiny::default() }.build(folder.path());
    let artifact = export(&model, folder.path());
    let path = folder.path().join("openvino_model.bin");
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        let error = verify(&model, &artifact, folder.path()).expect_err("damaged");
        assert!(error.hint().is_some(), "byte {at}: {error}");
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = verify(&model, &artifact, folder.path()).expect_err("cut short");
    assert!(matches!(error, Error::Malformed { defect: Defect::Extent { .. }, .. }), "{error}");
}

#[test]
fn a_model_that_is_not_ours_is_refused() {
    let path = Path::new("openvino_model.xml");
    for text in ["", "no xml", "<net><layers><layer id=\"x\"/></layers></net>", "<!DOCTYPE n [<!ENTITY a \"b\">]><net/>"] {
        let error = check_openvino(path, text).expect_err("not a model");
        assert!(matches!(error, Error::Malformed { defect: Defect::Parse(_), .. }), "{error}");
    }
    let edge = "<net><edges><edge from-layer=\"0\" from-port=\"0\" to-layer=\"1\" to-port=\"0\"/></edges></net>";
    assert!(check_openvino(path, edge).expect_err("no layers").to_string().contains("does not exist"));
}

/// What NPUs read: int4 codes in two's complement with f16 scales, and a table that the head shares is stored once.
#[test]
fn codes_are_of_openvinos_own_types() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { linear: "int4/g32", table: "int4/g32", ..Tiny::default() }.build(folder.path());
    let artifact = export(&model, folder.path());
    let storage = |name: &str| artifact.tensors.iter().find(|t| t.name == name).unwrap().storage.clone();
    assert_eq!(storage("b0.q"), "i4, groups of 32, f16 scales");
    assert_eq!(artifact.tensors.iter().filter(|t| t.also == ["tied"]).count(), 1);
    let text = fs::read_to_string(folder.path().join("openvino_model.xml")).unwrap();
    assert!(text.contains("variable_id=\"past_key_values.0.keypresent.0.key\"") && text.contains("names=\"logits\""));
    assert_eq!(from_ref(&artifact.outputs[0].name), ["logits"]);
}

/// Texts that tokenizers split in ways of their own.
const TEXTS: [&str; 7] = [
    "Hello world",
    "a  5 and 12345",
    "  leading   spaces\t\ttabs\n\n\nnew",
    "Gr\u{f6}\u{df}e \u{6f22}\u{5b57} \u{e9}moji \u{1f600} \u{2082}\u{bd}",
    "don't I'll we've",
    " ",
    "KING HENRY:\nThey are the city of my soul",
];

#[test]
fn pipelines_generate_what_the_reference_run_does_and_take_text() {
    let model = shakespeare();
    let folder = tempfile::tempdir().unwrap();
    let artifact = export(&model, folder.path());
    verify(&model, &artifact, folder.path()).unwrap();
    let prompts: Vec<Vec<u32>> = (0..20).map(|i| (0..3 + i % 7).map(|j| 100 + (i * 131 + j * 37) % 800).collect()).collect();
    let chat = json!([{ "role": "FOOL", "content": "Nuncle" }]);
    let case = json!({ "model": folder.path(), "prompts": prompts, "tokens": 16, "chat": chat, "texts": TEXTS });
    let Some(results) = engines::run("openvino", "tests/in_openvino_genai.py", &[case]) else { return };
    assert!(results[0].get("error").is_none(), "{}", results[0]["error"]);
    let said: Vec<Vec<u32>> = serde_json::from_value(results[0]["said"].clone()).unwrap();
    for (prompt, said) in prompts.iter().zip(said) {
        assert_eq!(said, greedy(&model, prompt, 16), "{prompt:?}");
    }
    for (i, text) in TEXTS.iter().enumerate() {
        assert_eq!(results[0]["encoded"][i], json!(encoded(text)), "{text:?}");
        assert_eq!(results[0]["decoded"][i], *text);
    }
    assert_eq!((&results[0]["chat"], &results[0]["end"]), (&json!("FOOL:\nNuncle\nKING:\n"), &json!(1023)));
}

/// How much less likely than the reference's choice the first token is that is another, as a share of the largest logit; 0 where all are the same.
fn first_mistake(model: &Model, prompt: &[u32], said: &[u32]) -> f32 {
    let wanted = greedy(model, prompt, said.len());
    let Some(at) = said.iter().zip(&wanted).position(|(said, wanted)| said != wanted) else { return 0.0 };
    let logits = model.reference(&[prompt, &said[..at]].concat(), 0, None).0;
    let last = logits.last().unwrap();
    let largest = last.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    (last[wanted[at] as usize] - last[said[at] as usize]) / largest
}

/// Intel's NPU pipeline, run on a CPU, for prompts of many lengths. It computes in 16 bits, and so may take another token where two are about as
/// likely, and nowhere else: a wrong mask shows in the first token, a wrong cache in the second.
#[test]
fn the_npu_pipeline_generates_what_the_reference_run_does() {
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    let lengths = [4, 8, 9, 16, 31, 64, 100, 127];
    for linear in ["int4/g64", "int4/g128"] {
        let tiny = Tiny { linear, table: "f16", width: 256, inner: 512, layers: 6, ..Tiny::default() };
        let folder = tempfile::tempdir().unwrap();
        let mut model = tiny.build(folder.path());
        model.side.config = json!({ "model_type": "llama", "vocab_size": tiny::VOCABULARY, "num_hidden_layers": 6, "hidden_size": 256,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "eos_token_id": 0, "bos_token_id": 1 });
        export(&model, folder.path());
        let prompts: Vec<Vec<u32>> = lengths.iter().map(|length| tokens(*length as u32, *length)).collect();
        let options = json!({ "NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU", "MAX_PROMPT_LEN": 128, "MIN_RESPONSE_LEN": 32 });
        let case = json!({ "model": folder.path(), "prompts": prompts, "tokens": 12, "device": "NPU", "options": options });
        cases.push(case);
        kept.push((folder, model, prompts, linear));
    }
    let Some(results) = engines::run("openvino", "tests/in_openvino_genai.py", &cases) else { return };
    for (result, (_, model, prompts, linear)) in results.iter().zip(kept) {
        assert!(result.get("error").is_none(), "{linear}: {}", result["error"]);
        let said: Vec<Vec<u32>> = serde_json::from_value(result["said"].clone()).unwrap();
        for (prompt, said) in prompts.iter().zip(&said) {
            let behind = first_mistake(&model, prompt, said);
            assert!(behind <= LOW_PRECISION, "{linear}, prompt of {}: {said:?} is behind by {behind}", prompt.len());
        }
    }
}

/// A model that cannot be taken as text says so.
#[test]
fn a_tokenizer_that_cannot_be_written_is_a_note() {
    let mut model = shakespeare();
    let put = |model: &mut Model, json: &str| model.side.files.insert("tokenizer.json", attar_export::Content::Text(json.into()));
    put(&mut model, "no json");
    let error = OpenVino::default().write(&model.input(), Path::new("/nowhere"), &mut |_, _| ()).expect_err("no JSON");
    assert!(matches!(&error, Error::Beside { name: "tokenizer.json", .. }) && error.hint().is_some(), "{error}");
    put(&mut model, "{\"model\": {\"type\": \"Unigram\"}}");
    let folder = tempfile::tempdir().unwrap();
    let artifact = export(&model, folder.path());
    assert!(
        artifact.notes[0].contains("openvino_tokenizer.xml") && artifact.notes[0].contains("byte-level"),
        "{:?}",
        artifact.notes
    );
    assert!(!folder.path().join("openvino_tokenizer.xml").exists());
}

/// The seeds of the fuzz target `openvino`, and what it found once.
#[test]
fn seeds_of_the_fuzzer_parse_or_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz/openvino");
    let seeds = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap_or_default());
    let parsed = seeds.filter(|text| check_openvino(Path::new("openvino_model.xml"), text).is_ok());
    assert!(parsed.count() > 0);
}
