//! Bundles of target `litert-lm`, read back and in the real runtimes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod engines;
mod real;
#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod tiny;

use std::{fs, path::Path};

use attar_export::{Artifact, Content, Defect, Error, Format, LiteRtLm, Tflite, check_litert};
use real::{encoded, greedy, shakespeare};
use serde_json::{Value, json};
use tiny::{Model, Tiny, difference, tokens};

const BUNDLE: &str = "model.litertlm";

/// Two layers of f32 products in another order.
const TOLERANCE: f32 = 1e-5;

/// LiteRT rounds what products with codes read to int8, row by row; as a share of the largest logit. Measured at 3.2e-2 at most.
const ROUNDED: f32 = 5e-2;

fn format() -> LiteRtLm {
    LiteRtLm { context: Some(24), prefill: vec![4, 8] }
}

/// What the runtime cannot do without.
fn with_tokens(mut model: Model) -> Model {
    model.side.files.insert("tokenizer.json", Content::Text("{}".into()));
    model.side.files.insert("generation_config.json", Content::Text("{\"eos_token_id\": 3}".into()));
    model
}

fn export(model: &Model, folder: &Path) -> Artifact {
    let plan = format().check(&model.graph).unwrap();
    format().check_side(&model.side).unwrap();
    let artifact = format().write(&model.input(), folder, &mut |_, _| ()).unwrap();
    assert_eq!(plan.tensors, artifact.tensors, "the plan is what is written");
    artifact
}

fn verify(model: &Model, artifact: &Artifact, folder: &Path) -> attar_export::Result<attar_export::Verification> {
    let before = |name: &str, rows, out: &mut [f32]| Ok(tiny::rows_before(&model.graph, name, rows, out));
    format().verify(&model.input(), artifact, folder, Some(&before))
}

fn run(cases: &[Value]) -> Option<Vec<Value>> {
    engines::run("litert", "tests/in_litert.py", cases)
}

fn describe(tiny: &Tiny) -> String {
    format!("linear {}, table {}, head {:?}, inner {}, {:?}", tiny.linear, tiny.table, tiny.head, tiny.inner, tiny.activations)
}

/// Every form that LiteRT takes, and what is special about a graph.
fn taken() -> Vec<Tiny> {
    let each = |linear, table, head| Tiny { linear, table, head, ..Tiny::default() };
    let codes = each("int4/g32/positive", "int8/row/positive", None);
    let wide = Tiny { width: 128, inner: 256, ..codes.clone() };
    vec![
        codes.clone(),
        each("int4/g32/positive", "int4/g32/positive", None),
        each("int4/g32/positive", "int4/row/positive", Some("int8/row/f32/positive")),
        each("int8/row/positive", "int8/row/positive", None),
        each("int8/tensor/positive", "bf16", Some("int5/row/positive")),
        each("int4/row/positive", "int4/row/positive", None),
        each("int3/g32/positive", "int2/row/positive", Some("ternary/g32")),
        each("ternary/row", "int6/row/positive", None),
        Tiny { linear: "int4/g64/positive", ..wide.clone() },
        Tiny { linear: "int4/g128/positive", ..wide },
        Tiny { bias: true, interleaved: true, ..codes.clone() },
        Tiny { window: Some(5), ..codes.clone() },
        Tiny { window: Some(5), ..Tiny::default() },
        Tiny { softcap: Some(2.0), key_heads: 4, ..Tiny::default() },
        Tiny { key_heads: 1, ..Tiny::default() },
    ]
}

