//! safetensors: files of named tensors behind a JSON header, as specified by the `safetensors` crate, 0.8.
//!
//! Headers are bounded before they are read and checked against the length of the file, so a header that lies costs
//! nothing and is found at once. Reads are seek + read, never a map: the memory a gate sees is then ours.
//!
//! A quantized tensor `NAME` is several tensors: `NAME.codes` (u8 `[rows, row bytes]`, [`crate::pack`]), `NAME.scales`
//! (`[rows, groups]`, or `[1, 1]` for one scale in all; scales that are codes are u8 `[rows, row bytes]`, packed like
//! codes; of a grid that learns tables `NAME.tables`, `[rows, groups * entries]`), unless symmetric `NAME.zeros` (u8, one code per scale, packed like codes with the same rows as the scales), and
//! where the scale format has them `NAME.supers` (f16 `[rows, 1]` or f32 `[1, 1]`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use safetensors::tensor::{Dtype as StoredDtype, Metadata, TensorInfo as StoredInfo};

use crate::{
    Defect, Digest, Dtype, Encoding, Error, Granularity, QuantizedTensor, Result, Scheme, Source, StoredTensor, TensorInfo, pack,
};

/// Longest header we read. The format's own library has the same limit.
const HEADER_LIMIT: u64 = 100_000_000;

const FORMAT: &str = "safetensors";

/// Bytes per piece when hashing or copying.
const PIECE: usize = 1 << 18;

