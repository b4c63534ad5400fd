//! A sub-graph in the making: its tensors and operators, and what of them is made once.

use std::collections::{HashMap, HashSet};

use attar_graph::{Graph, ValueId};

use super::{
    flat::Field,
    schema::{CONCATENATION, Data, Element, Kind, Operator, RESHAPE, SLICE, Scales, Subgraph, TRANSPOSE, Tensor},
};
use crate::decoder::CachePlaces;

/// A call of a model, in numbers.
#[derive(Clone, Copy)]
pub(super) struct Call<'c> {
    pub(super) signature: &'c str,
    pub(super) tokens: usize,
    /// Tokens that the caches hold, if there are caches.
    pub(super) cache: usize,
    /// Whether it returns what the model does, and not only keys and values.
    pub(super) outputs: bool,
}

/// Values that what a call returns is made of: keys and values, and the outputs where these are asked for.
pub(super) fn needed(graph: &Graph, caches: &CachePlaces, outputs: bool) -> HashSet<ValueId> {
    let mut needed: HashSet<ValueId> = caches.keys().copied().collect();
    needed.extend(graph.outputs().iter().filter(|_| outputs));
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|output| needed.contains(output)) {
            needed.extend(&node.inputs);
        }
    }
    needed
}

pub(super) struct Builder {
    pub(super) sub: Subgraph,
    /// What several operators need and is made once, by its name.
    pub(super) made: HashMap<String, i32>,
}

impl Builder {
    pub(super) fn new(signature: &str) -> Builder {
        Builder { sub: Subgraph { name: signature.into(), ..Subgraph::default() }, made: HashMap::new() }
    }

    /// An input of callers, by its name.
    pub(super) fn input(&mut self, name: &str, element: Element, dims: &[usize]) -> i32 {
        let tensor = self.tensor(format!("{}/{name}", self.sub.name), element, dims, Data::None);
        self.sub.inputs.push((name.into(), tensor));
        self.made.insert(name.into(), tensor);
        tensor
    }

    pub(super) fn tensor(&mut self, name: impl Into<String>, element: Element, dims: &[usize], data: Data) -> i32 {
        self.sub.tensors.push(Tensor { name: name.into(), element, dims: dims.to_vec(), data, scales: None });
        self.sub.tensors.len() as i32 - 1
    }

    pub(super) fn get(&self, tensor: i32) -> &Tensor {
        &self.sub.tensors[tensor as usize]
    }

    pub(super) fn dims(&self, tensor: i32) -> Vec<usize> {
        self.get(tensor).dims.clone()
    }

    /// What the codes of a tensor mean from now on.
    pub(super) fn scale(&mut self, tensor: i32, scales: Option<Scales>) {
        self.sub.tensors[tensor as usize].scales = scales;
    }

    pub(super) fn op_of(
        &mut self,
        name: impl Into<String>,
        kind: Kind,
        inputs: &[i32],
        options: Vec<(u16, Field)>,
        dims: &[usize],
        element: Element,
    ) -> i32 {
        let output = self.tensor(name, element, dims, Data::None);
        self.sub.operators.push(Operator { kind, inputs: inputs.to_vec(), output, options });
        output
    }

    /// An operator that moves numbers: what they are stays.
    fn moved(&mut self, name: impl Into<String>, kind: Kind, inputs: &[i32], options: Vec<(u16, Field)>, dims: &[usize]) -> i32 {
        let (element, scales) = (self.get(inputs[0]).element, self.get(inputs[0]).scales.clone());
        let output = self.op_of(name, kind, inputs, options, dims, element);
        self.scale(output, scales);
        output
    }

    pub(super) fn constant(&mut self, name: &str, element: Element, dims: &[usize], bytes: Vec<u8>) -> i32 {
        if let Some(made) = self.made.get(name) {
            return *made;
        }
        let made = self.tensor(name, element, dims, Data::Inside(bytes));
        self.made.insert(name.into(), made);
        made
    }

    /// A list of integers.
    pub(super) fn ints(&mut self, values: &[usize]) -> i32 {
        let bytes = values.iter().flat_map(|value| (*value as i32).to_le_bytes()).collect();
        self.constant(&format!("ints:{values:?}"), Element::I32, &[values.len()], bytes)
    }

    pub(super) fn reshape(&mut self, name: impl Into<String>, x: i32, dims: &[usize]) -> i32 {
        let shape = self.ints(dims);
        self.moved(name, RESHAPE, &[x, shape], vec![], dims)
    }

    pub(super) fn transpose(&mut self, name: impl Into<String>, x: i32, order: &[usize]) -> i32 {
        let (dims, axes) = (self.dims(x), self.ints(order));
        let turned: Vec<usize> = order.iter().map(|axis| dims[*axis]).collect();
        self.moved(name, TRANSPOSE, &[x, axes], vec![], &turned)
    }

    /// A range of the last dimension.
    pub(super) fn part(&mut self, name: impl Into<String>, x: i32, start: usize, length: usize) -> i32 {
        let mut dims = self.dims(x);
        let mut begin = vec![0; dims.len()];
        if let (Some(first), Some(last)) = (begin.last_mut(), dims.last_mut()) {
            (*first, *last) = (start, length);
        }
        let (begin, size) = (self.ints(&begin), self.ints(&dims));
        self.moved(name, SLICE, &[x, begin, size], vec![], &dims)
    }

    /// Several along an axis.
    pub(super) fn join_along(&mut self, name: impl Into<String>, parts: &[i32], axis: usize) -> i32 {
        let mut dims = self.dims(parts[0]);
        dims[axis] = parts.iter().map(|part| self.dims(*part)[axis]).sum();
        let options = vec![(0, Field::I32(axis as i32)), (1, Field::I8(0))];
        self.moved(name, CONCATENATION, parts, options, &dims)
    }

    /// Several along the last dimension.
    pub(super) fn join(&mut self, name: impl Into<String>, parts: &[i32]) -> i32 {
        let last = self.get(parts[0]).dims.len() - 1;
        self.join_along(name, parts, last)
    }
}

/// The dimensions of two values together.
pub(super) fn stretched(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let of = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    (0..rank).map(|axis| of(a, axis).max(of(b, axis))).collect()
}
