//! What each element goes through by itself.

use attar_graph::{Node, Op};

use super::{Element, Emission, Value};
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
    let Some(scale) = e.scale_on_device(node.inputs[0]) else { return Ok(e.node("Mul", name, &[&x, &gate], vec![])) };
    // Between products of 16 bits, Hexagon (QNN 2.51) returns other rows where values are f16, and says nothing. A product is no larger than `x`.
    let (share, none) = (e.float(1.0 / 65535.0), e.constant("zero:least".into(), Element::U16, &[], vec![0; 2]));
    let gate = e.round_to(&format!("{name}/share"), &gate, &share, none);
    let (product, middle) = (e.node("Mul", format!("{name}/product"), &[&x, &gate], vec![]), e.no_zero(16));
    Ok(e.round_to(name, &product, &scale, middle))
}

pub(super) fn gelu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    Ok(e.node("Gelu", name, &[&x], vec![]))
}

pub(super) fn gelu_tanh(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    Ok(e.node("Gelu", name, &[&x], vec![("approximate", Value::Text("tanh"))]))
}

pub(super) fn erf(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    Ok(e.node("Erf", name, &[&x], vec![]))
}

pub(super) fn tanh(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    Ok(e.node("Tanh", name, &[&x], vec![]))
}

pub(super) fn scale(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Scale { by } = node.op else { unreachable!("the table is right") };
    let (x, by) = (e.value(node.inputs[0]), e.float(by as f32));
    Ok(e.node("Mul", name, &[&x, &by], vec![]))
}

pub(super) fn softcap(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Softcap { cap } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    Ok(e.cap(name, &x, cap))
}

impl Emission<'_> {
    /// `cap * tanh(x / cap)`.
    pub(super) fn cap(&mut self, name: &str, x: &str, cap: f64) -> String {
        let cap = self.float(cap as f32);
        let ratio = self.node("Div", format!("{name}/ratio"), &[x, &cap], vec![]);
        let bounded = self.node("Tanh", format!("{name}/bounded"), &[&ratio], vec![]);
        self.node("Mul", name, &[&bounded, &cap], vec![])
    }
}
