//! OpenVINO: `openvino_model.xml` and `openvino_model.bin`, as OpenVINO GenAI's pipelines open them.
//!
//! The model is stateful: keys and values are variables, and `beam_idx` says which row of the batch continues which. Inputs are `input_ids`,
//! `attention_mask`, `position_ids` and `beam_idx`, the output is `logits`. The causal mask counts what the cache holds: Intel's NPU pipeline pads
//! prompts in front, and a mask by positions would be silently wrong there.

mod emit;
mod ir;
pub(crate) mod verify;
mod weight;

use std::{fs, path::Path};

use attar_graph::Graph;
use attar_tensor::write_atomically;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Artifact, Error, Format, Input, Original, Plan, Progress, Result, Target, Verification, decoder::Decoder, kit, target,
};
use weight::Stored;

const MODEL: &str = "openvino_model.xml";
const DATA: &str = "openvino_model.bin";

pub(super) static TARGET: Target = Target {
    name: "openvino",
    about: "OpenVINO IR with a stateful cache, for OpenVINO and OpenVINO GenAI on CPUs, GPUs and Intel NPUs",
    version: 1,
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
        Decoder::of(graph, TARGET.name)?;
        let emitted = emit::emit(graph)?;
        let tensors = emitted.stored.iter().map(Stored::entry).collect();
        Ok(Plan { tensors, bytes: emitted.bytes, notes: Vec::new() })
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        Decoder::of(model.graph, TARGET.name)?;
        let emitted = emit::emit(model.graph)?;
        model.graph.verify_weights(model.source)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(MODEL);
        kit::remove(&path)?;
        weight::write(&folder.join(DATA), &emitted.stored, &emitted.constants, model.source, progress)?;
        write_atomically(&path, |file| file.write_all(emitted.xml.as_bytes()).map_err(Error::io("write", &path)))?;
        let written: Vec<kit::Written> = emitted.stored.iter().map(Stored::written).collect();
        Ok(Artifact {
            target: TARGET.name.into(),
            options: self.options(),
            files: kit::files(folder, &[MODEL, DATA], model.side)?,
            inputs: emitted.inputs,
            outputs: emitted.outputs,
            tensors: emitted.stored.iter().map(Stored::entry).collect(),
            totals: kit::totals(&written),
            not_quantized: kit::not_quantized(&written),
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
