//! From a graph to ONNX nodes: a function per op, a file per family of ops, and [`EMITTERS`] joins them.
//!
//! Only operators of the standard are used, but for `MatMulNBits` and `GatherBlockQuantized` where the layout asks for
//! them, and for those of `style = "fused"`. Activations are f32. What layers share (the mask, the rotary angles, constants) is made once.

mod attention;
mod elementwise;
mod fused;
mod norm;
mod pool;
mod port;
mod product;
mod quantize;
mod rope;
mod shape;
mod standard;
mod table;
mod weight;

use std::collections::{HashMap, HashSet};

use attar_graph::{Dim, Graph, Node, Op, ValueId, op::Rope};
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};

use super::{
    Onnx, Purpose,
    proto::{self, Attributes, Element, Value},
    storage::Weights,
};
use crate::{
    Error, Port, Result,
    decoder::{CachePlaces, cache_places},
};
use fused::Fusions;

/// The input that tells padding, which no graph has.
const MASK: &str = "attention_mask";

/// Adds the nodes of an op under the name of its value; returns the name that the value has in the file.
type Emit = fn(&mut Emission<'_>, &Node, &str) -> Result<String>;

/// Every op that can be written as it is; all others are decomposed first.
static EMITTERS: &[(&str, Emit)] = &[
    ("embedding", table::embedding),
    ("linear", product::linear),
    ("rms_norm", norm::rms_norm),
    ("layer_norm", norm::layer_norm),
    ("normalize", norm::normalize),
    ("split_heads", shape::split_heads),
    ("merge_heads", shape::merge_heads),
    ("rope", rope::rope),
    ("cache", attention::cache),
    ("attention", attention::attention),
    ("silu", elementwise::silu),
    ("gelu", elementwise::gelu),
    ("gelu_tanh", elementwise::gelu_tanh),
    ("erf", elementwise::erf),
    ("tanh", elementwise::tanh),
    ("scale", elementwise::scale),
    ("softcap", elementwise::softcap),
    ("mul", elementwise::mul),
    ("add", elementwise::add),
    ("quantize", quantize::quantize),
    ("concat", shape::concat),
    ("slice", shape::slice),
    ("split", shape::split),
    ("mean_pool", pool::mean_pool),
    ("first_pool", pool::first_pool),
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
pub(super) fn emit(graph: &Graph, options: &Onnx, purpose: Purpose, data_file: &str) -> Result<Emitted> {
    let graph = graph.legalize(&|op| emitter(op).is_some())?;
    let mut emission = Emission::new(&graph, options, purpose)?;
    emission.declare_inputs()?;
    for node in graph.nodes() {
        if emission.fused(node)? {
            continue;
        }
        let value = graph.get(node.outputs[0]);
        let emit = emitter(&node.op).ok_or_else(|| emission.refuse(node, "an op without a decomposition", "the ops it knows"))?;
        let name = emit(&mut emission, node, &value.name)?;
        emission.names.insert(node.outputs[0], name);
    }
    emission.declare_outputs()?;
    Ok(emission.finish(data_file))
}

struct Emission<'g> {
    graph: &'g Graph,
    options: &'g Onnx,
    purpose: Purpose,
    weights: Weights,
    fusions: Fusions,
    caches: CachePlaces,
    /// What each value is called here.
    names: HashMap<ValueId, String>,
    /// Names of nodes and constants that are shared. They start with a sign that no value of a graph starts with, or
    /// hold a colon.
    made: HashSet<String>,
    /// The rotary angles made so far: the rope, the width of a head, the positions, and their name.
    ropes: Vec<(Rope, usize, String, String)>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    inputs: Vec<(Port, Element)>,
    outputs: Vec<(Port, Element)>,
}

impl<'g> Emission<'g> {
    fn new(graph: &'g Graph, options: &'g Onnx, purpose: Purpose) -> Result<Emission<'g>> {
        let caches = cache_places(graph);
        let fusions = Fusions::find(graph, &caches, options.style);
        Ok(Emission {
            graph,
            options,
            purpose,
            weights: Weights::new(graph, options, purpose.fixed.is_some())?,
            fusions,
            caches,
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
        let name = self.graph.get(node.outputs[0]).name.clone();
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

    /// Adds a node with several outputs, of which the first has its name; `""` is none.
    fn node_with(&mut self, domain: &str, op: &str, outputs: &[&str], inputs: &[&str], attributes: Attributes) {
        let mut node = proto::node(domain, op, outputs[0], inputs, attributes);
        node.output.extend(outputs[1..].iter().map(|name| (*name).to_owned()));
        self.nodes.push(node);
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

    /// One 32-bit integer, without dimensions.
    fn int32(&mut self, value: i32) -> String {
        self.constant(format!("int32:{value}"), Element::I32, &[], value.to_le_bytes().to_vec())
    }

    fn cast(&mut self, name: impl Into<String>, of: &str, to: Element) -> String {
        self.node("Cast", name, &[of], vec![("to", Value::Int(to.0.into()))])
    }
}

fn constant(dim: &Dim) -> i64 {
    dim.constant().expect("heads and widths are constant: checked by the graph") as i64
}