/// One file, its header read.
pub struct File {
    path: PathBuf,
    file: fs::File,
    start: u64,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

/// A tensor as a file names it.
#[derive(Clone, Debug)]
struct Stored {
    dtype: StoredDtype,
    dims: Vec<usize>,
    bytes: Range<u64>,
}

impl File {
    /// Reads and checks the header.
    pub fn open(path: &Path) -> Result<File> {
        let malformed = |defect| Error::Malformed { path: path.into(), format: FORMAT, defect };
        let mut file = fs::File::open(path).map_err(Error::io("read", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length < 8 {
            return Err(malformed(Defect::TooShort { length, what: "the size of its header" }));
        }
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(Error::io("read", path))?;
        if size == *b"version " {
            return Err(malformed(Defect::Pointer));
        }
        let size = u64::from_le_bytes(size);
        let limit = HEADER_LIMIT.min(length - 8);
        if size > limit {
            return Err(malformed(Defect::HeaderTooLong { declared: size, limit }));
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(Error::io("read", path))?;
        let header: Metadata = serde_json::from_slice(&text).map_err(|e| malformed(Defect::Header(e)))?;
        let (covered, present) = (header.data_len() as u64, length - 8 - size);
        if covered != present {
            return Err(malformed(Defect::Length { covered, present }));
        }
        if let Some((tensor, info)) = header.tensors().into_iter().find(|(_, info)| overflows(&info.shape)) {
            let dims = info.shape.iter().map(|d| *d as u64).collect();
            return Err(malformed(Defect::Shape { tensor, dims }));
        }
        let tensors = header.tensors().into_iter().map(|(name, info)| (name, Stored::new(info))).collect();
        let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(File { path: path.into(), file, start: 8 + size, tensors, metadata })
    }

    /// The free text of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn read_at(&self, stored: &Stored, offset: u64, buffer: &mut [u8]) -> Result<()> {
        debug_assert!(stored.bytes.start + offset + buffer.len() as u64 <= stored.bytes.end);
        let at = self.start + stored.bytes.start + offset;
        self.file.read_exact_at(buffer, at).map_err(Error::io("read", &self.path))
    }

    fn hash(&self, stored: &Stored, hasher: &mut blake3::Hasher) -> Result<()> {
        let length = stored.bytes.end - stored.bytes.start;
        let mut piece = vec![0; PIECE.min(length as usize)];
        let mut done = 0;
        while done < length {
            let n = PIECE.min((length - done) as usize);
            self.read_at(stored, done, &mut piece[..n])?;
            hasher.update(&piece[..n]);
            done += n as u64;
        }
        Ok(())
    }
}

/// Whether a product of some of the dimensions does not fit, which a zero among them would hide.
fn overflows(dims: &[usize]) -> bool {
    dims.iter()
        .filter(|d| **d > 0)
        .try_fold(1usize, |product, d| product.checked_mul(*d))
        .is_none_or(|n| n > isize::MAX as usize / 8)
}

impl Stored {
    fn new(info: &StoredInfo) -> Stored {
        let (start, end) = info.data_offsets;
        Stored { dtype: info.dtype, dims: info.shape.clone(), bytes: start as u64..end as u64 }
    }
}

fn plain(dtype: StoredDtype) -> Option<Dtype> {
    Some(match dtype {
        StoredDtype::F64 => Dtype::F64,
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::F16 => Dtype::F16,
        StoredDtype::BF16 => Dtype::BF16,
        StoredDtype::I64 => Dtype::I64,
        StoredDtype::I32 => Dtype::I32,
        StoredDtype::I16 => Dtype::I16,
        StoredDtype::I8 => Dtype::I8,
        StoredDtype::U8 => Dtype::U8,
        _ => return None,
    })
}

fn stored(dtype: Dtype) -> StoredDtype {
    match dtype {
        Dtype::F64 => StoredDtype::F64,
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::BF16 => StoredDtype::BF16,
        Dtype::I64 => StoredDtype::I64,
        Dtype::I32 => StoredDtype::I32,
        Dtype::I16 => StoredDtype::I16,
        Dtype::I8 => StoredDtype::I8,
        Dtype::U8 => StoredDtype::U8,
    }
}

/// Where a tensor of a [`Shards`] lies.
enum Place {
    Plain(Part),
    Quantized(Box<Quantized>),
    Unreadable { dtype: StoredDtype, file: usize },
}

/// The parts of a quantized tensor, as in [`PartLayout`].
struct Quantized {
    scheme: Scheme,
    codes: Part,
    scales: Part,
    zeros: Option<Part>,
    supers: Option<Part>,
}

impl Quantized {
    /// In the order in which they are written.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        [Some(&self.codes), Some(&self.scales), self.zeros.as_ref(), self.supers.as_ref()].into_iter().flatten()
    }
}

struct Part {
    file: usize,
    stored: Stored,
}

/// Tensors that lie in one or more files.
pub struct Shards {
    files: Vec<File>,
    places: BTreeMap<String, Place>,
    tensors: BTreeMap<String, TensorInfo>,
    beside: Vec<String>,
    /// Of the tensors that were hashed.
    digests: Mutex<HashMap<String, Digest>>,
}

impl Shards {
    /// The tensors of `paths`. `quantized` tells which names are codes, scales and zeros, and their shape.
    pub fn open(paths: &[PathBuf], quantized: &BTreeMap<String, (Scheme, [usize; 2])>) -> Result<Shards> {
        let files = paths.iter().map(|path| File::open(path)).collect::<Result<Vec<_>>>()?;
        let mut parts: HashMap<String, Part> = HashMap::new();
        for (file, opened) in files.iter().enumerate() {
            for (name, stored) in &opened.tensors {
                let part = Part { file, stored: stored.clone() };
                if let Some(other) = parts.insert(name.clone(), part) {
                    let other = files[other.file].path.display().to_string();
                    let defect = Defect::Twice { tensor: name.clone(), other };
                    return Err(Error::Malformed { path: opened.path.clone(), format: FORMAT, defect });
                }
            }
        }
        let mut shards =
            Shards { files, places: BTreeMap::new(), tensors: BTreeMap::new(), beside: Vec::new(), digests: Mutex::default() };
        for (name, (scheme, dims)) in quantized {
            shards.add_quantized(name, *scheme, *dims, &mut parts)?;
        }
        for (name, part) in parts {
            shards.add_plain(name, part);
        }
        Ok(shards)
    }

    /// The tensors that an index places, each in the file of `paths` that `placed` gives it. What the files hold besides is
    /// not part of the checkpoint. The error is a tensor that its file lacks.
    pub fn placed(paths: &[PathBuf], placed: &BTreeMap<String, usize>) -> Result<std::result::Result<Shards, String>> {
        let files = paths.iter().map(|path| File::open(path)).collect::<Result<Vec<_>>>()?;
        let mut shards =
            Shards { files, places: BTreeMap::new(), tensors: BTreeMap::new(), beside: Vec::new(), digests: Mutex::default() };
        for (name, file) in placed {
            let Some(stored) = shards.files[*file].tensors.get(name).cloned() else { return Ok(Err(name.clone())) };
            shards.add_plain(name.clone(), Part { file: *file, stored });
        }
        let names: BTreeSet<&String> = shards.files.iter().flat_map(|file| file.tensors.keys()).collect();
        shards.beside = names.into_iter().filter(|name| !placed.contains_key(*name)).cloned().collect();
        Ok(Ok(shards))
    }

