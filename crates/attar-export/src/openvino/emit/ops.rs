//! Everything but attention and its positions.

use attar_graph::{Node, Op};

use super::{Element, Emission, Out, constant};
use crate::Result;

pub(super) fn embedding(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let (tokens, table) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let tokens = e.shared(&format!("{}/i32", e.graph.get(node.inputs[0]).name), |e, name| e.convert(name, tokens, Element::I32));
    Ok(e.gather(name, table, tokens, 0))
}

pub(super) fn linear(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    if let Some(packed) = e.packed_product(node)? {
        return Ok(packed);
    }
    let (x, weight) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let data = vec![("transpose_a", "false".to_owned()), ("transpose_b", "true".to_owned())];
    let Some(bias) = node.inputs.get(2) else { return Ok(e.layer(name, ("MatMul", 1), data, &[x, weight])) };
    let product = e.layer(format!("{name}/product"), ("MatMul", 1), data, &[x, weight]);
    let bias = e.value(*bias);
    Ok(e.binary("Add", name, product, bias))
}

/// In the form that OpenVINO fuses to one operator.
pub(super) fn rms_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::RmsNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, gain) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let (two, half, epsilon, last) = (e.float(2.0), e.float(-0.5), e.float(epsilon as f32), e.ints(&[-1]));
    let squares = e.binary("Power", format!("{name}/squares"), x, two);
    let mean = e.layer(format!("{name}/mean"), ("ReduceMean", 1), vec![("keep_dims", "true".into())], &[squares, last]);
    let sum = e.binary("Add", format!("{name}/sum"), mean, epsilon);
    let inverse = e.binary("Power", format!("{name}/inverse"), sum, half);
    let unit = e.binary("Multiply", format!("{name}/unit"), x, inverse);
    Ok(e.binary("Multiply", name, unit, gain))
}

pub(super) fn layer_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::LayerNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, gain, last) = (e.value(node.inputs[0]), e.value(node.inputs[1]), e.ints(&[-1]));
    let data =
        vec![("eps", format!("{epsilon:e}")), ("normalize_variance", "true".to_owned()), ("eps_mode", "INSIDE_SQRT".to_owned())];
    let unit = e.layer(format!("{name}/unit"), ("MVN", 6), data, &[x, last]);
    let Some(bias) = node.inputs.get(2) else { return Ok(e.binary("Multiply", name, unit, gain)) };
    let scaled = e.binary("Multiply", format!("{name}/scaled"), unit, gain);
    let bias = e.value(*bias);
    Ok(e.binary("Add", name, scaled, bias))
}

pub(super) fn normalize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::Normalize { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, epsilon, last) = (e.value(node.inputs[0]), e.float(epsilon as f32), e.ints(&[-1]));
    let length = e.layer(format!("{name}/length"), ("ReduceL2", 4), vec![("keep_dims", "true".into())], &[x, last]);
    let bounded = e.binary("Maximum", format!("{name}/bounded"), length, epsilon);
    Ok(e.binary("Divide", name, x, bounded))
}

pub(super) fn split_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let dims = &e.graph.fact(node.output()).dims;
    let (heads, head) = (constant(&dims[1]), constant(&dims[3]));
    let x = e.value(node.inputs[0]);
    let split = e.reshape(format!("{name}/split"), x, &[0, 0, heads, head], true);
    Ok(e.transpose(name, split, &[0, 2, 1, 3]))
}

pub(super) fn merge_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let width = constant(&e.graph.fact(node.output()).dims[2]);
    let x = e.value(node.inputs[0]);
    let turned = e.transpose(format!("{name}/turned"), x, &[0, 2, 1, 3]);
    Ok(e.reshape(name, turned, &[0, 0, width], true))
}

pub(super) fn silu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let x = e.value(node.inputs[0]);
    Ok(e.layer(name, ("Swish", 4), vec![], &[x]))
}

pub(super) fn gelu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let x = e.value(node.inputs[0]);
    Ok(e.layer(name, ("Gelu", 7), vec![("approximation_mode", "ERF".into())], &[x]))
}

pub(super) fn gelu_tanh(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let x = e.value(node.inputs[0]);
    Ok(e.layer(name, ("Gelu", 7), vec![("approximation_mode", "TANH".into())], &[x]))
}

pub(super) fn erf(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let x = e.value(node.inputs[0]);
    Ok(e.layer(name, ("Erf", 1), vec![], &[x]))
}

pub(super) fn tanh(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let x = e.value(node.inputs[0]);
    Ok(e.layer(name, ("Tanh", 1), vec![], &[x]))
}

pub(super) fn scale(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::Scale { by } = node.op else { unreachable!("the table is right") };
    let (x, by) = (e.value(node.inputs[0]), e.float(by as f32));
    Ok(e.binary("Multiply", name, x, by))
}

pub(super) fn softcap(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::Softcap { cap } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    Ok(e.cap(name, x, cap))
}

pub(super) fn mul(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let (a, b) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    Ok(e.binary("Multiply", name, a, b))
}

pub(super) fn add(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let (a, b) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    Ok(e.binary("Add", name, a, b))
}

pub(super) fn concat(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let parts: Vec<Out> = node.inputs.iter().map(|id| e.value(*id)).collect();
    Ok(e.join(name, &parts, -1))
}

pub(super) fn slice(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::Slice { start, length } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    let [start, end] = [start, start + length].map(|at| e.ints(&[at as i64]));
    let (step, axis) = (e.ints(&[1]), e.ints(&[-1]));
    Ok(e.layer(name, ("Slice", 8), vec![], &[x, start, end, step, axis]))
}

impl Emission<'_> {
    /// `cap * tanh(x / cap)`.
    pub(super) fn cap(&mut self, name: &str, x: Out, cap: f64) -> Out {
        let cap = self.float(cap as f32);
        let ratio = self.binary("Divide", format!("{name}/ratio"), x, cap);
        let bounded = self.layer(format!("{name}/bounded"), ("Tanh", 1), vec![], &[ratio]);
        self.binary("Multiply", name, bounded, cap)
    }
}
