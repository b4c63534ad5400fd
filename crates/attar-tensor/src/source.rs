//! Named tensors, read lazily by rows.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use crate::{Digest, Encoding, Error, QuantizedTensor, Result, error::nearest};

/// Shape and storage of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost first; rows are the first dimension of two or more.
    pub dims: Vec<usize>,
    /// How it is stored.
    pub encoding: Encoding,
}

impl TensorInfo {
    /// Rows and columns: a vector is one row, and a tensor of more dimensions is a matrix of its first.
    pub fn matrix(&self) -> [usize; 2] {
        match self.dims.as_slice() {
            [] => [1, 1],
            [n] => [1, *n],
            [rows, rest @ ..] => [*rows, rest.iter().product()],
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bits of everything that is needed to decode it.
    pub fn true_bits(&self) -> u64 {
        self.encoding.true_bits(self.matrix())
    }
}

/// A tensor as its file stores it, also where its format is none of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The format's own name: `I32`, `F8_E4M3`, …
    pub dtype: String,
    /// Outermost first.
    pub dims: Vec<usize>,
    /// Bytes of all elements.
    pub bytes: u64,
}

/// A set of named tensors that are read by rows.
///
/// Implementations keep only headers in memory: a read allocates no more than it returns.
pub trait Source: Send + Sync {
    /// Every tensor, by name.
    fn tensors(&self) -> &BTreeMap<String, TensorInfo>;

    /// Names of tensors that are stored in a way that cannot be read: they are in no list, and asking for one is an error.
    fn unreadable(&self) -> Vec<String> {
        Vec::new()
    }

    /// Rows as f32, dequantized if necessary. `out` is `[rows, columns]`. Does not check for NaN.
    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// All rows as f32: for what is known to be small enough.
    fn whole(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let mut values = vec![0.0; info.elements()];
        self.read(name, 0..info.matrix()[0], &mut values)?;
        Ok(values)
    }

    /// Rows as they are stored, for a [`Encoding::Quantized`] tensor.
    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor>;

    /// The digest of the tensor's shape, encoding and stored bytes. Names and files do not matter: tied weights agree.
    fn digest(&self, name: &str) -> Result<Digest>;

    /// The tensor of that name as its file stores it. Only safetensors tell.
    fn stored(&self, _name: &str) -> Option<StoredTensor> {
        None
    }

    /// Stored bytes from `start`, which lie in the tensor that [`Source::stored`] describes.
    fn read_stored(&self, name: &str, _start: u64, _out: &mut [u8]) -> Result<()> {
        Err(self.unknown(name))
    }

    /// The tensor of that name.
    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors().get(name).ok_or_else(|| self.unknown(name))
    }

    /// The error for a name that no tensor has.
    fn unknown(&self, name: &str) -> Error {
        Error::UnknownTensor {
            name: name.into(),
            nearest: nearest(name, self.tensors().keys().map(String::as_str)).map(Into::into),
        }
    }

    /// The tensor of that name, if `rows` lie in it.
    fn check(&self, name: &str, rows: &Range<usize>) -> Result<&TensorInfo> {
        let info = self.info(name)?;
        let [count, _] = info.matrix();
        if rows.start > rows.end || rows.end > count {
            return Err(Error::RowsOutOfRange { name: name.into(), start: rows.start, end: rows.end, rows: count });
        }
        Ok(info)
    }
}

/// One source over another: tensors of `top` hide those of the same name below.
pub struct Overlay {
    top: Arc<dyn Source>,
    below: Arc<dyn Source>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Overlay {
    /// `top` over `below`.
    pub fn new(top: Arc<dyn Source>, below: Arc<dyn Source>) -> Overlay {
        let mut tensors = below.tensors().clone();
        tensors.extend(top.tensors().clone());
        Overlay { top, below, tensors }
    }

    fn holder(&self, name: &str) -> &dyn Source {
        if self.top.tensors().contains_key(name) { &*self.top } else { &*self.below }
    }
}

impl Source for Overlay {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn unreadable(&self) -> Vec<String> {
        let mut names = self.top.unreadable();
        names.extend(self.below.unreadable());
        names.retain(|name| !self.tensors.contains_key(name));
        names
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.holder(name).read(name, rows, out)
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        self.holder(name).read_quantized(name, rows)
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        self.holder(name).digest(name)
    }
}
