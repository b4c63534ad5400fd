//! The graph of every model in `testdata/models` prints as `testdata/ir/NAME.ir`; `BLESS=1` rewrites them. What of a
//! configuration we do not run is refused by name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use attar_graph::Graph;
use attar_model::{ARCHITECTURES, Model, Naming};
use serde_json::{Value, json};

#[test]
fn every_model_prints_as_its_golden_text() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    for entry in fs::read_dir(testdata.join("models")).unwrap().flatten() {
        let golden = testdata.join("ir").join(entry.file_name()).with_extension("ir");
        let text = Model::open(&entry.path()).unwrap().graph.to_string();
        assert_eq!(Graph::parse(&text).unwrap().to_string(), text);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&golden).unwrap_or_default(), "{}; `BLESS=1` rewrites it", golden.display());
    }
}

/// The checkpoint with one setting changed.
fn with(model: &str, key: &str, value: Value) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model);
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{model}-{key}-{value}").replace(['"', '/', ' '], "_"));
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(&from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let config = to.join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json[key] = value;
    fs::write(&config, json.to_string()).unwrap();
    to
}

#[test]
fn a_setting_that_is_not_run_is_refused_by_name() {
    for (model, key, value) in [
        ("tiny-llama-yarn", "hidden_act", json!("gelu")),
        ("tiny-llama-yarn", "partial_rotary_factor", json!(0.5)),
        ("tiny-qwen2", "use_sliding_window", json!(true)),
        ("tiny-qwen3", "use_sliding_window", json!(true)),
        ("tiny-qwen3", "rope_scaling.rope_type", json!({"rope_type": "dynamic"})),
        ("tiny-gemma3", "attn_logit_softcapping", json!(50.0)),
        ("tiny-gemma3", "use_bidirectional_attention", json!(true)),
        ("tiny-gemma3", "hidden_activation", json!("relu")),
        ("tiny-gemma3", "layer_types", json!(["full_attention", "full_attention", "chunked_attention"])),
        ("tiny-phi3", "attention_bias", json!(true)),
        ("tiny-phi3", "lm_head_bias", json!(true)),
        ("tiny-phi4-mini", "partial_rotary_factor", json!(0.4)),
        ("tiny-gpt2", "activation_function", json!("relu")),
        ("tiny-gpt2", "add_cross_attention", json!(true)),
        ("tiny-bert", "position_embedding_type", json!("relative_key")),
        ("tiny-bert", "is_decoder", json!(true)),
        ("tiny-bert", "hidden_act", json!("relu")),
    ] {
        let at = key.split('.').next().unwrap();
        let error = Model::open(&with(model, at, value)).err().unwrap_or_else(|| panic!("{model} runs with another `{key}`"));
        let message = error.to_string();
        assert!(message.contains(&format!("`{key} = ")) && message.contains("is not supported"), "{model}: {message}");
    }
}

/// Each of these changes the graph.
#[test]
fn a_setting_that_is_run_is_applied() {
    for (model, key, value) in [
        ("tiny-mistral", "sliding_window", json!(5)),
        ("tiny-qwen3", "rms_norm_eps", json!(1e-5)),
        ("tiny-gemma3", "sliding_window", json!(5)),
        ("tiny-gemma3", "sliding_window_pattern", json!(2)),
        ("tiny-gemma3", "rope_local_base_freq", json!(77.0)),
        ("tiny-gemma3", "query_pre_attn_scalar", json!(9)),
        ("tiny-gemma3", "final_logit_softcapping", json!(30.0)),
        ("tiny-phi3", "sliding_window", json!(null)),
        ("tiny-phi4-mini", "original_max_position_embeddings", json!(20)),
        ("tiny-phi4-mini", "max_position_embeddings", json!(640)),
        ("tiny-gpt2", "activation_function", json!("gelu")),
        ("tiny-gpt2", "scale_attn_weights", json!(false)),
        ("tiny-gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("tiny-gpt2", "layer_norm_epsilon", json!(1e-3)),
        ("tiny-bert", "hidden_act", json!("gelu_new")),
    ] {
        let plain = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model)).unwrap();
        let other = Model::open(&with(model, key, value.clone())).unwrap();
        assert_ne!(plain.graph.to_string(), other.graph.to_string(), "{model}: {key} = {value}");
    }
}

/// `modules.json` of sentence-transformers decides what is done with hidden states.
#[test]
fn pooling_is_that_of_sentence_transformers() {
    let folder = with("tiny-bert", "vocab_size", json!(96));
    let text = || Model::open(&folder).unwrap().graph.to_string();
    assert!(text().contains("mean_pool") && text().contains("normalize"));
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    fs::write(folder.join("1_Pooling/config.json"), r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#)
        .unwrap();
    assert!(text().contains("first_pool") && text().contains("normalize"));
    fs::write(folder.join("1_Pooling/config.json"), r#"{"pooling_mode_max_tokens": true}"#).unwrap();
    let message = Model::open(&folder).err().unwrap().to_string();
    assert!(message.contains("pooling_mode_max_tokens"), "{message}");
    fs::remove_dir_all(folder.join("1_Pooling")).unwrap();
    let transformer = folder.join("sentence_bert_config.json");
    fs::write(&transformer, r#"{"max_seq_length": 40, "do_lower_case": false}"#).unwrap();
    assert_eq!(Model::open(&folder).unwrap().config.context, Some(40));
    assert!(Model::open(&folder).unwrap().files.contains(&transformer));
    fs::write(&transformer, r#"{"max_seq_length": 40, "do_lower_case": true}"#).unwrap();
    let message = Model::open(&folder).err().unwrap().to_string();
    assert!(message.contains("`do_lower_case = true`"), "{message}");
    fs::remove_file(transformer).unwrap();
    fs::remove_file(folder.join("modules.json")).unwrap();
    assert!(text().contains("mean_pool") && !text().contains("normalize"));
}

/// Every row of a table names a weight of the tiny checkpoints, and no canonical name has two rows.
#[test]
fn tables_of_names_are_those_of_the_graphs() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let graphs: Vec<Graph> = fs::read_dir(models).unwrap().flatten().map(|e| Model::open(&e.path()).unwrap().graph).collect();
    for architecture in ARCHITECTURES {
        let graphs: Vec<&Graph> = graphs.iter().filter(|graph| graph.name() == architecture.names[1]).collect();
        let rows = architecture.weights.rows;
        for row in rows {
            let name = row.canonical.replace('*', "1");
            assert!(graphs.iter().any(|graph| graph.find(&name).is_some()), "{}: no graph has `{name}`", architecture.names[0]);
            assert_eq!(rows.iter().filter(|other| other.canonical == row.canonical).count(), 1, "{}", row.canonical);
        }
    }
    let module = |model: usize, naming, weight| ARCHITECTURES[model].weights.module(naming, weight);
    assert_eq!(module(0, Naming::HuggingFace, "blocks.0.attention.query").as_deref(), Some("model.layers.0.self_attn.q_proj"));
    // Pairs are stored in another order, so no module holds the weight as the graph has it.
    assert_eq!(module(0, Naming::Gguf, "blocks.0.attention.query"), None);
    assert_eq!(module(0, Naming::Gguf, "blocks.x.mlp.up"), None);
    assert_eq!(module(0, Naming::Gguf, "final_norm").as_deref(), Some("output_norm"));
}
