//! OpenVINO: `openvino_model.xml` and `openvino_model.bin`, as OpenVINO GenAI's pipelines open them.
//!
//! A decoder is stateful: keys and values are variables, and `beam_idx` says which row of the batch continues which. Inputs are `input_ids`,
//! `attention_mask`, `position_ids` and `beam_idx`, the output is `logits`. An encoder has the inputs that it reads. The causal mask counts what the cache holds: Intel's NPU pipeline pads
//! prompts in front, and a mask by positions would be silently wrong there.

mod emit;
mod ir;
mod tokenizer;
pub(crate) mod verify;
mod weight;

use std::{fs, path::Path};

use attar_graph::{Graph, Op};
use attar_tensor::write_atomically;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Artifact, Content, Error, Format, Input, Original, Plan, Progress, Result, Side, Target, Verification, decoder::Decoder, kit,
    target,
};
use tokenizer::Made;
use weight::Stored;

const MODEL: &str = "openvino_model.xml";
const DATA: &str = "openvino_model.bin";

/// The models of tokenizer and detokenizer.
const TOKENIZER: [[&str; 2]; 2] =
    [["openvino_tokenizer.xml", "openvino_tokenizer.bin"], ["openvino_detokenizer.xml", "openvino_detokenizer.bin"]];

pub(super) static TARGET: Target = Target {
    name: "openvino",
    about: "OpenVINO IR with tokenizer and chat template, decoders with a stateful cache, for OpenVINO GenAI on CPUs and Intel NPUs",
    version: 2,
    schema: attar_settings::schema::<OpenVino>,
    parse: target::parse::<OpenVino>,
};

/// A folder for OpenVINO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OpenVino {}

impl Format for OpenVino {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        check_kind(graph)?;
        let emitted = emit::emit(graph)?;
        let tensors = emitted.stored.iter().map(Stored::entry).collect();
        let notes = kit::notes_of_blocks(emitted.stored.iter().map(|stored| (stored.name.as_str(), stored.encoding)));
        Ok(Plan { tensors, bytes: emitted.bytes, notes })
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        check_kind(model.graph)?;
        let tokenizer = tokenizer_of(model.side)?;
        let emitted = emit::emit(model.graph)?;
        model.graph.verify_weights(model.source)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(MODEL);
        kit::remove(&path)?;
        weight::write(&folder.join(DATA), &emitted.stored, &emitted.constants, model.source, progress)?;
        write_atomically(&path, |file| file.write_all(emitted.xml.as_bytes()).map_err(Error::io("write", &path)))?;
        let mut files = vec![MODEL, DATA];
        let notes = match tokenizer {
            Ok(made) => {
                files.extend(write_tokenizer(folder, &made)?);
                Vec::new()
            }
            Err(note) => vec![note],
        };
        let written: Vec<kit::Written> = emitted.stored.iter().map(Stored::written).collect();
        Ok(Artifact {
            target: TARGET.name.into(),
            options: self.options(),
            files: kit::files(folder, &files, model.side)?,
            inputs: emitted.inputs,
            outputs: emitted.outputs,
            tensors: emitted.stored.iter().map(Stored::entry).collect(),
            totals: kit::totals(&written),
            not_quantized: kit::not_quantized(&written),
            notes,
        })
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let verification = verify::verify(model, artifact, folder, original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// Pipelines take decoders that return logits; a model without caches is no concern of theirs.
fn check_kind(graph: &Graph) -> Result<()> {
    let caches = graph.nodes().iter().any(|node| matches!(node.op, Op::Cache { .. }));
    if caches { Decoder::of(graph, TARGET.name).map(drop) } else { Ok(()) }
}

/// Tokenizer and detokenizer, or what to know where they cannot be written.
fn tokenizer_of(side: &Side) -> Result<std::result::Result<[Made; 2], String>> {
    let reason = match side.object("tokenizer.json")? {
        None => "the model has no `tokenizer.json`",
        Some(json) => match tokenizer::models(&Value::Object(json), told(side)?) {
            Ok(made) => return Ok(Ok(made)),
            Err(reason) => reason,
        },
    };
    Ok(Err(format!(
        "the artifact has no `{}`, since {reason}: pipelines take tokens, and no text; `convert_tokenizer` of openvino_tokenizers makes it of \
         the original",
        TOKENIZER[0][0]
    )))
}

/// The names of the files.
fn write_tokenizer(folder: &Path, made: &[Made; 2]) -> Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for (made, [xml, data]) in made.iter().zip(TOKENIZER) {
        for (name, bytes) in [(data, made.data.as_slice()), (xml, made.xml.as_bytes())] {
            let path = folder.join(name);
            write_atomically(&path, |file| file.write_all(bytes).map_err(Error::io("write", &path)))?;
            names.push(name);
        }
    }
    Ok(names)
}

/// What OpenVINO GenAI reads of a tokenizer apart from its graph.
fn told(side: &Side) -> Result<Vec<(&'static str, String)>> {
    side.object("tokenizer_config.json")?;
    let mut told = Vec::new();
    if let Some(template) = side.files.get("chat_template.jinja").map(Content::bytes).transpose()? {
        told.push(("chat_template", String::from_utf8_lossy(&template).into_owned()));
    }
    for (name, value) in side.special_tokens()? {
        let first = value.get(0).unwrap_or(&value);
        told.push((name, first.to_string()));
    }
    Ok(told)
}
