//! Reads a bundle back and compares every weight with the model's.
//!
//! What a weight is made of is taken from the tensors of the file, by LiteRT's definitions. Nothing here is shared with the writer but the reader of
//! FlatBuffers.

use std::{
    collections::HashMap,
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use attar_graph::{Node, Op};
use attar_tensor::Dtype;
use serde_json::Value;

use super::{
    bundle,
    flat::Table,
    integer::{TABLES, is_integer},
};
use crate::{
    Artifact, Defect, Error, Input, Original, Result, TensorEntry, Verification, VerifiedTensor,
    kit::{self, Weight},
};

/// Longest FlatBuffer that is read: it has no weights in it.
const LIMIT: u64 = 512 << 20;

/// Whether `bytes` are a bundle that [`Format::verify`](crate::Format::verify) could read. `path` is for the message.
pub fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    let malformed = |reason: String| Error::Malformed { path: path.into(), defect: Defect::Parse(reason) };
    let place = model_in(bytes, bytes.len() as u64).map_err(|reason| malformed(reason.into()))?;
    let model = &bytes[place.start as usize..place.end as usize];
    let tensors = tensors(model).map_err(malformed)?;
    tensors.values().try_for_each(|tensor| tensor.check(model.len() as u64, &tensors)).map_err(malformed)
}

/// Where the model is in a file that begins with `head`: in a section of a bundle, or it is all of the file.
fn model_in(head: &[u8], length: u64) -> std::result::Result<Range<u64>, &'static str> {
    if head.get(4..8) == Some(b"TFL3") { Ok(0..length) } else { bundle::section(head, length, bundle::MODEL) }
}

/// Compares all weights that a node of the graph reads, tied ones once, in all files that have them, and in all forms.
pub(super) fn verify(
    model: &Input<'_>,
    artifact: &Artifact,
    paths: &[PathBuf],
    original: Option<Original<'_>>,
) -> Result<Verification> {
    let opened = paths.iter().map(|path| Opened::open(path)).collect::<Result<Vec<_>>>()?;
    let missing = |path: &Path, name: &str| Error::unexpected(path, format!("`{name}`"), "missing", "a constant");
    let first = paths.first().ok_or_else(|| missing(Path::new(""), "model"))?;
    // The scales of rounded values are those of the operators' results.
    let integers = is_integer(model.graph);
    let is_elsewhere = |node: &Node| integers && matches!(node.op, Op::Quantize { .. });
    kit::compare_weights(model, artifact, first, &is_elsewhere, &|weight| {
        let mut found = None;
        for file in &opened {
            for entry in forms(artifact, weight.entry) {
                let Some(tensor) = file.tensor(&entry.name, &entry.dims)? else { continue };
                let compared = file.compare(tensor, &Weight { entry, ..*weight }, original)?;
                found = found.filter(|(of, _): &(VerifiedTensor, usize)| of.snr_db.is_some()).or(Some(compared));
            }
        }
        found.ok_or_else(|| missing(first, &weight.entry.name))
    })
}

/// All entries that are made of the weight of one.
fn forms<'a>(artifact: &'a Artifact, of: &'a TensorEntry) -> impl Iterator<Item = &'a TensorEntry> {
    artifact
        .tensors
        .iter()
        .filter(move |entry| entry.name == of.name || entry.also.contains(&of.name) || of.also.contains(&entry.name))
}

/// A constant tensor, as the file has it.
#[derive(Clone, Debug)]
struct Tensor {
    kind: u8,
    dims: Vec<usize>,
    /// In the section of the model, or in a file of tables.
    place: Range<u64>,
    /// The number of the file: 0 is the model's.
    file: usize,
    scales: Scales,
}

#[derive(Clone, Debug)]
enum Scales {
    None,
    Rows(Vec<f32>),
    /// In the tensor of that name, for so many weights each.
    Blocks(String, usize),
}

const F32: u8 = 0;
const F16: u8 = 1;
const I32: u8 = 2;
const I64: u8 = 4;
const I16: u8 = 7;
const I8: u8 = 9;
const I4: u8 = 17;

