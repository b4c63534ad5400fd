//! The header of a GGUF file: metadata and the table of tensors.
//!
//! Every count and length is checked against the bytes that are left before anything is allocated for it, and every
//! tensor against the length of the file: what comes out needs no further check.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    io::{BufReader, Read},
    ops::Range,
    path::Path,
    result,
};

use super::{Metadata, Value};
use crate::{BlockFormat, Defect, Dtype, Encoding, Error, Result, TensorInfo};

pub(super) const FORMAT: &str = "GGUF";

/// What a header says.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, Stored>,
}

/// A tensor as the file names it.
pub(super) struct Stored {
    /// Outermost first.
    pub(super) dims: Vec<usize>,
    pub(super) kind: &'static TensorType,
    /// From the start of the file.
    pub(super) bytes: Range<u64>,
}

/// A tensor type of ggml.
pub(super) struct TensorType {
    /// In files.
    number: u32,
    pub(super) name: &'static str,
    /// Values per block.
    pub(super) values: usize,
    /// Bytes per block.
    pub(super) bytes: usize,
    pub(super) storage: Storage,
}

/// How to read a [`TensorType`].
pub(super) enum Storage {
    Plain(Dtype),
    Blocks(BlockFormat),
    Unreadable,
}

impl Header {
    pub(super) fn read(path: &Path, file: &fs::File) -> Result<Header> {
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let mut reader = Reader { path, input: BufReader::new(file), length, offset: 0, spent: 0 };
        let (tensors, entries) = reader.counts()?;
        let metadata = reader.metadata(entries)?;
        let alignment = alignment(&metadata).map_err(|defect| reader.malformed(defect))?;
        let mut tensors = reader.tensors(tensors)?;
        let start = reader.offset.next_multiple_of(alignment);
        let check = check_extents(&tensors, length.saturating_sub(start), alignment);
        check.map_err(|defect| reader.malformed(defect))?;
        for Stored { bytes, .. } in tensors.values_mut() {
            *bytes = start + bytes.start..start + bytes.end;
        }
        Ok(Header { metadata, tensors })
    }
}

impl Stored {
    /// Unless it cannot be read.
    pub(super) fn info(&self) -> Option<TensorInfo> {
        let encoding = match self.kind.storage {
            Storage::Plain(dtype) => Encoding::Plain(dtype),
            Storage::Blocks(format) => Encoding::Blocks(format),
            Storage::Unreadable => return None,
        };
        Some(TensorInfo { dims: self.dims.clone(), encoding })
    }
}

impl TensorType {
    const fn plain(number: u32, name: &'static str, bytes: usize, dtype: Dtype) -> TensorType {
        TensorType { number, name, values: 1, bytes, storage: Storage::Plain(dtype) }
    }

    const fn blocks(number: u32, name: &'static str, values: usize, bytes: usize, format: BlockFormat) -> TensorType {
        TensorType { number, name, values, bytes, storage: Storage::Blocks(format) }
    }

    const fn unreadable(number: u32, name: &'static str, values: usize, bytes: usize) -> TensorType {
        TensorType { number, name, values, bytes, storage: Storage::Unreadable }
    }

    /// Bytes of whole blocks of `values` values.
    pub(super) fn bytes_of(&self, values: usize) -> usize {
        debug_assert!(values.is_multiple_of(self.values));
        values / self.values * self.bytes
    }
}