    /// Tensors in the files that the index does not place, sorted.
    pub fn beside(&self) -> &[String] {
        &self.beside
    }

    fn add_plain(&mut self, name: String, part: Part) {
        let place = match plain(part.stored.dtype) {
            Some(dtype) => {
                let info = TensorInfo { dims: part.stored.dims.clone(), encoding: Encoding::Plain(dtype) };
                self.tensors.insert(name.clone(), info);
                Place::Plain(part)
            }
            None => Place::Unreadable { dtype: part.stored.dtype, file: part.file },
        };
        self.places.insert(name, place);
    }

    fn add_quantized(&mut self, name: &str, scheme: Scheme, dims: [usize; 2], parts: &mut HashMap<String, Part>) -> Result<()> {
        let layout = PartLayout::new(name, scheme, dims);
        let codes = self.take(&layout.codes, parts)?;
        let scales = self.take(&layout.scales, parts)?;
        let zeros = layout.zeros.as_ref().map(|zeros| self.take(zeros, parts)).transpose()?;
        let supers = layout.supers.as_ref().map(|supers| self.take(supers, parts)).transpose()?;
        self.tensors.insert(name.into(), TensorInfo { dims: dims.to_vec(), encoding: Encoding::Quantized(scheme) });
        self.places.insert(name.into(), Place::Quantized(Box::new(Quantized { scheme, codes, scales, zeros, supers })));
        Ok(())
    }

    fn take(&self, wanted: &Entry, parts: &mut HashMap<String, Part>) -> Result<Part> {
        let describe = |dtype: StoredDtype, dims: &[usize]| format!("{dtype:?} {dims:?}");
        let want = describe(stored(wanted.dtype), &wanted.dims);
        let part = parts.remove(&wanted.name);
        let found = part.as_ref().map_or("missing".into(), |p| describe(p.stored.dtype, &p.stored.dims));
        part.filter(|_| found == want).ok_or_else(|| Error::Malformed {
            path: self.files.first().map(|f| f.path.clone()).unwrap_or_default(),
            format: FORMAT,
            defect: Defect::Part { tensor: wanted.name.clone(), wanted: want, found },
        })
    }

    fn bytes(&self, part: &Part, rows: &Range<usize>, row_bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; rows.len() * row_bytes];
        self.files[part.file].read_at(&part.stored, (rows.start * row_bytes) as u64, &mut buffer)?;
        Ok(buffer)
    }

    /// The super scales of `rows`.
    fn supers(&self, part: &Part, scheme: &Scheme, rows: &Range<usize>) -> Result<Vec<f32>> {
        let Some((dtype, granularity)) = scheme.scale.supers() else { return Ok(Vec::new()) };
        let rows = if granularity == Granularity::Tensor { &(0..1) } else { rows };
        let mut supers = vec![0.0; rows.len()];
        dtype.decode(&self.bytes(part, rows, dtype.bytes())?, &mut supers);
        Ok(supers)
    }

    /// A vector of `N` numbers in f64, exactly.
    pub(crate) fn read_f64<const N: usize>(&self, name: &str) -> Result<[f64; N]> {
        let (place, [_, columns]) = self.place(name, &(0..1))?;
        let Place::Plain(part) = place else { return Err(self.unknown(name)) };
        if (part.stored.dtype, columns) != (StoredDtype::F64, N) {
            let encoding = format!("{:?} {columns}", part.stored.dtype);
            return Err(Error::WrongEncoding { name: name.into(), encoding, wanted: "numbers in f64" });
        }
        let bytes = self.bytes(part, &(0..1), 8 * N)?;
        let mut numbers = bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("chunks of 8")));
        Ok(std::array::from_fn(|_| numbers.next().expect("as many as were asked for")))
    }

    fn place(&self, name: &str, rows: &Range<usize>) -> Result<(&Place, [usize; 2])> {
        let dims = self.check(name, rows)?.matrix();
        Ok((&self.places[name], dims))
    }
}

