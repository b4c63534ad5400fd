//! From a graph to ONNX nodes: one function an op.
//!
//! Only operators of the standard are used, but for `MatMulNBits` and `GatherBlockQuantized` where the layout asks for
//! them. Activations are f32. What layers share (the mask, the turning angles, constants) is made once.

use std::collections::{HashMap, HashSet};

use attar_graph::{
    Dim, Graph, Node, Op, ValueId,
    integer::{Rounding, SMALLEST_RANGE},
    op::Rope,
};
use attar_tensor::{Dtype, Encoding, Granularity, Levels, Scheme};
use onnx_protobuf::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

use super::{
    proto::{self, Attributes, Element, MICROSOFT, Value},
    storage::{Form, Role, Stored, Weights, blob_group, stored_bits},
};
use crate::{Error, Layout, Port, Result};

/// What a hidden score is: far below any real one, and finite, so that a row of padding that sees nothing gets an even
/// mixture and not NaN.
const HIDDEN: f32 = -1e30;

/// What the caller gives beside the inputs of the graph.
const MASK: &str = "attention_mask";

type Emit = fn(&mut Emission<'_>, &Node, &str) -> Result<String>;

/// Every op that can be written as it is; all others are decomposed first.
static EMITTERS: &[(&str, Emit)] = &[
    ("embedding", embedding),
    ("linear", linear),
    ("rms_norm", rms_norm),
    ("split_heads", split_heads),
    ("merge_heads", merge_heads),
    ("rope", rope),
    ("cache", cache),
    ("attention", attention),
    ("silu", silu),
    ("mul", |e, node, name| Ok(e.elementwise("Mul", node, name))),
    ("add", |e, node, name| Ok(e.elementwise("Add", node, name))),
    ("quantize", quantize),
    ("concat", concat),
    ("slice", slice),
];

fn emitter(op: &Op) -> Option<Emit> {
    EMITTERS.iter().find(|(name, _)| *name == op.def().name).map(|(_, emit)| *emit)
}

/// A graph in terms of ONNX.
pub(super) struct Emitted {
    pub(super) graph: GraphProto,
    pub(super) weights: Weights,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

/// The whole of `graph`; weights are named and placed, and not read.
pub(super) fn emit(graph: &Graph, layout: Layout, data_file: &str) -> Result<Emitted> {
    let graph = graph.legalize(&|op| emitter(op).is_some())?;
    let mut emission = Emission::new(&graph, layout)?;
    emission.declare_inputs()?;
    for node in graph.nodes() {
        let value = graph.get(node.output);
        let emit = emitter(&node.op).ok_or_else(|| emission.refuse(node, "an op without a decomposition", "the ops it knows"))?;
        let name = emit(&mut emission, node, &value.name)?;
        emission.names.insert(node.output, name);
    }
    emission.declare_outputs()?;
    Ok(emission.finish(data_file))
}

/// The state of an attention layer that a cache holds.
type CachePlaces = HashMap<ValueId, (usize, &'static str)>;

struct Emission<'g> {
    graph: &'g Graph,
    weights: Weights,
    caches: CachePlaces,
    /// What each value is called here.
    names: HashMap<ValueId, String>,
    /// Names of nodes and constants that are shared. They start with a sign that no value of a graph starts with, or
    /// hold a colon.
    made: HashSet<String>,
    /// What turns by which angles: the rope, the head, the positions, and the name of the angles.
    ropes: Vec<(Rope, usize, String, String)>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    inputs: Vec<(Port, Element)>,
    outputs: Vec<(Port, Element)>,
}

impl<'g> Emission<'g> {
    fn new(graph: &'g Graph, layout: Layout) -> Result<Emission<'g>> {
        Ok(Emission {
            graph,
            weights: Weights::new(graph, layout)?,
            caches: cache_places(graph),
            names: HashMap::new(),
            made: HashSet::new(),
            ropes: Vec::new(),
            nodes: Vec::new(),
            constants: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        })
    }

    fn refuse(&self, node: &Node, found: impl Into<String>, wanted: &'static str) -> Error {
        let name = self.graph.get(node.output).name.clone();
        Error::Node { node: name, op: node.op.def().name, found: found.into(), target: "onnx", wanted }
    }

    /// Adds a node whose output has its name.
    fn node(&mut self, op: &str, name: impl Into<String>, inputs: &[&str], attributes: Attributes) -> String {
        self.node_of("", op, name, inputs, attributes)
    }

    fn node_of(&mut self, domain: &str, op: &str, name: impl Into<String>, inputs: &[&str], attributes: Attributes) -> String {
        let name = name.into();
        self.nodes.push(proto::node(domain, op, &name, inputs, attributes));
        name
    }

    /// Adds a node, unless one of that name is there.
    fn shared(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Attributes) -> String {
        if self.made.insert(name.into()) {
            self.node(op, name, inputs, attributes);
        }
        name.into()
    }

    fn constant(&mut self, name: String, element: Element, dims: &[usize], bytes: Vec<u8>) -> String {
        if self.made.insert(name.clone()) {
            self.constants.push(proto::inline(&name, element, dims, bytes));
        }
        name
    }

    /// A list of integers.
    fn ints(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(format!("ints:{values:?}"), Element::I64, &[values.len()], bytes)
    }

    /// One integer, without dimensions.
    fn int(&mut self, value: i64) -> String {
        self.constant(format!("int:{value}"), Element::I64, &[], value.to_le_bytes().to_vec())
    }

    /// One number, without dimensions.
    fn float(&mut self, value: f32) -> String {
        self.constant(format!("float:{value:e}"), Element::F32, &[], value.to_le_bytes().to_vec())
    }

    /// One byte, without dimensions.
    fn byte(&mut self, value: u8) -> String {
        self.constant(format!("byte:{value}"), Element::U8, &[], vec![value])
    }

    fn cast(&mut self, name: impl Into<String>, of: &str, to: Element) -> String {
        self.node("Cast", name, &[of], vec![("to", Value::Int(to.0.into()))])
    }

    fn weight(&self, id: ValueId) -> Option<usize> {
        self.weights.of.get(&id).copied()
    }

    /// A value as f32: of a weight, after a cast that is exact and that runtimes do once.
    fn value(&mut self, id: ValueId) -> String {
        let Some(at) = self.weight(id) else { return self.names[&id].clone() };
        let part = &self.weights.stored[at].parts[0];
        self.as_f32(part.name.clone(), part.element)
    }

    fn as_f32(&mut self, name: String, element: Element) -> String {
        if element == Element::F32 {
            return name;
        }
        self.shared("Cast", &format!("{name}/f32"), &[&name], vec![("to", Value::Int(Element::F32.0.into()))])
    }

    /// The scales of a quantized weight as f32. Those that are codes are multiplied by their super scales.
    fn scale(&mut self, at: usize) -> String {
        let stored = &self.weights.stored[at];
        let (part, form) = (stored.parts[1].clone(), stored.form);
        let Some(over) = stored.part(Role::Supers).cloned() else { return self.as_f32(part.name, part.element) };
        let attributes = match (over.dims.as_slice(), form) {
            ([], _) => vec![],
            (_, Form::Columns(_)) => vec![("axis", Value::Int(1))],
            _ => vec![("axis", Value::Int(0))],
        };
        let over = self.as_f32(over.name, over.element);
        self.shared("DequantizeLinear", &format!("{}/f32", part.name), &[&part.name, &over], attributes)
    }

    fn zero(&self, at: usize) -> Option<String> {
        self.weights.stored[at].part(Role::Zeros).map(|p| p.name.clone())
    }

    /// What codes of a [`Form::Table`] mean: `[rows, columns]`.
    fn looked_up(&mut self, at: usize, scheme: Scheme) -> String {
        let stored = &self.weights.stored[at];
        let (name, [rows, columns]) = (stored.name.clone(), stored.matrix());
        let held = scheme.groups(columns) * scheme.group(columns);
        let to = vec![("to", Value::Int(Element::I32.0.into()))];
        let codes = self.shared("Cast", &format!("{name}/index"), &[&name], to);
        let values = self.values_of_codes(at, scheme, &format!("{name}/values"), &codes);
        let shape = self.ints(&[rows as i64, held as i64]);
        let whole = self.shared("Reshape", &format!("{name}/whole"), &[&values, &shape], vec![]);
        if held == columns {
            return whole;
        }
        let (start, end, axis) = (self.ints(&[0]), self.ints(&[columns as i64]), self.ints(&[-1]));
        self.shared("Slice", &format!("{name}/columns"), &[&whole, &start, &end, &axis], vec![])
    }

    fn values_of_codes(&mut self, at: usize, scheme: Scheme, name: &str, codes: &str) -> String {
        let scale = self.scale(at);
        match (scheme.grid.levels(), scheme.granularity) {
            (Levels::Table(levels), _) => {
                let table = self.table(scheme.grid.name(), levels);
                let levels = self.shared("Gather", &format!("{name}/levels"), &[&table, codes], vec![]);
                self.shared("Mul", name, &[&levels, &scale], vec![])
            }
            // Of a learned table, the entries are where scales are of others.
            (_, Granularity::Tensor) => self.shared("Gather", name, &[&scale, codes], vec![]),
            _ => self.shared("GatherElements", name, &[&scale, codes], vec![("axis", Value::Int(1))]),
        }
    }

    /// The values of a grid by code; 0 where a code means no number.
    fn table(&mut self, grid: &str, levels: &[f32]) -> String {
        let bytes = levels.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).flat_map(f32::to_le_bytes).collect();
        self.constant(format!("levels:{grid}"), Element::F32, &[levels.len()], bytes)
    }

    /// What an embedding reads of part `part`: its view if it has one.
    fn readable(&self, at: usize, part: usize) -> String {
        let stored = &self.weights.stored[at];
        let view = stored.views.iter().find(|(of, _)| *of == part).map(|(_, view)| view);
        view.unwrap_or(&stored.parts[part]).name.clone()
    }

    fn elementwise(&mut self, op: &str, node: &Node, name: &str) -> String {
        let (a, b) = (self.value(node.inputs[0]), self.value(node.inputs[1]));
        self.node(op, name, &[&a, &b], vec![])
    }
}

/// Which state each cache that an attention reads is: layers are counted in running order.
fn cache_places(graph: &Graph) -> CachePlaces {
    let mut places = HashMap::new();
    let is_cache = |id: ValueId| graph.nodes().iter().any(|n| n.output == id && matches!(n.op, Op::Cache { .. }));
    let mut layer = 0;
    for node in graph.nodes().iter().filter(|n| matches!(n.op, Op::Attention(_))) {
        let cached: Vec<_> = node.inputs[1..].iter().copied().zip(["key", "value"]).filter(|(id, _)| is_cache(*id)).collect();
        for (id, role) in &cached {
            places.entry(*id).or_insert((layer, *role));
        }
        layer += usize::from(!cached.is_empty());
    }
    places
}

// Inputs and outputs.

impl Emission<'_> {
    fn declare_inputs(&mut self) -> Result<()> {
        let graph = self.graph;
        for id in graph.inputs() {
            let value = graph.get(*id);
            let name = match graph.nodes().iter().find_map(|n| input_role(n, *id)) {
                Some(role) => role.into(),
                None => value.name.clone(),
            };
            self.inputs.push(self.port(*id, &name)?);
            self.names.insert(*id, name);
        }
        if let Some(node) = graph.nodes().iter().find(|n| matches!(n.op, Op::Attention(_))) {
            let batch = dim(&graph.fact(node.inputs[0]).dims[0]);
            let port = Port { name: MASK.into(), dims: vec![batch, "total_sequence_length".into()], dtype: "i64".into() };
            self.inputs.insert(1.min(self.inputs.len()), (port, Element::I64));
        }
        let mut caches: Vec<_> = self.caches.iter().map(|(id, place)| (*place, *id)).collect();
        caches.sort();
        for ((layer, role), id) in caches {
            let (mut port, element) = self.port(id, &format!("past_key_values.{layer}.{role}"))?;
            port.dims[2] = "past_sequence_length".into();
            self.inputs.push((port, element));
        }
        Ok(())
    }

    fn declare_outputs(&mut self) -> Result<()> {
        for id in self.graph.outputs() {
            let port = self.port(*id, &self.names[id])?;
            self.outputs.push(port);
        }
        let mut caches: Vec<_> = self.caches.iter().map(|(id, place)| (*place, *id)).collect();
        caches.sort();
        for (_, id) in caches {
            let port = self.port(id, &self.names[&id])?;
            self.outputs.push(port);
        }
        Ok(())
    }

    fn port(&self, id: ValueId, name: &str) -> Result<(Port, Element)> {
        let value = self.graph.get(id);
        let (element, dtype) = match value.fact.encoding {
            Encoding::Plain(dtype @ (Dtype::F32 | Dtype::I64)) => (Element::of(dtype).unwrap_or(Element::F32), dtype),
            other => {
                return Err(Error::Port {
                    name: value.name.clone(),
                    found: other.to_string(),
                    target: "onnx",
                    wanted: "f32 and i64",
                });
            }
        };
        let dims = value.fact.dims.iter().map(dim).collect();
        Ok((Port { name: name.into(), dims, dtype: dtype.to_string() }, element))
    }

    fn finish(mut self, data_file: &str) -> Emitted {
        let parts = self.weights.stored.iter().flat_map(|s| s.parts.iter().chain(s.views.iter().map(|(_, view)| view)));
        let external = parts.map(|p| proto::external(&p.name, p.element, &p.dims, data_file, p.offset, p.bytes()));
        let initializers = external.chain(std::mem::take(&mut self.constants)).collect();
        let ports = |all: &[(Port, Element)]| -> Vec<ValueInfoProto> {
            all.iter().map(|(port, element)| proto::port(&port.name, *element, &port.dims)).collect()
        };
        let graph = GraphProto {
            name: self.graph.name().into(),
            node: self.nodes,
            initializer: initializers,
            input: ports(&self.inputs),
            output: ports(&self.outputs),
            ..Default::default()
        };
        let plain = |all: Vec<(Port, Element)>| all.into_iter().map(|(port, _)| port).collect();
        Emitted { graph, weights: self.weights, inputs: plain(self.inputs), outputs: plain(self.outputs) }
    }
}

/// The name that runtimes know an input by, from the first node that reads it as that.
fn input_role(node: &Node, id: ValueId) -> Option<&'static str> {
    match node.op {
        Op::Embedding if node.inputs[0] == id => Some("input_ids"),
        Op::Rope(_) if node.inputs[1] == id => Some("position_ids"),
        _ => None,
    }
}

