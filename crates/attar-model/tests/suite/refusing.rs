//! What would be read as another model is refused by name, with the way out; what only looks odd is read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path};

use attar_model::{Model, OpenOptions, Pattern};
use serde_json::{Value, json};

use crate::{
    reading::{assert_close, config, family, numbers, output, reading},
    room::{Room, Tensors, load},
};

/// The Llama of `testdata/reading` in a folder, with its configuration and tensors changed.
pub(crate) fn llama(name: &str, set: &Value, change: impl FnOnce(&mut Tensors)) -> Room {
    of("llama", name, set, change)
}

fn of(kind: &str, name: &str, set: &Value, change: impl FnOnce(&mut Tensors)) -> Room {
    let (room, mut tensors) = (Room::new(name), load(&reading().join(format!("{kind}.safetensors"))));
    change(&mut tensors);
    room.tensors("model.safetensors", &tensors);
    room.json("config.json", &config(&family(kind), set, &[]));
    room
}

/// Message, hint and causes of a refusal.
pub(crate) fn refused(path: &Path) -> String {
    said(Model::open(path), path)
}

fn said(opened: Result<Model, attar_model::Error>, path: &Path) -> String {
    let error = opened.err().unwrap_or_else(|| panic!("{} is read", path.display()));
    let mut text = format!("{error}; {}", error.hint().unwrap_or_default());
    let mut cause = std::error::Error::source(&error);
    while let Some(deeper) = cause {
        text += &format!(": {deeper}");
        cause = deeper.source();
    }
    for serde in ["untagged", "invalid type", "OneOrMany", "nonzero", "missing field", "duplicate field", "did not match"] {
        assert!(!text.contains(serde), "{text}");
    }
    text
}

fn assert_refused(path: &Path, words: &[&str]) {
    let text = refused(path);
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
}

fn ignoring(path: &Path, patterns: &[&str]) -> Result<Model, attar_model::Error> {
    Model::open_with(path, &OpenOptions { ignore: patterns.iter().copied().map(Pattern::new).collect() })
}

/// The model reads as that case of its family.
fn assert_reads(model: &Model, kind: &str, case: &str) {
    let family = family(kind);
    let wanted = family["cases"].as_array().unwrap().iter().find(|one| one["name"] == case).unwrap();
    let wanted: Vec<f32> = wanted["output"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
    assert_close(case, &output(model, &numbers::<u32>(&family["tokens"]), wanted.len()), &wanted);
}

fn vector(n: usize) -> (Vec<usize>, Vec<f32>) {
    (vec![n], vec![0.5; n])
}

#[test]
fn a_bias_of_zeros_that_the_configuration_does_not_have_is_read_as_none() {
    let room = llama("zero-bias", &json!({}), |tensors| {
        tensors.insert("model.layers.1.self_attn.q_proj.bias".into(), (vec![32], vec![0.0; 32]));
    });
    assert_reads(&Model::open(room.path()).unwrap(), "llama", "plain");
}

#[test]
fn a_tensor_that_would_be_left_out_is_an_error_that_names_it() {
    for (tensor, words) in [
        ("model.layers.1.self_attn.q_proj.bias", "attention_bias"),
        ("model.layers.0.self_attn.q_norm.weight", "Qwen3"),
        ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", "adapter that is not merged"),
        ("model.layers.0.mlp.up_proj.weight_scale", "another tool quantized"),
        ("model.layers.0.mlp.up_proj.qweight", "another tool quantized"),
        ("vision.patch.weight", "another model"),
    ] {
        let room = llama(&format!("surplus-{tensor}"), &json!({}), |tensors| {
            tensors.insert(tensor.into(), vector(32));
        });
        assert_refused(room.path(), &["without a stored tensor", tensor, words, &format!("ignore = [\"{tensor}\"]")]);
        let model = ignoring(room.path(), &[tensor]).unwrap();
        assert_eq!(model.summary().unwrap().ignored, [tensor]);
        assert_reads(&model, "llama", "plain");
    }
}

#[test]
fn many_tensors_are_counted_and_ten_are_named() {
    let room = llama("many-surplus", &json!({}), |tensors| {
        (10..22).for_each(|n| drop(tensors.insert(format!("more.{n}.weight"), vector(4))));
    });
    assert_refused(room.path(), &["12 stored tensors", "`more.10.weight`", "`more.19.weight`, …"]);
    assert!(!refused(room.path()).contains("more.20"));
    assert_reads(&ignoring(room.path(), &["more.**"]).unwrap(), "llama", "plain");
    let text = said(ignoring(room.path(), &["more.**", "moore.**"]), room.path());
    assert!(text.contains("nothing is named `moore.**`"), "{text}");
}

#[test]
fn tensors_in_a_format_that_cannot_be_read_are_not_passed_over() {
    let room = llama("unreadable-surplus", &json!({}), |_| {});
    let path = room.file("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = bytes.len() - 8 - length;
    header["odd.weight"] = json!({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [end, end + 4]});
    let text = header.to_string();
    let mut changed = (text.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(text.as_bytes());
    changed.extend_from_slice(&bytes[8 + length..]);
    changed.extend_from_slice(&[0; 4]);
    fs::write(&path, changed).unwrap();
    assert_refused(room.path(), &["`odd.weight`"]);
}

#[test]
fn buffers_and_an_equal_head_are_known_to_be_harmless() {
    let room = llama("harmless", &json!({"tie_word_embeddings": true}), |tensors| {
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vector(8));
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), embedding);
    });
    let read = Model::open(room.path()).unwrap().summary().unwrap();
    assert_eq!((read.tied, read.harmless.len()), (Some(true), 2), "{:?}", read.harmless);
}