impl Tensor {
    fn bits(&self) -> Option<u64> {
        Some(match self.kind {
            F32 | I32 => 32,
            I64 => 64,
            F16 | I16 => 16,
            I8 => 8,
            I4 => 4,
            _ => return None,
        })
    }

    fn elements(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim as u64))
    }

    /// Its numbers are inside of the section and as many as its shape says, and so are its scales.
    fn check(&self, length: u64, all: &HashMap<String, Tensor>) -> std::result::Result<(), String> {
        let wanted = self.bits().zip(self.elements()).and_then(|(bits, count)| Some(count.checked_mul(bits)?.div_ceil(8)));
        if self.place.end > length || wanted != Some(self.place.end - self.place.start) {
            return Err(format!("a tensor of {:?} lies at {:?} of {length} bytes", self.dims, self.place));
        }
        let whole = [I16, I32, I64].contains(&self.kind);
        let [rows, columns] = self.dims[..] else {
            let fits = match &self.scales {
                Scales::None => true,
                Scales::Rows(scales) => whole && (scales.len() == 1 || self.dims == [scales.len()]),
                Scales::Blocks(..) => false,
            };
            return if fits { Ok(()) } else { Err("codes are no matrix".into()) };
        };
        let fits = match &self.scales {
            Scales::None => self.kind != I4 && self.kind != I8,
            Scales::Rows(scales) => scales.len() == if whole { 1 } else { rows },
            Scales::Blocks(name, size) => {
                let scales = all.get(name).map(|scales| (scales.kind, scales.dims.as_slice()));
                *size > 0 && columns.is_multiple_of(*size) && scales == Some((F16, &[rows, columns / size]))
            }
        };
        if fits { Ok(()) } else { Err(format!("a tensor of {:?} has other scales", self.dims)) }
    }
}

/// The constants of a model that lie behind its FlatBuffer, by their names; those of several sub-graphs are the same.
fn tensors(model: &[u8]) -> std::result::Result<HashMap<String, Tensor>, String> {
    let wrong = || "its FlatBuffer is no model".to_owned();
    let root = Table::root(model).filter(|_| model.get(4..8) == Some(b"TFL3")).ok_or_else(wrong)?;
    let (graphs, buffers) = (root.vector(2).ok_or_else(wrong)?, root.vector(4).ok_or_else(wrong)?);
    let mut found = HashMap::new();
    for graph in graphs.tables() {
        let list = graph.and_then(|graph| graph.vector(0)).ok_or_else(wrong)?;
        for tensor in list.tables() {
            let tensor = tensor.ok_or_else(wrong)?;
            let buffer = buffers.table(tensor.u32(2).unwrap_or(0) as usize).ok_or_else(wrong)?;
            let (Some(offset), Some(size)) = (buffer.u64(1), buffer.u64(2)) else { continue };
            let place = offset..offset.checked_add(size).ok_or_else(wrong)?;
            let dims = tensor.vector(0).ok_or_else(wrong)?;
            let dims = (0..dims.len).map(|at| usize::try_from(dims.i32(at)?).ok()).collect::<Option<Vec<usize>>>();
            let scales = match tensor.table(4) {
                None => Scales::None,
                Some(quantization) => scales(&quantization, &list).ok_or_else(wrong)?,
            };
            let name = tensor.text(3).ok_or_else(wrong)?.to_owned();
            found.insert(name, Tensor { kind: tensor.u8(1).unwrap_or(0), dims: dims.ok_or_else(wrong)?, place, file: 0, scales });
        }
    }
    Ok(found)
}

/// What codes are multiplied by. Zeros other than 0 are none that a weight of ours has.
fn scales(quantization: &Table<'_>, tensors: &super::flat::Vector<'_>) -> Option<Scales> {
    if let Some(details) = quantization.table(5) {
        let scales = tensors.table(usize::try_from(details.i32(0)?).ok()?)?;
        let (zeros, size) = (details.i32(1)?, usize::try_from(details.i32(2)?).ok()?);
        return (zeros == -1).then_some(Scales::Blocks(scales.text(3)?.to_owned(), size));
    }
    let (scales, zeros) = (quantization.vector(2)?, quantization.vector(3)?);
    let zero = (0..zeros.len).all(|at| zeros.i64(at) == Some(0)) && zeros.len == scales.len && quantization.i32(6) == Some(0);
    let scales = (0..scales.len).map(|at| scales.f32(at)).collect::<Option<Vec<f32>>>()?;
    zero.then_some(Scales::Rows(scales))
}

