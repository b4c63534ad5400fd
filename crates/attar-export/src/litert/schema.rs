//! A model in the schema of LiteRT (`.tflite`, version 3): tensors, operators, sub-graphs and their signatures.
//!
//! Numbers of weights lie behind the FlatBuffer, at offsets from the start of the file: so the buffer stays small, and the file may be larger than
//! the 2 GiB that FlatBuffers reach.

use std::collections::{BTreeSet, HashMap};

use super::flat::{Field, Place, Writer};

/// An element type: its code in the schema, and its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Element(pub(super) i8, pub(super) u64);

impl Element {
    pub(super) const F32: Element = Element(0, 32);
    pub(super) const F16: Element = Element(1, 16);
    pub(super) const I32: Element = Element(2, 32);
    pub(super) const BOOL: Element = Element(6, 8);
    pub(super) const I8: Element = Element(9, 8);
    pub(super) const I64: Element = Element(4, 64);
    pub(super) const I16: Element = Element(7, 16);
    pub(super) const I4: Element = Element(17, 4);

    /// In ports and entries.
    pub(super) fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::I32 => "i32",
            Element::BOOL => "bool",
            Element::I8 => "i8",
            Element::I16 => "i16",
            Element::I64 => "i64",
            _ => "i4",
        }
    }

    /// Bytes of a tensor: elements are packed without gaps, the first in the lowest bits.
    pub(super) fn bytes(self, dims: &[usize]) -> u64 {
        (dims.iter().product::<usize>() as u64 * self.1).div_ceil(8)
    }
}

/// What an operator does: its code, the version whose definition is meant, and the code of its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    code: i32,
    version: i32,
    options: u8,
}

const fn kind(code: i32, version: i32, options: u8) -> Kind {
    Kind { code, version, options }
}

pub(super) const ADD: Kind = kind(0, 1, 11);
/// Of integers, as those below.
pub(super) const ADD_16: Kind = kind(0, 3, 11);
pub(super) const CONCATENATION: Kind = kind(2, 1, 10);
/// Of float rows, and of rows in codes.
pub(super) const EMBEDDING_LOOKUP: Kind = kind(7, 1, 0);
pub(super) const EMBEDDING_LOOKUP_OF_CODES: Kind = kind(7, 4, 0);
/// Of float weights, of 8 and of 4 bits with a scale a row, of 4 bits in blocks.
pub(super) const FULLY_CONNECTED: Kind = kind(9, 1, 8);
pub(super) const FULLY_CONNECTED_8: Kind = kind(9, 9, 8);
pub(super) const FULLY_CONNECTED_4: Kind = kind(9, 10, 8);
pub(super) const FULLY_CONNECTED_BLOCKS: Kind = kind(9, 13, 8);
pub(super) const LOGISTIC: Kind = kind(14, 1, 0);
pub(super) const LOGISTIC_16: Kind = kind(14, 3, 0);
pub(super) const MUL: Kind = kind(18, 1, 21);
pub(super) const MUL_16: Kind = kind(18, 4, 21);
pub(super) const RESHAPE: Kind = kind(22, 1, 17);
pub(super) const SOFTMAX: Kind = kind(25, 1, 9);
pub(super) const SOFTMAX_8: Kind = kind(25, 2, 9);
pub(super) const SOFTMAX_16: Kind = kind(25, 3, 9);
pub(super) const TANH: Kind = kind(28, 1, 0);
pub(super) const TANH_16: Kind = kind(28, 3, 0);
pub(super) const GATHER_16: Kind = kind(36, 4, 23);
pub(super) const TRANSPOSE: Kind = kind(39, 1, 26);
pub(super) const MEAN: Kind = kind(40, 1, 27);
pub(super) const MEAN_16: Kind = kind(40, 2, 27);
pub(super) const SUB: Kind = kind(41, 1, 28);
pub(super) const SUB_16: Kind = kind(41, 5, 28);
pub(super) const DIV: Kind = kind(42, 1, 29);
pub(super) const CAST: Kind = kind(53, 1, 37);
pub(super) const MAXIMUM: Kind = kind(55, 1, 39);
pub(super) const MAXIMUM_16: Kind = kind(55, 4, 39);
pub(super) const MINIMUM: Kind = kind(57, 1, 39);
pub(super) const LESS: Kind = kind(58, 1, 41);
pub(super) const SLICE: Kind = kind(65, 1, 48);
pub(super) const SIN: Kind = kind(66, 1, 0);
pub(super) const SUM: Kind = kind(74, 1, 27);
pub(super) const SQRT: Kind = kind(75, 1, 0);
pub(super) const RSQRT: Kind = kind(76, 1, 0);
pub(super) const RSQRT_16: Kind = kind(76, 2, 0);
pub(super) const REDUCE_MAX: Kind = kind(82, 1, 27);
pub(super) const REDUCE_MAX_16: Kind = kind(82, 3, 27);
pub(super) const ABS: Kind = kind(101, 1, 78);
pub(super) const COS: Kind = kind(108, 1, 84);
pub(super) const ROUND: Kind = kind(116, 1, 0);
pub(super) const QUANTIZE: Kind = kind(114, 2, 0);
pub(super) const SELECT: Kind = kind(123, 1, 98);
pub(super) const BATCH_MATMUL: Kind = kind(126, 1, 101);
pub(super) const BATCH_MATMUL_CODES: Kind = kind(126, 4, 101);
pub(super) const GELU: Kind = kind(150, 1, 116);
pub(super) const GELU_8: Kind = kind(150, 2, 116);
pub(super) const DYNAMIC_UPDATE_SLICE: Kind = kind(151, 1, 117);