#[test]
fn a_model_without_a_head_hints_at_tied_embeddings() {
    let room = llama("headless", &json!({}), |tensors| drop(tensors.remove("lm_head.weight")));
    assert_refused(room.path(), &["`lm_head.weight`", "\"tie_word_embeddings\": true"]);
}

#[test]
fn a_key_that_speaks_of_what_is_computed_is_applied_or_refused() {
    let unknown: &[(&str, Value)] = &[
        ("bias", json!(true)),
        ("qkv_bias", json!(true)),
        ("qk_norm", json!(true)),
        ("rope_thetta", json!(1e6)),
        ("attention_multiplier", json!(0.5)),
        ("sliding_window", json!(16)),
        ("num_local_experts", json!(8)),
        ("final_logit_softcapping", json!(30.0)),
        ("rope_scaling.attn_factor", json!(1.5)),
        ("rope_scaling.low_freq_factor", json!(2.0)),
    ];
    for (key, value) in unknown {
        let set = match key.strip_prefix("rope_scaling.") {
            Some(inner) => json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, inner: value}}),
            None => json!({*key: value}),
        };
        let room = llama(&format!("key-{key}"), &set, |_| {});
        assert_refused(room.path(), &[&format!("`{key} = {value}`"), &format!("ignore = [\"config.{key}\"]")]);
        ignoring(room.path(), &[&format!("config.{key}")]).unwrap();
    }
    assert_refused(llama("key-hint", &json!({"bias": true}), |_| {}).path(), &["did you mean `attention_bias`?"]);
    let flat = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}});
    assert_refused(llama("nested-rope", &flat, |_| {}).path(), &["rope_parameters.full_attention"]);
}

#[test]
fn settings_out_of_range_are_refused_with_key_found_and_wanted() {
    let cases: &[(&str, &str, Value)] = &[
        ("llama", "rms_norm_eps", json!(-1.0)),
        ("llama", "rms_norm_eps", json!(0)),
        ("llama", "rms_norm_eps", json!("Infinity")),
        ("llama", "rope_theta", json!(0)),
        ("llama", "rope_theta", json!(-10000.0)),
        ("llama", "hidden_size", json!(0)),
        ("llama", "hidden_size", json!("32")),
        ("llama", "num_hidden_layers", json!(-2)),
        ("llama", "vocab_size", json!(1.5)),
        ("llama", "head_dim", json!(0)),
        ("llama", "tie_word_embeddings", json!("no")),
        ("llama", "eos_token_id", json!("two")),
        ("llama", "eos_token_id", json!([1, null])),
        ("llama", "architectures", json!("LlamaForCausalLM")),
        ("llama", "rope_scaling", json!("yarn")),
        ("mistral", "sliding_window", json!(0)),
        ("gemma3", "query_pre_attn_scalar", json!(0)),
        ("gemma3", "final_logit_softcapping", json!(-1)),
        ("gpt2", "n_head", json!(0)),
        ("gpt2", "layer_norm_epsilon", json!(0)),
        ("bert", "layer_norm_eps", json!(-1)),
    ];
    for (kind, key, value) in cases {
        let room = of(kind, &format!("range-{kind}-{key}-{value}"), &json!({*key: value}), |_| {});
        assert_refused(room.path(), &[&format!("`{key}` is {value}; expected ")]);
    }
    for (key, value) in [("hidden_act", json!("gelu")), ("is_causal", json!(false))] {
        assert_refused(llama(&format!("not-run-{key}"), &json!({key: value}), |_| {}).path(), &[&format!("`{key} = ")]);
    }
}

