//! Matrices in the data file: codes, scales, zeros and tables, entry by entry.

use std::ops::Range;

use attar_tensor::Dtype;

use super::file::{Opened, Place};
use crate::{Error, Result};

/// A matrix in the data file: an entry for each row of the weight and each column or group.
pub(super) struct Grid<'f> {
    pub(super) place: &'f Place,
    /// Bits an entry, and whether they are in two's complement.
    pub(super) bits: u64,
    pub(super) signed: bool,
    /// Entries from one row of the weight to the next, and from one column to the next; 0 where all share one.
    pub(super) stride: [usize; 2],
}

impl<'f> Grid<'f> {
    pub(super) fn new(place: &'f Place, stride: [usize; 2]) -> Grid<'f> {
        let (bits, signed) = match place.code {
            22 => (4, true),
            21 => (4, false),
            3 => (8, true),
            1 => (32, false),
            10 | 16 => (16, false),
            _ => (8, false),
        };
        Grid { place, bits, signed, stride }
    }

    /// The bytes of entries `range`, and where in them, in entries, the first one is.
    fn bytes(&self, opened: &Opened, range: Range<usize>, out: &mut Vec<u8>) -> Result<usize> {
        let start = range.start as u64 * self.bits / 8;
        let end = (range.end as u64 * self.bits).div_ceil(8);
        opened.read(self.place, start..end, out)?;
        Ok((range.start as u64 - start * 8 / self.bits) as usize)
    }

    /// Calls `each` with runs of adjacent entries: their bytes, how many entries to skip, how many to
    /// take, and where they belong in a `[width, rows]` (transposed) or `[rows, width]` matrix.
    fn runs(
        &self,
        opened: &Opened,
        rows: &Range<usize>,
        width: usize,
        mut each: impl FnMut(&[u8], usize, usize, usize),
    ) -> Result<()> {
        let mut bytes = Vec::new();
        let mut run = |start: usize, count: usize, at: usize| -> Result<()> {
            let skip = self.bytes(opened, start..start + count, &mut bytes)?;
            each(&bytes, skip, count, at);
            Ok(())
        };
        match self.stride {
            [0, _] => run(0, 1, 0),
            [1, stride] if stride == rows.len() || stride == 0 => run(rows.start, width * rows.len(), 0),
            [1, stride] => (0..width).try_for_each(|column| run(column * stride + rows.start, rows.len(), column * rows.len())),
            [stride, _] if stride == width => run(rows.start * stride, rows.len() * width, 0),
            [stride, _] => rows.clone().enumerate().try_for_each(|(i, row)| run(row * stride, width, i * width)),
        }
    }

    pub(super) fn is_transposed(&self) -> bool {
        self.stride[0] == 1 && self.stride[1] != 1
    }

    /// Codes of `rows`, one per byte, in the order of the file.
    pub(super) fn codes(&self, opened: &Opened, rows: &Range<usize>, width: usize) -> Result<Vec<u8>> {
        let mut codes = vec![0; rows.len() * width];
        self.runs(opened, rows, width, |bytes, skip, count, at| {
            let out = &mut codes[at..at + count];
            match self.bits {
                4 => nibbles(bytes, skip, out),
                _ => out.copy_from_slice(&bytes[skip..skip + count]),
            }
        })?;
        if self.signed {
            let sign = 1u8 << (self.bits - 1);
            codes.iter_mut().for_each(|code| *code ^= sign);
        }
        Ok(codes)
    }

    /// Scales of `rows`, in the order of the file.
    pub(super) fn scales(&self, opened: &Opened, rows: &Range<usize>, width: usize) -> Result<Vec<f32>> {
        let mut scales = vec![0.0; rows.len() * width];
        let mut failed = Ok(());
        self.runs(opened, rows, width, |bytes, _, count, at| match self.decode(opened, bytes) {
            Ok(values) => scales[at..at + count].copy_from_slice(&values[..count]),
            Err(error) => failed = Err(error),
        })?;
        failed.map(|()| scales)
    }

    /// Numbers of one of the types that scales have.
    pub(super) fn decode(&self, opened: &Opened, bytes: &[u8]) -> Result<Vec<f32>> {
        let dtype = match self.place.code {
            1 => Dtype::F32,
            2 => return Ok(bytes.iter().map(|code| f32::from(*code)).collect()),
            3 => Dtype::I8,
            10 => Dtype::F16,
            16 => Dtype::BF16,
            17 => return Ok(bytes.iter().map(|code| float(*code, 4, 3)).collect()),
            code => {
                return Err(Error::unexpected(
                    &opened.path,
                    "the type of scales".into(),
                    code,
                    "f32, f16, bf16, int8, uint8 or e4m3",
                ));
            }
        };
        let mut values = vec![0.0; bytes.len() / dtype.bytes()];
        dtype.decode(bytes, &mut values);
        Ok(values)
    }

    /// Entries in the order of the file to `[rows, width]`.
    pub(super) fn by_rows<T: Copy + Default>(&self, entries: Vec<T>, rows: usize, width: usize) -> Vec<T> {
        if self.stride[0] == 0 {
            return vec![entries[0]; rows * width];
        }
        if !self.is_transposed() || width == 1 {
            return entries;
        }
        let mut transposed = vec![T::default(); rows * width];
        for (column, entries) in entries.chunks(rows).enumerate() {
            transposed[column..].iter_mut().step_by(width).zip(entries).for_each(|(out, entry)| *out = *entry);
        }
        transposed
    }
}

/// Nibbles, low ones first, from nibble `skip` on.
fn nibbles(bytes: &[u8], skip: usize, out: &mut [u8]) {
    let (first, rest) = out.split_at_mut((skip % 2).min(out.len()));
    if let [first] = first {
        *first = bytes[0] >> 4;
    }
    let bytes = &bytes[skip.div_ceil(2)..];
    let (pairs, last) = rest.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [byte & 15, byte >> 4];
    }
    if let [last] = last {
        *last = bytes[pairs.len()] & 15;
    }
}

/// A float with a sign and so many bits of exponent and fraction, by the text of the OCP 8-bit formats: the largest codes
/// mean no number.
pub(crate) fn float(code: u8, exponent_bits: u32, fraction_bits: u32) -> f32 {
    let (bias, steps) = ((1 << (exponent_bits - 1)) - 1, 2f64.powi(fraction_bits as i32));
    let (exponent, fraction) = (i32::from(code & 127) >> fraction_bits, f64::from(code & ((1 << fraction_bits) - 1)));
    let magnitude = match (exponent_bits, exponent) {
        (4, _) if code & 127 == 127 => f64::NAN,
        (5, 31) => f64::NAN,
        (_, 0) => fraction / steps * 2f64.powi(1 - bias),
        (_, exponent) => (1.0 + fraction / steps) * 2f64.powi(exponent - bias),
    };
    (if code > 127 { -magnitude } else { magnitude }) as f32
}