/// `enum ggml_type` of `ggml.h`, less the numbers that ggml itself has withdrawn.
static TENSOR_TYPES: &[TensorType] = &[
    TensorType::plain(0, "F32", 4, Dtype::F32),
    TensorType::plain(1, "F16", 2, Dtype::F16),
    TensorType::blocks(2, "Q4_0", 32, 18, BlockFormat::Q4_0),
    TensorType::blocks(3, "Q4_1", 32, 20, BlockFormat::Q4_1),
    TensorType::blocks(6, "Q5_0", 32, 22, BlockFormat::Q5_0),
    TensorType::blocks(7, "Q5_1", 32, 24, BlockFormat::Q5_1),
    TensorType::blocks(8, "Q8_0", 32, 34, BlockFormat::Q8_0),
    TensorType::unreadable(9, "Q8_1", 32, 36),
    TensorType::blocks(10, "Q2_K", 256, 84, BlockFormat::Q2K),
    TensorType::blocks(11, "Q3_K", 256, 110, BlockFormat::Q3K),
    TensorType::blocks(12, "Q4_K", 256, 144, BlockFormat::Q4K),
    TensorType::blocks(13, "Q5_K", 256, 176, BlockFormat::Q5K),
    TensorType::blocks(14, "Q6_K", 256, 210, BlockFormat::Q6K),
    TensorType::unreadable(15, "Q8_K", 256, 292),
    TensorType::unreadable(16, "IQ2_XXS", 256, 66),
    TensorType::unreadable(17, "IQ2_XS", 256, 74),
    TensorType::unreadable(18, "IQ3_XXS", 256, 98),
    TensorType::unreadable(19, "IQ1_S", 256, 50),
    TensorType::unreadable(20, "IQ4_NL", 32, 18),
    TensorType::unreadable(21, "IQ3_S", 256, 110),
    TensorType::unreadable(22, "IQ2_S", 256, 82),
    TensorType::unreadable(23, "IQ4_XS", 256, 136),
    TensorType::plain(24, "I8", 1, Dtype::I8),
    TensorType::plain(25, "I16", 2, Dtype::I16),
    TensorType::plain(26, "I32", 4, Dtype::I32),
    TensorType::plain(27, "I64", 8, Dtype::I64),
    TensorType::plain(28, "F64", 8, Dtype::F64),
    TensorType::unreadable(29, "IQ1_M", 256, 56),
    TensorType::plain(30, "BF16", 2, Dtype::BF16),
    TensorType::unreadable(34, "TQ1_0", 256, 54),
    TensorType::unreadable(35, "TQ2_0", 256, 66),
    TensorType::unreadable(39, "MXFP4", 32, 17),
    TensorType::unreadable(40, "NVFP4", 64, 36),
    TensorType::unreadable(41, "Q1_0", 128, 18),
];

/// What a header may cost: its bytes, with array elements counted as 8 each. Honest ones, with vocabularies of hundreds
/// of thousands of tokens, stay far below.
const HEADER_LIMIT: u64 = 100_000_000;

/// Bytes of the shortest metadata entry: an empty key, a type, a truth value.
const LEAST_ENTRY: u64 = 13;

/// Bytes of the shortest tensor entry: an empty name, no dimensions, a type, an offset.
const LEAST_TENSOR: u64 = 24;

/// How deep arrays may lie in arrays.
const DEPTH_LIMIT: usize = 4;

/// Dimensions per tensor, as in ggml.
const DIMS_LIMIT: u32 = 4;

/// Elements per tensor: products with bits per element stay far from overflow.
const ELEMENT_LIMIT: u64 = 1 << 48;

/// Where tensors start unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The types of metadata values, in the order of their numbers.
#[derive(Clone, Copy)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::Text,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// Bytes of the shortest value.
    fn least_bytes(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::Text => 8,
            ValueType::Array => 12,
        }
    }
}

/// Reads from front to back and knows where it is.
struct Reader<'a> {
    path: &'a Path,
    input: BufReader<&'a fs::File>,
    length: u64,
    offset: u64,
    /// Of [`HEADER_LIMIT`].
    spent: u64,
}

