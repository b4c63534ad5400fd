//! From a graph to a sub-graph of fixed shapes: a function per op, and [`EMITTERS`] joins them. Activations are f32.

mod attention;
mod ops;
mod pool;
mod quantize;
mod rope;

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
};

use attar_graph::{Graph, Node, Op, ValueId};
use attar_tensor::Source;

use super::{
    build::{Builder, Call, needed, stretched},
    flat::Field,
    schema::{
        ADD, DIV, EMBEDDING_LOOKUP, EMBEDDING_LOOKUP_OF_CODES, Element, FULLY_CONNECTED, FULLY_CONNECTED_4, FULLY_CONNECTED_8,
        FULLY_CONNECTED_BLOCKS, Kind, MUL, SUB, Scales, Subgraph,
    },
    weight::{Form, Stored},
};
use crate::{
    Error, Result,
    decoder::{CachePlaces, cache_places},
    kit,
};

/// Adds the operators of an op under the name of its value.
type Emit = fn(&mut Emission<'_>, &Node, &str) -> Result<i32>;

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

/// A model whose ops can all be written, and where its weights lie.
pub(super) struct Model {
    target: &'static str,
    graph: Graph,
    pub(super) stored: Vec<Stored>,
    /// Which stored weight a value is.
    of: HashMap<ValueId, usize>,
    caches: CachePlaces,
    /// Bytes of all weights behind the FlatBuffer.
    pub(super) bytes: u64,
}

impl Model {
    /// Names and places weights; nothing is read.
    pub(super) fn new(graph: &Graph, target: &'static str) -> Result<Model> {
        let graph = graph.legalize(&|op| emitter(op).is_some())?;
        let (mut stored, mut of, mut bytes) = (Vec::new(), HashMap::new(), 0);
        for (values, expr, readers) in kit::distinct(&graph) {
            of.extend(values.iter().map(|id| (*id, stored.len())));
            let mut weight = Stored::new(&graph, target, &readers, &values, expr)?;
            weight.place(&mut bytes);
            stored.push(weight);
        }
        let caches = cache_places(&graph);
        Ok(Model { target, stored, of, caches, bytes, graph })
    }

    /// The scales of rows of every weight, where those are what it has.
    pub(super) fn row_scales(&self, source: &dyn Source) -> Result<Vec<Vec<f32>>> {
        let of = |stored: &Stored| match stored.form {
            Form::Rows(..) => stored.row_scales(source),
            _ => Ok(Vec::new()),
        };
        self.stored.iter().map(of).collect()
    }

    /// The sub-graph of a call. `scales` are those of the rows of weights, in the order of [`Model::stored`].
    pub(super) fn subgraph(&self, call: Call<'_>, scales: &[Vec<f32>]) -> Result<Subgraph> {
        let build = Builder::new(call.signature);
        let mut e = Emission { model: self, scales, call, build, weights: HashMap::new(), values: HashMap::new() };
        e.declare_inputs();
        let needed = needed(&self.graph, &self.caches, call.outputs);
        for node in self.graph.nodes().iter().filter(|node| needed.contains(&node.outputs[0])) {
            let emit = emitter(&node.op).ok_or_else(|| e.refuse(node, "an op without a decomposition", "the ops it knows"))?;
            let value = emit(&mut e, node, &self.graph.get(node.outputs[0]).name)?;
            e.values.insert(node.outputs[0], value);
        }
        e.declare_outputs();
        Ok(e.build.sub)
    }

    /// The names of caches for callers, keys before values, and their layers.
    fn cache_names(&self) -> Vec<(String, ValueId)> {
        let mut caches: Vec<(&str, usize, ValueId)> =
            self.caches.iter().map(|(id, (layer, role))| (if *role == "key" { "k" } else { "v" }, *layer, *id)).collect();
        caches.sort_unstable();
        caches.into_iter().map(|(role, layer, id)| (format!("kv_cache_{role}_{layer}"), id)).collect()
    }
}

struct Emission<'m> {
    model: &'m Model,
    scales: &'m [Vec<f32>],
    call: Call<'m>,
    build: Builder,
    /// Tensors of stored weights, made so far.
    weights: HashMap<usize, i32>,
    values: HashMap<ValueId, i32>,
}

impl Deref for Emission<'_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        &self.build
    }
}

impl DerefMut for Emission<'_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.build
    }
}

