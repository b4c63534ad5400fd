//! How weights are stored, and the file of numbers.
//!
//! Codes are constants of OpenVINO's low-bit types that a small sub-graph turns into numbers: convert, subtract the zero, multiply by the scale,
//! give rows their width back. Its plugins recognize that sub-graph and multiply codes.

use std::path::Path;

use attar_graph::{Expr, Graph, Node, ValueId};
use attar_tensor::{Dtype, Encoding, Granularity, QuantizedTensor, ScaleFormat, Scheme, Source, write_atomically};

use super::ir::Element;
use crate::{
    Error, Packed, Progress, Result, TensorEntry,
    family::union,
    kit::{self, Written, chunks},
    layout::{is_even, nibbles, scales::encode},
};

/// Bytes that are made at a time.
const CHUNK: usize = 1 << 20;

/// What large constants are aligned to, so that they can be mapped.
const ALIGNMENT: u64 = 64;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// Values.
    Plain(Dtype, Element),
    /// Codes of a scheme, of that element type.
    Codes(Scheme, Element),
}

/// A weight in the file of numbers.
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) also: Vec<String>,
    pub(super) dims: Vec<usize>,
    pub(super) encoding: Encoding,
    expr: Expr,
    pub(super) form: Form,
    /// Codes or values, scales, zeros.
    pub(super) parts: Vec<Part>,
    /// Where it is, if its constants are rows of those of a [`Pack`].
    packed: Option<Packed>,
}

/// Weights of linear layers that read the same value, as one weight: their rows lie one below the other.
pub(super) struct Pack {
    pub(super) name: String,
    /// The weights, by their places in the list of all, in the order of their rows.
    pub(super) members: Vec<usize>,
    pub(super) form: Form,
    pub(super) dims: Vec<usize>,
    pub(super) parts: Vec<Part>,
}

impl Pack {
    /// Of several weights, if they have one form that rows can be joined in. `all` are placed by this.
    pub(super) fn place(members: &[usize], all: &mut [Stored], end: &mut u64) -> Option<Pack> {
        let model = &all[members[0]];
        let (form, encoding, columns) = (model.form, model.encoding, model.dims[1]);
        let Form::Codes(scheme, _) = form else { return None };
        let joins = |at: &usize| {
            let member = &all[*at];
            let alike = (member.form, member.encoding, member.dims[1]) == (form, encoding, columns);
            // Two zeros of 4 bits share a byte.
            alike
                && member.parts.iter().all(|part| (part.dims.iter().product::<usize>() as u64 * part.element.2).is_multiple_of(8))
        };
        if members.len() < 2 || scheme.granularity == Granularity::Tensor || !members.iter().all(joins) {
            return None;
        }
        let name = union(&members.iter().map(|at| all[*at].name.as_str()).collect::<Vec<_>>());
        let mut parts = Vec::new();
        for role in 0..all[members[0]].parts.len() {
            *end = end.next_multiple_of(ALIGNMENT);
            let model = &all[members[0]].parts[role];
            let kind = model.name.strip_prefix(all[members[0]].name.as_str()).unwrap_or_default();
            let mut joined = Part { name: format!("{name}{kind}"), offset: *end, ..model.clone() };
            joined.dims[0] = 0;
            for at in members {
                let part = &mut all[*at].parts[role];
                part.offset = *end;
                *end += part.bytes();
                joined.dims[0] += part.dims[0];
            }
            parts.push(joined);
        }
        let mut rows = 0;
        for at in members {
            all[*at].packed = Some(Packed { tensor: name.clone(), row: rows });
            rows += all[*at].dims[0];
        }
        Some(Pack { name, members: members.to_vec(), form, dims: vec![rows, columns], parts })
    }
}

/// A constant.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<usize>,
    pub(super) offset: u64,
}

impl Part {
    fn new(name: String, element: Element, dims: Vec<usize>) -> Part {
        Part { name, element, dims, offset: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.element.bytes(&self.dims)
    }
}

/// Scales in f16 stay so where products with them are exact; all others are f32, so that nothing is rounded again.
pub(super) fn scale_element(scheme: &Scheme) -> (Element, ScaleFormat) {
    match scheme.scale {
        ScaleFormat::F16 if is_even(scheme) => (Element::F16, ScaleFormat::F16),
        _ => (Element::F32, ScaleFormat::F32),
    }
}

/// The element type of codes, if OpenVINO has one for them.
fn code_element(scheme: &Scheme) -> Option<Element> {
    let bits = scheme.grid.bits();
    match (scheme.grid.name(), is_even(scheme), scheme.is_symmetric()) {
        ("nf4", ..) => Some(Element::NF4),
        ("fp8_e4m3", ..) => Some(Element::F8_E4M3),
        ("fp8_e5m2", ..) => Some(Element::F8_E5M2),
        (_, true, true) => Some(if bits > 4 { Element::I8 } else { Element::I4 }),
        (_, true, false) => Some(if bits > 4 { Element::U8 } else { Element::U4 }),
        _ => None,
    }
}

impl Stored {
    /// Chooses how a weight is stored, or says why it cannot be.
    pub(super) fn new(graph: &Graph, node: &Node, values: &[ValueId], expr: &Expr) -> Result<Stored> {
        let mut names = values.iter().map(|id| graph.get(*id).name.clone());
        let name = names.next().expect("a weight has a name");
        let fact = graph.fact(values[0]);
        let dims = fact.constant_dims().expect("weights have constant dimensions: checked by the graph");
        let form = match fact.encoding {
            Encoding::Quantized(scheme) => Form::Codes(scheme, fits(graph, node, &name, &dims, scheme)?),
            other => match kit::plain_dtype(other) {
                Some(dtype @ Dtype::F16) => Form::Plain(dtype, Element::F16),
                Some(dtype @ Dtype::BF16) => Form::Plain(dtype, Element::BF16),
                _ => Form::Plain(Dtype::F32, Element::F32),
            },
        };
        let parts = parts(form, &name, &dims);
        let (also, encoding) = (names.collect(), fact.encoding);
        Ok(Stored { also, name, dims, encoding, expr: expr.clone(), form, parts, packed: None })
    }

