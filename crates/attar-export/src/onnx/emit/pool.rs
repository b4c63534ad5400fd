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
    let sum = if e.purpose.fixed.is_some() {
        sum_by_product(e, name, &x, &real)
    } else {
        let column = e.node("Unsqueeze", format!("{name}/column"), &[&real, &last], vec![]);
        let kept = e.node("Mul", format!("{name}/kept"), &[&x, &column], vec![]);
        e.node("ReduceSum", format!("{name}/sum"), &[&kept, &positions], vec![("keepdims", Value::Int(0))])
    };
    let count = e.node("ReduceSum", format!("{name}/count"), &[&real, &positions], vec![("keepdims", Value::Int(1))]);
    Ok(e.node("Div", name, &[&sum, &count], vec![]))
}

/// The same sum for Hexagon, whose provider leaves a `ReduceSum` of tokens to the CPU.
fn sum_by_product(e: &mut Emission<'_>, name: &str, x: &str, real: &str) -> String {
    let axis = e.ints(&[1]);
    let row = e.node("Unsqueeze", format!("{name}/row"), &[real, &axis], vec![]);
    let sum = e.node("MatMul", format!("{name}/kept"), &[&row, x], vec![]);
    e.node("Squeeze", format!("{name}/sum"), &[&sum, &axis], vec![])
}

/// The first position: padding must be on the right.
pub(super) fn first_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let (x, first) = (e.value(node.inputs[0]), e.int(0));
    Ok(e.node("Gather", name, &[&x, &first], vec![("axis", Value::Int(1))]))
}
