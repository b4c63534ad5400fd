//! The tensors that a quantized layer is made of: found and checked once, then read in pieces.

use std::ops::Range;

use attar_tensor::{Defect, Dtype, Minifloat, Source};

use super::Files;
use crate::Result;

/// A stored tensor whose type and shape were checked.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) dims: Vec<usize>,
}

/// A stored type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain(Dtype),
    /// E4M3 without infinities.
    F8,
}

impl Kind {
    fn named(name: &str) -> Option<Kind> {
        match name {
            "F8_E4M3" => Some(Kind::F8),
            _ => Dtype::ALL.iter().copied().find(|dtype| dtype.name().eq_ignore_ascii_case(name)).map(Kind::Plain),
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Kind::Plain(dtype) => dtype.bytes(),
            Kind::F8 => 1,
        }
    }
}

/// Most rows or columns of a layer: beyond it a product of two could overflow.
const LIMIT: usize = 1 << 24;

impl Files<'_> {
    /// Every tensor whose name ends in `end`, without that.
    pub(super) fn modules(&self, end: &str) -> Vec<String> {
        let names = self.source.tensors().keys().cloned().chain(self.source.unreadable());
        names.filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect()
    }

    /// A tensor, if it is there, whose type is one of ours.
    pub(super) fn maybe(&self, name: &str) -> Result<Option<Part>> {
        let Some(stored) = self.source.stored(name) else { return Ok(None) };
        let kind = Kind::named(&stored.dtype).ok_or_else(|| self.part(name, &stored.dtype, "a known type"))?;
        if stored.dims.iter().any(|dim| *dim == 0 || *dim > LIMIT) {
            return Err(self.part(name, format!("{:?}", stored.dims), format!("dimensions from 1 to {LIMIT}")));
        }
        Ok(Some(Part { name: name.into(), kind, dims: stored.dims }))
    }

    /// A tensor that must be there.
    pub(super) fn need(&self, name: &str) -> Result<Part> {
        self.maybe(name)?.ok_or_else(|| self.part(name, "missing", "a tensor of the quantized layer"))
    }

    /// The error for a tensor that does not fit the others.
    pub(super) fn part(&self, name: &str, found: impl Into<String>, wanted: impl Into<String>) -> crate::Error {
        let defect = Defect::Part { tensor: name.into(), wanted: wanted.into(), found: found.into() };
        attar_tensor::Error::Malformed { path: self.path.into(), format: self.title, defect }.into()
    }

    /// `part` has that shape.
    pub(super) fn check_dims(&self, part: &Part, wanted: &[usize]) -> Result<()> {
        match part.dims == wanted {
            true => Ok(()),
            false => Err(self.part(&part.name, format!("{:?}", part.dims), format!("{wanted:?}"))),
        }
    }

    /// `part` is of that type.
    pub(super) fn check_kind(&self, part: &Part, wanted: Kind) -> Result<()> {
        match part.kind == wanted {
            true => Ok(()),
            false => Err(self.part(&part.name, format!("of type {:?}", part.kind), format!("{wanted:?}"))),
        }
    }

    /// `part` is of `i32` and has two dimensions, which are returned.
    pub(super) fn words(&self, part: &Part) -> Result<[usize; 2]> {
        self.check_kind(part, Kind::Plain(Dtype::I32))?;
        self.matrix(part)
    }

    /// `part` has two dimensions, which are returned.
    pub(super) fn matrix(&self, part: &Part) -> Result<[usize; 2]> {
        <[usize; 2]>::try_from(&part.dims[..])
            .map_err(|_| self.part(&part.name, format!("{:?}", part.dims), "a tensor of two dimensions"))
    }

    /// The format of scales, which is that of decoded weights.
    pub(super) fn scale_dtype(&self, part: &Part) -> Result<Dtype> {
        match part.kind {
            Kind::Plain(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16)) => Ok(dtype),
            kind => Err(self.part(&part.name, format!("of type {kind:?}"), "f32, f16 or bf16")),
        }
    }

    /// The group of every column, from a `g_idx`. Each is below `groups`.
    pub(super) fn group_index(&self, part: &Part, columns: usize, groups: usize) -> Result<Vec<u32>> {
        self.check_kind(part, Kind::Plain(Dtype::I32))?;
        self.check_dims(part, &[columns])?;
        let index = part.integers(self.source, 0..columns)?;
        match index.iter().position(|group| *group < 0 || *group as usize >= groups) {
            Some(at) => {
                Err(self.part(&part.name, format!("group {} for column {at}", index[at]), format!("groups below {groups}")))
            }
            None => Ok(index.into_iter().map(|group| group as u32).collect()),
        }
    }
}

