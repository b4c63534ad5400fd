//! How each weight is stored in the data file.
//!
//! What ONNX Runtime 1.32 accepts decides: it turns `DequantizeLinear -> MatMul` into its fused `MatMulNBits` when the
//! codes are stored as `[in, out]` with a power of two as block (scales of any sign, short tails and scales that pass through a
//! `Cast` included), and `Gather` takes no 4-bit integers, so tables of them are read as bytes. Floats of 8 bits go through
//! `DequantizeLinear` too. Codes of any other table are looked up in it and multiplied by their scales; ONNX Runtime does
//! that once, when it loads. Scales that are codes become numbers by a `DequantizeLinear` of their own.

use std::collections::{HashMap, HashSet};

use attar_graph::{Expr, Graph, Node, Op, Origin, ValueId};
use attar_tensor::{Dtype, Encoding, Granularity, ScaleFormat, Scheme};

use super::{
    Layout, Onnx,
    form::{Form, Scales, Sign, block, float, is_even, stored_bits, table_bits},
    integer,
    pack::{self, Pack},
    proto::Element,
    stored::{Part, Role, Stored},
};
use crate::{Error, Result, kit};

/// The element type of stored scales. A power of two is a bf16 without loss.
fn scale_element(format: ScaleFormat) -> Element {
    match format {
        ScaleFormat::F32 => Element::F32,
        ScaleFormat::F16 => Element::F16,
        ScaleFormat::Bf16 | ScaleFormat::E8m0 => Element::BF16,
        ScaleFormat::Int8 | ScaleFormat::Int6 | ScaleFormat::Int4 => Element::I8,
        ScaleFormat::E4m3 => Element::F8_E4M3,
    }
}

/// Everything that `nodes` of `graph` read, each once, and which entry each value is.
pub(super) struct Weights {
    pub(super) stored: Vec<Stored>,
    pub(super) of: HashMap<ValueId, usize>,
    /// Weights of several products that are one.
    pub(super) packs: Vec<Pack>,
    /// Roundings of activations that are a `QuantizeLinear` and a `DequantizeLinear`.
    pub(super) pairs: HashSet<ValueId>,
    /// Length of the data file.
    pub(super) bytes: u64,
    /// Whether zeros in plain numbers lose their sign, and scales that are 0 become 1, of which Hexagon's products are no longer wrong.
    pub(super) on_device: bool,
}

/// Who reads a weight.
#[derive(Default)]
struct Readers<'g> {
    values: Vec<ValueId>,
    table: Option<&'g Node>,
    matrices: Vec<&'g Node>,
    other: Option<&'g Node>,
}

impl Readers<'_> {
    /// Whether one linear layer reads it and nothing else.
    fn is_one_matrix(&self) -> bool {
        self.table.is_none() && self.other.is_none() && self.matrices.len() == 1
    }
}

impl Weights {
    /// Chooses a form for every weight, and its place.
    /// `on_device`: every activation with one static scale is a pair, and no weight need be unsigned. See also [`Weights::on_device`].
    pub(super) fn new(graph: &Graph, options: &Onnx, on_device: bool) -> Result<Weights> {
        let readers = readers(graph);
        let form_of = |readers: &Readers<'_>| {
            let form = form(graph, options.layout, readers)?;
            let columns =
                readers.values.first().and_then(|id| graph.fact(*id).constant_dims()).map_or(0, |dims| dims[dims.len() - 1]);
            Ok(if on_device { form.on_device(columns, is_wide(graph, readers)) } else { form })
        };
        let forms = readers.iter().map(form_of).collect::<Result<Vec<Form>>>()?;
        let of = readers.iter().enumerate().flat_map(|(at, readers)| readers.values.iter().map(move |id| (*id, at))).collect();
        let mut weights = Weights { stored: Vec::new(), of, packs: Vec::new(), pairs: HashSet::new(), bytes: 0, on_device };
        weights.pairs = match on_device {
            true => integer::static_pairs(graph),
            false => integer::pairs(graph, &|id| weights.of.get(&id).map(|at| forms[*at])),
        };
        for (readers, form) in readers.iter().zip(forms) {
            let unsigned = !on_device && integer::needs_unsigned(graph, form, &readers.matrices, &weights.pairs);
            let form = if unsigned { form.unsigned() } else { form };
            weights.stored.push(stored(graph, readers, form));
        }
        if options.style.packs() {
            weights.packs = pack::packs(graph, &|id| {
                let at = *weights.of.get(&id)?;
                readers[at].is_one_matrix().then(|| (at, &weights.stored[at]))
            });
        }
        weights.place();
        Ok(weights)
    }

    /// Gives every part its place, in the order of the weights; the parts of a pack lie one behind the other.
    fn place(&mut self) {
        let mut pack_of: HashMap<usize, usize> = HashMap::new();
        for (i, pack) in self.packs.iter().enumerate() {
            pack_of.extend(pack.members.iter().map(|at| (*at, i)));
        }
        for at in 0..self.stored.len() {
            match pack_of.get(&at).map(|i| &mut self.packs[*i]) {
                None => self.stored[at].place(&mut self.bytes),
                Some(pack) if pack.members[0] == at => pack.place(&mut self.stored, &mut self.bytes),
                Some(_) => (),
            }
        }
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
            match (&node.op, position) {
                (Op::Embedding, 1) => drop(readers.table.get_or_insert(node)),
                (Op::Linear, 1) => readers.matrices.push(node),
                _ => drop(readers.other.get_or_insert(node)),
            }
        }
    }
    all
}

