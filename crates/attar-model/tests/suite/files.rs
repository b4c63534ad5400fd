//! Which files of a folder are the model, as transformers loads it, and that nothing outside the folder is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use attar_model::Model;
use serde_json::{Value, json};

use crate::{
    reading::{assert_close, config, family, numbers, output, reading},
    refusing::refused,
    room::{Room, Tensors, load},
};

const INDEX: &str = "model.safetensors.index.json";

fn weights() -> Tensors {
    load(&reading().join("llama.safetensors"))
}

/// The model reads as the one whose weights these are.
fn assert_reads(path: &Path) -> Model {
    let model = Model::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let family = family("llama");
    let wanted: Vec<f32> = family["cases"][0]["output"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
    assert_close(&path.display().to_string(), &output(&model, &numbers::<u32>(&family["tokens"]), wanted.len()), &wanted);
    model
}

fn assert_refused(path: &Path, words: &[&str]) {
    let text = refused(path);
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
}

/// A folder with the configuration alone.
fn room(name: &str) -> Room {
    let room = Room::new(&format!("files-{name}"));
    room.json("config.json", &config(&family("llama"), &json!({}), &[]));
    room
}

/// Writes two shards and the index that places their tensors.
fn shards(room: &Room, names: [&str; 2]) -> BTreeMap<String, String> {
    let (mut parts, mut index): ([Tensors; 2], _) = (Default::default(), BTreeMap::new());
    for (n, (name, tensor)) in weights().into_iter().enumerate() {
        index.insert(name.clone(), names[n % 2].to_owned());
        parts[n % 2].insert(name, tensor);
    }
    parts.iter().zip(names).for_each(|(part, name)| room.tensors(name, part));
    room.json(INDEX, &json!({ "weight_map": index }));
    index
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

#[test]
fn a_whole_file_wins_over_an_index() {
    let room = room("whole");
    room.tensors("model.safetensors", &weights());
    room.json(INDEX, &json!({"weight_map": {"model.norm.weight": "gone.safetensors"}}));
    let model = assert_reads(room.path());
    assert!(!model.files.contains(&room.file(INDEX)));
    assert_eq!(model.summary().unwrap().left_out, [format!("`{INDEX}`")]);
}

#[test]
fn shards_may_lie_in_folders_and_hold_more_than_the_index_places() {
    let room = room("shards");
    let mut index = shards(&room, ["a/one.safetensors", "b/two.safetensors"]);
    assert_reads(room.path());
    // A newer file has one of the tensors; the old one is still in its shard.
    let (over, tensor) = weights().into_iter().next().unwrap();
    let mut stale = load(&room.file(&index[&over]));
    stale.get_mut(&over).unwrap().1.fill(7.0);
    room.tensors(&index[&over], &stale);
    room.tensors(
        "newer.safetensors",
        &BTreeMap::from([(over.clone(), tensor), ("extra.weight".into(), (vec![2], vec![0.0; 2]))]),
    );
    index.insert(over, "newer.safetensors".into());
    room.json(INDEX, &json!({ "weight_map": index }));
    let read = assert_reads(room.path()).summary().unwrap();
    assert_eq!(read.left_out, ["`extra.weight` (not in the index)"]);
}

#[test]
fn what_an_index_lacks_or_a_shard_lacks_is_named() {
    let room = room("lacking");
    let index = shards(&room, SHARDS);
    fs::remove_file(room.file(SHARDS[1])).unwrap();
    assert_refused(room.path(), &[SHARDS[1], "is missing"]);
    let (lost, shard) = index.iter().next().unwrap();
    shards(&room, SHARDS);
    let mut rest = load(&room.file(shard));
    rest.remove(lost);
    room.tensors(shard, &rest);
    assert_refused(room.path(), &[lost, shard]);
    for (broken, words) in [
        (json!({}), "`weight_map` is missing or empty"),
        (json!({"weight_map": []}), "`weight_map` is missing or empty"),
        (json!({"weight_map": {"model.norm.weight": 1}}), "`weight_map` is 1 for `model.norm.weight`"),
    ] {
        room.json(INDEX, &broken);
        assert_refused(room.path(), &[words]);
    }
}

#[test]
fn without_a_rule_the_candidates_are_listed() {
    let room = room("candidates");
    room.tensors("model.fp16.safetensors", &weights());
    room.tensors("other.safetensors", &weights());
    assert_refused(room.path(), &["`model.fp16.safetensors`, `other.safetensors`", "give the path of the file"]);
    // A lone file with its configuration beside it is a model.
    let lone = assert_reads(&room.file("other.safetensors"));
    assert!(lone.files.contains(&room.file("other.safetensors")) && !lone.files.contains(&room.file("model.fp16.safetensors")));
    fs::rename(room.file("other.safetensors"), room.file(SHARDS[0])).unwrap();
    assert_refused(room.path(), &["shards need the `model.safetensors.index.json`"]);
}

#[test]
fn a_shard_by_itself_is_no_model() {
    let room = room("one-shard");
    shards(&room, SHARDS);
    assert_refused(&room.file(SHARDS[0]), &["one shard of a model", "give the folder"]);
}

#[test]
fn nothing_outside_the_folder_is_opened() {
    let outside = room("outside");
    outside.tensors("secret.safetensors", &weights());
    outside.json("secret.json", &json!({"token": "hunter2"}));
    let secret = |name: &str| outside.file(name).display().to_string();
    let inner = room("inside");
    let names: Vec<String> = weights().into_keys().collect();
    for name in [
        "../files-outside/secret.safetensors".into(),
        secret("secret.safetensors"),
        "a/../../files-outside/secret.safetensors".into(),
    ] {
        inner.json(
            INDEX,
            &json!({"weight_map": names.iter().map(|tensor| (tensor.clone(), json!(name))).collect::<serde_json::Map<_, _>>()}),
        );
        assert_refused(inner.path(), &[INDEX, "not inside that folder"]);
    }
    fs::remove_file(inner.file(INDEX)).unwrap();
    symlink(secret("secret.safetensors"), inner.file("model.safetensors")).unwrap();
    assert_refused(inner.path(), &["a link", "not inside that folder"]);
    fs::remove_file(inner.file("model.safetensors")).unwrap();
    inner.tensors("model.safetensors", &weights());
    for side in ["tokenizer.json", "generation_config.json", "modules.json", "config.json"] {
        let _ = fs::rename(inner.file(side), inner.file("kept"));
        symlink(secret("secret.json"), inner.file(side)).unwrap();
        let text = refused(inner.path());
        assert!(text.contains("not inside that folder") && text.contains(side) && !text.contains("hunter2"), "{text}");
        fs::remove_file(inner.file(side)).unwrap();
        let _ = fs::rename(inner.file("kept"), inner.file(side));
    }
    assert_reads(inner.path());
    inner.json(
        "attar.json",
        &json!({"attar": 1, "tool": "x", "shards": ["../files-outside/secret.safetensors"], "quantized": {}}),
    );
    assert_refused(inner.path(), &["attar.json", "not inside that folder"]);
}

#[test]
fn links_within_the_folder_and_into_a_hub_cache_are_followed() {
    let cache = Room::new("files-hub-cache");
    for (blob, bytes) in [
        ("11", fs::read(reading().join("llama.safetensors")).unwrap()),
        ("22", config(&family("llama"), &json!({}), &[]).to_string().into_bytes()),
    ] {
        fs::write(cache.file(&format!("blobs/{blob}")), bytes).unwrap();
    }
    for (name, blob) in [("model.safetensors", "11"), ("config.json", "22")] {
        symlink(format!("../../blobs/{blob}"), cache.file(&format!("snapshots/abc/{name}"))).unwrap();
    }
    assert_reads(&cache.path().join("snapshots/abc"));
    let linked = room("linked");
    linked.tensors("real.bin", &weights());
    symlink("real.bin", linked.file("model.safetensors")).unwrap();
    assert_reads(linked.path());
}

#[test]
fn formats_that_are_not_read_are_named_with_the_way_out() {
    let room = Room::new("files-formats");
    for (name, words) in [
        ("m.onnx", ["an ONNX model", "the model came from"]),
        ("m.tflite", ["a LiteRT model", "the model came from"]),
        ("pytorch_model.bin", ["a PyTorch pickle", "save_pretrained"]),
        ("m.pt", ["a PyTorch pickle", "save_pretrained"]),
        ("m.h5", ["a TensorFlow model", "save_pretrained"]),
        ("config.json", ["one file of a Hugging Face folder", "give the folder"]),
        ("adapter_model.safetensors", ["an adapter", "merge"]),
        ("m.txt", ["not a checkpoint", ".safetensors"]),
    ] {
        fs::write(room.file(name), "x").unwrap();
        assert_refused(&room.file(name), &words);
    }
    let pickled = Room::new("files-pickled");
    pickled.json("config.json", &Value::Null);
    fs::write(pickled.file("pytorch_model.bin"), "x").unwrap();
    assert_refused(pickled.path(), &["pytorch_model.bin", "a PyTorch pickle"]);
    for name in ["meta-llama/Llama-3.2-1B", "hf://meta-llama/Llama-3.2-1B", "https://huggingface.co/meta-llama/Llama-3.2-1B"] {
        assert_refused(Path::new(name), &["the Hugging Face hub", "hf download meta-llama/Llama-3.2-1B"]);
    }
    assert_refused(Path::new("./not/here"), &["cannot open `./not/here`"]);
    fs::write(room.file("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:1\n").unwrap();
    assert_refused(room.path(), &["a Git LFS pointer", "git lfs pull"]);
}