/// Symbols under the names that runtimes know.
fn dim(dim: &Dim) -> String {
    match dim.to_string().as_str() {
        "batch" => "batch_size".into(),
        "seq" => "sequence_length".into(),
        "past+seq" => "total_sequence_length".into(),
        other => other.into(),
    }
}

// Tables and products.

fn embedding(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let tokens = e.value(node.inputs[0]);
    let Some(at) = e.weight(node.inputs[1]) else {
        let table = e.value(node.inputs[1]);
        return Ok(e.node("Gather", name, &[&table, &tokens], vec![]));
    };
    Ok(match e.weights.stored[at].form {
        Form::Plain(dtype) => {
            let part = &e.weights.stored[at].parts[0];
            let table = part.name.clone();
            match dtype {
                Dtype::F32 => e.node("Gather", name, &[&table, &tokens], vec![]),
                _ => {
                    let rows = e.node("Gather", format!("{name}/stored"), &[&table, &tokens], vec![]);
                    e.cast(name, &rows, Element::F32)
                }
            }
        }
        Form::Rows(scheme) => e.gather_rows(name, &tokens, at, scheme),
        Form::Columns(scheme) => e.gather_columns(name, &tokens, at, scheme),
        Form::Blobs(scheme) => e.gather_blobs(name, &tokens, at, scheme),
        Form::Table(scheme) => {
            let table = e.looked_up(at, scheme);
            e.node("Gather", name, &[&table, &tokens], vec![])
        }
    })
}

