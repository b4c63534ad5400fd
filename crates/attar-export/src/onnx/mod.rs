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
//! A file of [`Style::Fused`] has no `position_ids` where the rotary embedding is inside `GroupQueryAttention`: tokens are counted in the cache. It
//! takes several tokens behind a cache in batches of one only, which is ONNX Runtime's limit (1.32). Files of the other styles take them in any batch.
//!
//! ONNX Runtime multiplies quantized weights by activations that it rounds to 8 bits unless the session is made with
//! `session.qdq_matmulnbits_accuracy_level` = `1`; the layout `matmul-nbits` needs no such setting.

mod data;
mod emit;
mod form;
mod integer;
mod layout;
mod pack;
mod proto;
mod storage;
mod stored;
mod style;
pub(crate) mod verify;

use std::{fs, path::Path};

use attar_graph::Graph;
use attar_tensor::{Encoding, write_atomically};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Artifact, Error, Format, Input, Original, Plan, Progress, Result, Target, Verification,
    kit::{self, Written},
    target,
};
use data::DataFile;
use form::{Form, stored_bits};
use storage::Weights;
use stored::Stored;

pub use layout::Layout;
pub use style::{AccuracyLevel, Logits, Style};

pub(crate) const MODEL: &str = "model.onnx";
pub(crate) const DATA: &str = "model.onnx.data";

pub(super) static TARGET: Target = Target {
    name: "onnx",
    about: "ONNX with weights in a file of their own, for ONNX Runtime and other readers of opset 21",
    version: 4,
    schema: attar_settings::schema::<Onnx>,
    parse: target::parse::<Onnx>,
};

/// `model.onnx` and `model.onnx.data`, for ONNX Runtime and other readers of opset 21.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Onnx {
    /// How quantized weights are represented.
    pub layout: Layout,
    /// Which operators the graph is made of.
    pub style: Style,
    /// What `matmul-nbits` may round activations to: 0 leaves them, 4 makes them int8, which is several times faster on
    /// processors, and not exact.
    pub accuracy_level: AccuracyLevel,
    /// For which tokens of a call logits are returned.
    pub logits: Logits,
}

/// What a graph is written for, apart from the options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose {
    /// Tokens that a text may have, if that is known.
    pub(crate) context: Option<usize>,
    /// Where short texts of a batch are padded.
    pub(crate) padding: Padding,
    /// The sizes of a call, where they are known.
    pub(crate) fixed: Option<Fixed>,
}

/// The sizes of a call with a single text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fixed {
    pub(crate) tokens: usize,
    /// Tokens in the cache before.
    pub(crate) past: usize,
}

/// Where short texts of a batch are padded, as `GroupQueryAttention` sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Padding {
    /// In front: `attention_mask` is 0 for what no token sees.
    Left,
    /// Behind the prompt: the sum of a row of `attention_mask` is its length, and its next token takes the place of the padding.
    Right,
}

impl Onnx {
    /// See [`Format::check`].
    pub(crate) fn check_for(&self, graph: &Graph, padding: Padding) -> Result<Plan> {
        if self.logits == Logits::Last && !graph.outputs().iter().any(|id| graph.get(*id).name == "logits") {
            return Err(Error::Kind {
                target: "`logits = \"last\"`",
                wanted: "decoders",
                found: "returns no logits",
                hint: "leave `logits` out",
            });
        }
        let emitted = emit::emit(graph, self, Purpose { context: None, padding, fixed: None }, DATA)?;
        let tensors = emitted.weights.stored.iter().map(Stored::entry).collect();
        let stored = &emitted.weights.stored;
        let mut notes = slow_products(self, &emitted.weights);
        let quantized = stored.iter().any(|stored| matches!(stored.encoding, Encoding::Quantized(_)));
        if self.accuracy_level != AccuracyLevel::default() && self.layout != Layout::MatMulNBits && quantized {
            notes.push(
                "`accuracy_level` is of `layout = \"matmul-nbits\"` alone: ONNX Runtime rounds the others to int8 by default"
                    .into(),
            );
        }
        notes.extend(kit::notes_of_blocks(stored.iter().map(|stored| (stored.name.as_str(), stored.encoding))));
        Ok(Plan { tensors, bytes: emitted.weights.bytes, notes })
    }

    /// Writes graph and weights. The artifact has no files yet: they are `model.onnx` and `model.onnx.data`.
    pub(crate) fn write_for(
        &self,
        model: &Input<'_>,
        padding: Padding,
        folder: &Path,
        progress: Progress<'_>,
    ) -> Result<Artifact> {
        let purpose = Purpose { context: model.side.context, padding, fixed: None };
        self.write_all(model, &[(MODEL, purpose)], folder, progress)
    }

