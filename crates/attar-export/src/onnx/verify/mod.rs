//! Reads an artifact back and compares every weight with the model's.
//!
//! How a tensor is meant is taken from the nodes that read it, by the texts of the operators: DequantizeLinear-21 of
//! ONNX, and MatMulNBits and GatherBlockQuantized of com.microsoft. Nothing here is shared with the writer.

mod codes;
mod file;
pub(crate) mod grid;
mod guard;
mod meaning;

use std::{ops::Range, path::Path};

use attar_tensor::{Dtype, Encoding};

use crate::{
    Artifact, Error, Input, Original, Result, Verification, VerifiedTensor,
    kit::{self, Weight, chunks},
    noise::{Noise, same},
};
use codes::Codes;
use file::{Opened, Place};
use meaning::{Meaning, meaning};

/// Bytes of f32 that are compared at a time.
const CHUNK: usize = 4 << 20;

/// Whether `bytes` are a model that [`Format::verify`](crate::Format::verify) could read. `path` is for the message.
pub fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    file::parse(path, bytes).map(drop)
}

/// What to read.
#[derive(Clone, Copy)]
pub(crate) struct Written<'f> {
    /// The file of the graph.
    pub(crate) file: &'f str,
    /// Whether zeros in plain numbers lost their sign; those of codes may have.
    pub(crate) unsigned_zeros: bool,
}

impl Written<'_> {
    /// What most targets write.
    pub(crate) const USUAL: Written<'static> = Written { file: crate::onnx::MODEL, unsigned_zeros: false };
}

/// Compares all weights that a node of the graph reads, tied ones once.
pub(crate) fn verify(
    model: &Input<'_>,
    artifact: &Artifact,
    folder: &Path,
    written: Written<'_>,
    original: Option<Original<'_>>,
) -> Result<Verification> {
    let opened = Opened::open(folder, written.file)?;
    kit::compare_weights(model, artifact, folder, &|_| false, &|weight| {
        Read { opened: &opened, weight, unsigned_zeros: written.unsigned_zeros }.compare(original)
    })
}

struct Read<'a> {
    opened: &'a Opened,
    weight: &'a Weight<'a>,
    unsigned_zeros: bool,
}

impl Read<'_> {
    fn compare(&self, original: Option<Original<'_>>) -> Result<(VerifiedTensor, usize)> {
        let [rows, columns] = self.weight.expr.info(self.weight.source)?.matrix();
        let mut noise = Noise::default();
        let mut buffers = [Vec::new(), Vec::new(), Vec::new()];
        let mut compare = |rows: Range<usize>, found: &[f32]| -> Result<()> {
            let [wanted, before, without_signs] = &mut buffers;
            wanted.resize(found.len(), 0.0);
            self.weight.expr.read(self.weight.source, rows.clone(), wanted)?;
            kit::as_stored(self.weight.encoding, wanted);
            if self.unsigned_zeros {
                kit::without_negative_zeros(wanted);
            }
            // Of codes, it is the scale that has the sign.
            let coded = self.unsigned_zeros && matches!(self.weight.encoding, Encoding::Quantized(_));
            let found = if coded { unsigned(found, without_signs) } else { found };
            same(&self.weight.entry.name, rows.start, columns, found, wanted)?;
            let Some(original) = original else { return Ok(()) };
            before.resize(found.len(), 0.0);
            if original(&self.weight.entry.name, rows, before)? {
                noise.add(found, before);
            }
            Ok(())
        };
        let (tensor, first, all) = self.place(rows)?;
        match meaning(self.opened, tensor, [all, columns])? {
            Meaning::Values(place) => self.read_plain(place, [rows, columns], &mut compare)?,
            Meaning::Codes(codes) => self.read_codes(&codes, first..first + rows, &mut compare)?,
        }
        let snr_db = noise.judge(&self.weight.entry.name, self.weight.encoding)?;
        Ok((VerifiedTensor { name: self.weight.entry.name.clone(), snr_db }, rows * columns))
    }

    /// The tensor of the file that it is in, its first row there, and how many rows that tensor has.
    fn place(&self, rows: usize) -> Result<(&str, usize, usize)> {
        let Some(packed) = &self.weight.entry.packed else { return Ok((&self.weight.entry.name, 0, rows)) };
        let all = self.opened.place(&packed.tensor)?.dims.first().copied().unwrap_or(0);
        match packed.row.checked_add(rows) {
            Some(end) if end <= all => Ok((&packed.tensor, packed.row, all)),
            _ => {
                let (what, found) =
                    (format!("the place of `{}` in `{}`", self.weight.entry.name, packed.tensor), format!("row {}", packed.row));
                Err(Error::unexpected(&self.opened.path, what, found, format!("one of {all} with {rows} behind it")))
            }
        }
    }

    fn read_plain(&self, place: &Place, [rows, columns]: [usize; 2], compare: Compare<'_>) -> Result<()> {
        let dtype = match place.code {
            1 => Dtype::F32,
            10 => Dtype::F16,
            16 => Dtype::BF16,
            3 => Dtype::I8,
            5 => Dtype::I16,
            code => {
                let wanted = "f32, f16, bf16, i8 or i16";
                return Err(Error::unexpected(
                    &self.opened.path,
                    format!("the type of `{}`", self.weight.entry.name),
                    code,
                    wanted,
                ));
            }
        };
        if place.dims.iter().product::<usize>() != rows * columns {
            let found = format!("{:?}", place.dims);
            return Err(Error::unexpected(
                &self.opened.path,
                format!("the shape of `{}`", self.weight.entry.name),
                found,
                format!("{rows} x {columns}"),
            ));
        }
        let row_bytes = (columns * dtype.bytes()) as u64;
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for chunk in chunks(rows, CHUNK / (4 * columns).max(1)) {
            self.opened.read(place, chunk.start as u64 * row_bytes..chunk.end as u64 * row_bytes, &mut bytes)?;
            values.resize(chunk.len() * columns, 0.0);
            dtype.decode(&bytes, &mut values);
            compare(chunk, &values)?;
        }
        Ok(())
    }

    /// Rows `of` the tensor; `compare` counts them from 0.
    fn read_codes(&self, codes: &Codes<'_>, of: Range<usize>, compare: Compare<'_>) -> Result<()> {
        let columns = codes.columns;
        let mut values = Vec::new();
        for tile in chunks(of.len(), codes.tile_rows()) {
            let tile = codes.load(self.opened, of.start + tile.start..of.start + tile.end)?;
            for chunk in chunks(tile.rows.len(), (CHUNK / (4 * columns)).clamp(1, 64)) {
                values.resize(chunk.len() * columns, 0.0);
                tile.decode(chunk.clone(), &mut values);
                let first = tile.rows.start - of.start;
                compare(first + chunk.start..first + chunk.end, &values)?;
            }
        }
        Ok(())
    }
}

/// The same with zeros that have no sign.
fn unsigned<'b>(values: &[f32], buffer: &'b mut Vec<f32>) -> &'b [f32] {
    values.clone_into(buffer);
    kit::without_negative_zeros(buffer);
    buffer
}

/// Takes some rows as the artifact has them.
type Compare<'c> = &'c mut dyn FnMut(Range<usize>, &[f32]) -> Result<()>;