impl Emission<'_> {
    /// Codes, scales and zeros are `[vocabulary, ..]`, codes of less than 8 bits two a byte.
    fn gather_rows(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let columns = self.weights.stored[at].dims[1];
        let gather = |e: &mut Self, what: &str, part: usize| {
            let table = e.weights.stored[at].parts[part].name.clone();
            e.node("Gather", format!("{name}/{what}"), &[&table, tokens], vec![])
        };
        let mut codes = gather(self, "codes", 0);
        if stored_bits(&scheme) == 4 {
            codes = self.unpack(name, &codes, columns);
        }
        if scheme.granularity == Granularity::Tensor {
            let (scale, zero) = (self.scale(at), self.byte_zero(name, at, None));
            return self.dequantize(name, &codes, &scale, zero, vec![]);
        }
        let scale = match self.weights.stored[at].part(Role::Supers) {
            Some(_) => {
                let all = self.scale(at);
                self.node("Gather", format!("{name}/scale"), &[&all, tokens], vec![])
            }
            None => {
                let stored_scale = gather(self, "stored_scale", 1);
                self.cast(format!("{name}/scale"), &stored_scale, Element::F32)
            }
        };
        let zero = match scheme.is_symmetric() {
            true => self.byte_zero(name, at, Some(&scale)),
            false => Some(gather(self, "zero", 2)),
        };
        self.dequantize(name, &codes, &scale, zero, blocks(2, scheme.group(columns)))
    }

    /// Codes, scales and zeros are `[.., vocabulary]`: the table is shared with a linear layer.
    fn gather_columns(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let columns = self.weights.stored[at].dims[1];
        let codes = self.gather_shared(name, tokens, at, 0);
        let turned = format!("{name}/turned");
        if scheme.granularity == Granularity::Tensor {
            let (scale, zero) = (self.scale(at), self.byte_zero(name, at, None));
            self.dequantize(&turned, &codes, &scale, zero, vec![]);
        } else {
            let scale = match self.weights.stored[at].part(Role::Supers) {
                Some(_) => {
                    let all = self.scale(at);
                    self.node("Gather", format!("{name}/scale"), &[&all, tokens], vec![("axis", Value::Int(1))])
                }
                None => {
                    let stored_scale = self.gather_shared(name, tokens, at, 1);
                    self.cast(format!("{name}/scale"), &stored_scale, Element::F32)
                }
            };
            let zero = match scheme.is_symmetric() {
                true => self.byte_zero(name, at, Some(&scale)),
                false => Some(self.gather_shared(name, tokens, at, 2)),
            };
            self.dequantize(&turned, &codes, &scale, zero, blocks(0, scheme.group(columns)));
        }
        self.node("Transpose", name, &[&turned], vec![("perm", Value::Ints(vec![1, 2, 0]))])
    }

    /// Columns `tokens` of part `part`: `[k, batch, seq]`, 4-bit codes as bytes with their zero in the middle.
    fn gather_shared(&mut self, name: &str, tokens: &str, at: usize, part: usize) -> String {
        let name = format!("{name}/{}", ["codes", "stored_scale", "zero"][part]);
        let (table, dims) = (self.readable(at, part), self.weights.stored[at].parts[part].dims.len());
        if self.weights.stored[at].parts[part].element.bits() == 4 {
            return self.gather_nibbles(&name, tokens, &table, self.weights.stored[at].form.is_signed());
        }
        if dims == 2 {
            return self.node("Gather", name, &[&table, tokens], vec![("axis", Value::Int(1))]);
        }
        let flat = self.node("Gather", format!("{name}/flat"), &[&table, tokens], vec![]);
        let first = self.ints(&[0]);
        self.node("Unsqueeze", name, &[&flat, &first], vec![])
    }

    /// Nibbles `[.., tokens]` of bytes `[k, n / 2]`.
    fn gather_nibbles(&mut self, name: &str, tokens: &str, table: &str, signed: bool) -> String {
        let (two, fifteen, four) = (self.int(2), self.byte(15), self.byte(4));
        let at = self.node("Div", format!("{name}/at"), &[tokens, &two], vec![]);
        let odd = self.node("Mod", format!("{name}/parity"), &[tokens, &two], vec![]);
        let odd = self.cast(format!("{name}/odd"), &odd, Element::BOOL);
        let pairs = self.node("Gather", format!("{name}/pairs"), &[table, &at], vec![("axis", Value::Int(1))]);
        let low = self.node("BitwiseAnd", format!("{name}/low"), &[&pairs, &fifteen], vec![]);
        let high = self.node("BitShift", format!("{name}/high"), &[&pairs, &four], vec![("direction", Value::Text("RIGHT"))]);
        if !signed {
            return self.node("Where", name, &[&odd, &high, &low], vec![]);
        }
        let nibble = self.node("Where", format!("{name}/signed"), &[&odd, &high, &low], vec![]);
        let eight = self.byte(8);
        self.node("BitwiseXor", name, &[&nibble, &eight], vec![])
    }

    fn gather_blobs(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let (table, scale, zero) = (self.readable(at, 0), self.scale(at), self.zero(at));
        let columns = self.weights.stored[at].dims[1];
        let held = scheme.groups(columns) * blob_group(&scheme);
        let mut inputs = vec![table.as_str(), tokens, &scale];
        inputs.extend(zero.as_deref());
        let attributes = vec![
            ("bits", Value::Int(stored_bits(&scheme).into())),
            ("block_size", Value::Int(blob_group(&scheme) as i64)),
            ("gather_axis", Value::Int(0)),
            ("quantize_axis", Value::Int(1)),
        ];
        if held == columns {
            return self.node_of(MICROSOFT, "GatherBlockQuantized", name, &inputs, attributes);
        }
        let padded = self.node_of(MICROSOFT, "GatherBlockQuantized", format!("{name}/padded"), &inputs, attributes);
        self.cut(name, &padded, columns)
    }

    /// The first `columns` of the last dimension.
    fn cut(&mut self, name: &str, of: &str, columns: usize) -> String {
        let (start, end, axis) = (self.ints(&[0]), self.ints(&[columns as i64]), self.ints(&[-1]));
        self.node("Slice", name, &[of, &start, &end, &axis], vec![])
    }

    /// Bytes `[batch, seq, n]` to the nibbles in them, low ones first.
    fn unpack(&mut self, name: &str, bytes: &str, columns: usize) -> String {
        let (fifteen, four, last) = (self.byte(15), self.byte(4), self.ints(&[-1]));
        let low = self.node("BitwiseAnd", format!("{name}/low"), &[bytes, &fifteen], vec![]);
        let high = self.node("BitShift", format!("{name}/high"), &[bytes, &four], vec![("direction", Value::Text("RIGHT"))]);
        let low = self.node("Unsqueeze", format!("{name}/low_of_pair"), &[&low, &last], vec![]);
        let high = self.node("Unsqueeze", format!("{name}/high_of_pair"), &[&high, &last], vec![]);
        let pairs = self.node("Concat", format!("{name}/pairs"), &[&low, &high], vec![("axis", Value::Int(-1))]);
        let shape = self.ints(&[0, 0, columns.next_multiple_of(2) as i64]);
        let all = self.node("Reshape", format!("{name}/nibbles"), &[&pairs, &shape], vec![]);
        if columns.is_multiple_of(2) { all } else { self.cut(&format!("{name}/cut"), &all, columns) }
    }

    /// The zeros of codes that an embedding reads: none for two's complement, else one a scale.
    fn byte_zero(&mut self, name: &str, at: usize, like: Option<&str>) -> Option<String> {
        let stored = &self.weights.stored[at];
        match (stored.part(Role::Zeros), stored.parts[0].element, like) {
            (Some(_), ..) => Some(self.readable(at, 2)),
            (_, Element::I8, _) => None,
            (.., None) => Some(self.byte(8)),
            (.., Some(scale)) => {
                let shape = self.node("Shape", format!("{name}/scales"), &[scale], vec![]);
                let eight = Value::Byte(8);
                Some(self.node("ConstantOfShape", format!("{name}/zero"), &[&shape], vec![("value", eight)]))
            }
        }
    }

    fn dequantize(&mut self, name: &str, codes: &str, scale: &str, zero: Option<String>, attributes: Attributes) -> String {
        let mut inputs = vec![codes, scale];
        inputs.extend(zero.as_deref());
        self.node("DequantizeLinear", name, &inputs, attributes)
    }
}

