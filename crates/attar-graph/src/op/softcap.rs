//! Scores and logits within bounds (Gemma 2, section 2): `tanh`, scaling by a constant, and both together.

use candle_core::Tensor;

use super::{Attribute, Op, OpDef, no_attributes, no_macs, unary};
use crate::{Mode, kernel};

pub(super) static SOFTCAP: OpDef = OpDef {
    name: "softcap",
    wants: "x",
    parse: |attributes| Ok(Op::Softcap { cap: attributes.positive("cap")? }),
    attributes: |op| vec![("cap", Attribute::Number(number_of(op)))],
    infer: |_, facts| unary(facts),
    evaluate: |op, operands, context| {
        let (x, cap) = (operands[0].tensor()?, number_of(op));
        Ok(match context.mode {
            Mode::Inference => kernel::softcap(&x, cap as f32)?,
            Mode::Training => scaled(&scaled(&x, 1.0 / cap)?.tanh()?, cap)?,
        })
    },
    decompose: Some(|graph, name, op, inputs| {
        let cap = number_of(op);
        let scaled = graph.node(&format!("{name}.scaled"), Op::Scale { by: 1.0 / cap }, inputs)?;
        let tanh = graph.node(&format!("{name}.tanh"), Op::Tanh, &[scaled])?;
        graph.node(name, Op::Scale { by: cap }, &[tanh])
    }),
    several: None,
    macs: no_macs,
};

pub(super) static TANH: OpDef = OpDef {
    name: "tanh",
    wants: "x",
    parse: |_| Ok(Op::Tanh),
    attributes: no_attributes,
    infer: |_, facts| unary(facts),
    evaluate: |_, operands, context| {
        let x = operands[0].tensor()?;
        Ok(match context.mode {
            Mode::Inference => kernel::tanh(&x)?,
            Mode::Training => x.tanh()?,
        })
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static SCALE: OpDef = OpDef {
    name: "scale",
    wants: "x",
    parse: |attributes| Ok(Op::Scale { by: attributes.number("by")? }),
    attributes: |op| vec![("by", Attribute::Number(number_of(op)))],
    infer: |_, facts| unary(facts),
    evaluate: |op, operands, _| Ok(scaled(&operands[0].tensor()?, number_of(op))?),
    decompose: None,
    several: None,
    macs: no_macs,
};

fn number_of(op: &Op) -> f64 {
    match op {
        Op::Softcap { cap } => *cap,
        Op::Scale { by } => *by,
        _ => unreachable!("the table is right"),
    }
}

fn scaled(x: &Tensor, by: f64) -> candle_core::Result<Tensor> {
    x.affine(by, 0.0)
}
