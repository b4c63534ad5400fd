//! A tensor as it will be stored: its number format, and its numbers by rows.

use std::{collections::BTreeMap, io::Write, ops::Range};

use attar_graph::Graph;
use attar_model::{FolderTensor, Part};
use attar_tensor::{
    Dtype, Encoding, Source, TensorInfo,
    safetensors::{Entry, Writer},
};

use super::Numbers;
use crate::{Error, Result, kit::chunks};

/// Bytes of f32 in memory at a time.
const PIECE: usize = 1 << 22;

/// Runs of rows that fit in memory.
pub(super) fn pieces(rows: usize, columns: usize) -> impl Iterator<Item = Range<usize>> {
    chunks(rows, PIECE / 4 / columns.max(1))
}

/// A tensor in a number format.
pub(super) struct Stored {
    pub(super) tensor: FolderTensor,
    pub(super) dtype: Dtype,
}

impl Stored {
    pub(super) fn of(tensor: &FolderTensor, graph: &Graph, numbers: Numbers, source: Option<&dyn Source>) -> Result<Stored> {
        let dtype = match numbers {
            Numbers::Bf16 => Dtype::BF16,
            Numbers::F16 => Dtype::F16,
            Numbers::F32 => Dtype::F32,
            Numbers::Auto => {
                let own = |part: &Part| own_dtype(part, graph, source);
                let all = tensor.parts.iter().map(own).collect::<Result<Vec<Dtype>>>()?;
                if all.iter().all(|dtype| *dtype == all[0]) { all[0] } else { Dtype::F32 }
            }
        };
        Ok(Stored { tensor: tensor.clone(), dtype })
    }

    /// In the file.
    pub(super) fn bytes(&self) -> u64 {
        (self.tensor.dims.iter().product::<usize>() * self.dtype.bytes()) as u64
    }

    fn matrix(&self) -> [usize; 2] {
        TensorInfo { dims: self.tensor.dims.clone(), encoding: Encoding::Plain(self.dtype) }.matrix()
    }

    /// Rows of the tensor before they are rounded.
    fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let columns = self.matrix()[1];
        let mut first = 0;
        for part in &self.tensor.parts {
            let [part_rows, part_columns] = part.matrix();
            if self.tensor.across {
                let mut numbers = vec![0.0; rows.len() * part_columns];
                part.read(source, rows.clone(), &mut numbers)?;
                for (out, numbers) in out.chunks_mut(columns).zip(numbers.chunks(part_columns)) {
                    out[first..first + part_columns].copy_from_slice(numbers);
                }
                first += part_columns;
            } else {
                let (start, end) = (rows.start.max(first), rows.end.min(first + part_rows));
                if start < end {
                    let out = &mut out[(start - rows.start) * columns..(end - rows.start) * columns];
                    part.read(source, start - first..end - first, out)?;
                }
                first += part_rows;
            }
        }
        Ok(())
    }
}

/// The number format that holds a part as it is.
fn own_dtype(part: &Part, graph: &Graph, source: Option<&dyn Source>) -> Result<Dtype> {
    // What a gain less one is stored as, only the source knows; most likely it is as the table.
    let table = || graph.find("embedding").map(|id| graph.fact(id).encoding);
    let encoding = match source {
        Some(source) if !part.less_one => part.expr.encoding(source)?,
        None if part.gain && !part.less_one => table().unwrap_or(Encoding::Plain(Dtype::F32)),
        _ => graph.fact(part.weight).encoding,
    };
    Ok(match encoding {
        Encoding::Plain(dtype @ (Dtype::F16 | Dtype::BF16)) => dtype,
        _ => Dtype::F32,
    })
}

/// Rounds `values` of `tensor`, whose first row is `first`.
///
/// # Errors
/// If a number is too large for the format.
pub(super) fn rounded(tensor: &str, dtype: Dtype, first: usize, columns: usize, values: &mut [f32]) -> Result<()> {
    for (at, value) in values.iter_mut().enumerate() {
        let rounded = dtype.round(*value);
        if rounded.is_infinite() && value.is_finite() {
            let (row, column) = (first + at / columns, at % columns);
            return Err(Error::Overflow { tensor: tensor.into(), row, column, found: *value, dtype: dtype.name() });
        }
        *value = rounded;
    }
    Ok(())
}

/// Writes one file, and says how many bytes of weights are done.
pub(super) fn write(to: &mut dyn Write, tensors: &[Stored], source: &dyn Source, done: &mut dyn FnMut(u64)) -> Result<()> {
    let failed = || Error::io("write", "model.safetensors");
    let entry =
        |stored: &Stored| Entry { name: stored.tensor.name.clone(), dtype: stored.dtype, dims: stored.tensor.dims.clone() };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    // Without this word transformers refuses the file.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = Writer::new(to, &entries, &metadata).map_err(failed())?;
    for stored in tensors {
        let [rows, columns] = stored.matrix();
        for rows in pieces(rows, columns) {
            let mut values = vec![0.0; rows.len() * columns];
            stored.read(source, rows.clone(), &mut values)?;
            rounded(&stored.tensor.name, stored.dtype, rows.start, columns, &mut values)?;
            let mut bytes = Vec::new();
            stored.dtype.encode(&values, &mut bytes);
            writer.append(&bytes).map_err(failed())?;
            done(bytes.len() as u64);
        }
    }
    writer.finish();
    Ok(())
}