struct Opened {
    path: PathBuf,
    /// That of the model, and those of tables.
    files: Vec<File>,
    /// Where the section of the model begins.
    begin: u64,
    tensors: HashMap<String, Tensor>,
}

impl Opened {
    fn open(path: &Path) -> Result<Opened> {
        let malformed = |reason: String| Error::Malformed { path: path.into(), defect: Defect::Parse(reason) };
        let file = File::open(path).map_err(Error::io("read", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let read = |place: Range<u64>| -> Result<Vec<u8>> {
            let mut bytes = vec![0; (place.end - place.start) as usize];
            file.read_exact_at(&mut bytes, place.start).map_err(Error::io("read", path))?;
            Ok(bytes)
        };
        let head = read(0..bundle::head(length))?;
        let section = model_in(&head, length).map_err(|reason| malformed(reason.into()))?;
        // The FlatBuffer ends where the first numbers begin; it is read in steps, for it does not say how long it is.
        let mut step = 1 << 20;
        let tensors = loop {
            let end = section.end.min(section.start + step);
            match tensors(&read(section.start..end)?) {
                Ok(tensors) => break tensors,
                Err(reason) if end == section.end || step >= LIMIT => return Err(malformed(reason)),
                Err(_) => step *= 4,
            }
        };
        tensors.values().try_for_each(|tensor| tensor.check(section.end - section.start, &tensors)).map_err(malformed)?;
        let mut opened = Opened { path: path.into(), begin: section.start, tensors, files: vec![file] };
        opened.add_tables()?;
        Ok(opened)
    }

    /// Tables beside the model that are made of weights.
    fn add_tables(&mut self) -> Result<()> {
        let path = self.path.with_file_name(TABLES);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(Error::io("read", &path))?,
        };
        let malformed = |reason: &str| Error::Malformed { path: path.clone(), defect: Defect::Parse(reason.into()) };
        let described: Value = serde_json::from_slice(&text).map_err(|error| malformed(&error.to_string()))?;
        for table in described["tables"].as_array().into_iter().flatten() {
            let Some(name) = table["weight"].as_str() else { continue };
            let size = |key: &str| usize::try_from(table[key].as_u64()?).ok();
            let (Some(rows), Some(columns), Some(scale), Some(file)) = (
                size("rows"),
                size("columns"),
                table["scale"].as_f64(),
                table["file"].as_str().filter(|name| !name.contains('/')),
            ) else {
                return Err(malformed("a table lacks its file, its size or its scale"));
            };
            let path = self.path.with_file_name(file);
            let opened = File::open(&path).map_err(Error::io("read", &path))?;
            let length = opened.metadata().map_err(Error::io("read", &path))?.len();
            self.files.push(opened);
            let scales = Scales::Rows(vec![scale as f32]);
            let tensor = Tensor { kind: I16, dims: vec![rows, columns], place: 0..length, file: self.files.len() - 1, scales };
            tensor.check(length, &self.tensors).map_err(|reason| malformed(&reason))?;
            self.tensors.insert(name.into(), tensor);
        }
        Ok(())
    }

    fn compare(&self, tensor: &Tensor, weight: &Weight<'_>, original: Option<Original<'_>>) -> Result<(VerifiedTensor, usize)> {
        if [I16, I32, I64].contains(&tensor.kind) {
            return self.compare_rounded(tensor, weight);
        }
        kit::compare_rows(weight, original, &mut |rows, columns, out| self.decode(tensor, rows, columns, out))
    }

    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Option<&Tensor>> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        if tensor.dims != dims {
            let found = format!("{:?}", tensor.dims);
            return Err(Error::unexpected(&self.path, format!("the shape of `{name}`"), found, format!("{dims:?}")));
        }
        Ok(Some(tensor))
    }