/// Groups of `size` along `axis`.
fn blocks(axis: i64, size: usize) -> Attributes {
    vec![("axis", Value::Int(axis)), ("block_size", Value::Int(size as i64))]
}

fn linear(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    let Some(bias) = node.inputs.get(2) else { return Ok(product(e, node, &x, name)) };
    let y = product(e, node, &x, &format!("{name}/product"));
    let bias = e.value(*bias);
    Ok(e.node("Add", name, &[&y, &bias], vec![]))
}

fn product(e: &mut Emission<'_>, node: &Node, x: &str, name: &str) -> String {
    let id = node.inputs[1];
    let form = e.weight(id).map(|at| (at, e.weights.stored[at].form));
    let weight = match form {
        Some((at, Form::Blobs(scheme))) => return e.multiply_blobs(name, x, at, scheme),
        Some((at, Form::Columns(scheme))) => {
            let attributes = match scheme.granularity {
                Granularity::Tensor => vec![],
                Granularity::Row => vec![("axis", Value::Int(1))],
                Granularity::Group(size) => blocks(0, size),
            };
            let (codes, scale, zero) = (e.weights.stored[at].name.clone(), e.scale(at), e.zero(at));
            e.dequantize(&format!("{name}/weight"), &codes, &scale, zero, attributes)
        }
        Some((at, Form::Table(scheme))) => {
            let weight = e.looked_up(at, scheme);
            e.shared("Transpose", &format!("{weight}/transposed"), &[&weight], vec![("perm", Value::Ints(vec![1, 0]))])
        }
        _ => {
            let weight = e.value(id);
            e.shared("Transpose", &format!("{weight}/transposed"), &[&weight], vec![("perm", Value::Ints(vec![1, 0]))])
        }
    };
    e.node("MatMul", name, &[x, &weight], vec![])
}

