//! Multiple choice against transformers, and what windows share.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use attar_eval::{Language, Measurements, Output, Prepared, Reference, Result, Rows, Runner, Sides, Window, task};
use attar_model::Model;
use serde_json::{Value, json};

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

fn shakespeare() -> Model {
    Model::open(&testdata("models/shakespeare-1m")).unwrap()
}

fn prepared(model: &Model, settings: Value) -> Result<Box<dyn Prepared>> {
    let tokenizer = model.tokenizer().unwrap();
    let language = Language { tokenizer: &tokenizer, config: &model.config, chat: None };
    let settings = (task("choice").unwrap().parse)(settings).unwrap();
    settings.check(&model.config)?;
    settings.prepare(&language)
}

fn measured(model: &Model, prepared: &dyn Prepared) -> Measurements {
    let reference = Reference::new(model);
    let mut rows = reference.start(Output::Logits.into(), prepared.windows(), &|_, _| {}).unwrap();
    prepared.score(&mut Sides { model: &mut *rows, base: None, sibling: None }, &|_, _| {}).unwrap()
}

/// `testdata/oracle/choice.py` asked transformers.
#[test]
fn log_likelihoods_are_those_of_transformers() {
    let oracle: Value = serde_json::from_str(&std::fs::read_to_string(testdata("oracle/choice.json")).unwrap()).unwrap();
    let model = shakespeare();
    for (name, shots) in [("zero_shot", 0), ("two_shot", 2)] {
        let data = testdata("evals/choice.jsonl");
        let prepared = prepared(&model, json!({ "data": data, "shots": shots, "samples": true })).unwrap();
        let measured: Value = measured(&model, &*prepared).read().unwrap();
        let samples = measured["samples"].as_array().unwrap();
        let expected = oracle[name]["log_likelihoods"].as_array().unwrap();
        assert_eq!(samples.len(), expected.len());
        for (sample, expected) in samples.iter().zip(expected) {
            let pairs = sample["log_likelihoods"].as_array().unwrap().iter().zip(expected.as_array().unwrap());
            for (found, expected) in pairs {
                let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-4, "{name}: {found}, expected {expected}");
            }
        }
        for metric in ["acc", "acc_norm"] {
            assert_eq!(measured[metric]["value"], oracle[name][metric], "{name}: {metric}");
        }
    }
}

/// Every row on its own, from a run of its window alone.
struct Alone<'m>(&'m Reference<'m>, &'m [Window]);

impl Rows for Alone<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        self.0.start(Output::Logits.into(), &self.1[window..=window], &|_, _| {})?.rows(0, positions, out)
    }
}

