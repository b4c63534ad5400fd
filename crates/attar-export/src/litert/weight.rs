//! How weights are stored, and their stream behind the FlatBuffer.
//!
//! LiteRT multiplies codes of 8 bits with a scale a row, and codes of 4 bits with a scale a row or a scale for every 32, 64, 128 or 256 weights of one.
//! All other weights are f32: its processors' kernels take no bf16.

use std::path::Path;

use attar_graph::{Expr, Graph, Node, Op, ValueId};
use attar_tensor::{Dtype, Encoding, Granularity, QuantizedTensor, ScaleFormat, Scheme, Source, TensorInfo, write_atomically};

use super::schema::{ALIGNMENT, Data, Element};
use crate::{
    Error, Progress, Result, TensorEntry,
    kit::{self, Written, chunks},
    layout::{is_even, nibbles},
};

/// Bytes that are made at a time.
const CHUNK: usize = 1 << 20;

/// Weights that may share a scale.
const BLOCKS: [usize; 4] = [32, 64, 128, 256];

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// Values in f32.
    Plain,
    /// Codes of that type, with a scale for every row.
    Rows(Scheme, Element),
    /// Codes of 4 bits, with a scale for so many of a row.
    Blocks(Scheme, usize),
    /// Values rounded to integers of that type, with scales of the writer's own.
    Fixed(Element),
}

/// A weight of the model.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) name: String,
    also: Vec<String>,
    pub(super) dims: Vec<usize>,
    encoding: Encoding,
    expr: Expr,
    pub(super) form: Form,
    /// The scales of [`Form::Fixed`]: one, or one for each number of a vector.
    pub(super) fixed: Vec<f32>,
    /// Where values or codes begin behind the FlatBuffer.
    offset: u64,
    /// Where the scales of blocks do.
    scales: u64,
}

impl Stored {
    /// Chooses how a weight is stored, or says why it cannot be. `readers` are all nodes that read it.
    pub(super) fn new(graph: &Graph, target: &str, readers: &[&Node], values: &[ValueId], expr: &Expr) -> Result<Stored> {
        let mut names = values.iter().map(|id| graph.get(*id).name.clone());
        let name = names.next().expect("a weight has a name");
        let fact = graph.fact(values[0]);
        let dims = fact.constant_dims().expect("weights have constant dimensions: checked by the graph");
        let form = match fact.encoding {
            Encoding::Quantized(scheme) => codes(graph, target, readers, &name, &dims, scheme)?,
            _ => Form::Plain,
        };
        let (also, encoding) = (names.collect(), fact.encoding);
        Ok(Stored { also, name, dims, encoding, expr: expr.clone(), form, fixed: Vec::new(), offset: 0, scales: 0 })
    }

    /// Codes of a linear layer in bytes, whatever their width.
    pub(super) fn in_bytes(graph: &Graph, target: &str, reader: &Node, value: ValueId, expr: &Expr) -> Result<Stored> {
        let mut stored = Stored::new(graph, target, &[reader], &[value], expr)?;
        let refuse = |found: String, hint| Error::Weight {
            node: graph.get(reader.outputs[0]).name.clone(),
            tensor: graph.get(value).name.clone(),
            found,
            layout: format!("target `{target}` in integers"),
            wanted: "codes with a scale a row",
            hint,
        };
        stored.form = match stored.form {
            Form::Rows(scheme, _) => Form::Rows(scheme, Element::I8),
            Form::Blocks(scheme, _) => return Err(refuse(scheme.to_string(), "set `group = \"row\"`")),
            _ => return Err(refuse(stored.encoding.to_string(), "quantize it to `int8` or less, with `group = \"row\"`")),
        };
        Ok(stored)
    }

    /// Values that are rounded here, to integers of `element` with `scales`. `what` is added to the name, which others may have.
    pub(super) fn fixed(graph: &Graph, value: ValueId, expr: &Expr, element: Element, scales: Vec<f32>, what: &str) -> Stored {
        let (fact, of) = (graph.fact(value), graph.get(value).name.clone());
        let (name, also) = if what.is_empty() { (of, Vec::new()) } else { (format!("{of}{what}"), vec![of]) };
        let dims = fact.constant_dims().expect("weights have constant dimensions: checked by the graph");
        let (encoding, form) = (fact.encoding, Form::Fixed(element));
        Stored { also, name, dims, encoding, expr: expr.clone(), form, fixed: scales, offset: 0, scales: 0 }
    }

