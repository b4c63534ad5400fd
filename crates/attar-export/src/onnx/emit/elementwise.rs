//! What each element goes through by itself.

use attar_graph::Node;

use super::Emission;
use crate::Result;

pub(super) fn add(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    Ok(binary(e, "Add", node, name))
}

pub(super) fn mul(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    Ok(binary(e, "Mul", node, name))
}

fn binary(e: &mut Emission<'_>, op: &str, node: &Node, name: &str) -> String {
    let (a, b) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    e.node(op, name, &[&a, &b], vec![])
}

pub(super) fn silu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    let gate = e.node("Sigmoid", format!("{name}/gate"), &[&x], vec![]);
    Ok(e.node("Mul", name, &[&x, &gate], vec![]))
}
