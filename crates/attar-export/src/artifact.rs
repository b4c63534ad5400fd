//! What was written, in a form that a manifest can hold.

use std::collections::BTreeMap;

use attar_tensor::Digest;
use serde::{Deserialize, Serialize};

/// What [`crate::Format::check`] promises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The weights, in the order in which they are written.
    pub tensors: Vec<TensorEntry>,
    /// Bytes of all weights, padding included; the graph itself comes on top.
    pub bytes: u64,
    /// What a user should know before anything is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A finished artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// The target's name.
    pub target: String,
    /// Its options, with every default filled in.
    pub options: serde_json::Value,
    /// Every file.
    pub files: Vec<FileEntry>,
    /// What the caller gives.
    pub inputs: Vec<Port>,
    /// What it gets.
    pub outputs: Vec<Port>,
    /// The weights, in the order of the file.
    pub tensors: Vec<TensorEntry>,
    /// Sums over [`Artifact::tensors`].
    pub totals: Totals,
    /// The weights that kept a plain number format.
    pub not_quantized: Vec<PlainEntry>,
    /// What a user should know of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the artifact's folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content.
    pub digest: Digest,
}

/// An input or output of the artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// As the runtime knows it.
    pub name: String,
    /// Numbers, or names of dimensions that are known when it runs.
    pub dims: Vec<String>,
    /// `i64` or `f32`.
    pub dtype: String,
}

/// A weight of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Canonical name.
    pub name: String,
    /// Other names of the same numbers, which are stored once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Shape in the graph, outermost first.
    pub dims: Vec<usize>,
    /// Encoding in the graph: `int4/g64`, `bf16`.
    pub encoding: String,
    /// How it is stored in the file, in words.
    pub storage: String,
    /// Where it is, if the file has several weights in one tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
    /// Bits that its encoding needs, scales and zeros included.
    pub true_bits: u64,
    /// Bytes that it takes in the file, alignment not counted.
    pub stored_bytes: u64,
    /// Signal to quantization noise, in decibels, once verified against the weight before quantization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snr_db: Option<f64>,
}

/// A weight's place in a tensor that holds several, one below the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The tensor of the file.
    pub tensor: String,
    /// The first of its rows that is the weight's.
    pub row: usize,
}

/// Sums over the weights of an artifact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// How many weights.
    pub weights: u64,
    /// How many of them are quantized.
    pub quantized_weights: u64,
    /// Bits that the encodings need.
    pub true_bits: u64,
    /// Bytes in the file, alignment not counted.
    pub stored_bytes: u64,
    /// True bits per weight.
    pub bits_per_weight: f64,
    /// True bits per quantized weight; 0 if there is none.
    pub quantized_bits_per_weight: f64,
}

/// A weight that is not quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlainEntry {
    /// Canonical name.
    pub name: String,
    /// Its number format in the file.
    pub dtype: String,
    /// Bytes in the file.
    pub bytes: u64,
    /// How many of all weights it is, 0 to 1.
    pub share: f64,
}

/// What [`crate::Format::verify`] measured. It is returned only if every weight is the model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Every weight.
    pub tensors: Vec<VerifiedTensor>,
    /// How many numbers were compared.
    pub weights: u64,
}

/// A verified weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifiedTensor {
    /// Canonical name.
    pub name: String,
    /// Signal to quantization noise against the weight before quantization, in decibels; absent without one, and
    /// when nothing was lost.
    pub snr_db: Option<f64>,
}

impl Artifact {
    /// Notes what verification measured.
    pub fn record(&mut self, verification: &Verification) {
        let measured: BTreeMap<&str, Option<f64>> = verification.tensors.iter().map(|t| (t.name.as_str(), t.snr_db)).collect();
        for tensor in &mut self.tensors {
            tensor.snr_db = measured.get(tensor.name.as_str()).copied().flatten();
        }
    }
}