impl Emission<'_> {
    fn multiply_blobs(&mut self, name: &str, x: &str, at: usize, scheme: Scheme) -> String {
        let Stored { name: codes, dims, .. } = &self.weights.stored[at];
        let (codes, rows, columns) = (codes.clone(), dims[0], dims[1]);
        let (scale, zero) = (self.scale(at), self.zero(at));
        let mut inputs = vec![x, codes.as_str(), &scale];
        inputs.extend(zero.as_deref());
        let attributes = vec![
            ("K", Value::Int(columns as i64)),
            ("N", Value::Int(rows as i64)),
            ("accuracy_level", Value::Int(0)),
            ("bits", Value::Int(stored_bits(&scheme).into())),
            ("block_size", Value::Int(blob_group(&scheme) as i64)),
        ];
        self.node_of(MICROSOFT, "MatMulNBits", name, &inputs, attributes)
    }
}

// Everything else.

/// In the form that ONNX Runtime fuses to one kernel.
fn rms_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::RmsNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, gain) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let (two, epsilon, last) = (e.float(2.0), e.float(epsilon as f32), e.ints(&[-1]));
    let squares = e.node("Pow", format!("{name}/squares"), &[&x, &two], vec![]);
    let mean = e.node("ReduceMean", format!("{name}/mean"), &[&squares, &last], vec![("keepdims", Value::Int(1))]);
    let sum = e.node("Add", format!("{name}/sum"), &[&mean, &epsilon], vec![]);
    let root = e.node("Sqrt", format!("{name}/root"), &[&sum], vec![]);
    let unit = e.node("Div", format!("{name}/unit"), &[&x, &root], vec![]);
    Ok(e.node("Mul", name, &[&unit, &gain], vec![]))
}

