//! Folders of target `onnx-genai`: what ONNX Runtime GenAI generates from them is what the reference run does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod engines;
#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod tiny;

use std::{fs, path::Path};

use attar_export::{Content, Error, Format, OnnxGenai, Side, target};
use attar_graph::State;
use serde_json::{Value, json};
use tiny::{Model, Tiny};

const TEMPLATE: &str = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}\
    {% if add_generation_prompt %}KING:\n{% endif %}";

/// The small real checkpoint, with a chat template.
fn shakespeare() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m");
    let attar_model::Model { graph, source, config, .. } = attar_model::Model::open(&folder).unwrap();
    let files = [
        ("tokenizer.json", Content::File(folder.join("tokenizer.json"))),
        ("chat_template.jinja", Content::Text(TEMPLATE.into())),
        ("generation_config.json", Content::Text("{\"eos_token_id\": [1023, 1022]}".into())),
    ];
    Model { graph, source, side: Side { context: config.context, config: config.json, files: files.into() } }
}

/// The likeliest token, over and over.
fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut said, mut feed, mut past, mut state) = (Vec::new(), prompt.to_vec(), 0, Some(State::default()));
    while said.len() < count {
        let (logits, after) = model.reference(&feed, past, state);
        let last = logits.last().unwrap();
        let next = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32;
        said.push(next);
        (past, state, feed) = (past + feed.len(), after, vec![next]);
    }
    said
}

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
    let tokenizer = attar_model::Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m"));
    let ours = tokenizer.unwrap().tokenizer().unwrap().encode("FOOL:\nNuncle\nKING:\n").unwrap();
    assert_eq!(results[0]["encoded"], json!(ours), "the tokenizer of the folder is the model's");
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
