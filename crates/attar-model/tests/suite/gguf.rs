//! What a GGUF file says is applied as llama.cpp documents it, or refused by name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, path::Path};

use attar_model::{Model, OpenOptions, Pattern};
use attar_tensor::gguf::{Metadata, Value};

use crate::{
    reading::{assert_close, family, numbers, output, reading},
    refusing::refused,
    room::{Room, Tensors, load},
};

/// Writes a file with tensors in f32.
fn write(path: &Path, metadata: &Metadata, tensors: &Tensors) {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend_from_slice(&3u32.to_le_bytes());
    bytes.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut bytes, key);
        bytes.extend_from_slice(&kind(value).to_le_bytes());
        put(&mut bytes, value);
    }
    let mut offset = 0u64;
    for (name, (dims, values)) in tensors {
        text(&mut bytes, name);
        bytes.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        dims.iter().rev().for_each(|dim| bytes.extend_from_slice(&(*dim as u64).to_le_bytes()));
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        offset += (4 * values.len() as u64).next_multiple_of(32);
    }
    for (_, values) in tensors.values() {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    }
    fs::write(path, bytes).unwrap();
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn kind(value: &Value) -> u32 {
    match value {
        Value::Unsigned(_) => 10,
        Value::Signed(_) => 11,
        Value::Float(_) => 12,
        Value::Bool(_) => 7,
        Value::Text(_) => 8,
        Value::Array(_) => 9,
    }
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(n) => bytes.extend_from_slice(&n.to_le_bytes()),
        Value::Signed(n) => bytes.extend_from_slice(&n.to_le_bytes()),
        Value::Float(n) => bytes.extend_from_slice(&n.to_le_bytes()),
        Value::Bool(flag) => bytes.push(u8::from(*flag)),
        Value::Text(found) => text(bytes, found),
        Value::Array(values) => {
            bytes.extend_from_slice(&values.first().map_or(10, kind).to_le_bytes());
            bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| put(bytes, value));
        }
    }
}

/// The names of a block's tensors in both formats.
const BLOCK: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The Llama of `testdata/reading` under the names of GGUF, with neighbouring rows for each rotary pair.
fn tensors() -> Tensors {
    let from = load(&reading().join("llama.safetensors"));
    let mut to = Tensors::new();
    for (theirs, ours) in [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")] {
        to.insert(format!("{ours}.weight"), from[&format!("{theirs}.weight")].clone());
    }
    for (block, (theirs, ours)) in (0..2).flat_map(|block| BLOCK.iter().map(move |names| (block, names))) {
        let (dims, values) = from[&format!("model.layers.{block}.{theirs}.weight")].clone();
        let turned = matches!(*ours, "attn_q" | "attn_k");
        let values = if turned { interleaved(&values, dims[0], dims[1]) } else { values };
        to.insert(format!("blk.{block}.{ours}.weight"), (dims, values));
    }
    to
}

/// Within heads of 16 rows, row `i` and row `i + 8` become neighbours.
fn interleaved(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let from = |row: usize| row / 16 * 16 + row % 2 * 8 + row % 16 / 2;
    (0..rows).flat_map(|row| values[from(row) * columns..][..columns].to_vec()).collect()
}