fn split_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let dims = &e.graph.fact(node.output).dims;
    let (heads, head) = (constant(&dims[1]), constant(&dims[3]));
    let (x, shape) = (e.value(node.inputs[0]), e.ints(&[0, 0, heads, head]));
    let split = e.node("Reshape", format!("{name}/split"), &[&x, &shape], vec![]);
    Ok(e.node("Transpose", name, &[&split], vec![("perm", Value::Ints(vec![0, 2, 1, 3]))]))
}

fn merge_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let width = constant(&e.graph.fact(node.output).dims[2]);
    let (x, shape) = (e.value(node.inputs[0]), e.ints(&[0, 0, width]));
    let turned = e.node("Transpose", format!("{name}/turned"), &[&x], vec![("perm", Value::Ints(vec![0, 2, 1, 3]))]);
    Ok(e.node("Reshape", name, &[&turned, &shape], vec![]))
}

fn constant(dim: &Dim) -> i64 {
    dim.constant().expect("heads and widths are constant: checked by the graph") as i64
}

fn concat(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let parts: Vec<String> = node.inputs.iter().map(|id| e.value(*id)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(e.node("Concat", name, &parts, vec![("axis", Value::Int(-1))]))
}

fn slice(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Slice { start, length } = node.op else { unreachable!("the table is right") };
    let of = e.value(node.inputs[0]);
    let [start, end] = [start, start + length].map(|at| e.ints(&[at as i64]));
    let axis = e.ints(&[-1]);
    Ok(e.node("Slice", name, &[&of, &start, &end, &axis], vec![]))
}

/// `x cos + swap(x) sin`, where `swap` exchanges the halves and the first half of `sin` is negated.
fn rope(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Rope(rope) = &node.op else { unreachable!("the table is right") };
    let head = constant(&e.graph.fact(node.output).dims[3]) as usize;
    let (x, positions) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let angles = e.angles(rope, head, &positions);
    let halves = e.ints(&[head as i64 / 2; 2]);
    let mut split = proto::node("", "Split", &format!("{name}/first"), &[&x, &halves], vec![("axis", Value::Int(-1))]);
    split.output.push(format!("{name}/second"));
    e.nodes.push(split);
    let (first, second) = (format!("{name}/first"), format!("{name}/second"));
    let swapped = e.node("Concat", format!("{name}/swapped"), &[&second, &first], vec![("axis", Value::Int(-1))]);
    let straight = e.node("Mul", format!("{name}/straight"), &[&x, &format!("{angles}/cos")], vec![]);
    let crossed = e.node("Mul", format!("{name}/crossed"), &[&swapped, &format!("{angles}/sin")], vec![]);
    Ok(e.node("Add", name, &[&straight, &crossed], vec![]))
}

impl Emission<'_> {
    /// Makes `NAME/cos` and `NAME/sin`, `[batch, 1, seq, head]`, once for each kind of rope; returns the name.
    fn angles(&mut self, rope: &Rope, head: usize, positions: &str) -> String {
        if let Some((.., name)) = self.ropes.iter().find(|(r, h, p, _)| r == rope && *h == head && p == positions) {
            return name.clone();
        }
        let name = format!("/rope.{}", self.ropes.len());
        self.ropes.push((rope.clone(), head, positions.into(), name.clone()));
        let frequencies = rope.frequencies(head);
        let bytes = frequencies.iter().flat_map(|f| f.to_le_bytes()).collect();
        let frequencies = self.constant(format!("{name}/frequencies"), Element::F32, &[1, 1, 1, head / 2], bytes);
        let (axes, magnitude) = (self.ints(&[1, 3]), self.float(rope.magnitude()));
        let at = self.cast(format!("{name}/positions"), positions, Element::F32);
        let at = self.node("Unsqueeze", format!("{name}/at"), &[&at, &axes], vec![]);
        let angles = self.node("Mul", format!("{name}/angles"), &[&at, &frequencies], vec![]);
        for (op, axis) in [("Cos", "cos"), ("Sin", "sin")] {
            let plain = self.node(op, format!("{name}/plain_{axis}"), &[&angles], vec![]);
            let half = self.node("Mul", format!("{name}/half_{axis}"), &[&plain, &magnitude], vec![]);
            let first = match axis {
                "sin" => self.node("Neg", format!("{name}/negative_sin"), &[&half], vec![]),
                _ => half.clone(),
            };
            self.node("Concat", format!("{name}/{axis}"), &[&first, &half], vec![("axis", Value::Int(-1))]);
        }
        name
    }
}

