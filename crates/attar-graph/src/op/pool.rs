//! One vector per window: what an encoder returns as the embedding of a text.

use candle_core::D;

use super::{Attribute, Op, OpDef, no_attributes, no_macs, unary};
use crate::{Fact, Mode, kernel};

pub(super) static MEAN: OpDef = OpDef {
    name: "mean_pool",
    wants: "x [batch, seq, width]",
    parse: |_| Ok(Op::MeanPool),
    attributes: no_attributes,
    infer: |_, facts| pooled(facts),
    evaluate: |_, operands, context| {
        let x = operands[0].tensor()?;
        Ok(match context.mode {
            Mode::Inference => kernel::mean_pool(&x)?,
            Mode::Training => x.mean(1)?,
        })
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static FIRST: OpDef = OpDef {
    name: "first_pool",
    wants: "x [batch, seq, width]",
    parse: |_| Ok(Op::FirstPool),
    attributes: no_attributes,
    infer: |_, facts| pooled(facts),
    evaluate: |_, operands, _| Ok(operands[0].tensor()?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?),
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static NORMALIZE: OpDef = OpDef {
    name: "normalize",
    wants: "x [.., width]",
    parse: |attributes| Ok(Op::Normalize { epsilon: attributes.number("epsilon")? }),
    attributes: |op| vec![("epsilon", Attribute::Number(epsilon_of(op)))],
    infer: |_, facts| unary(facts).filter(|fact| fact.width().is_some()),
    evaluate: |op, operands, context| {
        let (x, epsilon) = (operands[0].tensor()?, epsilon_of(op));
        Ok(match context.mode {
            Mode::Inference => kernel::normalize(&x, epsilon as f32)?,
            Mode::Training => x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(epsilon)?)?,
        })
    },
    decompose: Some(|graph, name, op, inputs| {
        let width = graph.fact(inputs[0]).width().expect("the width is constant: checked by the graph");
        let mean = graph.node(&format!("{name}.mean"), Op::MeanSquare, inputs)?;
        let square = graph.node(&format!("{name}.square"), Op::Scale { by: width as f64 }, &[mean])?;
        let inverse = graph.node(&format!("{name}.inverse"), Op::Rsqrt { epsilon: epsilon_of(op).powi(2) }, &[square])?;
        graph.node(name, Op::Mul, &[inputs[0], inverse])
    }),
    several: None,
    macs: no_macs,
};

fn pooled(facts: &[&Fact]) -> Option<Fact> {
    match facts {
        [x] if x.dims.len() == 3 => Some(Fact::activation(vec![x.dims[0].clone(), x.dims[2].clone()])),
        _ => None,
    }
}

fn epsilon_of(op: &Op) -> f64 {
    match op {
        Op::Normalize { epsilon } => *epsilon,
        _ => unreachable!("the table is right"),
    }
}
