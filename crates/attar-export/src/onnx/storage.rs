//! In which form each weight lies in the data file.
//!
//! What ONNX Runtime 1.32 accepts decides: it turns `DequantizeLinear -> MatMul` into its fused `MatMulNBits` when the
//! codes lie `[in, out]` with a power of two as block (scales of any sign, short tails and scales that pass through a
//! `Cast` included), and `Gather` takes no 4-bit integers, so tables of them are read as bytes.

use std::collections::HashMap;

use attar_graph::{Expr, Graph, Node, Op, Origin, ValueId};
use attar_tensor::{Dtype, Encoding, Granularity, Scheme};

use super::proto::Element;
use crate::{Error, Layout, Result, TensorEntry};

/// Offsets of tensors of a page or more, and of smaller ones.
const ALIGNMENT: [u64; 2] = [4096, 64];

/// A weight and the tensors that hold it.
pub(super) struct Stored {
    /// Canonical name.
    pub(super) name: String,
    /// Names of other weights that are the same numbers.
    pub(super) also: Vec<String>,
    pub(super) dims: Vec<usize>,
    pub(super) encoding: Encoding,
    pub(super) expr: Expr,
    pub(super) form: Form,
    /// Codes (or values), scales and zeros, as far as there are any.
    pub(super) parts: Vec<Part>,
    /// Other tensors over the bytes of a part, by its index.
    pub(super) views: Vec<(usize, Part)>,
}

/// How numbers are arranged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// Values, as in the graph.
    Plain(Dtype),
    /// Codes `[in, out]`, scales and zeros `[groups, out]`: what a `MatMul` wants.
    Columns(Scheme),
    /// Codes, scales and zeros by rows, codes of less than 8 bits two a byte: what a `Gather` wants.
    Rows(Scheme),
    /// Codes by rows, every group whole, zeros packed by rows: what `MatMulNBits` and `GatherBlockQuantized` want.
    Blobs(Scheme),
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<usize>,
    pub(super) offset: u64,
}

impl Part {
    fn new(name: String, element: Element, dims: &[usize]) -> Part {
        Part { name, element, dims: dims.to_vec(), offset: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.element.bytes(&self.dims)
    }
}

/// Width of the integers that hold codes of `scheme`.
pub(super) fn stored_bits(scheme: &Scheme) -> u32 {
    if scheme.grid.bits() > 4 { 8 } else { 4 }
}

/// Everything that `nodes` of `graph` read, each once, and which entry each value is.
pub(super) struct Weights {
    pub(super) stored: Vec<Stored>,
    pub(super) of: HashMap<ValueId, usize>,
    /// Length of the data file.
    pub(super) bytes: u64,
}

/// Who reads a weight.
#[derive(Default)]
struct Readers<'g> {
    values: Vec<ValueId>,
    table: Option<&'g Node>,
    matrix: Option<&'g Node>,
    other: Option<&'g Node>,
}

impl Weights {
    /// Chooses a form for every weight, and its place.
    pub(super) fn new(graph: &Graph, layout: Layout) -> Result<Weights> {
        let mut weights = Weights { stored: Vec::new(), of: HashMap::new(), bytes: 0 };
        for readers in readers(graph) {
            let stored = choose(graph, layout, &readers)?;
            for id in &readers.values {
                weights.of.insert(*id, weights.stored.len());
            }
            weights.place(stored);
        }
        Ok(weights)
    }

    fn place(&mut self, mut stored: Stored) {
        for part in &mut stored.parts {
            let alignment = if part.bytes() < ALIGNMENT[0] { ALIGNMENT[1] } else { ALIGNMENT[0] };
            part.offset = self.bytes.next_multiple_of(alignment);
            self.bytes = part.offset + part.bytes();
        }
        for (part, view) in &mut stored.views {
            view.offset = stored.parts[*part].offset;
        }
        self.stored.push(stored);
    }
}

/// Readers of each distinct weight, in order of first use.
fn readers(graph: &Graph) -> Vec<Readers<'_>> {
    let mut all: Vec<Readers<'_>> = Vec::new();
    let mut known: HashMap<(&Expr, String), usize> = HashMap::new();
    for node in graph.nodes() {
        for (position, id) in node.inputs.iter().enumerate() {
            let value = graph.get(*id);
            let Origin::Weight(expr) = &value.origin else { continue };
            let at = *known.entry((expr, value.fact.to_string())).or_insert(all.len());
            if at == all.len() {
                all.push(Readers::default());
            }
            let readers = &mut all[at];
            if !readers.values.contains(id) {
                readers.values.push(*id);
            }
            let role = match (&node.op, position) {
                (Op::Embedding, 1) => &mut readers.table,
                (Op::Linear, 1) => &mut readers.matrix,
                _ => &mut readers.other,
            };
            role.get_or_insert(node);
        }
    }
    all
}