impl Reader<'_> {
    /// Magic and version; then how many tensors and metadata entries there are.
    fn counts(&mut self) -> Result<(u64, u64)> {
        let found = self.bytes()?;
        if found != *b"GGUF" {
            return Err(self.malformed(Defect::Magic { found }));
        }
        let version = self.u32()?;
        if matches!(version.swap_bytes(), 1..=3) {
            return Err(self.malformed(Defect::BigEndian));
        }
        if !matches!(version, 2 | 3) {
            return Err(self.malformed(Defect::Version { found: version.into(), known: "2 or 3" }));
        }
        Ok((self.u64()?, self.u64()?))
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata> {
        self.check_count("metadata entries", count, LEAST_ENTRY)?;
        let mut metadata = Metadata::new();
        for _ in 0..count {
            let key = self.text()?;
            let kind = self.value_type()?;
            let value = self.value(kind, &key, 0)?;
            match metadata.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(entry) => {
                    let (key, found) = (entry.key().clone(), "given twice".into());
                    return Err(self.malformed(Defect::Metadata { key, found, wanted: "one value" }));
                }
            };
        }
        Ok(metadata)
    }

    fn value_type(&mut self) -> Result<ValueType> {
        let (offset, found) = (self.offset, self.u32()?);
        let known = ValueType::ALL.get(found as usize).copied();
        known.ok_or_else(|| self.malformed(Defect::Tag { what: "value type", found: found.into(), offset }))
    }

    fn value(&mut self, kind: ValueType, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            ValueType::U8 => Value::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            ValueType::U16 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            ValueType::U32 => Value::Unsigned(self.u32()?.into()),
            ValueType::U64 => Value::Unsigned(self.u64()?),
            ValueType::I8 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            ValueType::I16 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            ValueType::I32 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            ValueType::I64 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            ValueType::F32 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            ValueType::F64 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            ValueType::Bool => Value::Bool(self.truth()?),
            ValueType::Text => Value::Text(self.text()?),
            ValueType::Array => Value::Array(self.array(key, depth)?),
        })
    }

    fn truth(&mut self) -> Result<bool> {
        let (offset, [found]) = (self.offset, self.bytes()?);
        match found {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed(Defect::Tag { what: "truth value", found: found.into(), offset })),
        }
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Vec<Value>> {
        if depth == DEPTH_LIMIT {
            let (key, found) = (key.into(), format!("arrays more than {DEPTH_LIMIT} deep"));
            return Err(self.malformed(Defect::Metadata { key, found, wanted: "flatter ones" }));
        }
        let kind = self.value_type()?;
        let (count, least) = (self.u64()?, kind.least_bytes());
        self.check_count("array elements", count, least)?;
        self.spend(count.saturating_mul(8 - least.min(8)))?;
        self.check_limit(count.saturating_mul(least))?;
        let mut values = Vec::with_capacity(count as usize);
        for _ in 0..count {
            values.push(self.value(kind, key, depth + 1)?);
        }
        Ok(values)
    }

    /// The table of tensors. Bytes count from the start of the data, and are not checked.
    fn tensors(&mut self, count: u64) -> Result<BTreeMap<String, Stored>> {
        self.check_count("tensors", count, LEAST_TENSOR)?;
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            let name = self.text()?;
            let stored = self.tensor(&name)?;
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(stored),
                Entry::Occupied(entry) => {
                    let name = entry.key().clone();
                    return Err(self.malformed(Defect::Overlap { first: name.clone(), second: name }));
                }
            };
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: &str) -> Result<Stored> {
        let dims = self.dims(name)?;
        let kind = self.tensor_type()?;
        let start = self.u64()?;
        let (columns, block) = (dims.last().copied().unwrap_or(1) as u64, kind.values as u64);
        if !columns.is_multiple_of(block) {
            return Err(self.malformed(Defect::Block { tensor: name.into(), columns, block, dtype: kind.name }));
        }
        let end = start.saturating_add(kind.bytes_of(dims.iter().product()) as u64);
        Ok(Stored { dims, kind, bytes: start..end })
    }

    /// Outermost first. No product of any of them overflows, even where another one is zero.
    fn dims(&mut self, name: &str) -> Result<Vec<usize>> {
        let count = self.u32()?;
        // One dimension too many shows what is wrong; the claimed number may be billions.
        let mut dims = (0..count.min(DIMS_LIMIT + 1)).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        dims.reverse();
        let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul((*dim).max(1)));
        if count > DIMS_LIMIT || elements.is_none_or(|n| n > ELEMENT_LIMIT) {
            return Err(self.malformed(Defect::Shape { tensor: name.into(), dims }));
        }
        Ok(dims.into_iter().map(|dim| dim as usize).collect())
    }

    fn tensor_type(&mut self) -> Result<&'static TensorType> {
        let (offset, found) = (self.offset, self.u32()?);
        let known = TENSOR_TYPES.iter().find(|kind| kind.number == found);
        known.ok_or_else(|| self.malformed(Defect::Tag { what: "tensor type", found: found.into(), offset }))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        self.check_count("characters", length, 1)?;
        self.check_limit(length)?;
        let (offset, mut bytes) = (self.offset, vec![0; length as usize]);
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.malformed(Defect::Text { offset }))
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let wanted = buffer.len() as u64;
        if wanted > self.length - self.offset {
            return Err(self.malformed(Defect::TooShort { length: self.length, what: "its header" }));
        }
        self.spend(wanted)?;
        self.input.read_exact(buffer).map_err(Error::io("read", self.path))?;
        self.offset += wanted;
        Ok(())
    }

    /// Whether `count` things of at least `least` bytes can follow.
    fn check_count(&self, what: &'static str, count: u64, least: u64) -> Result<()> {
        match count <= (self.length - self.offset) / least {
            true => Ok(()),
            false => Err(self.malformed(Defect::Count { what, claimed: count, length: self.length })),
        }
    }

    fn check_limit(&self, more: u64) -> Result<()> {
        let declared = self.spent.saturating_add(more);
        match declared <= HEADER_LIMIT {
            true => Ok(()),
            false => Err(self.malformed(Defect::HeaderTooLong { declared, limit: HEADER_LIMIT })),
        }
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.check_limit(bytes)?;
        self.spent += bytes;
        Ok(())
    }

    fn malformed(&self, defect: Defect) -> Error {
        Error::Malformed { path: self.path.into(), format: FORMAT, defect }
    }
}