fn cache(e: &mut Emission<'_>, node: &Node, _: &str) -> Result<String> {
    let Some((layer, role)) = e.caches.get(&node.output).copied() else {
        return Err(e.refuse(node, "read by no attention", "caches that are an attention's key or value"));
    };
    let (past, new) = (format!("past_key_values.{layer}.{role}"), e.value(node.inputs[0]));
    Ok(e.node("Concat", format!("present.{layer}.{role}"), &[&past, &new], vec![("axis", Value::Int(2))]))
}

/// The query heads that one key head serves are laid below each other, so that each product is one plain batch.
fn attention(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Attention(attention) = &node.op else { unreachable!("the table is right") };
    if !attention.causal || attention.softcap.is_some() {
        return Err(e.refuse(node, "full attention or a soft cap", "causal attention without a soft cap"));
    }
    let cached = [1, 2].map(|i| e.caches.contains_key(&node.inputs[i]));
    if cached != [!e.caches.is_empty(); 2] {
        return Err(e.refuse(node, "without a cache where others have one", "a cache for every key and value, or for none"));
    }
    let dims = [0, 1].map(|i| e.graph.fact(node.inputs[i]).dims.clone());
    let [heads, key_heads, head] = [&dims[0][1], &dims[1][1], &dims[0][3]].map(constant);
    let group = heads / key_heads;
    let [q, k, v] = [0, 1, 2].map(|i| e.value(node.inputs[i]));
    let mask = e.mask(&q, group, attention.window);
    let (stack, spread) = (e.ints(&[0, key_heads, -1, head]), e.ints(&[0, heads, -1, head]));
    let queries = if group == 1 { q } else { e.node("Reshape", format!("{name}/stacked"), &[&q, &stack], vec![]) };
    let keys = e.node("Transpose", format!("{name}/keys"), &[&k], vec![("perm", Value::Ints(vec![0, 1, 3, 2]))]);
    let scale = e.float(attention.scale as f32);
    let products = e.node("MatMul", format!("{name}/products"), &[&queries, &keys], vec![]);
    let scores = e.node("Mul", format!("{name}/scores"), &[&products, &scale], vec![]);
    let seen = e.node("Add", format!("{name}/seen"), &[&scores, &mask], vec![]);
    let shares = e.node("Softmax", format!("{name}/shares"), &[&seen], vec![("axis", Value::Int(-1))]);
    if group == 1 {
        return Ok(e.node("MatMul", name, &[&shares, &v], vec![]));
    }
    let mixed = e.node("MatMul", format!("{name}/mixed"), &[&shares, &v], vec![]);
    Ok(e.node("Reshape", name, &[&mixed, &spread], vec![]))
}

impl Emission<'_> {
    /// What is added to scores: `[batch, 1, group * seq, past + seq]`, once for each window and group.
    fn mask(&mut self, queries: &str, group: i64, window: Option<usize>) -> String {
        let name = window.map_or("/mask".into(), |window| format!("/mask.{window}"));
        let grouped = format!("{name}/group.{group}");
        if self.made.contains(&grouped) {
            return grouped;
        }
        if self.made.insert(name.clone()) {
            self.mask_of_one_head(&name, queries, window);
        }
        let repeats = self.ints(&[1, 1, group, 1]);
        self.shared("Tile", &grouped, &[&name, &repeats], vec![])
    }

    /// 0 where a query sees a key, that is when it is not behind it, in its window and not padding; else [`HIDDEN`].
    fn mask_of_one_head(&mut self, name: &str, queries: &str, window: Option<usize>) {
        let (at, keys) = self.positions(queries);
        let not_later = self.node("LessOrEqual", format!("{name}/causal"), &[&keys, &at], vec![]);
        let near = match window {
            None => not_later,
            Some(window) => {
                let window = self.int(window as i64);
                let end = self.node("Add", format!("{name}/end"), &[&keys, &window], vec![]);
                let in_window = self.node("Less", format!("{name}/in_window"), &[&at, &end], vec![]);
                self.node("And", format!("{name}/near"), &[&not_later, &in_window], vec![])
            }
        };
        let axes = self.ints(&[1, 2]);
        let real = self.shared("Cast", "/mask/real", &[MASK], vec![("to", Value::Int(Element::BOOL.0.into()))]);
        let real = self.shared("Unsqueeze", "/mask/real_keys", &[&real, &axes], vec![]);
        let visible = self.node("And", format!("{name}/visible"), &[&near, &real], vec![]);
        let (zero, hidden) = (self.float(0.0), self.float(HIDDEN));
        self.node("Where", name, &[&visible, &zero, &hidden], vec![]);
    }

    /// Positions of queries `[seq, 1]` and of keys `[1, past + seq]`.
    fn positions(&mut self, queries: &str) -> (String, String) {
        let (zero, one, first, second) = (self.int(0), self.int(1), self.ints(&[0]), self.ints(&[1]));
        let length = |e: &mut Self, what: &str, of: &str| {
            let axis = vec![("start", Value::Int(2)), ("end", Value::Int(3))];
            let shape = e.shared("Shape", &format!("/mask/{what}_shape"), &[of], axis);
            e.shared("Squeeze", &format!("/mask/{what}"), &[&shape], vec![])
        };
        let seq = length(self, "seq", queries);
        let past = match self.caches.is_empty() {
            true => zero.clone(),
            false => length(self, "past", "past_key_values.0.key"),
        };
        let total = self.shared("Add", "/mask/total", &[&past, &seq], vec![]);
        let at = self.shared("Range", "/mask/query", &[&past, &total, &one], vec![]);
        let at = self.shared("Unsqueeze", "/mask/queries", &[&at, &second], vec![]);
        let keys = self.shared("Range", "/mask/key", &[&zero, &total, &one], vec![]);
        let keys = self.shared("Unsqueeze", "/mask/keys", &[&keys, &first], vec![]);
        (at, keys)
    }
}

