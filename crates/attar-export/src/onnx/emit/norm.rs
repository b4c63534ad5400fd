//! Normalisation over the last dimension.

use attar_graph::{Dim, Node, Op};

use super::{Emission, Value};
use crate::{Result, onnx::Style};

/// One operator, or what it does in the form that ONNX Runtime fuses to one kernel.
pub(super) fn rms_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::RmsNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, gain) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    // In f16, squares of the residual stream are infinite: QNN has an operator, too. Of heads, `[1, heads, tokens, head]`, it is silently wrong for some
    // numbers of them, so these are rows of one matrix for it.
    let dims = &e.graph.fact(node.inputs[0]).dims;
    if let (Some(_), [_, a, b, width]) = (e.purpose.fixed, dims.as_slice()) {
        let size = |dim: &Dim| dim.constant().map_or(-1, |size| size as i64);
        let (heads, rows) = ([1, size(a), size(b), size(width)], [1, -1, size(width)]);
        let (heads, rows) = (e.ints(&heads), e.ints(&rows));
        let matrix = e.node("Reshape", format!("{name}/rows"), &[&x, &rows], vec![]);
        let normed = e.whole_norm(format!("{name}/normed"), &matrix, &gain, epsilon);
        return Ok(e.node("Reshape", name, &[&normed, &heads], vec![]));
    }
    if e.options.style != Style::Plain || e.purpose.fixed.is_some() {
        return Ok(e.whole_norm(name, &x, &gain, epsilon));
    }
    let (two, epsilon, last) = (e.float(2.0), e.float(epsilon as f32), e.ints(&[-1]));
    let squares = e.node("Pow", format!("{name}/squares"), &[&x, &two], vec![]);
    let mean = e.node("ReduceMean", format!("{name}/mean"), &[&squares, &last], vec![("keepdims", Value::Int(1))]);
    let sum = e.node("Add", format!("{name}/sum"), &[&mean, &epsilon], vec![]);
    let root = e.node("Sqrt", format!("{name}/root"), &[&sum], vec![]);
    let unit = e.node("Div", format!("{name}/unit"), &[&x, &root], vec![]);
    Ok(e.node("Mul", name, &[&unit, &gain], vec![]))
}

pub(super) fn layer_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::LayerNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let inputs: Vec<String> = node.inputs.iter().map(|id| e.value(*id)).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let attributes = vec![("axis", Value::Int(-1)), ("epsilon", Value::Float(epsilon as f32))];
    Ok(e.node("LayerNormalization", name, &inputs, attributes))
}

pub(super) fn normalize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Normalize { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, epsilon, last) = (e.value(node.inputs[0]), e.float(epsilon as f32), e.ints(&[-1]));
    let length = e.node("ReduceL2", format!("{name}/length"), &[&x, &last], vec![("keepdims", Value::Int(1))]);
    let bounded = e.node("Max", format!("{name}/bounded"), &[&length, &epsilon], vec![]);
    Ok(e.node("Div", name, &[&x, &bounded], vec![]))
}

impl Emission<'_> {
    /// The standard's operator, or ONNX Runtime's own, which it takes for one of the standard.
    pub(super) fn whole_norm(&mut self, name: impl Into<String>, x: &str, gain: &str, epsilon: f64) -> String {
        let attributes = vec![("axis", Value::Int(-1)), ("epsilon", Value::Float(epsilon as f32)), ("stash_type", Value::Int(1))];
        let op = match self.options.style {
            Style::Standard => "RMSNormalization",
            Style::Fused | Style::Plain => "SimplifiedLayerNormalization",
        };
        self.node(op, name, &[x, gain], attributes)
    }
}