    /// See [`Format::check`], for calls of fixed sizes.
    pub(crate) fn check_fixed(&self, graph: &Graph, fixed: Fixed) -> Result<Plan> {
        let emitted = emit::emit(graph, self, Purpose { context: None, padding: Padding::Left, fixed: Some(fixed) }, DATA)?;
        let tensors = emitted.weights.stored.iter().map(Stored::entry).collect();
        Ok(Plan { tensors, bytes: emitted.weights.bytes, notes: Vec::new() })
    }

    /// Writes a graph for each call, by the name of its file, over the same weights. The artifact has no files yet, and the inputs and outputs of the last
    /// graph.
    pub(crate) fn write_fixed(
        &self,
        model: &Input<'_>,
        calls: &[(&'static str, Fixed)],
        folder: &Path,
        progress: Progress<'_>,
    ) -> Result<Artifact> {
        let (context, padding) = (model.side.context, Padding::Left);
        let purposes: Vec<(&str, Purpose)> =
            calls.iter().map(|(file, fixed)| (*file, Purpose { context, padding, fixed: Some(*fixed) })).collect();
        self.write_all(model, &purposes, folder, progress)
    }

    fn write_all(
        &self,
        model: &Input<'_>,
        graphs: &[(&str, Purpose)],
        folder: &Path,
        progress: Progress<'_>,
    ) -> Result<Artifact> {
        let emitted = graphs.iter().map(|(file, purpose)| Ok((*file, emit::emit(model.graph, self, *purpose, DATA)?)));
        let mut emitted = emitted.collect::<Result<Vec<(&str, emit::Emitted)>>>()?;
        model.graph.verify_weights(model.source)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        emitted.iter().try_for_each(|(file, _)| kit::remove(&folder.join(file)))?;
        DataFile::write(&folder.join(DATA), &emitted[0].1.weights, model.source, progress)?;
        for (file, emitted) in &mut emitted {
            let graph = std::mem::take(&mut emitted.graph);
            let bytes = proto::model(graph, self.style.versions()).map_err(|e| Error::Serialize { reason: e.to_string() })?;
            let path = folder.join(file);
            write_atomically(&path, |file| file.write_all(&bytes).map_err(Error::io("write", &path)))?;
        }
        let (_, emitted) = emitted.pop().expect("a graph was asked for");
        let written: Vec<Written> = emitted.weights.stored.iter().map(written).collect();
        Ok(Artifact {
            target: TARGET.name.into(),
            options: json!(self),
            files: Vec::new(),
            inputs: emitted.inputs,
            outputs: emitted.outputs,
            tensors: emitted.weights.stored.iter().map(Stored::entry).collect(),
            totals: kit::totals(&written),
            not_quantized: kit::not_quantized(&written),
            notes: Vec::new(),
        })
    }
}

impl Format for Onnx {
    fn options(&self) -> Value {
        json!(self)
    }

    fn returns_all(&self) -> bool {
        self.logits == Logits::All
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        self.check_for(graph, Padding::Left)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let artifact = self.write_for(model, Padding::Left, folder, progress)?;
        Ok(Artifact { files: kit::files(folder, &[MODEL, DATA], model.side)?, ..artifact })
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let verification = verify::verify(model, artifact, folder, verify::Written::USUAL, original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// Says so where ONNX Runtime has no fast kernel: 8-bit codes with f32 activations took 73 ms for one row and 576 x 1536
/// weights on AVX2, and 86 us with int8 activations (1.32).
fn slow_products(options: &Onnx, weights: &Weights) -> Vec<String> {
    let slow =
        |stored: &&Stored| matches!(stored.form, Form::Blobs(scheme, _) if stored_bits(&scheme) == 8) && stored.dims.len() == 2;
    let Some(first) = weights.stored.iter().find(slow).filter(|_| options.accuracy_level.is_exact()) else { return Vec::new() };
    let count = weights.stored.iter().filter(slow).count();
    vec![format!(
        "ONNX Runtime multiplies {count} weights of 8 bits very slowly at `accuracy_level = {}` (`{}` first): \
         set `accuracy_level = 4`, which rounds activations to int8, or `layout = \"dequantize-linear\"`",
        u8::from(options.accuracy_level),
        first.name,
    )]
}

fn written(stored: &Stored) -> Written {
    let entry = stored.entry();
    Written { dtype: entry.storage.clone(), encoding: stored.encoding, entry }
}
