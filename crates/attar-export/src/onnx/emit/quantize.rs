//! Activations in integers.

use attar_graph::{
    Node, Op, ValueId,
    integer::{Rounding, SMALLEST_RANGE},
};

use super::{Element, Emission, Value};
use crate::Result;

/// One static scale by QuantizeLinear and DequantizeLinear; all else by plain operators, each of which is exact:
/// DynamicQuantizeLinear has one scale for all tokens, and a zero.
pub(super) fn quantize(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Quantize { bits } = node.op else { unreachable!("the table is right") };
    let x = e.value(node.inputs[0]);
    if node.inputs.len() == 1 {
        return Ok(e.round_by_token(name, &x, bits));
    }
    if !matches!(bits, 8 | 16) {
        return Err(e.refuse(node, "in 4 bits with a static scale", "8 or 16 bits, or 4 bits with a dynamic scale"));
    }
    match e.weights.pairs.contains(&node.output()) {
        true => Ok(e.round_by_pair(name, &x, node, bits)),
        false => Ok(e.round_by_constants(name, &x, node, bits)),
    }
}

impl Emission<'_> {
    fn round_by_token(&mut self, name: &str, x: &str, bits: u32) -> String {
        let codes = Rounding::dynamic(bits).codes();
        let (smallest, last, top) = (self.float(SMALLEST_RANGE), self.ints(&[-1]), self.float(codes[1]));
        let magnitudes = self.node("Abs", format!("{name}/magnitudes"), &[x], vec![]);
        let largest = self.node("ReduceMax", format!("{name}/largest"), &[&magnitudes, &last], vec![("keepdims", Value::Int(1))]);
        let range = self.node("Max", format!("{name}/range"), &[&largest, &smallest], vec![]);
        let scale = self.node("Div", format!("{name}/scale"), &[&range, &top], vec![]);
        self.round_by(name, x, &scale, None, codes)
    }

    fn round_by_constants(&mut self, name: &str, x: &str, node: &Node, bits: u32) -> String {
        let (scale, zero) = (self.value(node.inputs[1]), node.inputs.get(2).map(|zero| self.value(*zero)));
        let half = (1i64 << (bits - 1)) as f32;
        self.round_by(name, x, &scale, zero.as_deref(), [-half, half - 1.0])
    }

    /// `(clip(round(x / scale) + zero) - zero) * scale`.
    fn round_by(&mut self, name: &str, x: &str, scale: &str, zero: Option<&str>, codes: [f32; 2]) -> String {
        let [low, high] = codes.map(|code| self.float(code));
        let ratio = self.node("Div", format!("{name}/ratio"), &[x, scale], vec![]);
        let mut steps = self.node("Round", format!("{name}/nearest"), &[&ratio], vec![]);
        if let Some(zero) = zero {
            steps = self.node("Add", format!("{name}/moved"), &[&steps, zero], vec![]);
        }
        steps = self.node("Clip", format!("{name}/codes"), &[&steps, &low, &high], vec![]);
        if let Some(zero) = zero {
            steps = self.node("Sub", format!("{name}/steps"), &[&steps, zero], vec![]);
        }
        self.node("Mul", name, &[&steps, scale], vec![])
    }

    fn round_by_pair(&mut self, name: &str, x: &str, node: &Node, bits: u32) -> String {
        let scale = self.value(node.inputs[1]);
        let zero = match node.inputs.get(2) {
            // As it is stored: the zero's type is that of the codes.
            Some(zero) => self.weights.stored[self.weights.of[zero]].parts[0].name.clone(),
            None => self.no_zero(bits),
        };
        self.round_to(name, x, &scale, zero)
    }

    pub(super) fn round_to(&mut self, name: &str, x: &str, scale: &str, zero: String) -> String {
        let codes = self.node("QuantizeLinear", format!("{name}/codes"), &[x, scale, &zero], vec![]);
        self.dequantize(name, &codes, scale, Some(zero), vec![])
    }

    /// The scale of a value that a device reads in 16 bits.
    pub(super) fn scale_on_device(&mut self, id: ValueId) -> Option<String> {
        self.purpose.fixed?;
        let maker = self.graph.maker(id).filter(|maker| maker.op == (Op::Quantize { bits: 16 }))?;
        Some(self.value(maker.inputs[1]))
    }

    /// The zero of a symmetric quantizer: it says which integers codes are.
    pub(super) fn no_zero(&mut self, bits: u32) -> String {
        // What was tried on Hexagon: unsigned codes around the middle.
        if self.purpose.fixed.is_some() {
            let (element, middle) = if bits > 8 { (Element::U16, vec![0, 128]) } else { (Element::U8, vec![128]) };
            return self.constant(format!("zero:uint{bits}"), element, &[1], middle);
        }
        let element = if bits > 8 { Element::I16 } else { Element::I8 };
        self.constant(format!("zero:int{bits}"), element, &[1], vec![0; bits as usize / 8])
    }
}