    /// Gives all parts their places behind `end`.
    pub(super) fn place(&mut self, end: &mut u64) {
        for part in &mut self.parts {
            part.offset = end.next_multiple_of(ALIGNMENT);
            *end = part.offset + part.bytes();
        }
    }

    fn matrix(&self) -> [usize; 2] {
        attar_tensor::TensorInfo { dims: self.dims.clone(), encoding: self.encoding }.matrix()
    }

    pub(super) fn entry(&self) -> TensorEntry {
        TensorEntry {
            name: self.name.clone(),
            also: self.also.clone(),
            dims: self.dims.clone(),
            encoding: self.encoding.to_string(),
            storage: self.in_words(),
            packed: self.packed.clone(),
            true_bits: self.encoding.true_bits(self.matrix()),
            stored_bytes: self.parts.iter().map(Part::bytes).sum(),
            snr_db: None,
        }
    }

    pub(super) fn written(&self) -> Written {
        let dtype = self.parts[0].element.0.to_owned();
        Written { entry: self.entry(), encoding: self.encoding, dtype }
    }

    fn in_words(&self) -> String {
        let Form::Codes(scheme, element) = self.form else { return self.parts[0].element.0.into() };
        let shared = match scheme.granularity {
            Granularity::Tensor => "one scale".into(),
            Granularity::Row => "a scale a row".into(),
            Granularity::Group(size) => format!("groups of {size}"),
        };
        let (bits, scale) = (scheme.grid.bits(), scale_element(&scheme).0.0);
        let room = match u64::from(bits) == element.2 {
            true => String::new(),
            false => format!("; {bits}-bit levels in {}-bit storage", element.2),
        };
        format!("{}, {shared}, {scale} scales{room}", element.0)
    }
}

fn fits(graph: &Graph, node: &Node, name: &str, dims: &[usize], scheme: Scheme) -> Result<Element> {
    let refuse = |wanted, hint| Error::Weight {
        node: graph.get(node.outputs[0]).name.clone(),
        tensor: name.into(),
        found: scheme.to_string(),
        layout: "target `openvino`".into(),
        wanted,
        hint,
    };
    let [_, columns] = dims[..] else { return Err(refuse("matrices in codes", "keep it in a plain number format")) };
    scheme.fit(columns)?;
    let integers = "integers, nf4 and floats of 8 bits";
    let element = code_element(&scheme).ok_or_else(|| refuse(integers, "quantize to integers, or use `target = \"onnx\"`"))?;
    if !columns.is_multiple_of(scheme.group(columns)) {
        return Err(refuse("groups that divide a row", "use another `group`, or `group = \"row\"`"));
    }
    if element.2 == 4 && !columns.is_multiple_of(2) {
        return Err(refuse("4-bit codes in rows of even width", "quantize it to 8 bits"));
    }
    Ok(element)
}

fn parts(form: Form, name: &str, dims: &[usize]) -> Vec<Part> {
    let (scheme, element) = match form {
        Form::Plain(_, element) => return vec![Part::new(name.into(), element, dims.to_vec())],
        Form::Codes(scheme, element) => (scheme, element),
    };
    let [rows, columns] = [dims[0], dims[1]];
    let (codes, shared) = match scheme.granularity {
        Granularity::Tensor => (dims.to_vec(), vec![1, 1]),
        Granularity::Row => (dims.to_vec(), vec![rows, 1]),
        Granularity::Group(size) => (vec![rows, columns / size, size], vec![rows, columns / size, 1]),
    };
    let scales = Part::new(format!("{name}/scale"), scale_element(&scheme).0, shared.clone());
    let mut all = vec![Part::new(name.into(), element, codes), scales];
    all.extend((!scheme.is_symmetric()).then(|| Part::new(format!("{name}/zero"), element, shared)));
    all
}

/// Writes `stored`, and then `constants` at their places: the file is whole or not there.
pub(super) fn write(
    path: &Path,
    stored: &[Stored],
    constants: &[(u64, Vec<u8>)],
    source: &dyn Source,
    progress: Progress<'_>,
) -> Result<()> {
    let total = stored.iter().map(|stored| stored.parts.iter().map(Part::bytes).sum::<u64>()).sum::<u64>().max(1);
    let mut done = 0;
    write_atomically(path, |to| {
        let mut at = 0;
        let mut parts: Vec<(&Stored, &Part)> =
            stored.iter().flat_map(|stored| stored.parts.iter().map(move |part| (stored, part))).collect();
        parts.sort_by_key(|(_, part)| part.offset);
        for (stored, part) in parts {
            pad(to, path, &mut at, part.offset)?;
            stored.stream(part, source, &mut |bytes| {
                to.write_all(bytes).map_err(Error::io("write", path))?;
                done += bytes.len() as u64;
                progress(done.min(total), total);
                Ok(())
            })?;
            at += part.bytes();
        }
        for (offset, bytes) in constants {
            pad(to, path, &mut at, *offset)?;
            to.write_all(bytes).map_err(Error::io("write", path))?;
            at += bytes.len() as u64;
        }
        progress(total, total);
        Ok(())
    })
}

fn pad(to: &mut dyn std::io::Write, path: &Path, at: &mut u64, offset: u64) -> Result<()> {
    let gap = usize::try_from(offset - *at).expect("gaps are shorter than the alignment");
    *at = offset;
    to.write_all(&vec![0; gap]).map_err(Error::io("write", path))
}

/// Takes bytes in the order of the file.
type Put<'p> = &'p mut dyn FnMut(&[u8]) -> Result<()>;

impl Stored {
    fn stream(&self, part: &Part, source: &dyn Source, put: Put<'_>) -> Result<()> {
        match (self.form, part.name.strip_prefix(self.name.as_str())) {
            (Form::Plain(dtype, _), _) => self.values(dtype, source, put),
            (Form::Codes(scheme, element), Some("")) => {
                let [rows, columns] = self.matrix();
                let shift = if scheme.is_symmetric() && is_even(&scheme) { scheme.grid.middle() } else { 0 };
                let mut codes = vec![0; columns];
                for chunk in chunks(rows, CHUNK / columns.max(1)) {
                    let tensor = self.expr.read_quantized(source, chunk)?;
                    let mut bytes = Vec::with_capacity(CHUNK);
                    for row in 0..tensor.dims[0] {
                        tensor.codes_of(row, &mut codes);
                        codes.iter_mut().for_each(|code| *code = code.wrapping_sub(shift));
                        packed(&codes, element, &mut bytes);
                    }
                    put(&bytes)?;
                }
                Ok(())
            }
            (Form::Codes(scheme, _), Some("/scale")) => self.shared(scheme, source, put, &|tensor, bytes| {
                encode(scale_element(&scheme).1, &tensor.scales, 1.0, bytes);
            }),
            (Form::Codes(scheme, element), _) => self.shared(scheme, source, put, &|tensor, bytes| {
                let mut zeros = tensor.zeros.clone();
                zeros.resize(zeros.len().next_multiple_of(2), 0);
                packed(&zeros[..if element.2 == 4 { zeros.len() } else { tensor.zeros.len() }], element, bytes);
            }),
        }
    }

