//! Everything but attention and its positions.

use attar_graph::{Node, Op};

use super::{Emission, Field};
use crate::{
    Result,
    litert::schema::{ADD, DIV, GELU, LOGISTIC, MAXIMUM, MEAN, MUL, RSQRT, SQRT, SUB, SUM, TANH},
};

pub(super) fn embedding(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let (ids, table) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let [lookup, _] = e.kinds(node.inputs[1]);
    let (tokens, width) = (e.call.tokens, e.dims(table)[1]);
    let rows = e.op(format!("{name}/rows"), lookup, &[ids, table], vec![], &[tokens, width]);
    Ok(e.reshape(name, rows, &[1, tokens, width]))
}

pub(super) fn linear(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let (x, weight) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let bias = node.inputs.get(2).map_or(-1, |bias| e.value(*bias));
    let [_, product] = e.kinds(node.inputs[1]);
    let mut dims = e.dims(x);
    dims.pop();
    dims.push(e.dims(weight)[0]);
    let keeps_dims = (2, Field::Bool(true));
    Ok(e.op(name, product, &[x, weight, bias], vec![(0, Field::I8(0)), (1, Field::I8(0)), keeps_dims], &dims))
}

pub(super) fn rms_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::RmsNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, gain) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let unit = e.unit(name, x, epsilon);
    Ok(e.binary(MUL, name, unit, gain))
}

pub(super) fn layer_norm(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::LayerNorm { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, gain) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    let mean = e.reduce(MEAN, format!("{name}/center"), x);
    let centered = e.binary(SUB, format!("{name}/centered"), x, mean);
    let unit = e.unit(name, centered, epsilon);
    let Some(bias) = node.inputs.get(2) else { return Ok(e.binary(MUL, name, unit, gain)) };
    let scaled = e.binary(MUL, format!("{name}/scaled"), unit, gain);
    let bias = e.value(*bias);
    Ok(e.binary(ADD, name, scaled, bias))
}

pub(super) fn normalize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Normalize { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, epsilon) = (e.value(node.inputs[0]), e.float(epsilon as f32));
    let squares = e.binary(MUL, format!("{name}/squares"), x, x);
    let sum = e.reduce(SUM, format!("{name}/sum"), squares);
    let length = e.unary(SQRT, format!("{name}/length"), sum);
    let bounded = e.binary(MAXIMUM, format!("{name}/bounded"), length, epsilon);
    Ok(e.binary(DIV, name, x, bounded))
}

pub(super) fn split_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let [heads, head] = [1, 3].map(|axis| e.constant_dim(node.output(), axis));
    let (x, tokens) = (e.value(node.inputs[0]), e.call.tokens);
    let split = e.reshape(format!("{name}/split"), x, &[1, tokens, heads, head]);
    Ok(e.transpose(name, split, &[0, 2, 1, 3]))
}

pub(super) fn merge_heads(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let (x, width, tokens) = (e.value(node.inputs[0]), e.constant_dim(node.output(), 2), e.call.tokens);
    let turned = e.transpose(format!("{name}/turned"), x, &[0, 2, 1, 3]);
    Ok(e.reshape(name, turned, &[1, tokens, width]))
}

pub(super) fn silu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let x = e.value(node.inputs[0]);
    let gate = e.unary(LOGISTIC, format!("{name}/gate"), x);
    Ok(e.binary(MUL, name, x, gate))
}

pub(super) fn gelu(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    Ok(e.gelu_of(node, name, false))
}

pub(super) fn gelu_tanh(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    Ok(e.gelu_of(node, name, true))
}

pub(super) fn tanh(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let x = e.value(node.inputs[0]);
    Ok(e.unary(TANH, name, x))
}

pub(super) fn scale(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Scale { by } = node.op else { unreachable!("the table is right") };
    let (x, by) = (e.value(node.inputs[0]), e.float(by as f32));
    Ok(e.binary(MUL, name, x, by))
}

pub(super) fn softcap(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Softcap { cap } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    Ok(e.cap(name, x, cap))
}

pub(super) fn mul(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let (a, b) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    Ok(e.binary(MUL, name, a, b))
}

pub(super) fn add(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let (a, b) = (e.value(node.inputs[0]), e.value(node.inputs[1]));
    Ok(e.binary(ADD, name, a, b))
}

pub(super) fn concat(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let parts: Vec<i32> = node.inputs.iter().map(|id| e.value(*id)).collect();
    Ok(e.join(name, &parts))
}

pub(super) fn slice(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Slice { start, length } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    Ok(e.part(name, x, start, length))
}

impl Emission<'_> {
    /// `x / sqrt(mean(x^2) + epsilon)` over the last dimension.
    fn unit(&mut self, name: &str, x: i32, epsilon: f64) -> i32 {
        let squares = self.binary(MUL, format!("{name}/squares"), x, x);
        let mean = self.reduce(MEAN, format!("{name}/mean"), squares);
        let epsilon = self.float(epsilon as f32);
        let sum = self.binary(ADD, format!("{name}/sum"), mean, epsilon);
        let inverse = self.unary(RSQRT, format!("{name}/inverse"), sum);
        self.binary(MUL, format!("{name}/unit"), x, inverse)
    }

    fn gelu_of(&mut self, node: &Node, name: &str, approximate: bool) -> i32 {
        let x = self.value(node.inputs[0]);
        let dims = self.dims(x);
        self.op(name, GELU, &[x], vec![(0, Field::Bool(approximate))], &dims)
    }

    /// `cap * tanh(x / cap)`.
    pub(super) fn cap(&mut self, name: &str, x: i32, cap: f64) -> i32 {
        let cap = self.float(cap as f32);
        let ratio = self.binary(DIV, format!("{name}/ratio"), x, cap);
        let bounded = self.unary(TANH, format!("{name}/bounded"), ratio);
        self.binary(MUL, name, bounded, cap)
    }
}