impl Part {
    fn bytes(&self, source: &dyn Source, range: &Range<usize>) -> attar_tensor::Result<Vec<u8>> {
        let mut bytes = vec![0; range.len() * self.kind.bytes()];
        source.read_stored(&self.name, (range.start * self.kind.bytes()) as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Elements, counted over all dimensions.
    pub(super) fn numbers(&self, source: &dyn Source, range: Range<usize>) -> attar_tensor::Result<Vec<f32>> {
        let bytes = self.bytes(source, &range)?;
        match self.kind {
            Kind::F8 => Ok(bytes.iter().map(|code| Minifloat::E4M3.value(*code)).collect()),
            Kind::Plain(dtype) => {
                let mut out = vec![0.0; range.len()];
                dtype.decode(&bytes, &mut out);
                Ok(out)
            }
        }
    }

    /// The same of `i32`.
    pub(super) fn integers(&self, source: &dyn Source, range: Range<usize>) -> attar_tensor::Result<Vec<i32>> {
        let bytes = self.bytes(source, &range)?;
        Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The columns `range` of every row of a matrix of `i32`.
    pub(super) fn columns(&self, source: &dyn Source, range: Range<usize>) -> attar_tensor::Result<Vec<u32>> {
        let (rows, width) = (self.dims[0], self.dims[1]);
        let mut out = Vec::with_capacity(rows * range.len());
        for row in 0..rows {
            let at = row * width;
            out.extend(self.integers(source, at + range.start..at + range.end)?.into_iter().map(|word| word as u32));
        }
        Ok(out)
    }

    /// The columns `range` of every row of a matrix of floats.
    pub(super) fn float_columns(&self, source: &dyn Source, range: Range<usize>) -> attar_tensor::Result<Vec<f32>> {
        let mut out = Vec::with_capacity(self.dims[0] * range.len());
        for row in 0..self.dims[0] {
            let at = row * self.dims[1];
            out.extend(self.numbers(source, at + range.start..at + range.end)?);
        }
        Ok(out)
    }
}

/// Value `at` of a stream of `bits` wide values, lowest bits first; `word` gives the stream's 32-bit words.
pub(super) fn unpack(at: usize, bits: usize, word: impl Fn(usize) -> u32) -> i32 {
    let (first, shift) = (at * bits / 32, at * bits % 32);
    let low = word(first) >> shift;
    let value = if shift + bits > 32 { low | word(first + 1) << (32 - shift) } else { low };
    (value & ((1 << bits) - 1)) as i32
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[test]
    fn values_cross_words() {
        for bits in [2, 3, 4, 8] {
            let values: Vec<u32> = (0..64).map(|i| (i * 37 + 11) % (1 << bits)).collect();
            let mut words = vec![0u32; 64 * bits / 32];
            for (i, value) in values.iter().enumerate() {
                for bit in 0..bits {
                    let at = i * bits + bit;
                    words[at / 32] |= (value >> bit & 1) << (at % 32);
                }
            }
            let found: Vec<u32> = (0..64).map(|i| unpack(i, bits, |word| words[word]) as u32).collect();
            assert_eq!(found, values, "{bits}");
        }
    }
}