    /// Rows of a tensor as f32.
    fn decode(&self, tensor: &Tensor, rows: Range<usize>, columns: usize, out: &mut [f32]) -> Result<()> {
        self.numbers(tensor, rows.start * columns, out)?;
        match &tensor.scales {
            Scales::None => (),
            Scales::Rows(scales) => {
                for (row, scale) in out.chunks_mut(columns).zip(&scales[rows]) {
                    row.iter_mut().for_each(|value| *value *= scale);
                }
            }
            Scales::Blocks(name, size) => {
                let per_row = columns / size;
                let mut scales = vec![0.0; rows.len() * per_row];
                self.numbers(&self.tensors[name], rows.start * per_row, &mut scales)?;
                for (block, scale) in out.chunks_mut(*size).zip(scales) {
                    block.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        Ok(())
    }

    /// Compares integers with the values that the writer has rounded to them.
    fn compare_rounded(&self, tensor: &Tensor, weight: &Weight<'_>) -> Result<(VerifiedTensor, usize)> {
        let Scales::Rows(scales) = &tensor.scales else {
            return Err(Error::unexpected(&self.path, format!("the scales of `{}`", weight.entry.name), "missing", "scales"));
        };
        let [rows, columns] = weight.expr.info(weight.source)?.matrix();
        let width = tensor.bits().unwrap_or(64) as usize / 8;
        let most = (1i64 << (8 * width - 1).min(47)) - 1;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for chunk in kit::chunks(rows, (1 << 18) / columns.max(1)) {
            let first = chunk.start * columns;
            values.resize(chunk.len() * columns, 0.0);
            bytes.resize(values.len() * width, 0);
            weight.expr.read(weight.source, chunk, &mut values)?;
            let file = self
                .files
                .get(tensor.file)
                .ok_or_else(|| Error::unexpected(&self.path, "its tables".into(), "missing", "a file"))?;
            let begin = if tensor.file == 0 { self.begin } else { 0 };
            let at = begin + tensor.place.start + (first * width) as u64;
            file.read_exact_at(&mut bytes, at).map_err(Error::io("read", &self.path))?;
            for (at, (code, value)) in bytes.chunks(width).zip(&values).enumerate() {
                let filled = if code.last().is_some_and(|byte| *byte > 127) { [255; 8] } else { [0; 8] };
                let mut wide: [u8; 8] = filled;
                wide[..width].copy_from_slice(code);
                let (found, scale) = (i64::from_le_bytes(wide), if scales.len() == 1 { scales[0] } else { scales[first + at] });
                let wanted = ((f64::from(*value) / f64::from(scale)).round() as i64).clamp(-most, most);
                if found != wanted {
                    let (row, column) = ((first + at) / columns, (first + at) % columns);
                    let [found, wanted] = [found, wanted].map(|code| code as f32 * scale);
                    return Err(Error::Differs { tensor: weight.entry.name.clone(), row, column, found, wanted });
                }
            }
        }
        Ok((VerifiedTensor { name: weight.entry.name.clone(), snr_db: None }, rows * columns))
    }

    /// Elements from `first` on.
    fn numbers(&self, tensor: &Tensor, first: usize, out: &mut [f32]) -> Result<()> {
        let width = tensor.bits().unwrap_or(8);
        let (start, end) = (first as u64 * width / 8, ((first + out.len()) as u64 * width).div_ceil(8));
        let mut bytes = vec![0; (end - start) as usize];
        self.files[0]
            .read_exact_at(&mut bytes, self.begin + tensor.place.start + start)
            .map_err(Error::io("read", &self.path))?;
        let skip = first - (start * 8 / width) as usize;
        match tensor.kind {
            F32 => Dtype::F32.decode(&bytes, out),
            F16 => Dtype::F16.decode(&bytes, out),
            I16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, code)| *out = f32::from(i16::from_le_bytes(*code))),
            I8 => out.iter_mut().zip(&bytes).for_each(|(out, byte)| *out = f32::from(*byte as i8)),
            I4 => out.iter_mut().enumerate().for_each(|(i, out)| {
                let nibble = bytes[(i + skip) / 2] >> (4 * ((i + skip) % 2)) & 15;
                *out = f32::from((nibble << 4) as i8 >> 4);
            }),
            kind => return Err(Error::unexpected(&self.path, "the type of a weight".into(), kind, "a type of weights")),
        }
        Ok(())
    }
}