/// How a weight is stored, by the layout and the ops that read it.
fn form(graph: &Graph, layout: Layout, readers: &Readers<'_>) -> Result<Form> {
    match graph.fact(readers.values[0]).encoding {
        Encoding::Quantized(scheme) => quantized_form(graph, layout, readers, scheme),
        other => match kit::plain_dtype(other) {
            Some(dtype @ (Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::I8)) => Ok(Form::Plain(dtype)),
            _ => Ok(Form::Plain(Dtype::F32)),
        },
    }
}

fn stored(graph: &Graph, readers: &Readers<'_>, form: Form) -> Stored {
    let mut names = readers.values.iter().map(|id| graph.get(*id).name.clone());
    let (name, also) = (names.next().expect("a weight has a name"), names.collect());
    let value = graph.get(readers.values[0]);
    let Origin::Weight(expr) = &value.origin else { unreachable!("only weights have readers") };
    let dims = constant_dims(graph, readers);
    let parts = parts(form, &name, &dims, !readers.matrices.is_empty());
    let both = readers.table.is_some() && !readers.matrices.is_empty();
    let views = if both { views(form, &parts) } else { Vec::new() };
    Stored { name, also, dims, encoding: value.fact.encoding, expr: expr.clone(), form, parts, views, packed: None }
}

fn constant_dims(graph: &Graph, readers: &Readers<'_>) -> Vec<usize> {
    graph.fact(readers.values[0]).constant_dims().expect("weights have constant dimensions: checked by the graph")
}

