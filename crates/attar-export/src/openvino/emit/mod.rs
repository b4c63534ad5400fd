//! From a graph to layers: a function per op, and [`EMITTERS`] joins them. Activations are f32.

mod attention;
mod ops;
mod packed;
mod pool;
mod quantize;
mod rope;

use std::collections::HashMap;

use attar_graph::{Dim, Graph, Node, Op, ValueId};

use super::{
    ir::{Data, Element, Ir, Kind, Out},
    weight::{Form, Pack, Part, Stored, scale_element},
};
use crate::{
    Error, Port, Result,
    decoder::{CachePlaces, cache_places},
    kit,
};

/// Adds the layers of an op under the name of its value.
type Emit = fn(&mut Emission<'_>, &Node, &str) -> Result<Out>;

/// Every op that can be written as it is; all others are decomposed first.
static EMITTERS: &[(&str, Emit)] = &[
    ("embedding", ops::embedding),
    ("linear", ops::linear),
    ("rms_norm", ops::rms_norm),
    ("layer_norm", ops::layer_norm),
    ("normalize", ops::normalize),
    ("split_heads", ops::split_heads),
    ("merge_heads", ops::merge_heads),
    ("rope", rope::rope),
    ("cache", attention::cache),
    ("attention", attention::attention),
    ("silu", ops::silu),
    ("gelu", ops::gelu),
    ("gelu_tanh", ops::gelu_tanh),
    ("erf", ops::erf),
    ("tanh", ops::tanh),
    ("scale", ops::scale),
    ("softcap", ops::softcap),
    ("mul", ops::mul),
    ("add", ops::add),
    ("quantize", quantize::quantize),
    ("concat", ops::concat),
    ("slice", ops::slice),
    ("mean_pool", pool::mean_pool),
    ("first_pool", pool::first_pool),
];

fn emitter(op: &Op) -> Option<Emit> {
    EMITTERS.iter().find(|(name, _)| *name == op.def().name).map(|(_, emit)| *emit)
}

/// A graph in terms of OpenVINO.
pub(super) struct Emitted {
    pub(super) xml: String,
    pub(super) stored: Vec<Stored>,
    /// Small constants and their places, in order.
    pub(super) constants: Vec<(u64, Vec<u8>)>,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    /// Length of the file of numbers.
    pub(super) bytes: u64,
}

/// The whole of `graph`; weights are named and placed, and not read.
pub(super) fn emit(graph: &Graph) -> Result<Emitted> {
    let graph = graph.legalize(&|op| emitter(op).is_some())?;
    let mut emission = Emission::new(&graph)?;
    let inputs = emission.declare_inputs();
    for node in graph.nodes() {
        let name = &graph.get(node.outputs[0]).name;
        let emit = emitter(&node.op).ok_or_else(|| emission.refuse(node, "an op without a decomposition", "the ops it knows"))?;
        // Some are made together with another node.
        if !emission.values.contains_key(&node.outputs[0]) {
            let value = emit(&mut emission, node, name)?;
            emission.values.insert(node.outputs[0], value);
        }
    }
    let outputs = emission.declare_outputs();
    Ok(emission.finish(inputs, outputs))
}

struct Emission<'g> {
    graph: &'g Graph,
    ir: Ir,
    stored: Vec<Stored>,
    /// Which stored weight a value is.
    of: HashMap<ValueId, usize>,
    packs: Vec<Pack>,
    /// Weights as numbers, made so far.
    numbers: HashMap<usize, Out>,
    caches: CachePlaces,
    values: HashMap<ValueId, Out>,
    /// What several layers need and is made once, by its name.
    made: HashMap<String, Out>,
    /// Constants by their layers, with their bytes.
    constants: Vec<(Out, Vec<u8>)>,
    /// The earlier keys of the first layer: their length is that of what the cache holds.
    past: Option<Out>,
    /// The callers' inputs by their names.
    inputs: HashMap<&'static str, Out>,
}