fn metadata(more: &[(&str, Value)]) -> Metadata {
    let n = Value::Unsigned;
    let mut all: BTreeMap<String, Value> = [
        ("general.architecture", Value::Text("llama".into())),
        ("llama.block_count", n(2)),
        ("llama.context_length", n(64)),
        ("llama.embedding_length", n(32)),
        ("llama.feed_forward_length", n(48)),
        ("llama.attention.head_count", n(2)),
        ("llama.attention.head_count_kv", n(1)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ("llama.rope.dimension_count", n(16)),
        ("llama.vocab_size", n(64)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    all.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    all
}

fn file(name: &str, more: &[(&str, Value)], change: impl FnOnce(&mut Tensors)) -> (Room, std::path::PathBuf) {
    let (room, mut tensors) = (Room::new(&format!("gguf-{name}")), tensors());
    change(&mut tensors);
    let path = room.file("m.gguf");
    write(&path, &metadata(more), &tensors);
    (room, path)
}

fn assert_reads(path: &Path, case: &str) {
    let model = Model::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let family = family("llama");
    let wanted = family["cases"].as_array().unwrap().iter().find(|one| one["name"] == case).unwrap();
    let wanted: Vec<f32> = wanted["output"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
    assert_close(case, &output(&model, &numbers::<u32>(&family["tokens"]), wanted.len()), &wanted);
}

fn assert_refused(path: &Path, words: &[&str]) {
    let text = refused(path);
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
}

const THETA: (&str, Value) = ("llama.rope.freq_base", Value::Float(30.0));

#[test]
fn rotary_keys_mean_what_llama_cpp_says() {
    let float = Value::Float;
    let text = |text: &str| Value::Text(text.into());
    let yarn = |more: &[(&'static str, Value)]| {
        let base = [
            THETA,
            ("llama.rope.scaling.type", text("yarn")),
            ("llama.rope.scaling.factor", float(4.0)),
            ("llama.rope.scaling.original_context_length", Value::Unsigned(16)),
        ];
        base.into_iter().chain(more.iter().cloned()).collect::<Vec<_>>()
    };
    // What `attn_factor` multiplies is the temperature of the factor.
    let magnitude = 1.3 / (1.0 + 0.1 * 4f64.ln());
    for (name, more, case) in [
        ("plain", vec![], "plain"),
        ("equal-heads", vec![("llama.attention.head_count_kv", Value::Array(vec![Value::Unsigned(1); 2]))], "plain"),
        (
            "harmless",
            vec![("llama.rope.scaling.finetuned", Value::Bool(true)), ("llama.expert_count", Value::Unsigned(0))],
            "plain",
        ),
        ("none", vec![("llama.rope.scaling.type", text("none")), ("llama.rope.scaling.factor", float(4.0))], "plain"),
        (
            "linear",
            vec![THETA, ("llama.rope.scaling.type", text("linear")), ("llama.rope.scaling.factor", float(4.0))],
            "type and rope_type, linear",
        ),
        ("factor-alone", vec![THETA, ("llama.rope.scaling.factor", float(4.0))], "type and rope_type, linear"),
        ("old-factor", vec![THETA, ("llama.rope.scale_linear", float(4.0))], "type and rope_type, linear"),
        ("yarn", yarn(&[]), "yarn"),
        ("yarn-magnitude", yarn(&[("llama.rope.scaling.attn_factor", float(magnitude))]), "yarn, attention factor"),
        (
            "yarn-betas",
            yarn(&[("llama.rope.scaling.yarn_beta_fast", float(8.0)), ("llama.rope.scaling.yarn_beta_slow", float(2.0))]),
            "yarn, betas",
        ),
        ("yarn-full-mix", yarn(&[("llama.rope.scaling.yarn_ext_factor", float(1.0))]), "yarn"),
    ] {
        assert_reads(&file(name, &more, |_| {}).1, case);
    }
}

#[test]
fn keys_that_cannot_be_applied_are_refused_with_their_value() {
    let n = Value::Unsigned;
    for (key, value, words) in [
        ("llama.rope.dimension_count", n(8), "`llama.rope.dimension_count = 8`"),
        ("llama.rope.scaling.attn_factor", Value::Float(1.5), "`llama.rope.scaling.attn_factor = 1.5`"),
        ("llama.attention.head_count_kv", Value::Array(vec![n(1), n(2)]), "`llama.attention.head_count_kv = a list of 2`"),
        ("llama.attention.causal", Value::Bool(false), "`llama.attention.causal = false`"),
        ("llama.attention.value_length", n(8), "`llama.attention.value_length = 8`"),
        ("llama.attention.sliding_window", n(8), "`llama.attention.sliding_window = 8`"),
        ("llama.expert_count", n(8), "`llama.expert_count = 8`"),
        ("llama.logit_scale", Value::Float(0.5), "ignore = [\"llama.logit_scale\"]"),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(0.0), "`rms_norm_eps` is 0"),
        ("general.type", Value::Text("adapter".into()), "`general.type = adapter`"),
    ] {
        let (_room, path) = file(&format!("refused-{key}"), &[(key, value)], |_| {});
        assert_refused(&path, &[words]);
    }
    let (_room, path) = file("ignored-key", &[("llama.logit_scale", Value::Float(0.5))], |_| {});
    let options = OpenOptions { ignore: vec![Pattern::new("llama.logit_scale")] };
    Model::open_with(&path, &options).unwrap();
}

#[test]
fn tensors_that_the_graph_does_not_use_are_refused() {
    for tensor in ["blk.0.attn_q.bias", "blk.1.attn_output.bias", "blk.1.ffn_down.bias", "blk.0.attn_q_norm.weight"] {
        let (_room, path) = file(&format!("surplus-{tensor}"), &[], |tensors| {
            tensors.insert(tensor.into(), (vec![32], vec![0.5; 32]));
        });
        assert_refused(&path, &["without a stored tensor", tensor]);
    }
}

/// Two files: all but the last few tensors, and these.
fn split(room: &Room, change: impl Fn(usize, &mut Metadata)) -> [std::path::PathBuf; 2] {
    let all = tensors();
    let parts: [Tensors; 2] = [all.clone().into_iter().take(15).collect(), all.clone().into_iter().skip(15).collect()];
    [0, 1].map(|number| {
        let path = room.file(&format!("m-0000{}-of-00002.gguf", number + 1));
        let count = Value::Signed(all.len() as i64);
        let own =
            [("split.no", Value::Unsigned(number as u64)), ("split.count", Value::Unsigned(2)), ("split.tensors.count", count)];
        let mut keys: Metadata = own.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        if number == 0 {
            keys.extend(metadata(&[]));
        }
        change(number, &mut keys);
        write(&path, &keys, &parts[number]);
        path
    })
}

#[test]
fn a_split_file_is_read_from_any_of_its_parts() {
    let room = Room::new("gguf-split");
    let paths = split(&room, |_, _| {});
    paths.iter().for_each(|path| assert_reads(path, "plain"));
    assert_eq!(Model::open(&paths[1]).unwrap().files, paths);
}

#[test]
fn parts_that_are_missing_or_do_not_belong_together_are_named() {
    let room = Room::new("gguf-parts");
    let paths = split(&room, |_, _| {});
    fs::remove_file(&paths[1]).unwrap();
    assert_refused(&paths[0], &["m-00002-of-00002.gguf`, part 2 of 2, is missing"]);
    let renamed = room.file("renamed.gguf");
    fs::rename(&paths[0], &renamed).unwrap();
    assert_refused(&renamed, &["`split.count` is 2", "-00001-of-00002.gguf"]);
    let paths = split(&room, |number, keys| {
        if number == 1 {
            keys.insert("split.no".into(), Value::Unsigned(0));
        }
    });
    assert_refused(&paths[0], &["m-00002-of-00002.gguf", "`split.no` is 0"]);
    let paths = split(&room, |_, keys| drop(keys.insert("split.tensors.count".into(), Value::Signed(99))));
    assert_refused(&paths[0], &["`split.tensors.count` is 99"]);
}