fn quantized_form(graph: &Graph, layout: Layout, readers: &Readers<'_>, scheme: Scheme) -> Result<Form> {
    let (name, dims) = (&graph.get(readers.values[0]).name, constant_dims(graph, readers));
    let refuse = |node: &Node, found: String, wanted, hint| Error::Weight {
        node: graph.get(node.outputs[0]).name.clone(),
        tensor: name.clone(),
        found,
        layout: format!("layout `{layout}`"),
        wanted,
        hint,
    };
    if let Some(node) = readers.other {
        let hint = "keep it in a plain number format: only linear layers and embeddings can read codes";
        return Err(refuse(node, scheme.to_string(), "codes for linear layers and embeddings", hint));
    }
    let [rows, columns] = dims[..] else { unreachable!("linear layers and embeddings take matrices: checked by the graph") };
    scheme.fit(columns)?;
    let node = readers.matrices.first().copied().or(readers.table).expect("a weight has a reader");
    // What each layout lacks, so that no hint names a layout that would refuse, too.
    let blobs = matches!(scheme.granularity, Granularity::Group(16 | 32 | 64 | 128 | 256)) && is_even(&scheme);
    let shared = readers.table.is_some() && !readers.matrices.is_empty();
    let odd = shared && is_even(&scheme) && stored_bits(&scheme) == 4 && rows % 2 == 1;
    match (layout, scheme.granularity) {
        (Layout::MatMulNBits, _) if blobs => {
            let scales = if readers.table.is_some() { Scales::F32 } else { Scales::Own };
            Ok(Form::Blobs(scheme, scales))
        }
        (Layout::MatMulNBits, _) => {
            let hint = match odd {
                true => "quantize to integers with `group = 32`, 64 or 128",
                false => "use `layout = \"dequantize-linear\"`, or quantize to integers with `group = 32`, 64 or 128",
            };
            Err(refuse(node, scheme.to_string(), "integers in groups of 16, 32, 64, 128 or 256", hint))
        }
        (Layout::DequantizeLinear, _) if float(&scheme).is_some() && readers.table.is_none() => {
            Ok(Form::Columns(scheme, Sign::of(&scheme)))
        }
        (Layout::DequantizeLinear, _) if !is_even(&scheme) => Ok(Form::Table(scheme)),
        (Layout::DequantizeLinear, _) if readers.matrices.is_empty() => Ok(Form::Rows(scheme)),
        (Layout::DequantizeLinear, _) if odd => {
            let hint = match blobs {
                true => "quantize the shared table to 8 bits, or use `layout = \"matmul-nbits\"`",
                false => {
                    "quantize the shared table to 8 bits; in groups of 32, 64 or 128, `layout = \"matmul-nbits\"` holds it, too"
                }
            };
            let found = format!("{scheme} with {rows} rows, shared by an embedding and a linear layer");
            Err(refuse(node, found, "4-bit codes of shared tables with an even number of rows", hint))
        }
        (Layout::DequantizeLinear, _) => Ok(Form::Columns(scheme, Sign::of(&scheme))),
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
        Form::Columns(s, sign) => {
            let element = match (float(&s), stored_bits(&s), sign) {
                (Some(float), ..) => float,
                (_, 8, Sign::Signed) => Element::I8,
                (_, 8, Sign::Unsigned) => Element::U8,
                (.., Sign::Signed) => Element::I4,
                (.., Sign::Unsigned) => Element::U4,
            };
            let shared = match s.granularity {
                Granularity::Tensor => vec![],
                Granularity::Row => vec![rows],
                Granularity::Group(_) => vec![s.groups(columns), rows],
            };
            (s, Part::new(name.into(), element, &[columns, rows]), shared.clone(), Part::new(zero_name, element, &shared))
        }
        Form::Blocks(s) => {
            let shared = vec![columns / block(&s, columns), rows];
            (s, Part::new(name.into(), Element::I4, &[columns, rows]), shared.clone(), Part::new(zero_name, Element::I4, &shared))
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
        Form::Blobs(s, _) => {
            let (groups, bits) = (s.groups(columns), stored_bits(&s) as usize);
            let blob = blob_group(&s) * bits / 8;
            let dims = if for_matmul { vec![rows, groups, blob] } else { vec![rows, groups * blob] };
            let zeros = Part::new(zero_name, Element::U8, &[rows, (groups * bits).div_ceil(8)]);
            (s, Part::new(name.into(), Element::U8, &dims), vec![rows, groups], zeros)
        }
        Form::Table(s) => {
            let (groups, size) = (s.groups(columns), s.group(columns));
            let element = if table_bits(&s, columns) == 8 { Element::U8 } else { Element::U4 };
            let (codes, shared) = match (s.granularity, s.entries()) {
                (Granularity::Tensor, 1) => (vec![rows, 1, size], vec![]),
                (Granularity::Tensor, entries) => (vec![rows, 1, size], vec![entries]),
                (_, 1) => (vec![rows, groups, size], vec![rows, groups, 1]),
                (_, entries) => (vec![rows * groups, size], vec![rows * groups, entries]),
            };
            (s, Part::new(name.into(), element, &codes), shared, Part::new(zero_name, element, &[]))
        }
    };
    let scale = form.scale_format(&scheme);
    let super_dims = if scale.super_count(2) == 2 { vec![rows] } else { vec![] };
    let is_lpbq = matches!(form, Form::Blocks(_));
    let element = if is_lpbq { Element::U8 } else { scale_element(scale) };
    let mut all = vec![codes, Part::new(scale_name, element, &shared_dims).of(Role::Scales)];
    all.extend(form.has_zeros().then_some(zeros.of(Role::Zeros)));
    let of_rows = is_lpbq.then_some((Element::F32, vec![rows]));
    let own = || scale.supers().map(|(dtype, _)| (Element::of(dtype).expect("super scales are f16 or f32"), super_dims));
    all.extend(of_rows.or_else(own).map(|(element, dims)| Part::new(format!("{name}/super"), element, &dims).of(Role::Supers)));
    all
}

/// Whether all that is multiplied with a weight has 16 bits, and nothing is added to the products.
fn is_wide(graph: &Graph, readers: &Readers<'_>) -> bool {
    let wide = |node: &&Node| graph.maker(node.inputs[0]).is_some_and(|maker| maker.op == (Op::Quantize { bits: 16 }));
    readers.matrices.iter().all(|node| node.inputs.len() == 2 && wide(node))
}

/// Values that a blob has room for.
pub(super) fn blob_group(scheme: &Scheme) -> usize {
    match scheme.granularity {
        Granularity::Group(n) => n,
        _ => unreachable!("blobs hold groups: checked when the form was chosen"),
    }
}

/// What an embedding reads of a weight that is stored for a linear layer.
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
        Form::Blobs(..) => {
            let dims = &parts[0].dims;
            vec![(0, Part::new(format!("{}/rows", parts[0].name), Element::U8, &[dims[0], dims[1] * dims[2]]))]
        }
        Form::Columns(..) => {
            parts.iter().enumerate().filter(|(_, p)| p.element.bits() == 4).map(|(i, p)| (i, bytes(p))).collect()
        }
        _ => Vec::new(),
    }
}