#[test]
fn what_is_shared_changes_no_score() {
    for folder in ["models/shakespeare-1m", "models/tiny-gemma3", "models/tiny-phi4-mini"] {
        let model = Model::open(&testdata(folder)).unwrap();
        let vocabulary = model.config.json["vocab_size"].as_u64().unwrap() as u32;
        // Examples, questions and options of several lengths; some windows share nothing.
        let text = |seed: u32, length: u32| (0..length).map(|i| (seed * 31 + i * i * 7 + i) % vocabulary).collect::<Vec<u32>>();
        let window = |parts: &[Vec<u32>]| {
            let tokens = parts.concat();
            let option = parts.last().unwrap().len();
            Window { scored: tokens.len() - option - 1..tokens.len() - 1, tokens }
        };
        let examples = text(1, 12);
        let mut windows = Vec::new();
        for question in 0..5 {
            let question = [examples.clone(), text(10 + question, 9 + question)].concat();
            windows.extend((0..4).map(|option| window(&[question.clone(), text(90 + option, 1 + option * 2)])));
        }
        windows.push(window(&[text(70, 3), text(71, 2)]));
        let reference = Reference::new(&model);
        let (mut shared, mut alone) =
            (reference.start(Output::Logits.into(), &windows, &|_, _| {}).unwrap(), Alone(&reference, &windows));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (at, window) in windows.iter().enumerate() {
            shared.rows(at, window.scored.clone(), &mut a).unwrap();
            alone.rows(at, window.scored.clone(), &mut b).unwrap();
            let most = b.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let off = a.iter().zip(&b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / most;
            assert!(a.len() == b.len() && off < 1e-5, "{folder}, window {at}: off by {off}");
        }
    }
}

#[test]
fn questions_that_cannot_be_asked_are_named_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("questions.jsonl");
    let model = shakespeare();
    let refused = |text: &str, more: Value| {
        std::fs::write(&path, text).unwrap();
        let mut settings = json!({ "data": path });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        prepared(&model, settings).unwrap_err().to_string().replace(path.to_str().unwrap(), "Q")
    };
    let good = r#"{"question": "a", "options": ["b", "c"], "answer": 0}"#;
    let long = format!(r#"{{"question": "{}", "options": ["b", "c"], "answer": 0}}"#, "the king ".repeat(900));
    let cases = [
        (
            r#"{"question": "a", "answer": 0}"#.to_owned(),
            "there is no field `options`, `choices`, `endings`; say where it is with `options`",
        ),
        (r#"{"question": "a", "options": ["b"], "answer": 0}"#.into(), "expected a list of two or more options"),
        (r#"{"question": "a", "options": [null, "b", "c"], "answer": 1}"#.into(), "the option null is no text"),
        (r#"{"question": "a", "options": ["b", "c"], "answer": 2}"#.into(), "the answer 2 is none of the 2 options"),
        (r#"{"question": "a", "options": ["b", "c"], "answer": "D"}"#.into(), "the answer \"D\" is none of the 2 options"),
        (r#"{"question": "a", "options": ["b", "c"], "answer": []}"#.into(), "no option is the answer"),
        (r#"{"question": "a", "options": ["b", "c"]}"#.into(), "there is no field `answer`"),
        (r#"{"options": ["b", "c"], "answer": 0}"#.into(), "there is no field `question`"),
        (r#"{"question": "", "options": ["b", "c"], "answer": 0}"#.into(), "the prompt has no tokens"),
        (r#"{"question": "a", "options": ["b", "#.into(), "no JSON: "),
        (long, "tokens, the model's context is "),
    ];
    for (line, reason) in cases {
        let found = refused(&format!("{good}\n\n{line}\n"), json!({}));
        assert!(found.starts_with("`Q`, line 3: ") && found.contains(reason), "{found}");
    }
    assert_eq!(refused("\n", json!({})), "`Q` has 0 record(s), and 1 or more are needed");
    assert_eq!(refused(good, json!({ "shots": 2 })), "`Q` has 1 record(s), and 2 or more are needed");
    assert!(
        refused(good, json!({ "prompt": "{{ nothing }}" })).starts_with("`Q`, line 1: `prompt`: there is no `nothing` among ")
    );
    assert!(refused(good, json!({ "prompt": "{{ question" })).starts_with("`prompt` cannot be used: "));
    std::fs::write(&path, b"{\"question\": \"\xff\"}\n").unwrap();
    assert!(prepared(&model, json!({ "data": path })).is_err(), "bytes that are no text");
}

/// Data of well-known sets, in the form of Hugging Face and in a common one.
#[test]
fn presets_read_both_forms_of_their_data() {
    let folder = tempfile::tempdir().unwrap();
    let model = shakespeare();
    let common = |question: &str| json!({ "centerpiece": question, "options": ["big", "small"], "correct_options_idx": [1] });
    let labelled = |field: &str| json!({ field: "which is it", "choices": { "text": ["big", "small"], "label": ["A", "B"] }, "answerKey": "B" });
    let forms = [
        ("arc", labelled("question")),
        ("commonsenseqa", labelled("question")),
        (
            "hellaswag",
            json!({ "activity_label": "Walk", "ctx_a": "They walk [step] on.", "ctx_b": "then they", "endings": ["big", "small"], "label": "1" }),
        ),
        ("mmlu", json!({ "question": "which is it", "choices": ["big", "small"], "answer": 1 })),
        ("openbookqa", labelled("question_stem")),
        ("piqa", json!({ "goal": "which is it", "sol1": "big", "sol2": "small", "label": 1 })),
        ("truthfulqa", json!({ "question": "which is it", "mc1_targets": { "choices": ["big", "small"], "labels": [0, 1] } })),
        ("winogrande", json!({ "sentence": "the house is _ now", "option1": "big", "option2": "small", "answer": "2" })),
    ];
    for (name, record) in forms {
        let preset = attar_eval::PRESETS.iter().find(|preset| preset.name == name).unwrap();
        for record in [record, common("the house is _ now")] {
            let path = folder.path().join("data.jsonl");
            std::fs::write(&path, record.to_string()).unwrap();
            let mut settings = preset.settings.clone();
            settings["data"] = json!(path);
            settings["samples"] = true.into();
            let prepared = prepared(&model, settings).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(prepared.windows().len(), 2, "{name}");
            let measured: Value = measured(&model, &*prepared).read().unwrap();
            assert_eq!(measured["samples"][0]["right"], json!([1]), "{name}");
        }
    }
}