/// Every scheme is read back to the bit and computed as the reference does, a prompt in filled-up parts and then token by token, or refused before any
/// work.
#[test]
fn every_scheme_agrees_with_the_reference_run() {
    let text = tokens(1, 16);
    let (mut cases, mut kept, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let others = tiny::everywhere().into_iter().chain(tiny::standard_only()).chain(tiny::in_integers());
    for (tiny, asked) in taken().into_iter().map(|tiny| (tiny, true)).chain(others.map(|tiny| (tiny, false))) {
        if let Err(error) = format().check(&tiny.graph()) {
            let known = matches!(&error, Error::Weight { .. }) && error.hint().is_some() && !asked;
            assert!(known, "{}: {error}", describe(&tiny));
            refused.push(describe(&tiny));
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let model = with_tokens(tiny.build(folder.path()));
        let artifact = export(&model, folder.path());
        let verification = verify(&model, &artifact, folder.path()).unwrap_or_else(|e| panic!("{}: {e}", describe(&tiny)));
        let all: usize = artifact.tensors.iter().map(|t| t.dims.iter().product::<usize>()).sum();
        assert_eq!(verification.weights, all as u64);
        cases.push(json!({ "model": folder.path().join(BUNDLE), "tokens": text, "prompt": 11 }));
        let in_floats = artifact.tensors.iter().all(|tensor| tensor.storage == "f32");
        let exact = in_floats && tiny.activations.is_none() && tiny.kv.is_none();
        kept.push((folder, model.reference(&text, 0, None).0, if exact { TOLERANCE } else { ROUNDED }, describe(&tiny)));
    }
    assert!(kept.len() > 20 && !refused.is_empty(), "{refused:#?}");
    let Some(results) = run(&cases) else { return };
    let mut wrong = Vec::new();
    for (result, (_, wanted, tolerance, what)) in results.iter().zip(&kept) {
        if let Some(error) = result.get("error") {
            wrong.push(format!("{what}: {error}"));
            continue;
        }
        let found: Vec<Vec<f32>> = serde_json::from_value(result["logits"].clone()).unwrap();
        let off = difference(&found, &wanted[11..], what);
        wrong.extend((off > *tolerance).then(|| format!("{what}: off by {off}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let files = [(); 2].map(|()| {
        let folder = tempfile::tempdir().unwrap();
        export(&with_tokens(Tiny { linear: "int4/g32/positive", ..Tiny::default() }.build(folder.path())), folder.path()).files
    });
    assert_eq!(files[0], files[1]);
}

/// Each byte that holds a number is compared; the rest is found by the digest.
#[test]
fn a_changed_byte_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let model =
        with_tokens(Tiny { linear: "int4/g32/positive", table: "int8/row/positive", ..Tiny::default() }.build(folder.path()));
    let artifact = export(&model, folder.path());
    let path = folder.path().join(BUNDLE);
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 300) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        let error = verify(&model, &artifact, folder.path()).expect_err("damaged");
        assert!(error.hint().is_some(), "byte {at}: {error}");
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = verify(&model, &artifact, folder.path()).expect_err("cut short");
    assert!(matches!(error, Error::Malformed { defect: Defect::Parse(_), .. }), "{error}");
}

/// Text in, text out: what the reference run says, in the words of its tokenizer, after prompts of many lengths.
#[test]
fn the_runtime_generates_what_the_reference_run_does() {
    let model = shakespeare();
    let folder = tempfile::tempdir().unwrap();
    let format = LiteRtLm { context: Some(128), ..LiteRtLm::default() };
    let artifact = format.write(&model.input(), folder.path(), &mut |_, _| ()).unwrap();
    format.verify(&model.input(), &artifact, folder.path(), None).unwrap();
    let long = "They are the city of my soul and my soul, ".repeat(5);
    let prompts = ["KING HENRY:\n", "O", "What say you now, my lord?\n\nFOOL:\nNuncle, ", long.as_str()];
    let chat = json!([{ "role": "FOOL", "content": [{ "type": "text", "text": "Nuncle" }] }]);
    let case = json!({ "model": folder.path().join(BUNDLE), "prompts": prompts, "tokens": 16, "chat": chat });
    let Some(results) = engines::run("litert", "tests/in_litert_lm.py", &[case]) else { return };
    assert!(results[0].get("error").is_none(), "{}", results[0]["error"]);
    let tokenizer = real::tokenizer();
    for (i, prompt) in prompts.iter().enumerate() {
        let ids = encoded(prompt);
        assert_eq!(results[0]["encoded"][i], json!(ids), "{prompt:?}");
        let said = tokenizer.decode(&greedy(&model, &ids, 16)).unwrap();
        assert_eq!(results[0]["said"][i], said, "{prompt:?}");
    }
    assert_eq!(results[0]["chat"], "FOOL:\nNuncle\nKING:\n");
}

/// A token that the tokenizer begins texts with is what the runtime begins them with, once; a chat template that names it does not add another.
#[test]
fn texts_begin_with_the_token_of_the_post_processor() {
    let mut model = shakespeare();
    let json = model.side.tokenizer().unwrap().unwrap();
    let mut json: Value = serde_json::from_slice(&json).unwrap();
    let first = tokens(3, 1)[0] + 500;
    let name = json["model"]["vocab"].as_object().unwrap().iter().find(|(_, id)| **id == first).unwrap().0.clone();
    json["post_processor"] = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": name, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { name.clone(): { "id": name, "ids": [first], "tokens": [name] } } });
    model.side.files.insert("tokenizer.json", Content::Text(json.to_string()));
    let template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}";
    model.side.files.insert("chat_template.jinja", Content::Text(template.into()));
    model.side.files.insert("tokenizer_config.json", Content::Text(json!({ "bos_token": name }).to_string()));
    let folder = tempfile::tempdir().unwrap();
    LiteRtLm { context: Some(128), ..LiteRtLm::default() }.write(&model.input(), folder.path(), &mut |_, _| ()).unwrap();
    let prompt = "KING HENRY:\n";
    let chat = json!([{ "role": "FOOL", "content": "Nuncle" }]);
    let case = json!({ "model": folder.path().join(BUNDLE), "prompts": [prompt], "tokens": 16, "chat": chat });
    let Some(results) = engines::run("litert", "tests/in_litert_lm.py", &[case]) else { return };
    assert!(results[0].get("error").is_none(), "{}", results[0]["error"]);
    let ids = [vec![first], encoded(prompt)].concat();
    assert_eq!(results[0]["said"][0], real::tokenizer().decode(&greedy(&model, &ids, 16)).unwrap());
    assert_eq!(results[0]["chat"], "FOOL:\nNuncle\n");
}

fn refused(model: &Model, format: &LiteRtLm) -> Error {
    let checked = format.check(&model.graph).and_then(|_| format.check_side(&model.side));
    checked.expect_err("refused")
}

/// What cannot be is said before a byte is written.
#[test]
fn a_bundle_that_the_runtime_would_not_open_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_tokens(Tiny::default().build(folder.path()));
    let usual = LiteRtLm::default();
    let sized = |context, prefill: &[usize]| LiteRtLm { context, prefill: prefill.to_vec() };
    for (format, words) in [
        (sized(Some(41), &[8]), "`context` of target `litert-lm` is 41; at most the 40 tokens that the model takes"),
        (sized(Some(0), &[8]), "`context` of target `litert-lm` is 0"),
        (sized(Some(16), &[8, 32]), "`prefill` of target `litert-lm` is 32; lengths from 1 to the 16 tokens of the context"),
        (sized(None, &[0]), "`prefill` of target `litert-lm` is 0"),
        (sized(None, &[]), "a length that fits a context of 40 tokens"),
        (sized(None, &[64]), "a length that fits a context of 40 tokens"),
    ] {
        let error = format.check_side(&model.side).expect_err("refused");
        assert!(matches!(error, Error::Option { .. }) && error.to_string().contains(words), "{error}");
    }
    let mut endless = with_tokens(Tiny::default().build(folder.path()));
    endless.side.files.remove("generation_config.json");
    let error = refused(&endless, &usual);
    assert!(error.to_string().contains("which token ends a text") && error.hint().unwrap().contains("eos_token_id"), "{error}");
    let mut dumb = with_tokens(Tiny::default().build(folder.path()));
    dumb.side.files.remove("tokenizer.json");
    assert!(refused(&dumb, &usual).to_string().contains("has no `tokenizer.json`"));
    let encoder = with_tokens(Tiny { cache: false, ..Tiny::default() }.build(folder.path()));
    assert!(matches!(refused(&encoder, &usual), Error::Kind { .. }));
}