/// Where the numbers of a constant are.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// Nowhere: it is computed.
    None,
    /// In the FlatBuffer.
    Inside(Vec<u8>),
    /// Behind it: how far from where numbers begin, and how many bytes.
    Behind(u64, u64),
}

/// What codes mean.
#[derive(Clone, Debug)]
pub(super) enum Scales {
    /// One scale and zero for all.
    One(Grid),
    /// A scale for each row.
    Rows(Vec<f32>),
    /// Scales of blocks of a row, in another tensor of the sub-graph.
    Blocks { scales: i32, size: i32 },
}

/// The integers that values of a tensor are rounded to: `(code - zero) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Grid {
    pub(super) bits: u32,
    pub(super) scale: f32,
    pub(super) zero: i64,
}

pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<usize>,
    pub(super) data: Data,
    pub(super) scales: Option<Scales>,
}

pub(super) struct Operator {
    pub(super) kind: Kind,
    pub(super) inputs: Vec<i32>,
    pub(super) output: i32,
    pub(super) options: Vec<(u16, Field)>,
}

/// A sub-graph, which is called by its signature.
#[derive(Default)]
pub(super) struct Subgraph {
    pub(super) name: String,
    pub(super) tensors: Vec<Tensor>,
    pub(super) operators: Vec<Operator>,
    /// Names for callers, and tensors.
    pub(super) inputs: Vec<(String, i32)>,
    pub(super) outputs: Vec<(String, i32)>,
}

/// The version of the schema.
const VERSION: u32 = 3;

/// Bytes that numbers behind the FlatBuffer are aligned to.
pub(super) const ALIGNMENT: u64 = 64;

/// The FlatBuffer of a model, as long as [`Data::Behind`] counts from: a multiple of [`ALIGNMENT`].
pub(super) fn flatbuffer(graphs: &[Subgraph]) -> Vec<u8> {
    // Offsets take the same room whatever they are.
    let length = written(graphs, 0).len() as u64;
    let base = length.next_multiple_of(ALIGNMENT);
    let mut bytes = written(graphs, base);
    bytes.resize(base as usize, 0);
    bytes
}

fn written(graphs: &[Subgraph], base: u64) -> Vec<u8> {
    let mut to = Writer::new();
    let kinds: Vec<Kind> =
        graphs.iter().flat_map(|graph| graph.operators.iter().map(|op| op.kind)).collect::<BTreeSet<_>>().into_iter().collect();
    let mut buffers = Buffers::default();
    let subgraphs: Vec<Place> = graphs.iter().map(|graph| subgraph(&mut to, graph, &kinds, &mut buffers)).collect();
    let signatures: Vec<Place> = graphs.iter().enumerate().map(|(at, graph)| signature(&mut to, graph, at as u32)).collect();
    let codes: Vec<Place> = kinds
        .iter()
        .map(|kind| {
            // Readers older than the wider field take this one.
            let short = kind.code.min(127) as i8;
            to.table(&[(0, Field::I8(short)), (2, Field::I32(kind.version)), (3, Field::I32(kind.code))])
        })
        .collect();
    let buffers = buffers.write(&mut to, base);
    let [codes, subgraphs, buffers, signatures] = [codes, subgraphs, buffers, signatures].map(|places| to.list(&places));
    let description = to.text("attar");
    let root = to.table(&[
        (0, Field::U32(VERSION)),
        (1, Field::At(codes)),
        (2, Field::At(subgraphs)),
        (3, Field::At(description)),
        (4, Field::At(buffers)),
        (7, Field::At(signatures)),
    ]);
    to.finish(root, Some("TFL3"))
}

/// Buffers of constants, each content once. The first is empty by definition.
#[derive(Default)]
struct Buffers<'g> {
    all: Vec<&'g Data>,
    inside: HashMap<&'g [u8], u32>,
    behind: HashMap<u64, u32>,
}

