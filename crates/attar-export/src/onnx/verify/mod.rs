//! Reads an artifact back and compares every weight with the model's.
//!
//! How a tensor is meant is taken from the nodes that read it, by the texts of the operators: DequantizeLinear-21 of
//! ONNX, and MatMulNBits and GatherBlockQuantized of com.microsoft. Nothing here is shared with the writer.

mod codes;
mod file;
pub(crate) mod grid;
mod guard;
mod meaning;

use std::{collections::HashSet, fmt::Display, ops::Range, path::Path};

use attar_graph::{Expr, ValueId};
use attar_tensor::{Dtype, Encoding, Source};

use crate::{
    Artifact, Defect, Error, Input, Original, Packed, Result, Verification, VerifiedTensor, kit,
    noise::{Noise, same},
};
use codes::Codes;
use file::{Opened, Place};
use meaning::{Meaning, meaning};

/// Bytes of f32 that are compared at a time.
const CHUNK: usize = 4 << 20;

fn unexpected(path: &Path, what: String, found: impl Display, wanted: impl Display) -> Error {
    let (found, wanted) = (found.to_string(), wanted.to_string());
    Error::Malformed { path: path.into(), defect: Defect::Unexpected { what, found, wanted } }
}

/// Whether `bytes` are a model that [`Format::verify`](crate::Format::verify) could read. `path` is for the message.
pub fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    file::parse(path, bytes).map(drop)
}

/// Compares all weights that a node of the graph reads, tied ones once.
pub(crate) fn verify(
    model: &Input<'_>,
    artifact: &Artifact,
    folder: &Path,
    original: Option<Original<'_>>,
) -> Result<Verification> {
    let opened = Opened::open(folder)?;
    let mut verification = Verification { tensors: Vec::new(), weights: 0 };
    let mut seen = HashSet::new();
    let read: HashSet<ValueId> = model.graph.nodes().iter().flat_map(|node| node.inputs.iter().copied()).collect();
    for (id, value, expr) in model.graph.weights().filter(|(id, ..)| read.contains(id)) {
        let entry = artifact.tensors.iter().find(|t| t.name == value.name || t.also.contains(&value.name));
        let entry =
            entry.ok_or_else(|| unexpected(folder, format!("`{}`", value.name), "missing", "a tensor of the manifest"))?;
        if !seen.insert((&entry.name, expr, value.fact.encoding.to_string())) {
            continue;
        }
        let encoding = model.graph.fact(id).encoding;
        let weight =
            Weight { opened: &opened, source: model.source, name: &entry.name, packed: entry.packed.as_ref(), expr, encoding };
        let (tensor, count) = weight.compare(original)?;
        verification.tensors.push(tensor);
        verification.weights += count as u64;
    }
    Ok(verification)
}

struct Weight<'a> {
    opened: &'a Opened,
    source: &'a dyn Source,
    name: &'a str,
    packed: Option<&'a Packed>,
    expr: &'a Expr,
    encoding: Encoding,
}

impl Weight<'_> {
    fn compare(&self, original: Option<Original<'_>>) -> Result<(VerifiedTensor, usize)> {
        let [rows, columns] = self.expr.info(self.source)?.matrix();
        let mut noise = Noise::default();
        let mut buffers = [Vec::new(), Vec::new()];
        let mut compare = |rows: Range<usize>, found: &[f32]| -> Result<()> {
            let [wanted, before] = &mut buffers;
            wanted.resize(found.len(), 0.0);
            self.expr.read(self.source, rows.clone(), wanted)?;
            kit::as_stored(self.encoding, wanted);
            same(self.name, rows.start, columns, found, wanted)?;
            let Some(original) = original else { return Ok(()) };
            before.resize(found.len(), 0.0);
            if original(self.name, rows, before)? {
                noise.add(found, before);
            }
            Ok(())
        };
        let (tensor, first, all) = self.place(rows)?;
        match meaning(self.opened, tensor, [all, columns])? {
            Meaning::Values(place) => self.read_plain(place, [rows, columns], &mut compare)?,
            Meaning::Codes(codes) => self.read_codes(&codes, first..first + rows, &mut compare)?,
        }
        let snr_db = noise.judge(self.name, self.encoding)?;
        Ok((VerifiedTensor { name: self.name.into(), snr_db }, rows * columns))
    }

    /// The tensor of the file that it is in, its first row there, and how many rows that tensor has.
    fn place(&self, rows: usize) -> Result<(&str, usize, usize)> {
        let Some(packed) = self.packed else { return Ok((self.name, 0, rows)) };
        let all = self.opened.place(&packed.tensor)?.dims.first().copied().unwrap_or(0);
        match packed.row.checked_add(rows) {
            Some(end) if end <= all => Ok((&packed.tensor, packed.row, all)),
            _ => {
                let (what, found) =
                    (format!("the place of `{}` in `{}`", self.name, packed.tensor), format!("row {}", packed.row));
                Err(unexpected(&self.opened.path, what, found, format!("one of {all} with {rows} behind it")))
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
                return Err(unexpected(&self.opened.path, format!("the type of `{}`", self.name), code, wanted));
            }
        };
        if place.dims.iter().product::<usize>() != rows * columns {
            let found = format!("{:?}", place.dims);
            return Err(unexpected(
                &self.opened.path,
                format!("the shape of `{}`", self.name),
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

/// Takes some rows as the artifact has them.
type Compare<'c> = &'c mut dyn FnMut(Range<usize>, &[f32]) -> Result<()>;

/// `0..count` in runs of `size`, at least 1.
fn chunks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..count).step_by(size).map(move |start| start..(start + size).min(count))
}