    /// Another value has the same numbers.
    pub(super) fn also_called(&mut self, other: Stored) {
        if other.name != self.name && !self.also.contains(&other.name) {
            self.also.push(other.name);
        }
    }

    /// Where its numbers begin behind the FlatBuffer.
    pub(super) fn begin(&self) -> u64 {
        self.offset
    }

    /// Gives it its place behind `end`.
    pub(super) fn place(&mut self, end: &mut u64) {
        self.offset = end.next_multiple_of(ALIGNMENT);
        *end = self.offset + self.numbers();
        if self.block_scales().is_some() {
            self.scales = end.next_multiple_of(ALIGNMENT);
            *end = self.scales + self.scales_behind();
        }
    }

    fn matrix(&self) -> [usize; 2] {
        TensorInfo { dims: self.dims.clone(), encoding: self.encoding }.matrix()
    }

    pub(super) fn element(&self) -> Element {
        match self.form {
            Form::Plain => Element::F32,
            Form::Rows(_, element) | Form::Fixed(element) => element,
            Form::Blocks(..) => Element::I4,
        }
    }

    /// Bytes of values or codes.
    fn numbers(&self) -> u64 {
        self.element().bytes(&self.dims)
    }

    /// Bytes of the scales that are no part of the FlatBuffer.
    fn scales_behind(&self) -> u64 {
        self.block_scales().map_or(0, |dims| Element::F16.bytes(&dims))
    }

    /// Rows and columns of the scales of blocks.
    pub(super) fn block_scales(&self) -> Option<[usize; 2]> {
        match self.form {
            Form::Blocks(_, size) => Some([self.dims[0], self.dims[1] / size]),
            _ => None,
        }
    }

    pub(super) fn data(&self) -> Data {
        Data::Behind(self.offset, self.numbers())
    }

    pub(super) fn scale_data(&self) -> Data {
        Data::Behind(self.scales, self.scales_behind())
    }

    /// The scales of rows.
    pub(super) fn row_scales(&self, source: &dyn Source) -> Result<Vec<f32>> {
        Stored::scales_of_rows(&self.expr, source)
    }

    /// The same of any weight in codes.
    pub(super) fn scales_of_rows(expr: &Expr, source: &dyn Source) -> Result<Vec<f32>> {
        let [rows, columns] = expr.info(source)?.matrix();
        let mut scales = Vec::with_capacity(rows);
        for chunk in chunks(rows, CHUNK / columns.max(1)) {
            let (length, tensor) = (chunk.len(), expr.read_quantized(source, chunk)?);
            let of_row = |row: usize| tensor.scales[if tensor.scheme.granularity == Granularity::Tensor { 0 } else { row }];
            scales.extend((0..length).map(of_row).map(nonzero));
        }
        Ok(scales)
    }

    pub(super) fn entry(&self) -> TensorEntry {
        // A scale of a row is an f32.
        let scales = match self.form {
            Form::Rows(..) => 4 * self.dims[0] as u64,
            Form::Fixed(_) => 4 * self.fixed.len() as u64,
            _ => self.scales_behind(),
        };
        TensorEntry {
            name: self.name.clone(),
            also: self.also.clone(),
            dims: self.dims.clone(),
            encoding: self.encoding.to_string(),
            storage: self.in_words(),
            packed: None,
            true_bits: self.encoding.true_bits(self.matrix()),
            stored_bytes: self.numbers() + scales,
            snr_db: None,
        }
    }

    pub(super) fn written(&self) -> Written {
        Written { entry: self.entry(), encoding: self.encoding, dtype: "f32".into() }
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn in_words(&self) -> String {
        let room = |scheme: &Scheme| match u64::from(scheme.grid.bits()) == self.element().1 {
            true => String::new(),
            false => format!("; {}-bit levels in {}-bit storage", scheme.grid.bits(), self.element().1),
        };
        match &self.form {
            Form::Plain => "f32".into(),
            Form::Rows(scheme, element) => format!("{}, a scale a row, f32 scales{}", element.name(), room(scheme)),
            Form::Fixed(element) if self.fixed.len() == 1 => format!("{}, one f32 scale", element.name()),
            Form::Fixed(element) => format!("{}, a scale a number", element.name()),
            Form::Blocks(scheme, size) => format!("i4, blocks of {size}, f16 scales{}", room(scheme)),
        }
    }

    /// What lies behind the FlatBuffer, in its order, and where.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, Part)> {
        let scales = self.block_scales().map(|_| (self.scales, Part::Scales));
        [(self.offset, Part::Numbers)].into_iter().chain(scales)
    }

