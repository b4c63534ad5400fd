//! Weights of linear layers that read the same value, packed into one tensor for one product.
//!
//! ONNX Runtime's `MatMulNBits` costs as much for three small products as for one large one and a bit more for each call: query,
//! key and value apart take 82 us, packed 48 us (SmolLM2-135M, one row, AVX2). Rows of [`Form::Blobs`] lie one after the
//! other, so the tensors of a pack are adjacent in the file, and their union is a tensor like them.

use attar_graph::{Graph, Node, ValueId};
use attar_tensor::Encoding;

use super::{
    form::Form,
    stored::{Part, Stored, aligned},
};
use crate::{
    Packed,
    family::{families, union},
};

/// Several weights in one.
pub(super) struct Pack {
    /// The name of the union: what the members' names have in common, and the rest of each.
    pub(super) name: String,
    /// The weights, by their places in [`super::storage::Weights::stored`], in the order of their rows.
    pub(super) members: Vec<usize>,
    /// The linear layers, by their results.
    pub(super) products: Vec<ValueId>,
    /// The tensors of the file.
    pub(super) parts: Vec<Part>,
}

/// A weight that one linear layer reads and nothing else, and which it is.
type Lookup<'s> = &'s dyn Fn(ValueId) -> Option<(usize, &'s Stored)>;

/// All linear layers that read one value, where their weights have one form.
pub(super) fn packs(graph: &Graph, weight: Lookup<'_>) -> Vec<Pack> {
    families(graph).into_iter().filter_map(|family| pack(&family, weight)).collect()
}

fn pack(family: &[&Node], weight: Lookup<'_>) -> Option<Pack> {
    let [first, _, ..] = family else { return None };
    let stored = family.iter().map(|node| weight(node.inputs[1])).collect::<Option<Vec<(usize, &Stored)>>>()?;
    let model = stored[0].1;
    let alike = |other: &Stored| other.form == model.form && other.dims[1] == model.dims[1] && other.encoding == model.encoding;
    let biased = |node: &Node| node.inputs.len() == first.inputs.len();
    let fits = matches!((model.form, model.encoding), (Form::Blobs(..), Encoding::Quantized(_)));
    // One super scale for a whole tensor is none for several.
    let by_rows = model.parts.iter().all(|part| !part.dims.is_empty());
    if !fits || !by_rows || !stored.iter().all(|(_, other)| alike(other)) || !family.iter().all(|node| biased(node)) {
        return None;
    }
    let name = union(&stored.iter().map(|(_, stored)| stored.name.as_str()).collect::<Vec<_>>());
    let members = stored.iter().map(|(at, _)| *at).collect();
    let products = family.iter().map(|node| node.output()).collect();
    Some(Pack { name, members, products, parts: Vec::new() })
}

impl Pack {
    /// Gives the parts of all members their places, one role after the other, and makes their unions.
    pub(super) fn place(&mut self, all: &mut [Stored], end: &mut u64) {
        for role in 0..all[self.members[0]].parts.len() {
            let model = all[self.members[0]].parts[role].clone();
            let bytes: u64 = self.members.iter().map(|at| all[*at].parts[role].bytes()).sum();
            let start = aligned(*end, bytes);
            *end = start;
            for at in &self.members {
                let part = &mut all[*at].parts[role];
                part.offset = *end;
                *end += part.bytes();
            }
            let rows: usize = self.members.iter().map(|at| all[*at].parts[role].dims[0]).sum();
            let dims: Vec<usize> = std::iter::once(rows).chain(model.dims[1..].iter().copied()).collect();
            let kind = model.name.strip_prefix(all[self.members[0]].name.as_str()).unwrap_or_default();
            let union = Part::new(format!("{}{kind}", self.name), model.element, &dims).of(model.role);
            self.parts.push(Part { offset: start, ..union });
        }
        let mut row = 0;
        for at in &self.members {
            all[*at].packed = Some(Packed { tensor: self.name.clone(), row });
            row += all[*at].dims[0];
        }
    }
}
