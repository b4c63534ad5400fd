//! Folders of target `onnx-genai`: what ONNX Runtime GenAI generates from them is what the reference run does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod engines;
mod real;
#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod tiny;

use std::fs;

use attar_export::{Error, Format, OnnxGenai, target};
use real::{encoded, greedy, shakespeare};
use serde_json::{Value, json};
use tiny::Tiny;

#[test]
fn a_folder_generates_what_the_reference_run_does_alone_and_in_a_padded_batch() {
    let model = shakespeare();
    let folder = tempfile::tempdir().unwrap();
    let artifact = OnnxGenai::default().write(&model.input(), folder.path(), &mut |_, _| ()).unwrap();
    OnnxGenai::default().verify(&model.input(), &artifact, folder.path(), None).unwrap();
    let prompts: Vec<Vec<u32>> = (0..20).map(|i| (0..3 + i % 7).map(|j| 100 + (i * 131 + j * 37) % 800).collect()).collect();
    let chat = json!([{ "role": "FOOL", "content": "Nuncle" }]);
    let case = json!({ "model": folder.path(), "prompts": prompts, "tokens": 16, "chat": chat });
    let Some(results) = engines::run("onnxruntime-genai", "tests/in_genai.py", &[case]) else { return };
    assert!(results[0].get("error").is_none(), "{}", results[0]["error"]);
    let said = |which: &str| serde_json::from_value::<Vec<Vec<u32>>>(results[0][which].clone()).unwrap();
    for ((prompt, alone), together) in prompts.iter().zip(said("alone")).zip(said("together")) {
        let wanted = greedy(&model, prompt, 16);
        assert_eq!(alone, wanted, "{prompt:?} alone");
        assert_eq!(together, wanted, "{prompt:?} in a batch of all");
    }
    assert_eq!(results[0]["chat"], "FOOL:\nNuncle\nKING:\n");
    assert_eq!(results[0]["encoded"], json!(encoded("FOOL:\nNuncle\nKING:\n")), "the tokenizer of the folder is the model's");
}

#[test]
fn the_configuration_says_what_the_model_is() {
    let model = shakespeare();
    let folder = tempfile::tempdir().unwrap();
    let artifact = OnnxGenai::default().write(&model.input(), folder.path(), &mut |_, _| ()).unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap() };
    let config = read("genai_config.json");
    let decoder = &config["model"]["decoder"];
    assert_eq!((&decoder["num_attention_heads"], &decoder["num_key_value_heads"]), (&json!(4), &json!(2)));
    assert_eq!(
        (&decoder["head_size"], &decoder["hidden_size"], &decoder["num_hidden_layers"]),
        (&json!(32), &json!(128), &json!(4))
    );
    assert_eq!((&config["model"]["vocab_size"], &config["model"]["type"]), (&json!(1024), &json!("llama")));
    assert_eq!((&config["model"]["eos_token_id"], &config["model"]["pad_token_id"]), (&json!([1023, 1022]), &json!(1023)));
    assert_eq!(config["search"]["past_present_share_buffer"], json!(true));
    assert_eq!(read("tokenizer_config.json")["tokenizer_class"], "PreTrainedTokenizerFast");
    let names: Vec<&str> = artifact.files.iter().map(|file| file.name.as_str()).collect();
    let wanted = ["model.onnx", "model.onnx.data", "genai_config.json", "config.json", "chat_template.jinja"];
    assert_eq!(names[..5], wanted);
    assert_eq!(artifact.target, "onnx-genai");
}

/// What cannot be is said before a byte is written.
#[test]
fn only_decoders_with_caches_are_taken() {
    let format = target("onnx-genai").unwrap().default_format().unwrap();
    let error = format.check(&Tiny { cache: false, ..Tiny::default() }.graph()).expect_err("refused");
    assert!(matches!(&error, Error::Kind { .. }) && error.hint().unwrap().contains("onnx"), "{error}");
}

/// The runtime reads one template, as text.
#[test]
fn of_several_chat_templates_the_default_one_is_written() {
    let mut model = shakespeare();
    let config =
        r#"{"chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}], "model_max_length": 7}"#;
    model.side.files.insert("tokenizer_config.json", attar_export::Content::Text(config.into()));
    let folder = tempfile::tempdir().unwrap();
    OnnxGenai::default().write(&model.input(), folder.path(), &mut |_, _| ()).unwrap();
    let written: Value = serde_json::from_slice(&fs::read(folder.path().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(written, json!({ "chat_template": "D", "model_max_length": 7, "tokenizer_class": "PreTrainedTokenizerFast" }));
    model.side.files.insert("tokenizer_config.json", attar_export::Content::Text("[1, 2".into()));
    let error = OnnxGenai::default().write(&model.input(), folder.path(), &mut |_, _| ()).expect_err("no JSON");
    assert!(matches!(&error, Error::Beside { name: "tokenizer_config.json", .. }), "{error}");
    model.side.files.remove("tokenizer.json");
    let artifact = OnnxGenai::default().write(&model.input(), folder.path(), &mut |_, _| ()).unwrap();
    assert!(artifact.notes[0].contains("no text"), "{:?}", artifact.notes);
}
