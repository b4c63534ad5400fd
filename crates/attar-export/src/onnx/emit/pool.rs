//! One vector per text.

use attar_graph::Node;

use super::{Element, Emission, MASK, Value};
use crate::Result;

/// The mean over the tokens that are not padding; over all of them where the graph has no attention, and so no mask.
pub(super) fn mean_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let (x, positions) = (e.value(node.inputs[0]), e.ints(&[1]));
    if !e.has_mask() {
        return Ok(e.node("ReduceMean", name, &[&x, &positions], vec![("keepdims", Value::Int(0))]));
    }
    let (real, last) = (e.cast(format!("{name}/real"), MASK, Element::F32), e.ints(&[-1]));
    let column = e.node("Unsqueeze", format!("{name}/column"), &[&real, &last], vec![]);
    let kept = e.node("Mul", format!("{name}/kept"), &[&x, &column], vec![]);
    let sum = e.node("ReduceSum", format!("{name}/sum"), &[&kept, &positions], vec![("keepdims", Value::Int(0))]);
    let count = e.node("ReduceSum", format!("{name}/count"), &[&real, &positions], vec![("keepdims", Value::Int(1))]);
    Ok(e.node("Div", name, &[&sum, &count], vec![]))
}

/// The first position: padding must be on the right.
pub(super) fn first_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let (x, first) = (e.value(node.inputs[0]), e.int(0));
    Ok(e.node("Gather", name, &[&x, &first], vec![("axis", Value::Int(1))]))
}