fn alignment(metadata: &Metadata) -> result::Result<u64, Defect> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=1 << 31).contains(n) => Ok(*n),
        Some(other) => {
            let found = match other {
                Value::Unsigned(n) => n.to_string(),
                other => format!("{other:?}"),
            };
            Err(Defect::Metadata { key: KEY.into(), found, wanted: "a power of two, 8 or more" })
        }
    }
}

/// Whether every tensor is aligned, inside the data and apart from all others. Bytes count from the start of the data.
fn check_extents(tensors: &BTreeMap<String, Stored>, length: u64, alignment: u64) -> result::Result<(), Defect> {
    let mut order: Vec<(&String, &Range<u64>)> = tensors.iter().map(|(name, stored)| (name, &stored.bytes)).collect();
    order.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    let extent = |(tensor, bytes): &(&String, &Range<u64>)| Defect::Extent {
        tensor: tensor.to_string(),
        start: bytes.start,
        end: bytes.end,
        length,
        alignment,
    };
    if let Some(skewed) = order.iter().find(|(_, bytes)| !bytes.start.is_multiple_of(alignment)) {
        return Err(extent(skewed));
    }
    if let Some(pair) = order.windows(2).find(|pair| pair[0].1.end > pair[1].1.start) {
        return Err(Defect::Overlap { first: pair[0].0.clone(), second: pair[1].0.clone() });
    }
    match order.iter().find(|(_, bytes)| bytes.end > length) {
        None => Ok(()),
        Some(_) if is_gapless(&order, alignment) => {
            Err(Defect::Length { covered: order.last().map_or(0, |(_, bytes)| bytes.end), present: length })
        }
        Some(outside) => Err(extent(outside)),
    }
}

/// Whether tensors follow each other as writers lay them out. If they do and reach too far, the file was cut short.
fn is_gapless(order: &[(&String, &Range<u64>)], alignment: u64) -> bool {
    let mut end = 0u64;
    order.iter().all(|(_, bytes)| {
        let follows = end.checked_next_multiple_of(alignment) == Some(bytes.start);
        end = bytes.end;
        follows
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_types_have_the_sizes_of_what_they_are() {
        for kind in TENSOR_TYPES {
            let size = match kind.storage {
                Storage::Plain(dtype) => (1, dtype.bytes()),
                Storage::Blocks(format) => (format.values(), format.bytes()),
                Storage::Unreadable => continue,
            };
            assert_eq!((kind.values, kind.bytes), size, "{}", kind.name);
        }
    }

    #[test]
    fn value_types_stand_at_their_numbers() {
        for (number, kind) in ValueType::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }
}
