//! Reads an artifact back and compares every weight with the model's.
//!
//! How a tensor is meant is taken from the nodes that read it, by the texts of the operators: DequantizeLinear-21 of
//! ONNX, and MatMulNBits and GatherBlockQuantized of com.microsoft. Nothing here is shared with the writer.

mod codes;
mod file;
mod guard;

use std::{collections::HashSet, fmt::Display, ops::Range, path::Path};

use attar_graph::{Expr, ValueId};
use attar_tensor::{Dtype, Encoding, Source};

use crate::{Artifact, Defect, Error, Input, Original, Result, Verification, VerifiedTensor};
use codes::{Codes, Meaning};
use file::{Opened, Place};

/// Bytes of f32 that are compared at a time.
const CHUNK: usize = 4 << 20;

/// The least signal-to-noise ratio, in decibels, of codes of some bits. Evenly spread weights rounded to `2^bits` levels
/// keep 6 dB a bit; real ones keep about 5 dB less in groups of 32, and 10 dB less under one scale a row. Below these
/// floors something else went wrong than rounding: another tensor's scales, lost rows, a swapped sign.
fn noise_floor(bits: u32) -> f64 {
    match bits {
        8.. => 30.0,
        4..8 => 12.0,
        _ => 6.0,
    }
}

fn unexpected(path: &Path, what: String, found: impl Display, wanted: impl Display) -> Error {
    let (found, wanted) = (found.to_string(), wanted.to_string());
    Error::Malformed { path: path.into(), defect: Defect::Unexpected { what, found, wanted } }
}

/// Compares all weights that a node of the graph reads, tied ones once.
pub(super) fn verify(
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
        let weight = Weight { opened: &opened, source: model.source, name: &entry.name, expr, encoding };
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
            self.same(rows.start, columns, found, wanted)?;
            let Some(original) = original else { return Ok(()) };
            before.resize(found.len(), 0.0);
            if original(self.name, rows, before)? {
                noise.add(found, before);
            }
            Ok(())
        };
        match codes::meaning(self.opened, self.name, [rows, columns])? {
            Meaning::Values(place) => self.read_plain(place, [rows, columns], &mut compare)?,
            Meaning::Codes(codes) => self.read_codes(&codes, &mut compare)?,
        }
        let snr_db = self.judge(&noise)?;
        Ok((VerifiedTensor { name: self.name.into(), snr_db }, rows * columns))
    }

    fn read_plain(&self, place: &Place, [rows, columns]: [usize; 2], compare: Compare<'_>) -> Result<()> {
        let dtype = match place.code {
            1 => Dtype::F32,
            10 => Dtype::F16,
            16 => Dtype::BF16,
            code => return Err(unexpected(&self.opened.path, format!("the type of `{}`", self.name), code, "f32, f16 or bf16")),
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

    fn read_codes(&self, codes: &Codes<'_>, compare: Compare<'_>) -> Result<()> {
        let columns = codes.columns;
        let mut values = Vec::new();
        for tile in chunks(codes.rows, codes.tile_rows()) {
            let tile = codes.load(self.opened, tile)?;
            for chunk in chunks(tile.rows.len(), (CHUNK / (4 * columns)).clamp(1, 64)) {
                values.resize(chunk.len() * columns, 0.0);
                tile.decode(chunk.clone(), &mut values);
                compare(tile.rows.start + chunk.start..tile.rows.start + chunk.end, &values)?;
            }
        }
        Ok(())
    }

    /// Both are equal to the bit, and finite.
    fn same(&self, first: usize, columns: usize, found: &[f32], wanted: &[f32]) -> Result<()> {
        let differs = found.iter().zip(wanted).fold(0, |all, (f, w)| all | (f.to_bits() ^ w.to_bits()));
        let strange = found.iter().fold(false, |any, f| any | !f.is_finite());
        if differs == 0 && !strange {
            return Ok(());
        }
        let at = found.iter().zip(wanted).position(|(f, w)| f.to_bits() != w.to_bits() || !f.is_finite()).unwrap_or(0);
        let (row, column, tensor) = (first + at / columns, at % columns, self.name.to_owned());
        if found[at].to_bits() == wanted[at].to_bits() {
            let count = found.iter().filter(|f| !f.is_finite()).count();
            return Err(attar_tensor::Error::NotFinite { name: tensor, count, value: found[at], row, column }.into());
        }
        Err(Error::Differs { tensor, row, column, found: found[at], wanted: wanted[at] })
    }

    fn judge(&self, noise: &Noise) -> Result<Option<f64>> {
        let Encoding::Quantized(scheme) = self.encoding else { return Ok(noise.decibels()) };
        if let Some(only) = noise.found.only().filter(|_| noise.original.only().is_none() && noise.signal > 0.0) {
            return Err(Error::Constant { tensor: self.name.into(), found: only });
        }
        let (found, wanted) = (noise.decibels(), noise_floor(scheme.grid.bits()));
        match found {
            Some(found) if found < wanted => {
                Err(Error::Noise { tensor: self.name.into(), encoding: scheme.to_string(), found, wanted })
            }
            found => Ok(found),
        }
    }
}

/// Takes some rows as the artifact has them.
type Compare<'c> = &'c mut dyn FnMut(Range<usize>, &[f32]) -> Result<()>;

/// What quantization did.
#[derive(Default)]
struct Noise {
    signal: f64,
    noise: f64,
    found: Bounds,
    original: Bounds,
}

impl Noise {
    fn add(&mut self, found: &[f32], original: &[f32]) {
        for (found, original) in found.chunks(LANES * 64).zip(original.chunks(LANES * 64)) {
            let [signal, noise] = squares(found, original);
            self.signal += f64::from(signal);
            self.noise += f64::from(noise);
        }
        self.found.add(found);
        self.original.add(original);
    }

    fn decibels(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

/// Partial sums, so that a wide unit can add them.
const LANES: usize = 16;

/// Sums of squares of `original` and of the difference.
fn squares(found: &[f32], original: &[f32]) -> [f32; 2] {
    let (mut signal, mut noise) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (found, original) in found.chunks(LANES).zip(original.chunks(LANES)) {
        for (((s, n), f), o) in signal.iter_mut().zip(&mut noise).zip(found).zip(original) {
            *s += o * o;
            *n += (f - o) * (f - o);
        }
    }
    [signal.iter().sum(), noise.iter().sum()]
}

/// Least and greatest, once there is any.
#[derive(Default)]
struct Bounds(Option<[f32; 2]>);

impl Bounds {
    fn add(&mut self, values: &[f32]) {
        let Some(first) = values.first() else { return };
        let [low, high] = self.0.unwrap_or([*first; 2]);
        let low = values.iter().fold(low, |low, v| if *v < low { *v } else { low });
        let high = values.iter().fold(high, |high, v| if *v > high { *v } else { high });
        self.0 = Some([low, high]);
    }

    /// The value, if all are the same.
    fn only(&self) -> Option<f32> {
        self.0.filter(|[low, high]| low == high).map(|[low, _]| low)
    }
}

/// `0..count` in runs of `size`, at least 1.
fn chunks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..count).step_by(size).map(move |start| start..(start + size).min(count))
}