fn choose(graph: &Graph, layout: Layout, readers: &Readers<'_>) -> Result<Stored> {
    let mut names = readers.values.iter().map(|id| graph.get(*id).name.clone());
    let (name, also) = (names.next().expect("a weight has a name"), names.collect());
    let value = graph.get(readers.values[0]);
    let Origin::Weight(expr) = &value.origin else { unreachable!("only weights have readers") };
    let dims = value.fact.constant_dims().expect("weights have constant dimensions: checked by the graph");
    let encoding = value.fact.encoding;
    let form = match encoding {
        Encoding::Quantized(scheme) => quantized_form(graph, layout, readers, &name, &dims, scheme)?,
        Encoding::Plain(dtype @ (Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::I8)) => Form::Plain(dtype),
        Encoding::Plain(_) | Encoding::Blocks(_) => Form::Plain(Dtype::F32),
    };
    let parts = parts(form, &name, &dims, readers.matrix.is_some());
    let both = readers.table.is_some() && readers.matrix.is_some();
    let views = if both { views(form, &parts) } else { Vec::new() };
    Ok(Stored { name, also, dims, encoding, expr: expr.clone(), form, parts, views })
}

fn quantized_form(
    graph: &Graph,
    layout: Layout,
    readers: &Readers<'_>,
    name: &str,
    dims: &[usize],
    scheme: Scheme,
) -> Result<Form> {
    let refuse = |node: &Node, found: String, wanted, hint| Error::Weight {
        node: graph.get(node.output).name.clone(),
        tensor: name.into(),
        found,
        layout: format!("layout `{layout}`"),
        wanted,
        hint,
    };
    if let Some(node) = readers.other {
        let hint = "keep it in a plain number format: only linear layers and embeddings can read codes";
        return Err(refuse(node, scheme.to_string(), "codes for linear layers and embeddings", hint));
    }
    let [rows, columns] = dims else { unreachable!("linear layers and embeddings take matrices: checked by the graph") };
    scheme.fit(*columns)?;
    let node = readers.matrix.or(readers.table).expect("a weight has a reader");
    match (layout, scheme.granularity) {
        (Layout::MatMulNBits, Granularity::Group(16 | 32 | 64 | 128 | 256)) => Ok(Form::Blobs(scheme)),
        (Layout::MatMulNBits, _) => {
            let hint = "use `layout = \"dequantize-linear\"`, or quantize with `group = 32`, 64 or 128";
            Err(refuse(node, scheme.to_string(), "groups of 16, 32, 64, 128 or 256", hint))
        }
        (Layout::DequantizeLinear, _) if readers.matrix.is_none() => Ok(Form::Rows(scheme)),
        (Layout::DequantizeLinear, _) if readers.table.is_some() && stored_bits(&scheme) == 4 && rows % 2 == 1 => {
            let hint = "quantize the shared table to 8 bits, or use `layout = \"matmul-nbits\"`";
            let found = format!("{scheme} with {rows} rows, shared by an embedding and a linear layer");
            Err(refuse(node, found, "4-bit codes of shared tables with an even number of rows", hint))
        }
        (Layout::DequantizeLinear, _) => Ok(Form::Columns(scheme)),
    }
}

fn parts(form: Form, name: &str, dims: &[usize], for_matmul: bool) -> Vec<Part> {
    let (scale_name, zero_name) = (format!("{name}/scale"), format!("{name}/zero"));
    let [rows, columns] = [dims[0], dims.get(1).copied().unwrap_or(1)];
    let (scheme, codes, shared_dims, zeros) = match form {
        Form::Plain(dtype) => {
            let element = Element::of(dtype).expect("plain forms are f16, bf16, f32, i16 or i8");
            return vec![Part::new(name.into(), element, dims)];
        }
        Form::Columns(s) => {
            let element = match (stored_bits(&s), s.is_symmetric()) {
                (8, true) => Element::I8,
                (8, false) => Element::U8,
                (_, true) => Element::I4,
                (_, false) => Element::U4,
            };
            let shared = match s.granularity {
                Granularity::Tensor => vec![],
                Granularity::Row => vec![rows],
                Granularity::Group(_) => vec![s.groups(columns), rows],
            };
            (s, Part::new(name.into(), element, &[columns, rows]), shared.clone(), Part::new(zero_name, element, &shared))
        }
        Form::Rows(s) => {
            let packed = (columns * stored_bits(&s) as usize).div_ceil(8);
            let element = if stored_bits(&s) == 8 && s.is_symmetric() { Element::I8 } else { Element::U8 };
            let shared = match s.granularity {
                Granularity::Tensor => vec![],
                _ => vec![rows, s.groups(columns)],
            };
            (s, Part::new(name.into(), element, &[rows, packed]), shared.clone(), Part::new(zero_name, Element::U8, &shared))
        }
        Form::Blobs(s) => {
            let (groups, bits) = (s.groups(columns), stored_bits(&s) as usize);
            let blob = blob_group(&s) * bits / 8;
            let dims = if for_matmul { vec![rows, groups, blob] } else { vec![rows, groups * blob] };
            let zeros = Part::new(zero_name, Element::U8, &[rows, (groups * bits).div_ceil(8)]);
            (s, Part::new(name.into(), Element::U8, &dims), vec![rows, groups], zeros)
        }
    };
    let element = Element::of(scheme.scale).expect("scales are f16, bf16 or f32");
    let mut all = vec![codes, Part::new(scale_name, element, &shared_dims)];
    all.extend((!scheme.is_symmetric()).then_some(zeros));
    all
}