impl Emission<'_> {
    fn refuse(&self, node: &Node, found: impl Into<String>, wanted: &'static str) -> Error {
        let node_name = self.model.graph.get(node.outputs[0]).name.clone();
        Error::Node { node: node_name, op: node.op.def().name, found: found.into(), target: self.model.target, wanted }
    }

    /// As the runtime knows them: `tokens`, `input_pos`, `mask`, and the caches.
    fn declare_inputs(&mut self) {
        let Call { tokens, cache, .. } = self.call;
        if self.model.caches.is_empty() {
            return self.declare_texts();
        }
        let ids = self.input("tokens", Element::I32, &[1, tokens]);
        let positions = self.input("input_pos", Element::I32, &[tokens]);
        self.input("mask", Element::F32, &[1, 1, tokens, cache]);
        let flat = self.reshape("tokens/flat", ids, &[tokens]);
        let model = self.model;
        for id in model.graph.inputs() {
            let given = if model.graph.get(*id).name == "positions" { positions } else { flat };
            self.values.insert(*id, given);
        }
        for (name, id) in model.cache_names() {
            let dims = self.cache_dims(id);
            self.input(&name, Element::F32, &dims);
        }
    }

    /// Those of an encoder: `input_ids`, `attention_mask`, and `token_type_ids` if it has such; a text has all positions from 0 on.
    fn declare_texts(&mut self) {
        let (model, tokens) = (self.model, self.call.tokens);
        self.input("attention_mask", Element::I32, &[1, tokens]);
        for id in model.graph.inputs() {
            let name = match model.graph.get(*id).name.as_str() {
                "positions" => {
                    let places = (0..tokens as i32).flat_map(i32::to_le_bytes).collect();
                    let positions = self.constant("input_pos", Element::I32, &[tokens], places);
                    self.values.insert(*id, positions);
                    continue;
                }
                "token_types" => "token_type_ids",
                _ => "input_ids",
            };
            let ids = self.input(name, Element::I32, &[1, tokens]);
            let flat = self.reshape(format!("{name}/flat"), ids, &[tokens]);
            self.values.insert(*id, flat);
        }
    }

    /// Caches after the call, and what the model returns.
    fn declare_outputs(&mut self) {
        let model = self.model;
        for (name, id) in model.cache_names() {
            let tensor = self.values[&id];
            self.sub.outputs.push((name, tensor));
        }
        let outputs = if self.call.outputs { model.graph.outputs() } else { &[] };
        for id in outputs {
            let (name, tensor) = (model.graph.get(*id).name.clone(), self.values[id]);
            self.sub.outputs.push((name, tensor));
        }
    }

    /// A dimension of a value that is the same in every call.
    fn constant_dim(&self, id: ValueId, axis: usize) -> usize {
        self.model.graph.fact(id).dims[axis].constant().expect("heads and widths are constant: checked by the graph")
    }

    /// Adds an operator whose result is f32.
    fn op(&mut self, name: impl Into<String>, kind: Kind, inputs: &[i32], options: Vec<(u16, Field)>, dims: &[usize]) -> i32 {
        self.op_of(name, kind, inputs, options, dims, Element::F32)
    }

    /// What is made once under a name.
    fn shared(&mut self, name: &str, make: impl FnOnce(&mut Self, &str) -> i32) -> i32 {
        if let Some(made) = self.made.get(name) {
            return *made;
        }
        let made = make(self, name);
        self.made.insert(name.into(), made);
        made
    }

    /// One number.
    fn float(&mut self, value: f32) -> i32 {
        self.constant(&format!("float:{value:e}"), Element::F32, &[1], value.to_le_bytes().to_vec())
    }

    fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> i32 {
        self.constant(name, Element::F32, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// An operator on a value, element by element.
    fn unary(&mut self, kind: Kind, name: impl Into<String>, x: i32) -> i32 {
        let dims = self.dims(x);
        self.op(name, kind, &[x], vec![], &dims)
    }

    /// An operator on two values that stretches dimensions of 1.
    fn binary(&mut self, kind: Kind, name: impl Into<String>, a: i32, b: i32) -> i32 {
        let dims = stretched(&self.dims(a), &self.dims(b));
        let options = if [ADD, SUB, MUL, DIV].contains(&kind) { vec![(0, Field::I8(0))] } else { vec![] };
        self.op(name, kind, &[a, b], options, &dims)
    }

    /// A sum, mean or maximum over the last dimension, which stays as 1.
    fn reduce(&mut self, kind: Kind, name: impl Into<String>, x: i32) -> i32 {
        let mut dims = self.dims(x);
        let axis = self.ints(&[dims.len() - 1]);
        dims.pop();
        dims.push(1);
        self.op(name, kind, &[x, axis], vec![(0, Field::Bool(true))], &dims)
    }

    /// A value as operators read it: of a weight in codes, the codes.
    fn value(&mut self, id: ValueId) -> i32 {
        match self.model.of.get(&id) {
            None => self.values[&id],
            Some(at) => self.weight(*at),
        }
    }

    fn weight(&mut self, at: usize) -> i32 {
        if let Some(made) = self.weights.get(&at) {
            return *made;
        }
        let stored = &self.model.stored[at];
        let scales = match (stored.form, stored.block_scales()) {
            (Form::Rows(..), _) => Some(Scales::Rows(self.scales.get(at).cloned().unwrap_or_default())),
            (Form::Blocks(_, size), Some(dims)) => {
                let scales = self.tensor(format!("{}/scale", stored.name), Element::F16, &dims, stored.scale_data());
                Some(Scales::Blocks { scales, size: size as i32 })
            }
            _ => None,
        };
        let made = self.tensor(stored.name.clone(), stored.element(), &stored.dims, stored.data());
        self.sub.tensors[made as usize].scales = scales;
        self.weights.insert(at, made);
        made
    }

    /// The operator that looks rows of a weight up, and the one that multiplies by it.
    fn kinds(&self, weight: ValueId) -> [Kind; 2] {
        match self.model.of.get(&weight).map(|at| self.model.stored[*at].form) {
            Some(Form::Rows(_, Element::I8)) => [EMBEDDING_LOOKUP_OF_CODES, FULLY_CONNECTED_8],
            Some(Form::Rows(..)) => [EMBEDDING_LOOKUP_OF_CODES, FULLY_CONNECTED_4],
            Some(Form::Blocks(..)) => [EMBEDDING_LOOKUP_OF_CODES, FULLY_CONNECTED_BLOCKS],
            _ => [EMBEDDING_LOOKUP, FULLY_CONNECTED],
        }
    }
}