/// The seeds of the fuzz target `litert_lm`, and what it found once.
#[test]
fn seeds_of_the_fuzzer_parse_or_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz/litert_lm");
    let seeds = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap_or_default());
    let parsed = seeds.filter(|bytes| check_litert(Path::new(BUNDLE), bytes).is_ok());
    assert!(parsed.count() > 0);
}

/// A text has the tokens that it was written for, and an answer ends with the caches.
#[test]
fn the_sizes_of_a_model_by_itself_are_those_of_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = Tiny::default().build(folder.path());
    let usual = Tflite::default();
    usual.check(&decoder.graph).unwrap();
    let refused = |format: &Tflite, words: &str| {
        let error = format.check(&decoder.graph).and_then(|_| format.check_side(&decoder.side)).expect_err("refused");
        assert!(matches!(error, Error::Option { .. }) && error.to_string().contains(words), "{error}");
    };
    refused(&Tflite { tokens: Some(8), ..usual.clone() }, "only encoders have it");
    refused(&Tflite { context: Some(41), ..usual.clone() }, "at most the 40 tokens that the model takes");
    refused(&Tflite { context: Some(8), prefill: Some(9), ..usual.clone() }, "at most the 8 tokens that the caches hold");
    refused(&Tflite { context: Some(0), ..usual.clone() }, "`context` of target `tflite` is 0");
    let outside = Tflite { lookups: Some(attar_export::Lookups::Outside), ..usual };
    let error = outside.check(&decoder.graph).expect_err("refused");
    assert!(matches!(&error, Error::Kind { .. }) && error.hint().unwrap().contains("values = \"all\""), "{error}");
}
