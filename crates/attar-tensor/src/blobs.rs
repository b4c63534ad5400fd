//! Quantized tensors in the store, one blob each.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    ops::Range,
    path::PathBuf,
};

use crate::{
    Damage, Digest, Dtype, Encoding, Error, QuantizedTensor, Result, Scheme, SharedParts, Source, Store, TensorInfo,
    safetensors::{Entry, PartLayout, Shards, Writer},
};

/// The name of the tensor within its blob.
const NAME: &str = "w";

/// The measured damage: squared error and squared norm.
const DAMAGE: &str = "damage";

/// Writes a blob sequentially, as rows become available.
pub struct BlobWriter<'w> {
    writer: Writer<&'w mut dyn Write>,
    shared: SharedParts,
}

impl<'w> BlobWriter<'w> {
    /// For a tensor of `dims`.
    pub fn new(to: &'w mut dyn Write, scheme: Scheme, dims: [usize; 2]) -> std::io::Result<BlobWriter<'w>> {
        let mut entries: Vec<Entry> = PartLayout::new(NAME, scheme, dims).entries().collect();
        entries.push(Entry { name: DAMAGE.into(), dtype: Dtype::F64, dims: vec![2] });
        let writer = Writer::new(to, &entries, &BTreeMap::new())?;
        Ok(BlobWriter { writer, shared: SharedParts::default() })
    }

    /// The next rows. With one scale for the whole tensor, every part carries the same one.
    pub fn append(&mut self, rows: &QuantizedTensor) -> std::io::Result<()> {
        self.writer.append(&rows.codes)?;
        self.shared.add(rows);
        Ok(())
    }

    /// Completes the blob after the last row.
    pub fn finish(mut self, damage: Damage) -> std::io::Result<()> {
        self.shared.bytes().try_for_each(|part| self.writer.append(part))?;
        self.writer.append(&damage.squared_error.to_le_bytes())?;
        self.writer.append(&damage.energy.to_le_bytes())?;
        self.writer.finish();
        Ok(())
    }
}

/// Tensors of the store under names of their own. A blob is opened for each read, so that the limit on open files does not
/// limit their number.
#[derive(Default)]
pub struct Blobs {
    tensors: BTreeMap<String, TensorInfo>,
    places: HashMap<String, (PathBuf, Scheme)>,
}

impl Blobs {
    /// Adds the blob of that digest, which the store leases to this process.
    pub fn insert(&mut self, name: &str, store: &dyn Store, blob: &Digest, scheme: Scheme, dims: [usize; 2]) -> Result<()> {
        self.insert_file(name, store.open(blob)?, scheme, dims);
        Ok(())
    }

    /// Adds what a [`BlobWriter`] wrote to a file outside a store.
    pub fn insert_file(&mut self, name: &str, path: PathBuf, scheme: Scheme, dims: [usize; 2]) {
        let info = TensorInfo { dims: dims.to_vec(), encoding: Encoding::Quantized(scheme) };
        self.tensors.insert(name.into(), info);
        self.places.insert(name.into(), (path, scheme));
    }

    /// Gives a tensor another name, if it is here.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let (Some(info), Some(place)) = (self.tensors.remove(from), self.places.remove(from)) {
            self.tensors.insert(to.into(), info);
            self.places.insert(to.into(), place);
        }
    }

    /// The error of a quantized tensor.
    pub fn damage(&self, name: &str) -> Result<Damage> {
        let [squared_error, energy] = self.open(name)?.read_f64(DAMAGE)?;
        Ok(Damage { squared_error, energy })
    }

    fn open(&self, name: &str) -> Result<Shards> {
        let dims = self.info(name)?.matrix();
        let (path, scheme) = &self.places[name];
        Shards::open(std::slice::from_ref(path), &BTreeMap::from([(NAME.to_owned(), (*scheme, dims))]))
    }
}

impl Source for Blobs {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.open(name)?.read(NAME, rows, out)
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        self.open(name)?.read_quantized(NAME, rows)
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        self.open(name)?.digest(NAME)
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Error {
        Error::Io { action: "write", path: PathBuf::from("the store"), source }
    }
}