impl<'g> Buffers<'g> {
    fn of(&mut self, data: &'g Data) -> u32 {
        let next = self.all.len() as u32 + 1;
        let number = match data {
            Data::None => return 0,
            Data::Inside(bytes) => *self.inside.entry(bytes).or_insert(next),
            Data::Behind(offset, _) => *self.behind.entry(*offset).or_insert(next),
        };
        if number == next {
            self.all.push(data);
        }
        number
    }

    fn write(&self, to: &mut Writer<'_>, base: u64) -> Vec<Place> {
        let mut places = vec![to.table(&[])];
        for data in &self.all {
            let fields = match data {
                Data::None => vec![],
                Data::Inside(bytes) => vec![(0, Field::At(to.bytes(bytes)))],
                Data::Behind(offset, bytes) => vec![(1, Field::U64(base + offset)), (2, Field::U64(*bytes))],
            };
            places.push(to.table(&fields));
        }
        places
    }
}

fn subgraph<'g>(to: &mut Writer<'_>, graph: &'g Subgraph, kinds: &[Kind], buffers: &mut Buffers<'g>) -> Place {
    let tensors: Vec<Place> = graph.tensors.iter().map(|tensor| self::tensor(to, tensor, buffers)).collect();
    let operators: Vec<Place> = graph.operators.iter().map(|op| operator(to, op, kinds)).collect();
    let numbers = |ports: &[(String, i32)]| ports.iter().map(|(_, tensor)| *tensor).collect::<Vec<i32>>();
    let (tensors, operators) = (to.list(&tensors), to.list(&operators));
    let (inputs, outputs) = (to.i32s(&numbers(&graph.inputs)), to.i32s(&numbers(&graph.outputs)));
    let name = to.text(&graph.name);
    to.table(&[
        (0, Field::At(tensors)),
        (1, Field::At(inputs)),
        (2, Field::At(outputs)),
        (3, Field::At(operators)),
        (4, Field::At(name)),
    ])
}

fn tensor<'g>(to: &mut Writer<'_>, tensor: &'g Tensor, buffers: &mut Buffers<'g>) -> Place {
    let dims: Vec<i32> = tensor.dims.iter().map(|dim| *dim as i32).collect();
    let (shape, name) = (to.i32s(&dims), to.text(&tensor.name));
    let mut fields = vec![
        (0, Field::At(shape)),
        (1, Field::I8(tensor.element.0)),
        (2, Field::U32(buffers.of(&tensor.data))),
        (3, Field::At(name)),
        // Without this, no dimensions would mean an unknown shape.
        (8, Field::Bool(true)),
    ];
    match &tensor.scales {
        None => (),
        Some(Scales::One(Grid { scale, zero, .. })) => fields.push((4, Field::At(affine(to, &[*scale], &[*zero])))),
        Some(Scales::Rows(scales)) => fields.push((4, Field::At(affine(to, scales, &vec![0; scales.len()])))),
        Some(Scales::Blocks { scales, size }) => {
            const BLOCKWISE: u8 = 2;
            let details = to.table(&[(0, Field::I32(*scales)), (1, Field::I32(-1)), (2, Field::I32(*size))]);
            let quantization = to.table(&[(4, Field::U8(BLOCKWISE)), (5, Field::At(details)), (6, Field::I32(0))]);
            fields.push((4, Field::At(quantization)));
        }
    }
    to.table(&fields)
}

fn affine(to: &mut Writer<'_>, scales: &[f32], zeros: &[i64]) -> Place {
    let (zeros, scales) = (to.i64s(zeros), to.f32s(scales));
    to.table(&[(2, Field::At(scales)), (3, Field::At(zeros)), (6, Field::I32(0))])
}

fn operator(to: &mut Writer<'_>, op: &Operator, kinds: &[Kind]) -> Place {
    let code = kinds.binary_search(&op.kind).expect("the list is of all operators") as u32;
    let (inputs, outputs) = (to.i32s(&op.inputs), to.i32s(&[op.output]));
    let mut fields = vec![(0, Field::U32(code)), (1, Field::At(inputs)), (2, Field::At(outputs))];
    if op.kind.options > 0 {
        let options = to.table(&op.options);
        fields.extend([(3, Field::U8(op.kind.options)), (4, Field::At(options))]);
    }
    to.table(&fields)
}

fn signature(to: &mut Writer<'_>, graph: &Subgraph, number: u32) -> Place {
    let mut map = |ports: &[(String, i32)]| {
        let ports: Vec<Place> = ports
            .iter()
            .map(|(name, tensor)| {
                let name = to.text(name);
                to.table(&[(0, Field::At(name)), (1, Field::U32(*tensor as u32))])
            })
            .collect();
        to.list(&ports)
    };
    let (inputs, outputs) = (map(&graph.inputs), map(&graph.outputs));
    let key = to.text(&graph.name);
    to.table(&[(0, Field::At(inputs)), (1, Field::At(outputs)), (2, Field::At(key)), (4, Field::U32(number))])
}
