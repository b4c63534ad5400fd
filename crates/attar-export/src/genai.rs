//! ONNX Runtime GenAI: the graph of target `onnx`, `genai_config.json`, and the tokenizer's files.
//!
//! Follows the configuration that onnxruntime-genai 0.18 reads. The cache is shared between past and present where every attention is a
//! `GroupQueryAttention`; a batch is padded behind its prompts.

use std::path::Path;

use attar_graph::Graph;
use attar_tensor::write_atomically;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    AccuracyLevel, Artifact, Content, Error, Format, Input, Layout, Logits, Onnx, Original, Plan, Progress, Result, Side, Style,
    Target, Verification,
    decoder::Decoder,
    kit,
    onnx::{self, Padding},
    target,
};

const CONFIG: &str = "genai_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The `model_type`s of Hugging Face configurations that are types of onnxruntime-genai, too, with the inputs and outputs that we write. What
/// it does for all others it does for `decoder`.
const TYPES: [&str; 6] = ["gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"];
const ANY_TYPE: &str = "decoder";

pub(super) static TARGET: Target = Target {
    name: "onnx-genai",
    about: "a folder that ONNX Runtime GenAI generates from: ONNX, its configuration, tokenizer and chat template",
    version: 2,
    schema: attar_settings::schema::<OnnxGenai>,
    parse: target::parse::<OnnxGenai>,
};

/// A folder for ONNX Runtime GenAI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OnnxGenai {
    /// How quantized weights are represented.
    pub layout: Layout,
    /// What `matmul-nbits` may round activations to: 0 leaves them, 4 makes them int8, which is several times faster on
    /// processors, and not exact.
    pub accuracy_level: AccuracyLevel,
}

impl Default for OnnxGenai {
    fn default() -> OnnxGenai {
        OnnxGenai { layout: Layout::MatMulNBits, accuracy_level: AccuracyLevel::default() }
    }
}

impl OnnxGenai {
    fn onnx(&self) -> Onnx {
        Onnx { layout: self.layout, style: Style::Fused, accuracy_level: self.accuracy_level, logits: Logits::All }
    }
}

impl Format for OnnxGenai {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        Decoder::of(graph, TARGET.name)?;
        self.onnx().check_for(graph, Padding::Right)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let shape = Decoder::of(model.graph, TARGET.name)?;
        let (side, notes) = prepared(model.side)?;
        let artifact = self.onnx().write_for(model, Padding::Right, folder, progress)?;
        let text = serde_json::to_string_pretty(&config(model.side, &shape, &artifact)?).expect("a configuration is JSON") + "\n";
        let path = folder.join(CONFIG);
        write_atomically(&path, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", &path)))?;
        let files = kit::files(folder, &[onnx::MODEL, onnx::DATA, CONFIG], &side)?;
        Ok(Artifact { target: TARGET.name.into(), options: self.options(), files, notes, ..artifact })
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let verification = onnx::verify::verify(model, artifact, folder, onnx::verify::Written::USUAL, original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// What `genai_config.json` says.
fn config(side: &Side, shape: &Decoder, artifact: &Artifact) -> Result<Value> {
    let has = |name: &str| artifact.inputs.iter().any(|port| port.name == name);
    let mut inputs = Map::new();
    for name in ["input_ids", "attention_mask", "position_ids"].into_iter().filter(|name| has(name)) {
        inputs.insert(name.into(), name.into());
    }
    inputs.insert("past_key_names".into(), "past_key_values.%d.key".into());
    inputs.insert("past_value_names".into(), "past_key_values.%d.value".into());
    let decoder = json!({
        "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
        "filename": onnx::MODEL,
        "head_size": shape.head,
        "hidden_size": shape.hidden,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.key_heads,
    });
    let context = side.context.unwrap_or(2048);
    let kind = side.config["model_type"].as_str().filter(|kind| TYPES.contains(kind)).unwrap_or(ANY_TYPE);
    let mut model = json!({
        "type": kind,
        "context_length": context,
        "vocab_size": shape.vocabulary,
        "decoder": decoder,
    });
    for (name, value) in side.special_tokens()? {
        model[name] = value;
    }
    let search = json!({
        "diversity_penalty": 0.0,
        "do_sample": false,
        "early_stopping": true,
        "length_penalty": 1.0,
        "max_length": context,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        // Without positions, all attentions count in their caches: they are `GroupQueryAttention`.
        "past_present_share_buffer": !has("position_ids"),
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    });
    Ok(json!({ "model": model, "search": search }))
}

/// The side files as the runtime reads them: it finds no chat template where the tokenizer's configuration names no class, and reads one template
/// only, of several the default one.
fn prepared(side: &Side) -> Result<(Side, Vec<String>)> {
    let mut prepared = side.clone();
    if side.object("tokenizer.json")?.is_none() {
        let note = "the model has no `tokenizer.json`: the artifact takes tokens, and no text".to_owned();
        return Ok((prepared, vec![note]));
    }
    let mut config = side.object(TOKENIZER_CONFIG)?.unwrap_or_default();
    let before = config.clone();
    config.entry("tokenizer_class").or_insert_with(|| "PreTrainedTokenizerFast".into());
    if let Some(Value::Array(templates)) = config.get("chat_template") {
        let default = templates.iter().find(|template| template["name"] == "default").or(templates.first());
        let text = default.map(|template| template["template"].clone()).unwrap_or_default();
        config.insert("chat_template".into(), text);
    }
    if config != before {
        prepared.files.insert(TOKENIZER_CONFIG, Content::Text(Value::Object(config).to_string() + "\n"));
    }
    Ok((prepared, Vec::new()))
}
