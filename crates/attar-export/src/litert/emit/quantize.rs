//! Activations in integers, by plain operators, each of which is exact.

use attar_graph::{
    Node, Op,
    integer::{Rounding, SMALLEST_RANGE},
};

use super::Emission;
use crate::{
    Result,
    litert::schema::{ABS, ADD, DIV, MAXIMUM, MINIMUM, MUL, REDUCE_MAX, ROUND, SUB},
};

/// `(clamp(round(x / scale) + zero) - zero) * scale`; the scale of a dynamic one is that of its token.
pub(super) fn quantize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Quantize { bits } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    let half = (1i64 << (bits - 1)) as f32;
    let (scale, codes) = match node.inputs.get(1) {
        Some(scale) => (e.value(*scale), [-half, half - 1.0]),
        None => {
            let codes = Rounding::dynamic(bits).codes();
            (e.scale_of_token(name, x, codes[1]), codes)
        }
    };
    let zero = node.inputs.get(2).map(|zero| e.value(*zero));
    let ratio = e.binary(DIV, format!("{name}/ratio"), x, scale);
    let mut steps = e.unary(ROUND, format!("{name}/nearest"), ratio);
    if let Some(zero) = zero {
        steps = e.binary(ADD, format!("{name}/moved"), steps, zero);
    }
    let [least, most] = codes.map(|code| e.float(code));
    steps = e.binary(MAXIMUM, format!("{name}/raised"), steps, least);
    steps = e.binary(MINIMUM, format!("{name}/codes"), steps, most);
    if let Some(zero) = zero {
        steps = e.binary(SUB, format!("{name}/steps"), steps, zero);
    }
    Ok(e.binary(MUL, name, steps, scale))
}

impl Emission<'_> {
    fn scale_of_token(&mut self, name: &str, x: i32, top: f32) -> i32 {
        let (smallest, top) = (self.float(SMALLEST_RANGE), self.float(top));
        let magnitudes = self.unary(ABS, format!("{name}/magnitudes"), x);
        let largest = self.reduce(REDUCE_MAX, format!("{name}/largest"), magnitudes);
        let range = self.binary(MAXIMUM, format!("{name}/range"), largest, smallest);
        self.binary(DIV, format!("{name}/scale"), range, top)
    }
}
