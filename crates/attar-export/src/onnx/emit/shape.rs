//! What moves numbers and changes none.

use attar_graph::{Node, Op};

use super::{Emission, Value, constant};
use crate::{Result, onnx::proto};

pub(super) fn split_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let dims = &e.graph.fact(node.output()).dims;
    let (heads, head) = (constant(&dims[1]), constant(&dims[3]));
    let (x, shape) = (e.value(node.inputs[0]), e.ints(&[0, 0, heads, head]));
    let split = e.node("Reshape", format!("{name}/split"), &[&x, &shape], vec![]);
    Ok(e.node("Transpose", name, &[&split], vec![("perm", Value::Ints(vec![0, 2, 1, 3]))]))
}

pub(super) fn merge_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let width = constant(&e.graph.fact(node.output()).dims[2]);
    let (x, shape) = (e.value(node.inputs[0]), e.ints(&[0, 0, width]));
    let turned = e.node("Transpose", format!("{name}/turned"), &[&x], vec![("perm", Value::Ints(vec![0, 2, 1, 3]))]);
    Ok(e.node("Reshape", name, &[&turned, &shape], vec![]))
}

pub(super) fn concat(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let parts: Vec<String> = node.inputs.iter().map(|id| e.value(*id)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(e.node("Concat", name, &parts, vec![("axis", Value::Int(-1))]))
}

pub(super) fn slice(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Slice { start, length } = node.op else { unreachable!("the table is right") };
    let of = e.value(node.inputs[0]);
    let [start, end] = [start, start + length].map(|at| e.ints(&[at as i64]));
    let axis = e.ints(&[-1]);
    Ok(e.node("Slice", name, &[&of, &start, &end, &axis], vec![]))
}

/// `Split` with the widths as its second input. The names of all results but the first are recorded here.
pub(super) fn split(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Split { widths } = &node.op else { unreachable!("the table is right") };
    let widths: Vec<i64> = widths.iter().map(|width| *width as i64).collect();
    let (x, widths) = (e.value(node.inputs[0]), e.ints(&widths));
    let mut split = proto::node("", "Split", name, &[&x, &widths], vec![("axis", Value::Int(-1))]);
    for id in &node.outputs[1..] {
        let name = e.graph.get(*id).name.clone();
        split.output.push(name.clone());
        e.names.insert(*id, name);
    }
    e.nodes.push(split);
    Ok(name.to_owned())
}
