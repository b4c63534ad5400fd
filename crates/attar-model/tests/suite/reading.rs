//! One set of weights under many spellings of a configuration gives what transformers gives, whose outputs are in
//! `testdata/reading`; `testdata/oracle/readings.py` makes them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use attar_graph::{Inputs, Mode, Run, SourceWeights};
use attar_model::Model;
use serde_json::{Value, json};

use crate::room::Room;

/// Largest difference over the largest number: f32 arithmetic in another order, and seven digits in the file.
const RELATIVE: f32 = 1e-4;

pub(crate) fn reading() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/reading")
}

pub(crate) fn family(name: &str) -> Value {
    serde_json::from_slice(&fs::read(reading().join(name).with_extension("json")).unwrap()).unwrap()
}

/// The configuration of a family with keys set and removed.
pub(crate) fn config(family: &Value, set: &Value, remove: &[&str]) -> Value {
    let mut config = family["config"].clone();
    let map = config.as_object_mut().unwrap();
    map.extend(set.as_object().unwrap().clone());
    map.retain(|key, _| !remove.contains(&key.as_str()));
    config
}

/// The last row of what the model returns, or its mean where that is one.
pub(crate) fn output(model: &Model, tokens: &[u32], width: usize) -> Vec<f32> {
    let weights = SourceWeights(model.source.clone());
    let run = Run::new(&model.graph, &weights, Mode::Inference, vec![Inputs::tokens(&[tokens], 0).unwrap()]);
    let all: Vec<f32> = run.finish(0).unwrap().0[0].flatten_all().unwrap().to_vec1().unwrap();
    all[all.len() - width..].to_vec()
}

pub(crate) fn numbers<T: TryFrom<u64>>(list: &Value) -> Vec<T> {
    list.as_array().unwrap().iter().map(|n| T::try_from(n.as_u64().unwrap()).ok().unwrap()).collect()
}

pub(crate) fn assert_close(what: &str, got: &[f32], wanted: &[f32]) {
    let scale = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let worst = got.iter().zip(wanted).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(got.len() == wanted.len() && worst <= RELATIVE * scale, "{what}: off by {worst} where the largest is {scale}");
}

#[test]
fn every_spelling_of_a_configuration_reads_as_transformers_reads_it() {
    let (mut cases, mut different) = (0, 0);
    for name in ["llama", "mistral", "qwen3", "phi3", "gemma3", "gpt2", "bert"] {
        let family = family(name);
        let tokens: Vec<u32> = numbers(&family["tokens"]);
        let mut plain: Vec<f32> = Vec::new();
        for case in family["cases"].as_array().unwrap() {
            let what = format!("{name}: {}", case["name"].as_str().unwrap());
            let removed: Vec<&str> = case["remove"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
            let room = Room::new(&what);
            fs::copy(reading().join(format!("{name}.safetensors")), room.file("model.safetensors")).unwrap();
            room.json("config.json", &config(&family, &case["set"], &removed));
            let model = Model::open(room.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let wanted: Vec<f32> = case["output"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
            assert_close(&what, &output(&model, &tokens, wanted.len()), &wanted);
            different += usize::from(!plain.is_empty() && plain != wanted);
            plain = if plain.is_empty() { wanted } else { plain };
            cases += 1;
        }
    }
    // Cases that all give the same would show nothing.
    assert!(cases > 40 && different > 20, "{different} of {cases} cases differ from the first of their family");
}

/// What of a configuration changes the output must not be passed over: each of these differs from the plain one.
#[test]
fn a_summary_says_what_was_read() {
    let family = family("llama");
    let room = Room::new("summary");
    fs::copy(reading().join("llama.safetensors"), room.file("model.safetensors")).unwrap();
    let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": false});
    let set = json!({"rope_theta": 30.0, "rope_scaling": scaling, "eos_token_id": [1, 2]});
    room.json("config.json", &config(&family, &set, &[]));
    let read = Model::open(room.path()).unwrap().summary().unwrap().with_digests().unwrap();
    assert_eq!((read.blocks, read.tied, read.end), (2, Some(false), vec![1, 2]));
    let rope = "theta 30, yarn, factor 4, original context 16, betas 32 and 1, attention factor 1.1386, not truncated (2)";
    assert_eq!(read.rope, [rope]);
    assert_eq!(
        (read.window, read.norms),
        (vec!["all positions (2)".to_owned()], vec!["RMS norm, epsilon 0.00001 (5)".to_owned()])
    );
    let names: Vec<&str> = read.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert!(read.files.iter().all(|file| file.bytes > 0 && file.digest.is_some()));
}