    fn values(&self, dtype: Dtype, source: &dyn Source, put: Put<'_>) -> Result<()> {
        let [rows, columns] = self.matrix();
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for chunk in chunks(rows, CHUNK / (4 * columns).max(1)) {
            values.resize(chunk.len() * columns, 0.0);
            self.expr.read(source, chunk, &mut values)?;
            bytes.clear();
            dtype.encode(&values, &mut bytes);
            put(&bytes)?;
        }
        Ok(())
    }

    /// What groups share, in the order of rows, always an even number of rows at a time, so that two of 4 bits share a byte only within
    /// a chunk. The one of a whole tensor comes with its first rows.
    fn shared(
        &self,
        scheme: Scheme,
        source: &dyn Source,
        put: Put<'_>,
        make: &dyn Fn(&QuantizedTensor, &mut Vec<u8>),
    ) -> Result<()> {
        let [rows, columns] = self.matrix();
        for chunk in chunks(rows, (CHUNK / columns.max(1)).next_multiple_of(2).max(2)) {
            if chunk.start > 0 && scheme.granularity == Granularity::Tensor {
                break;
            }
            let tensor = self.expr.read_quantized(source, chunk)?;
            let mut bytes = Vec::new();
            make(&tensor, &mut bytes);
            put(&bytes)?;
        }
        Ok(())
    }
}

/// Codes of a row, two per byte if they have 4 bits; rows are of even width then.
fn packed(codes: &[u8], element: Element, out: &mut Vec<u8>) {
    match element.2 {
        4 => out.extend(codes.as_chunks::<2>().0.iter().map(|[low, high]| nibbles([low & 15, high & 15]))),
        _ => out.extend(codes),
    }
}
