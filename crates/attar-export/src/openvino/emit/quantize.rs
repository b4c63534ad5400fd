//! Activations in integers, by plain operators, each of which is exact: a `FakeQuantize` divides by its range and not by the scale.

use attar_graph::{
    Node, Op,
    integer::{Rounding, SMALLEST_RANGE},
};

use super::{Emission, Out};
use crate::Result;

/// `(clamp(round(x / scale) + zero) - zero) * scale`; the scale of a dynamic one is that of its token.
pub(super) fn quantize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
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
    let ratio = e.binary("Divide", format!("{name}/ratio"), x, scale);
    let mut steps = e.layer(format!("{name}/nearest"), ("Round", 5), vec![("mode", "half_to_even".into())], &[ratio]);
    if let Some(zero) = zero {
        steps = e.binary("Add", format!("{name}/moved"), steps, zero);
    }
    let [min, max] = codes.map(|code| code.to_string());
    steps = e.layer(format!("{name}/codes"), ("Clamp", 1), vec![("min", min), ("max", max)], &[steps]);
    if let Some(zero) = zero {
        steps = e.binary("Subtract", format!("{name}/steps"), steps, zero);
    }
    Ok(e.binary("Multiply", name, steps, scale))
}

impl Emission<'_> {
    fn scale_of_token(&mut self, name: &str, x: Out, top: f32) -> Out {
        let (smallest, last, top) = (self.float(SMALLEST_RANGE), self.ints(&[-1]), self.float(top));
        let magnitudes = self.layer(format!("{name}/magnitudes"), ("Abs", 1), vec![], &[x]);
        let keep = vec![("keep_dims", "true".to_owned())];
        let largest = self.layer(format!("{name}/largest"), ("ReduceMax", 1), keep, &[magnitudes, last]);
        let range = self.binary("Maximum", format!("{name}/range"), largest, smallest);
        self.binary("Divide", format!("{name}/scale"), range, top)
    }
}
