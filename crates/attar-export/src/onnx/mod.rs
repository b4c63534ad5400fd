//! ONNX: `model.onnx` with the graph and `model.onnx.data` with the weights.
//!
//! Inputs: `input_ids`, `position_ids` and, for encoders, `token_type_ids` `[batch_size, sequence_length]`;
//! `attention_mask` `[batch_size, total_sequence_length]` (1 for tokens, 0 for padding: on the left of a decoder's text, on
//! the right of an encoder's); and `past_key_values.N.key` and `.value` of models with a cache. Outputs: those of the graph,
//! and `present.N.key` and `.value`.
//!
//! Activations in integers are rounded where the graph says: by `QuantizeLinear` and `DequantizeLinear` if one static scale
//! is all there is, by plain operators if tokens or channels have their own, to the same codes as in the reference run. Products are then those of
//! f32, unless the runtime fuses the rounding into them; what a cache holds is f32 that was rounded.
//!
//! ONNX Runtime multiplies quantized weights by activations that it rounds to 8 bits unless the session is made with
//! `session.qdq_matmulnbits_accuracy_level` = `1`; the layout `matmul-nbits` needs no such setting.

mod data;
mod emit;
mod form;
mod integer;
mod layout;
mod proto;
mod storage;
pub(crate) mod verify;

use std::{fs, path::Path};

use attar_graph::Graph;
use attar_tensor::write_atomically;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Artifact, Error, Format, Input, Original, Plan, Progress, Result, Target, Verification,
    kit::{self, Written},
    target,
};
use data::DataFile;
use storage::Stored;

pub use layout::Layout;

const MODEL: &str = "model.onnx";
const DATA: &str = "model.onnx.data";

pub(super) static TARGET: Target = Target {
    name: "onnx",
    about: "ONNX with weights in a file of their own, for ONNX Runtime and other readers of opset 21",
    version: 2,
    schema: attar_settings::schema::<Onnx>,
    parse: target::parse::<Onnx>,
};

/// `model.onnx` and `model.onnx.data`, for ONNX Runtime and other readers of opset 21.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Onnx {
    /// How quantized weights are represented.
    pub layout: Layout,
}

impl Format for Onnx {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        let emitted = emit::emit(graph, self.layout, DATA)?;
        Ok(Plan { tensors: emitted.weights.stored.iter().map(Stored::entry).collect(), bytes: emitted.weights.bytes })
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let emitted = emit::emit(model.graph, self.layout, DATA)?;
        model.graph.verify_weights(model.source)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        remove_old(&folder.join(MODEL))?;
        DataFile::write(&folder.join(DATA), &emitted.weights, model.source, progress)?;
        let bytes = proto::model(emitted.graph).map_err(|e| Error::Serialize { reason: e.to_string() })?;
        let path = folder.join(MODEL);
        write_atomically(&path, |file| file.write_all(&bytes).map_err(Error::io("write", &path)))?;
        let written: Vec<Written> = emitted.weights.stored.iter().map(written).collect();
        Ok(Artifact {
            target: TARGET.name.into(),
            options: self.options(),
            files: kit::files(folder, &[MODEL, DATA], model.side)?,
            inputs: emitted.inputs,
            outputs: emitted.outputs,
            tensors: emitted.weights.stored.iter().map(Stored::entry).collect(),
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

/// A model without its data must not be mistaken for a whole artifact.
fn remove_old(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("delete", path)(error)),
        _ => Ok(()),
    }
}

fn written(stored: &Stored) -> Written {
    let entry = stored.entry();
    Written { dtype: entry.storage.clone(), encoding: stored.encoding, entry }
}
