//! Which products ONNX Runtime computes in integers, and how their weights must be stored.
//!
//! The runtime turns `QuantizeLinear -> DequantizeLinear -> MatMul` with 8-bit activations and 8-bit weights under one
//! scale per tensor or per row into `MatMulIntegerToFloat`. On x86-64 processors without VNNI its kernel for *signed*
//! weights (`vpmaddubsw`) adds pairs of products in 16 bits and saturates: two products of 255 and 127 do not fit. The
//! kernel for *unsigned* weights is exact on every processor. So these weights are stored unsigned with a zero point
//! of 128. Codes of 7 bits and less cannot overflow (2 * 255 * 64 < 2^15) and stay signed.
//!
//! Nothing else that attar writes is multiplied in integers with 16-bit sums: `MatMulNBits` is exact on AVX2 at every
//! accuracy level, dynamic scales and scales per channel are plain f32 operators, and so is what enters a cache.

use std::collections::HashSet;

use attar_graph::{Graph, Node, Op, ValueId};
use attar_tensor::Granularity;

use super::form::{Form, is_even, stored_bits};

/// The bits of codes whose pairwise products can overflow 16 bits.
const OVERFLOWING: u32 = 8;

/// The form of a weight, if the value is one.
type Forms<'f> = &'f dyn Fn(ValueId) -> Option<Form>;

/// The outputs of `quantize` nodes that are written as `QuantizeLinear` and `DequantizeLinear`: one static scale, read
/// by nothing but linear layers. ONNX Runtime 1.32 moves the pair through transposes and slices, and then refuses the
/// model or multiplies activations by activations in integers; so for other readers rounding is plain operators.
pub(super) fn pairs(graph: &Graph, forms: Forms<'_>) -> HashSet<ValueId> {
    let nodes = graph.nodes().iter();
    nodes.filter(|node| is_pair(graph, node, forms)).map(|node| node.output()).collect()
}

/// The outputs of all `quantize` nodes with one static scale: what runtimes of integers want.
pub(super) fn static_pairs(graph: &Graph) -> HashSet<ValueId> {
    graph.nodes().iter().filter(|node| has_one_scale(graph, node)).map(|node| node.output()).collect()
}

fn has_one_scale(graph: &Graph, node: &Node) -> bool {
    let (Op::Quantize { .. }, Some(scale)) = (&node.op, node.inputs.get(1)) else { return false };
    graph.fact(*scale).constant_dims().as_deref() == Some(&[1])
}

fn is_pair(graph: &Graph, node: &Node, forms: Forms<'_>) -> bool {
    let Op::Quantize { bits } = &node.op else { return false };
    let one = has_one_scale(graph, node);
    let mut readers = graph.nodes().iter().filter(|reader| reader.inputs.contains(&node.output()));
    one && readers.all(|reader| reads(reader, node.output()) && !is_fused_wrongly(reader, *bits, forms))
}

/// Whether `reader` is a linear layer that multiplies `value` by weights.
fn reads(reader: &Node, value: ValueId) -> bool {
    reader.op == Op::Linear && reader.inputs[0] == value && !reader.inputs[1..].contains(&value)
}

/// ONNX Runtime 1.32 turns a pair of 8 bits and a product with 8-bit weights in groups into a `MatMulIntegerToFloat`,
/// which then refuses the scales of the groups.
fn is_fused_wrongly(linear: &Node, bits: u32, forms: Forms<'_>) -> bool {
    let Some(Form::Columns(scheme, _)) = forms(linear.inputs[1]) else { return false };
    bits == 8 && stored_bits(&scheme) == 8 && matches!(scheme.granularity, Granularity::Group(_))
}

/// Whether a weight of that form must be unsigned to be exact on every processor. `linears` are the layers that read it,
/// `pairs` those of [`pairs`].
pub(super) fn needs_unsigned(graph: &Graph, form: Form, linears: &[&Node], pairs: &HashSet<ValueId>) -> bool {
    let Form::Columns(scheme, _) = form else { return false };
    let overflows = scheme.grid.bits() >= OVERFLOWING && scheme.is_symmetric() && is_even(&scheme);
    let in_groups = matches!(scheme.granularity, Granularity::Group(_));
    overflows && !in_groups && linears.iter().any(|linear| pairs.contains(&linear.inputs[0]) && reads_bytes(graph, linear))
}

/// Whether what a linear layer reads is rounded to 8 bits.
fn reads_bytes(graph: &Graph, linear: &Node) -> bool {
    graph.maker(linear.inputs[0]).is_some_and(|node| matches!(node.op, Op::Quantize { bits: 8 }))
}
