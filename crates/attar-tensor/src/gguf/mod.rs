//! GGUF, versions 2 and 3: one file with metadata, a vocabulary and block-quantized tensors. Read, never written.
//!
//! Follows `docs/gguf.md` of the ggml repository. Big-endian files and version 1 are refused. Tensors of a type that we
//! cannot read do not keep a file from opening: asking for one is the error.
//!
//! ```no_run
//! use attar_tensor::{Source, gguf};
//! let file = gguf::File::open("model.gguf".as_ref())?;
//! let [rows, columns] = file.info("token_embd.weight")?.matrix();
//! let mut first = vec![0.0; columns];
//! file.read("token_embd.weight", 0..1, &mut first)?;
//! # Ok::<(), attar_tensor::Error>(())
//! ```

mod blocks;
mod header;
mod split;

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{Defect, Digest, Error, QuantizedTensor, Result, Source, TensorInfo};
use header::{FORMAT, Header, Storage, Stored};

pub use split::Parts;

/// Bytes per piece when reading or hashing.
const PIECE: usize = 1 << 18;

/// Key and value pairs of the header.
pub type Metadata = BTreeMap<String, Value>;

/// A metadata value. All integer widths are one, all float widths are one.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// One file, its header read.
pub struct File {
    path: PathBuf,
    file: fs::File,
    metadata: Metadata,
    stored: BTreeMap<String, Stored>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl File {
    /// Reads and checks the header.
    pub fn open(path: &Path) -> Result<File> {
        let file = fs::File::open(path).map_err(Error::io("read", path))?;
        let Header { metadata, tensors: stored } = Header::read(path, &file)?;
        let tensors = stored.iter().filter_map(|(name, stored)| Some((name.clone(), stored.info()?))).collect();
        Ok(File { path: path.into(), file, metadata, stored, tensors })
    }

    /// What the header says about the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(Error::io("read", &self.path))
    }
}

impl Source for File {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn unreadable(&self) -> Vec<String> {
        self.stored.keys().filter(|name| !self.tensors.contains_key(*name)).cloned().collect()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        if let Some(info) = self.tensors.get(name) {
            return Ok(info);
        }
        Err(match self.stored.get(name) {
            Some(stored) => Error::Malformed {
                path: self.path.clone(),
                format: FORMAT,
                defect: Defect::Dtype { tensor: name.into(), dtype: stored.kind.name.into() },
            },
            None => self.unknown(name),
        })
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let [_, columns] = self.check(name, &rows)?.matrix();
        debug_assert_eq!(out.len(), rows.len() * columns);
        let Stored { kind, bytes, .. } = &self.stored[name];
        let mut offset = bytes.start + (rows.start * kind.bytes_of(columns)) as u64;
        // In pieces: the bytes of a large read would otherwise stand beside its values.
        let step = PIECE / kind.bytes * kind.values;
        let mut piece = vec![0; kind.bytes_of(step.min(out.len()))];
        for out in out.chunks_mut(step) {
            let bytes = &mut piece[..kind.bytes_of(out.len())];
            self.read_at(offset, bytes)?;
            offset += bytes.len() as u64;
            match kind.storage {
                Storage::Plain(dtype) => dtype.decode(bytes, out),
                Storage::Blocks(format) => blocks::decode(format, bytes, out),
                Storage::Unreadable => unreachable!("`info` refuses it"),
            }
        }
        Ok(())
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        let encoding = self.check(name, &rows)?.encoding.to_string();
        Err(Error::WrongEncoding { name: name.into(), encoding, wanted: "a quantized tensor" })
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        let info = self.info(name)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {:?}\n", info.encoding, info.dims).as_bytes());
        let Range { start, end } = self.stored[name].bytes;
        let mut piece = vec![0; PIECE.min((end - start) as usize)];
        let mut offset = start;
        while offset < end {
            let bytes = &mut piece[..PIECE.min((end - offset) as usize)];
            self.read_at(offset, bytes)?;
            hasher.update(bytes);
            offset += bytes.len() as u64;
        }
        Ok(hasher.into())
    }
}
