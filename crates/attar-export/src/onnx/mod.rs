//! ONNX: `model.onnx` and, beside it, `model.onnx.data` with the weights.
//!
//! Inputs: `input_ids` and `position_ids` `[batch_size, sequence_length]`, `attention_mask` `[batch_size,
//! total_sequence_length]` (1 for what is attended to, 0 for padding on the left) and `past_key_values.N.key` and
//! `.value`. Outputs: those of the graph, and `present.N.key` and `.value`.
//!
//! Activations in integers are rounded where the graph says: by `QuantizeLinear` and `DequantizeLinear` if one static scale
//! is all there is, by plain operators if tokens or channels have their own, to the same codes as in the reference run. Products are then those of
//! f32, unless the runtime fuses the rounding into them; what a cache holds is f32 that was rounded.
//!
//! ONNX Runtime multiplies quantized weights by activations that it rounds to 8 bits unless the session is made with
//! `session.qdq_matmulnbits_accuracy_level` = `1`; the layout `matmul-nbits` needs no such setting.

mod data;
mod emit;
mod integer;
mod proto;
mod storage;
mod verify;

use std::{fs, path::Path};

use attar_graph::Graph;
use attar_tensor::{Digest, Encoding, write_atomically};

use crate::{
    Artifact, Error, FileEntry, Input, Options, Original, PlainEntry, Plan, Progress, Result, Target, Totals, Verification,
};
use data::DataFile;
use storage::{Stored, Weights};

const MODEL: &str = "model.onnx";
const DATA: &str = "model.onnx.data";

/// `model.onnx` and `model.onnx.data`, for ONNX Runtime and other readers of opset 21.
pub struct Onnx;

impl Target for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn check(&self, graph: &Graph, options: &Options) -> Result<Plan> {
        let emitted = emit::emit(graph, options.layout, DATA)?;
        Ok(Plan { tensors: emitted.weights.stored.iter().map(Stored::entry).collect(), bytes: emitted.weights.bytes })
    }

    fn write(&self, model: &Input<'_>, options: &Options, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let emitted = emit::emit(model.graph, options.layout, DATA)?;
        model.graph.verify_weights(model.source)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        remove_old(&folder.join(MODEL))?;
        DataFile::write(&folder.join(DATA), &emitted.weights, model.source, progress)?;
        let bytes = proto::model(emitted.graph).map_err(|e| Error::Serialize { reason: e.to_string() })?;
        let path = folder.join(MODEL);
        write_atomically(&path, |file| file.write_all(&bytes).map_err(Error::io("write", &path)))?;
        Ok(Artifact {
            target: self.name().into(),
            options: options.clone(),
            files: vec![file_entry(folder, MODEL)?, file_entry(folder, DATA)?],
            inputs: emitted.inputs,
            outputs: emitted.outputs,
            tensors: emitted.weights.stored.iter().map(Stored::entry).collect(),
            totals: totals(&emitted.weights),
            not_quantized: not_quantized(&emitted.weights),
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
        for file in &artifact.files {
            let found = file_entry(folder, &file.name)?;
            if found != *file {
                let describe = |f: &FileEntry| format!("{} bytes with digest {}", f.bytes, f.digest.short());
                let path = folder.join(&file.name);
                let (what, found, wanted) = ("its content".into(), describe(&found), describe(file));
                return Err(Error::Malformed { path, defect: crate::Defect::Unexpected { what, found, wanted } });
            }
        }
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

fn file_entry(folder: &Path, name: &str) -> Result<FileEntry> {
    let path = folder.join(name);
    let bytes = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
    Ok(FileEntry { name: name.into(), bytes, digest: Digest::of_file(&path)? })
}

fn is_quantized(stored: &&Stored) -> bool {
    matches!(stored.encoding, Encoding::Quantized(_))
}

fn totals(weights: &Weights) -> Totals {
    let bits = |stored: &Stored| stored.encoding.true_bits(stored.matrix());
    let quantized = || weights.stored.iter().filter(is_quantized);
    let elements: usize = weights.stored.iter().map(Stored::elements).sum();
    let quantized_elements: usize = quantized().map(Stored::elements).sum();
    let true_bits: u64 = weights.stored.iter().map(bits).sum();
    let quantized_bits: u64 = quantized().map(bits).sum();
    Totals {
        weights: elements as u64,
        quantized_weights: quantized_elements as u64,
        true_bits,
        stored_bytes: weights.stored.iter().map(Stored::bytes).sum(),
        bits_per_weight: true_bits as f64 / elements.max(1) as f64,
        quantized_bits_per_weight: quantized_bits as f64 / quantized_elements.max(1) as f64,
    }
}

fn not_quantized(weights: &Weights) -> Vec<PlainEntry> {
    let all: usize = weights.stored.iter().map(Stored::elements).sum();
    let plain = weights.stored.iter().filter(|s| !is_quantized(s));
    plain
        .map(|stored| PlainEntry {
            name: stored.name.clone(),
            dtype: stored.entry().storage,
            bytes: stored.bytes(),
            share: stored.elements() as f64 / all as f64,
        })
        .collect()
}