impl Shards {
    fn digests(&self) -> MutexGuard<'_, HashMap<String, Digest>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Shards {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn unreadable(&self) -> Vec<String> {
        let unreadable = self.places.iter().filter(|(_, place)| matches!(place, Place::Unreadable { .. }));
        unreadable.map(|(name, _)| name.clone()).collect()
    }

    fn stored(&self, name: &str) -> Option<StoredTensor> {
        let (Place::Plain(Part { file, .. }) | Place::Unreadable { file, .. }) = self.places.get(name)? else { return None };
        let stored = self.files[*file].tensors.get(name)?;
        let bytes = stored.bytes.end - stored.bytes.start;
        Some(StoredTensor { dtype: format!("{:?}", stored.dtype), dims: stored.dims.clone(), bytes })
    }

    fn read_stored(&self, name: &str, start: u64, out: &mut [u8]) -> Result<()> {
        let (Place::Plain(Part { file, .. }) | Place::Unreadable { file, .. }) =
            self.places.get(name).ok_or_else(|| self.unknown(name))?
        else {
            return Err(self.unknown(name));
        };
        let stored = &self.files[*file].tensors[name];
        let (end, length) = (start.saturating_add(out.len() as u64), stored.bytes.end - stored.bytes.start);
        if end > length {
            let defect = Defect::Extent { tensor: name.into(), start, end, length, alignment: 1 };
            return Err(Error::Malformed { path: self.files[*file].path.clone(), format: FORMAT, defect });
        }
        self.files[*file].read_at(stored, start, out)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        if let Some(info) = self.tensors.get(name) {
            return Ok(info);
        }
        if let Some(Place::Unreadable { dtype, .. }) = self.places.get(name) {
            return Err(Error::Malformed {
                path: self.files.first().map(|f| f.path.clone()).unwrap_or_default(),
                format: FORMAT,
                defect: Defect::Dtype { tensor: name.into(), dtype: format!("{dtype:?}") },
            });
        }
        Err(self.unknown(name))
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (place, [_, columns]) = self.place(name, &rows)?;
        match place {
            Place::Plain(part) => {
                let dtype = plain(part.stored.dtype).expect("unreadable tensors are not in the list");
                // In pieces: the bytes of a large read would otherwise stand beside its values.
                let step = (PIECE / (columns * dtype.bytes()).max(1)).max(1);
                for (i, out) in out.chunks_mut((step * columns).max(1)).enumerate() {
                    let start = rows.start + i * step;
                    let piece = start..(start + step).min(rows.end);
                    dtype.decode(&self.bytes(part, &piece, columns * dtype.bytes())?, out);
                }
                Ok(())
            }
            _ => {
                self.read_quantized(name, rows)?.decode(out);
                Ok(())
            }
        }
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        let (place, [_, columns]) = self.place(name, &rows)?;
        let Place::Quantized(place) = place else {
            let encoding = self.tensors[name].encoding.to_string();
            return Err(Error::WrongEncoding { name: name.into(), encoding, wanted: "a quantized tensor" });
        };
        let Quantized { scheme, codes, scales, zeros, supers } = &**place;
        let scale_rows = if scheme.granularity == Granularity::Tensor { 0..1 } else { rows.clone() };
        let (groups, entries) = (scheme.groups(columns), scheme.scale_dims([1, columns])[1]);
        let supers = supers.as_ref().map_or(Ok(Vec::new()), |part| self.supers(part, scheme, &rows))?;
        let row_bytes = scheme.scale.row_bytes(entries);
        let bytes = self.bytes(scales, &scale_rows, row_bytes)?;
        let tensor = QuantizedTensor { dims: [rows.len(), columns], supers, ..QuantizedTensor::empty(*scheme, columns) };
        let mut values = vec![0.0; scale_rows.len() * entries];
        for (row, (bytes, scales)) in bytes.chunks(row_bytes.max(1)).zip(values.chunks_mut(entries.max(1))).enumerate() {
            scheme.scale.decode(bytes, tensor.super_of(row), scales);
        }
        let bits = scheme.grid.bits();
        let zeros = match zeros {
            None => Vec::new(),
            Some(part) => {
                let row_bytes = pack::row_bytes(groups, bits);
                let packed = self.bytes(part, &scale_rows, row_bytes)?;
                let mut zeros = vec![0; scale_rows.len() * groups];
                for (packed, zeros) in packed.chunks(row_bytes).zip(zeros.chunks_mut(groups)) {
                    pack::unpack_row(packed, bits, zeros);
                }
                zeros
            }
        };
        let codes = self.bytes(codes, &rows, scheme.grid.packing().row_bytes(columns))?;
        Ok(QuantizedTensor { codes, scales: values, zeros, ..tensor })
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        if let Some(known) = self.digests().get(name) {
            return Ok(*known);
        }
        let info = self.info(name)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {:?}\n", info.encoding, info.dims).as_bytes());
        match &self.places[name] {
            Place::Plain(part) => self.files[part.file].hash(&part.stored, &mut hasher)?,
            Place::Quantized(place) => {
                for part in place.parts() {
                    self.files[part.file].hash(&part.stored, &mut hasher)?;
                }
            }
            Place::Unreadable { .. } => unreachable!("`info` refuses it"),
        }
        let digest = Digest::from(hasher);
        self.digests().insert(name.into(), digest);
        Ok(digest)
    }
}