    /// Hands the bytes of a part to `put`.
    pub(super) fn stream(&self, part: Part, source: &dyn Source, put: Put<'_>) -> Result<()> {
        match (part, self.form) {
            (Part::Scales, _) => self.by_rows(source, put, &|tensor, bytes| {
                let scales: Vec<f32> = tensor.scales.iter().copied().map(nonzero).collect();
                Dtype::F16.encode(&scales, bytes);
            }),
            (Part::Numbers, Form::Plain) => self.values(source, put),
            (Part::Numbers, Form::Fixed(_)) => self.stream_fixed(source, put),
            (Part::Numbers, _) => self.by_rows(source, put, &|tensor, bytes| self.codes(tensor, bytes)),
        }
    }

    fn values(&self, source: &dyn Source, put: Put<'_>) -> Result<()> {
        let [rows, columns] = self.matrix();
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for chunk in chunks(rows, CHUNK / (4 * columns).max(1)) {
            values.resize(chunk.len() * columns, 0.0);
            self.expr.read(source, chunk, &mut values)?;
            kit::as_stored(self.encoding, &mut values);
            bytes.clear();
            Dtype::F32.encode(&values, &mut bytes);
            put(&bytes)?;
        }
        Ok(())
    }

    /// Rows of values that are rounded here.
    pub(super) fn fixed_codes(&self, source: &dyn Source, rows: std::ops::Range<usize>) -> Result<Vec<i64>> {
        let columns = self.matrix()[1];
        let mut values = vec![0.0; rows.len() * columns];
        self.expr.read(source, rows.clone(), &mut values)?;
        let first = rows.start * columns;
        let code = |(at, value): (usize, f32)| rounded(value, scale_of(&self.fixed, first + at), self.element());
        Ok(values.into_iter().enumerate().map(code).collect())
    }

    fn stream_fixed(&self, source: &dyn Source, put: Put<'_>) -> Result<()> {
        let [rows, columns] = self.matrix();
        let width = (self.element().1 / 8) as usize;
        for chunk in chunks(rows, CHUNK / (8 * columns).max(1)) {
            let codes = self.fixed_codes(source, chunk)?;
            let bytes: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes().into_iter().take(width)).collect();
            put(&bytes)?;
        }
        Ok(())
    }

    /// Codes as their distances from zero.
    fn codes(&self, tensor: &QuantizedTensor, bytes: &mut Vec<u8>) {
        let (middle, mut codes) = (tensor.scheme.grid.middle(), vec![0; tensor.dims[1]]);
        for row in 0..tensor.dims[0] {
            tensor.codes_of(row, &mut codes);
            codes.iter_mut().for_each(|code| *code = code.wrapping_sub(middle));
            match self.element() {
                Element::I4 => bytes.extend(codes.as_chunks::<2>().0.iter().map(|[low, high]| nibbles([low & 15, high & 15]))),
                _ => bytes.extend(&codes),
            }
        }
    }

    fn by_rows(&self, source: &dyn Source, put: Put<'_>, make: &dyn Fn(&QuantizedTensor, &mut Vec<u8>)) -> Result<()> {
        let [rows, columns] = self.matrix();
        let mut bytes = Vec::new();
        for chunk in chunks(rows, CHUNK / columns.max(1)) {
            bytes.clear();
            make(&self.expr.read_quantized(source, chunk)?, &mut bytes);
            put(&bytes)?;
        }
        Ok(())
    }
}

/// The scale of a number of a weight with one scale, or one for each.
pub(super) fn scale_of(scales: &[f32], at: usize) -> f32 {
    if scales.len() == 1 { scales[0] } else { scales[at] }
}