/// One static scale by QuantizeLinear and DequantizeLinear; all else by plain operators, each of which is exact:
/// DynamicQuantizeLinear has one scale for all tokens, and a zero.
fn quantize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Quantize { bits } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    let Some(scale) = node.inputs.get(1).copied() else { return Ok(e.round_by_token(name, &x, bits)) };
    if !matches!(bits, 8 | 16) {
        return Err(e.refuse(node, "in 4 bits with a static scale", "8 or 16 bits, or 4 bits with a dynamic scale"));
    }
    let one = e.graph.fact(scale).constant_dims().as_deref() == Some(&[1]);
    match one && !e.is_fused_wrongly(node, bits) {
        true => Ok(e.round_by_pair(name, &x, node, bits)),
        false => Ok(e.round_by_constants(name, &x, node, bits)),
    }
}

impl Emission<'_> {
    /// ONNX Runtime 1.32 turns a pair of 8 bits and a product with 8-bit weights in groups into a `MatMulIntegerToFloat`,
    /// which then refuses the scales of the groups.
    fn is_fused_wrongly(&self, node: &Node, bits: u32) -> bool {
        let in_groups = |at: &usize| match self.weights.stored[*at].form {
            Form::Columns(scheme) => stored_bits(&scheme) == 8 && matches!(scheme.granularity, Granularity::Group(_)),
            _ => false,
        };
        let readers = self.graph.nodes().iter().filter(|reader| reader.op == Op::Linear && reader.inputs[0] == node.output);
        bits == 8 && readers.filter_map(|reader| self.weights.of.get(&reader.inputs[1])).any(in_groups)
    }

    fn round_by_token(&mut self, name: &str, x: &str, bits: u32) -> String {
        let codes = Rounding::dynamic(bits).codes();
        let (smallest, last, top) = (self.float(SMALLEST_RANGE), self.ints(&[-1]), self.float(codes[1]));
        let magnitudes = self.node("Abs", format!("{name}/magnitudes"), &[x], vec![]);
        let largest = self.node("ReduceMax", format!("{name}/largest"), &[&magnitudes, &last], vec![("keepdims", Value::Int(1))]);
        let range = self.node("Max", format!("{name}/range"), &[&largest, &smallest], vec![]);
        let scale = self.node("Div", format!("{name}/scale"), &[&range, &top], vec![]);
        self.round_by(name, x, &scale, None, codes)
    }

    fn round_by_constants(&mut self, name: &str, x: &str, node: &Node, bits: u32) -> String {
        let (scale, zero) = (self.value(node.inputs[1]), node.inputs.get(2).map(|zero| self.value(*zero)));
        let half = (1i64 << (bits - 1)) as f32;
        self.round_by(name, x, &scale, zero.as_deref(), [-half, half - 1.0])
    }

    /// `(clip(round(x / scale) + zero) - zero) * scale`.
    fn round_by(&mut self, name: &str, x: &str, scale: &str, zero: Option<&str>, codes: [f32; 2]) -> String {
        let [low, high] = codes.map(|code| self.float(code));
        let ratio = self.node("Div", format!("{name}/ratio"), &[x, scale], vec![]);
        let mut steps = self.node("Round", format!("{name}/nearest"), &[&ratio], vec![]);
        if let Some(zero) = zero {
            steps = self.node("Add", format!("{name}/moved"), &[&steps, zero], vec![]);
        }
        steps = self.node("Clip", format!("{name}/codes"), &[&steps, &low, &high], vec![]);
        if let Some(zero) = zero {
            steps = self.node("Sub", format!("{name}/steps"), &[&steps, zero], vec![]);
        }
        self.node("Mul", name, &[&steps, scale], vec![])
    }

    fn round_by_pair(&mut self, name: &str, x: &str, node: &Node, bits: u32) -> String {
        let scale = self.value(node.inputs[1]);
        let zero = match node.inputs.get(2) {
            // As it is stored: the zero's type is that of the codes.
            Some(zero) => self.weights.stored[self.weights.of[zero]].parts[0].name.clone(),
            None => self.no_zero(bits),
        };
        let codes = self.node("QuantizeLinear", format!("{name}/codes"), &[x, &scale, &zero], vec![]);
        self.dequantize(name, &codes, &scale, Some(zero), vec![])
    }

    /// The zero of a symmetric quantizer: it says which integers codes are.
    fn no_zero(&mut self, bits: u32) -> String {
        let element = if bits > 8 { Element::I16 } else { Element::I8 };
        self.constant(format!("zero:int{bits}"), element, &[1], vec![0; bits as usize / 8])
    }
}

fn silu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    let gate = e.node("Sigmoid", format!("{name}/gate"), &[&x], vec![]);
    Ok(e.node("Mul", name, &[&x, &gate], vec![]))
}