/// A tensor of a file to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its format.
    pub dtype: Dtype,
    /// Its shape.
    pub dims: Vec<usize>,
}

/// The parts that a quantized tensor is stored as.
pub struct PartLayout {
    /// `NAME.codes`.
    pub codes: Entry,
    /// `NAME.scales`, or `NAME.tables` of a grid that learns them.
    pub scales: Entry,
    /// `NAME.zeros`, unless symmetric.
    pub zeros: Option<Entry>,
    /// `NAME.supers`, if the scale format has them.
    pub supers: Option<Entry>,
}

impl PartLayout {
    /// For a tensor of `dims` under `scheme`.
    pub fn new(name: &str, scheme: Scheme, dims: [usize; 2]) -> PartLayout {
        let [rows, columns] = dims;
        let bits = scheme.grid.bits();
        let ([scale_rows, entries], groups) = (scheme.scale_dims(dims), scheme.groups(columns));
        let scales = match scheme.scale.plain() {
            Some(dtype) => (dtype, entries),
            None => (Dtype::U8, scheme.scale.row_bytes(entries)),
        };
        let name_of_scales = if scheme.entries() == 1 { "scales" } else { "tables" };
        let entry = |part: &str, dtype, dims: [usize; 2]| Entry { name: format!("{name}.{part}"), dtype, dims: dims.to_vec() };
        PartLayout {
            codes: entry("codes", Dtype::U8, [rows, scheme.grid.packing().row_bytes(columns)]),
            scales: entry(name_of_scales, scales.0, [scale_rows, scales.1]),
            zeros: (!scheme.is_symmetric()).then(|| entry("zeros", Dtype::U8, [scale_rows, pack::row_bytes(groups, bits)])),
            supers: scheme.scale.supers().map(|(dtype, _)| entry("supers", dtype, [scheme.scale.super_count(rows), 1])),
        }
    }

    /// In the order in which they are written.
    pub fn entries(self) -> impl Iterator<Item = Entry> {
        [Some(self.codes), Some(self.scales), self.zeros, self.supers].into_iter().flatten()
    }
}

/// Writes a file from front to back: the header from a list of entries, then their bytes in that order.
///
/// Same entries and bytes, same file: metadata is sorted, and the data starts at a multiple of 8.
pub struct Writer<W: Write> {
    to: W,
    left: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(mut to: W, entries: &[Entry], metadata: &BTreeMap<String, String>) -> std::io::Result<Writer<W>> {
        let mut offset = 0;
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(metadata));
        }
        for entry in entries {
            let end = offset + entry.dims.iter().product::<usize>() * entry.dtype.bytes();
            let dtype = serde_json::to_value(stored(entry.dtype)).expect("a dtype is a string");
            header.insert(
                entry.name.clone(),
                serde_json::json!({ "dtype": dtype, "shape": entry.dims, "data_offsets": [offset, end] }),
            );
            offset = end;
        }
        let mut text = serde_json::Value::Object(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        to.write_all(&(text.len() as u64).to_le_bytes())?;
        to.write_all(text.as_bytes())?;
        Ok(Writer { to, left: offset as u64 })
    }

    /// The next bytes.
    ///
    /// # Panics
    /// If they are more than the entries have room for.
    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).expect("no more bytes than the header says");
        self.to.write_all(bytes)
    }

    /// Done.
    ///
    /// # Panics
    /// If bytes are missing.
    pub fn finish(self) -> W {
        assert_eq!(self.left, 0, "as many bytes as the header says");
        self.to
    }
}