#[test]
fn rotary_settings_out_of_range_are_refused() {
    let yarn =
        |key: &str, value: Value| json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, key: value});
    let long = |n: usize| json!({"rope_type": "longrope", "short_factor": vec![1.0; n], "long_factor": vec![1.0; 8]});
    let low = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0});
    for (n, (scaling, words)) in [
        (json!({"rope_type": "linear"}), "`rope_scaling.factor` is missing"),
        (json!({"rope_type": "linear", "factor": 0}), "`rope_scaling.factor` is 0"),
        (json!({"rope_type": "dynamic", "factor": 2.0}), "`rope_scaling.rope_type = dynamic`"),
        (yarn("beta_fast", json!(0.5)), "the fast one not below the slow one"),
        (yarn("attention_factor", json!(0)), "`rope_scaling.attention_factor` is 0"),
        (yarn("truncate", json!("no")), "`rope_scaling.truncate` is \"no\""),
        (long(7), "`rope_scaling.short_factor` is 7 numbers; expected 8"),
        (low, "a low factor below the high one"),
        (json!({"rope_type": "linear", "type": "yarn", "factor": 2.0}), "contradicts itself"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_refused(llama(&format!("rope-{n}"), &json!({"rope_scaling": scaling}), |_| {}).path(), &[words]);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let two = json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}});
    for (kind, set) in [
        ("llama", two),
        ("llama", json!({"model_type": "mistral"})),
        ("llama", json!({"num_attention_heads": 3, "head_dim": 16, "num_key_value_heads": 2})),
        ("llama", json!({"layer_types": ["full_attention"]})),
        ("gpt2", json!({"hidden_size": 64})),
        ("phi3", json!({"partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "default", "partial_rotary_factor": 1.0}})),
    ] {
        let room = of(kind, &format!("against-{kind}-{set}"), &set, |_| {});
        assert_refused(room.path(), &["the configuration contradicts itself"]);
    }
}

#[test]
fn json_is_read_as_editors_and_python_write_it() {
    let room = llama("odd-json", &json!({}), |_| {});
    let text = config(&family("llama"), &json!({"time_limit": 1}), &[]).to_string();
    for odd in
        [format!("\u{feff}{text}"), text.replace(',', ",\r\n"), text.replace("\"time_limit\":1", "\"time_limit\":Infinity")]
    {
        fs::write(room.file("config.json"), odd).unwrap();
        assert_reads(&Model::open(room.path()).unwrap(), "llama", "plain");
    }
    fs::write(room.file("config.json"), text.replacen('{', "{ // a note\n", 1)).unwrap();
    assert_refused(room.path(), &["config.json", "line 1, column 3", "a comment"]);
    fs::write(room.file("config.json"), "[]").unwrap();
    assert_refused(room.path(), &["the file` is []; expected an object"]);
}

#[test]
fn the_end_of_text_is_that_of_the_generation_config() {
    let room = llama("generation", &json!({"eos_token_id": 1}), |_| {});
    let eos = || Model::open(room.path()).unwrap().config.eos;
    assert_eq!(eos(), [1]);
    room.json("generation_config.json", &json!({"eos_token_id": [2, 3], "temperature": 0.6}));
    assert_eq!(eos(), [2, 3]);
    assert_eq!(Model::open(room.path()).unwrap().config.json["eos_token_id"], json!([2, 3]), "what is exported says the same");
    room.json("generation_config.json", &json!({"eos_token_id": null}));
    assert_eq!(eos(), [1]);
    room.json("config.json", &config(&family("llama"), &json!({"eos_token_id": [4, 5]}), &[]));
    assert_eq!(eos(), [4, 5]);
}