impl<'g> Emission<'g> {
    fn new(graph: &'g Graph) -> Result<Emission<'g>> {
        let mut emission = Emission {
            graph,
            ir: Ir::default(),
            stored: Vec::new(),
            of: HashMap::new(),
            packs: Vec::new(),
            numbers: HashMap::new(),
            caches: cache_places(graph),
            values: HashMap::new(),
            made: HashMap::new(),
            constants: Vec::new(),
            past: None,
            inputs: HashMap::new(),
        };
        for (values, expr, readers) in kit::distinct(graph) {
            emission.of.extend(values.iter().map(|id| (*id, emission.stored.len())));
            emission.stored.push(Stored::new(graph, readers[0], &values, expr)?);
        }
        emission.place();
        Ok(emission)
    }

    fn refuse(&self, node: &Node, found: impl Into<String>, wanted: &'static str) -> Error {
        let name = self.graph.get(node.outputs[0]).name.clone();
        Error::Node { node: name, op: node.op.def().name, found: found.into(), target: super::TARGET.name, wanted }
    }

    /// Those that pipelines know: of a decoder all four, of an encoder those that it reads.
    fn declare_inputs(&mut self) -> Vec<Port> {
        let mut ports = Vec::new();
        let decoder = !self.caches.is_empty();
        let keys = if decoder { "total_sequence_length" } else { "sequence_length" };
        let has = |name: &str| self.graph.inputs().iter().any(|id| self.graph.get(*id).name == name);
        let asked = [
            ("input_ids", Element::I64, ["batch_size", "sequence_length"].as_slice(), true),
            ("attention_mask", Element::I64, &["batch_size", keys], true),
            ("position_ids", Element::I64, &["batch_size", "sequence_length"], decoder || has("positions")),
            ("token_type_ids", Element::I64, &["batch_size", "sequence_length"], has("token_types")),
            ("beam_idx", Element::I32, &["batch_size"], decoder),
        ];
        for (name, element, dims, _) in asked.into_iter().filter(|(.., wanted)| *wanted) {
            let data = vec![("shape", vec!["?"; dims.len()].join(",")), ("element_type", element.0.into())];
            let out = self.ir.layer(name, ("Parameter", 1), data, &[], &[element])[0];
            self.ir.export(out, name);
            self.inputs.insert(name, out);
            let dims = dims.iter().map(|dim| (*dim).to_owned()).collect();
            ports.push(Port { name: name.into(), dims, dtype: element.0.into() });
        }
        for id in self.graph.inputs() {
            let name = match self.graph.get(*id).name.as_str() {
                "positions" => "position_ids",
                "token_types" => "token_type_ids",
                _ => "input_ids",
            };
            self.values.insert(*id, self.inputs[name]);
        }
        ports
    }

    fn declare_outputs(&mut self) -> Vec<Port> {
        let mut ports = Vec::new();
        for id in self.graph.outputs() {
            let (value, out) = (self.graph.get(*id), self.values[id]);
            self.ir.export(out, &value.name);
            self.ir.layer(format!("{}/result", value.name), ("Result", 1), vec![], &[out], &[]);
            let width = value.fact.dims.last().map(ToString::to_string).unwrap_or_default();
            let mut dims = vec!["batch_size".to_owned(), "sequence_length".to_owned()];
            dims.truncate(value.fact.dims.len() - 1);
            dims.push(width);
            ports.push(Port { name: value.name.clone(), dims, dtype: "f32".into() });
        }
        ports
    }

    /// Places the weights, and the constants behind them.
    fn finish(mut self, inputs: Vec<Port>, outputs: Vec<Port>) -> Emitted {
        let mut constants = Vec::new();
        let mut end =
            self.stored.iter().flat_map(|stored| &stored.parts).map(|part| part.offset + part.bytes()).max().unwrap_or(0);
        for (out, bytes) in std::mem::take(&mut self.constants) {
            self.ir.set(out, "offset", end.to_string());
            self.ir.set(out, "size", bytes.len().to_string());
            let offset = end;
            end += bytes.len() as u64;
            constants.push((offset, bytes));
        }
        Emitted { xml: self.ir.xml(self.graph.name()), stored: self.stored, constants, inputs, outputs, bytes: end }
    }

    /// Adds a layer with one output of f32.
    fn layer(&mut self, name: impl Into<String>, kind: Kind, data: Data, inputs: &[Out]) -> Out {
        self.layer_of(name, kind, data, inputs, Element::F32)
    }

    fn layer_of(&mut self, name: impl Into<String>, kind: Kind, data: Data, inputs: &[Out], element: Element) -> Out {
        self.ir.layer(name, kind, data, inputs, &[element])[0]
    }

    /// A binary operator that stretches dimensions of 1.
    fn binary(&mut self, kind: &'static str, name: impl Into<String>, a: Out, b: Out) -> Out {
        let element = self.ir.element(a);
        let mut data = vec![("auto_broadcast", "numpy".to_owned())];
        if kind == "Divide" {
            data.push(("m_pythondiv", "true".into()));
        }
        self.layer_of(name, (kind, 1), data, &[a, b], element)
    }

    /// What is made once under a name.
    fn shared(&mut self, name: &str, make: impl FnOnce(&mut Self, &str) -> Out) -> Out {
        if let Some(made) = self.made.get(name) {
            return *made;
        }
        let made = make(self, name);
        self.made.insert(name.into(), made);
        made
    }

    fn constant(&mut self, name: &str, element: Element, dims: &[usize], bytes: Vec<u8>) -> Out {
        self.shared(name, |e, name| {
            let shape = dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let data = vec![("element_type", element.0.into()), ("shape", shape)];
            let out = e.layer_of(name, ("Const", 1), data, &[], element);
            e.constants.push((out, bytes));
            out
        })
    }

    /// A list of integers.
    fn ints(&mut self, values: &[i64]) -> Out {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(&format!("ints:{values:?}"), Element::I64, &[values.len()], bytes)
    }

    /// One integer, without dimensions.
    fn int(&mut self, value: i64) -> Out {
        self.constant(&format!("int:{value}"), Element::I64, &[], value.to_le_bytes().to_vec())
    }

    /// One number, without dimensions.
    fn float(&mut self, value: f32) -> Out {
        self.constant(&format!("float:{value:e}"), Element::F32, &[], value.to_le_bytes().to_vec())
    }

    fn convert(&mut self, name: impl Into<String>, of: Out, to: Element) -> Out {
        self.layer_of(name, ("Convert", 1), vec![("destination_type", to.0.into())], &[of], to)
    }

    fn reshape(&mut self, name: impl Into<String>, of: Out, shape: &[i64], zeros_copy: bool) -> Out {
        let (element, shape) = (self.ir.element(of), self.ints(shape));
        self.layer_of(name, ("Reshape", 1), vec![("special_zero", zeros_copy.to_string())], &[of, shape], element)
    }

    fn transpose(&mut self, name: impl Into<String>, of: Out, order: &[i64]) -> Out {
        let order = self.ints(order);
        self.layer(name, ("Transpose", 1), vec![], &[of, order])
    }

    fn unsqueeze(&mut self, name: impl Into<String>, of: Out, axes: &[i64]) -> Out {
        let (element, axes) = (self.ir.element(of), self.ints(axes));
        self.layer_of(name, ("Unsqueeze", 1), vec![], &[of, axes], element)
    }

    fn join(&mut self, name: impl Into<String>, parts: &[Out], axis: i64) -> Out {
        let element = self.ir.element(parts[0]);
        self.layer_of(name, ("Concat", 1), vec![("axis", axis.to_string())], parts, element)
    }

    fn gather(&mut self, name: impl Into<String>, of: Out, at: Out, axis: i64) -> Out {
        let (element, axis) = (self.ir.element(of), self.int(axis));
        self.layer_of(name, ("Gather", 8), vec![("batch_dims", "0".into())], &[of, at, axis], element)
    }

    /// A value as f32: of a weight, what its codes mean.
    fn value(&mut self, id: ValueId) -> Out {
        match self.of.get(&id).copied() {
            None => self.values[&id],
            Some(at) => self.weight(at),
        }
    }

    fn weight(&mut self, at: usize) -> Out {
        if let Some(made) = self.numbers.get(&at) {
            return *made;
        }
        let Stored { name, form, dims, parts, .. } = &self.stored[at];
        let number = self.number(&name.clone(), *form, &dims.clone(), &parts.clone());
        self.numbers.insert(at, number);
        number
    }

    /// The sub-graph that makes numbers of codes.
    fn number(&mut self, name: &str, form: Form, dims: &[usize], constants: &[Part]) -> Out {
        let parts: Vec<Out> = constants.iter().map(|part| self.part(part)).collect();
        match form {
            Form::Plain(_, Element::F32) => parts[0],
            Form::Plain(..) => self.convert(format!("{name}/f32"), parts[0], Element::F32),
            Form::Codes(scheme, _) => {
                let exact = scale_element(&scheme).0;
                let mut codes = self.convert(format!("{name}/number"), parts[0], exact);
                if let Some(zero) = parts.get(2) {
                    let zero = self.convert(format!("{name}/zero/number"), *zero, exact);
                    codes = self.binary("Subtract", format!("{name}/distance"), codes, zero);
                }
                let mut numbers = self.binary("Multiply", format!("{name}/scaled"), codes, parts[1]);
                if constants[0].dims.len() == 3 {
                    let dims: Vec<i64> = dims.iter().map(|dim| *dim as i64).collect();
                    numbers = self.reshape(format!("{name}/rows"), numbers, &dims, false);
                }
                match exact {
                    Element::F32 => numbers,
                    _ => self.convert(format!("{name}/f32"), numbers, Element::F32),
                }
            }
        }
    }

    /// The constant of a part of a weight.
    fn part(&mut self, part: &Part) -> Out {
        let shape = part.dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let data = vec![
            ("element_type", part.element.0.to_owned()),
            ("shape", shape),
            ("offset", part.offset.to_string()),
            ("size", part.bytes().to_string()),
        ];
        self.layer_of(part.name.clone(), ("Const", 1), data, &[], part.element)
    }
}

fn constant(dim: &Dim) -> i64 {
    dim.constant().expect("heads and widths are constant: checked by the graph") as i64
}
