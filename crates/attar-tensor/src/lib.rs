//! Tensors in files and their number formats: readers, quantized encodings, digests and the content-addressed store.
//!
//! This is the *weight plane* of attar: tensors are large, named, and read lazily by rows. Nothing here knows what a model is or
//! loads a whole one: every reader is a [`Source`], and a source hands out rows.
//!
//! A quantized number is four independent choices: [`Grid`] (the representable values) x [`Granularity`] (the weights that share
//! a scale) x algorithm (the value picked for a weight; `attar-compress`) x layout (the order of bits in a file; [`pack`] here,
//! exporters elsewhere). [`Scheme`] joins the first two; no type joins more.
//!
//! ```
//! use attar_tensor::{Granularity, Scheme};
//! let scheme: Scheme = "int4/g64".parse().unwrap();
//! assert_eq!(scheme.granularity, Granularity::Group(64));
//! assert_eq!(scheme.bits_per_weight([576, 576]), 4.25);
//! ```

mod atomic;
mod blobs;
mod checkpoint;
mod damage;
mod digest;
mod dtype;
mod error;
pub mod gguf;
mod grid;
pub mod json;
mod minifloat;
pub mod pack;
mod quantized;
pub mod safetensors;
mod scale;
mod scheme;
mod source;
mod store;
mod text;

pub use atomic::{PARTIAL, sweep_partial, sync_folder, sync_tree, write_atomically};
pub use blobs::{BlobWriter, Blobs};
pub use checkpoint::{Checkpoint, Format, MANIFEST, Manifest, QuantizedEntry, inside};
pub use damage::Damage;
pub use digest::Digest;
pub use dtype::{BlockFormat, Dtype};
pub use error::{Defect, Error, Result, nearest};
pub use grid::{Fit, GRIDS, Grid, Levels, Requires, Scales, grid};
pub use minifloat::Minifloat;
pub use quantized::{QuantizedTensor, SharedParts};
pub use scale::ScaleFormat;
pub use scheme::{Encoding, Granularity, Scheme, Tail, ZeroPoint};
pub use source::{Overlay, Source, StoredTensor, TensorInfo};
pub use store::{Collected, FolderStore, Keep, Lease, NewBlob, Scratch, Store, Total};
pub use text::{TextPieces, read_text, text_pieces};