/// The nearest code, halves away from zero, as the type holds it.
pub(super) fn rounded(value: f32, scale: f32, element: Element) -> i64 {
    let most = (1i64 << (element.1.min(48) - 1)) - 1;
    ((f64::from(value) / f64::from(scale)).round() as i64).clamp(-most, most)
}

/// A scale that LiteRT takes: codes under a scale of 0 mean 0, and so are all 0.
fn nonzero(scale: f32) -> f32 {
    if scale == 0.0 { 1.0 } else { scale }
}

/// A part of a weight.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Values or codes.
    Numbers,
    /// Scales of blocks.
    Scales,
}

/// Takes bytes in the order of the file.
pub(super) type Put<'p> = &'p mut dyn FnMut(&[u8]) -> Result<()>;

/// Writes `parts` at their places, the last of which is the FlatBuffer of a model, and behind that the numbers of its weights: the file is whole or not
/// there.
pub(super) fn write_model(
    path: &Path,
    parts: &[(u64, &[u8])],
    weights: &[Stored],
    source: &dyn Source,
    progress: Progress<'_>,
) -> Result<()> {
    let total = weights.iter().map(|stored| stored.numbers() + stored.scales_behind()).sum::<u64>().max(1);
    let (mut at, mut done) = (0, 0);
    let behind = parts.last().map_or(0, |(start, bytes)| start + bytes.len() as u64);
    write_atomically(path, |to| {
        let mut put = |offset: Option<u64>, bytes: &[u8]| {
            let gap = usize::try_from(offset.unwrap_or(at) - at).expect("gaps are shorter than a block");
            at += gap as u64 + bytes.len() as u64;
            to.write_all(&vec![0; gap]).and_then(|()| to.write_all(bytes)).map_err(Error::io("write", path))
        };
        parts.iter().try_for_each(|(start, bytes)| put(Some(*start), bytes))?;
        for stored in weights {
            for (offset, part) in stored.parts() {
                let mut next = Some(behind + offset);
                stored.stream(part, source, &mut |bytes| {
                    done += bytes.len() as u64;
                    progress(done.min(total), total);
                    put(next.take(), bytes)
                })?;
            }
        }
        progress(total, total);
        Ok(())
    })
}

fn codes(graph: &Graph, target: &str, readers: &[&Node], name: &str, dims: &[usize], scheme: Scheme) -> Result<Form> {
    let refuse = |wanted, hint| Error::Weight {
        node: graph.get(readers[0].outputs[0]).name.clone(),
        tensor: name.into(),
        found: scheme.to_string(),
        layout: format!("target `{target}`"),
        wanted,
        hint,
    };
    let [_, columns] = dims[..] else { return Err(refuse("matrices in codes", "keep it in a plain number format")) };
    if readers.iter().any(|node| !matches!(node.op, Op::Linear | Op::Embedding)) {
        return Err(refuse("codes of linear layers and tables", "keep it in a plain number format"));
    }
    scheme.fit(columns)?;
    if !is_even(&scheme) || !scheme.is_symmetric() {
        return Err(refuse("symmetric integers", "quantize to `int8` or `int4` with `asymmetric = false`"));
    }
    let element = if scheme.grid.bits() > 4 { Element::I8 } else { Element::I4 };
    if element == Element::I4 && !columns.is_multiple_of(2) {
        return Err(refuse("4-bit codes in rows of even width", "quantize it to `int8` with `group = \"row\"`"));
    }
    if !scheme.has_positive_scales() {
        return Err(refuse("codes with positive scales", "set `positive_scales = true` where it is quantized"));
    }
    let Granularity::Group(size) = scheme.granularity else { return Ok(Form::Rows(scheme, element)) };
    if element == Element::I8 {
        return Err(refuse("8-bit codes with a scale a row", "set `group = \"row\"`, or quantize to `int4`"));
    }
    if !BLOCKS.contains(&size) || !columns.is_multiple_of(size) {
        return Err(refuse("blocks of 32, 64, 128 or 256 that divide a row", "use another `group`, or `group = \"row\"`"));
    }
    if scheme.scale != ScaleFormat::F16 {
        return Err(refuse("blocks with scales in f16", "set `scale_dtype = \"f16\"`, or `group = \"row\"`"));
    }
    Ok(Form::Blocks(scheme, size))
}