/// Values that a blob has room for.
pub(super) fn blob_group(scheme: &Scheme) -> usize {
    match scheme.granularity {
        Granularity::Group(n) => n,
        _ => unreachable!("blobs hold groups: checked when the form was chosen"),
    }
}

/// What an embedding reads of a weight that lies as a linear layer wants it.
fn views(form: Form, parts: &[Part]) -> Vec<(usize, Part)> {
    let bytes = |part: &Part| {
        let dims = match part.dims.as_slice() {
            [] => vec![],
            [n] => vec![1, n / 2],
            [k, n, ..] => vec![*k, n / 2],
        };
        Part::new(format!("{}/bytes", part.name), Element::U8, &dims)
    };
    match form {
        Form::Blobs(_) => {
            let dims = &parts[0].dims;
            vec![(0, Part::new(format!("{}/rows", parts[0].name), Element::U8, &[dims[0], dims[1] * dims[2]]))]
        }
        Form::Columns(_) => parts.iter().enumerate().filter(|(_, p)| p.element.bits() == 4).map(|(i, p)| (i, bytes(p))).collect(),
        _ => Vec::new(),
    }
}

impl Stored {
    pub(super) fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Rows and columns; a vector is one row, as in [`attar_tensor::TensorInfo::matrix`].
    pub(super) fn matrix(&self) -> [usize; 2] {
        attar_tensor::TensorInfo { dims: self.dims.clone(), encoding: self.encoding }.matrix()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// For manifests.
    pub(super) fn entry(&self) -> TensorEntry {
        TensorEntry {
            name: self.name.clone(),
            also: self.also.clone(),
            dims: self.dims.clone(),
            encoding: self.encoding.to_string(),
            storage: self.form.in_words(),
            true_bits: self.encoding.true_bits(self.matrix()),
            stored_bytes: self.bytes(),
            snr_db: None,
        }
    }
}

impl Form {
    /// Whether codes are in two's complement.
    pub(super) fn is_signed(self) -> bool {
        match self {
            Form::Columns(s) => s.is_symmetric(),
            Form::Rows(s) => s.is_symmetric() && stored_bits(&s) == 8,
            Form::Blobs(_) | Form::Plain(_) => false,
        }
    }

    /// What is added to a code, modulo the stored width, so that the code that means zero is where the form has it.
    pub(super) fn shift(self) -> u8 {
        match self {
            Form::Columns(s) | Form::Rows(s) | Form::Blobs(s) if s.is_symmetric() => {
                let zero = if self.is_signed() { 0 } else { 1 << (stored_bits(&s) - 1) };
                u8::wrapping_sub(zero, s.grid.middle())
            }
            _ => 0,
        }
    }

    fn in_words(self) -> String {
        let (scheme, what) = match self {
            Form::Plain(dtype) => return dtype.to_string(),
            Form::Columns(s) => (s, "transposed"),
            Form::Rows(s) => (s, "by rows"),
            Form::Blobs(s) => (s, "in blobs"),
        };
        let sign = if self.is_signed() { "int" } else { "uint" };
        let shared = match scheme.granularity {
            Granularity::Tensor => "one scale".into(),
            Granularity::Row => "a scale a row".into(),
            Granularity::Group(n) => format!("blocks of {n} along inputs"),
        };
        let (bits, stored) = (scheme.grid.bits(), stored_bits(&scheme));
        let room = if bits == stored { String::new() } else { format!("; {bits}-bit levels in {stored}-bit storage") };
        let scale = scheme.scale;
        format!("{sign}{stored} {what}, {shared}, {scale} scales{room}")
    }
}
