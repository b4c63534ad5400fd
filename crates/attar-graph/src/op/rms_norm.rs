//! Root mean square normalisation.

use super::{Attribute, Op, OpDef, no_macs};
use crate::{Fact, Graph, Mode, Result, ValueId, gradient};

pub(super) static DEF: OpDef = OpDef {
    name: "rms_norm",
    wants: "x [.., width] and a gain [width]",
    parse: |attributes| Ok(Op::RmsNorm { epsilon: attributes.number("epsilon")? }),
    attributes: |op| match op {
        Op::RmsNorm { epsilon } => vec![("epsilon", Attribute::Number(*epsilon))],
        _ => unreachable!("the table is right"),
    },
    infer: |_, facts| match facts {
        [x, gain] if gain.dims.len() == 1 && x.dims.last() == gain.dims.last() => Some(Fact::activation(x.dims.clone())),
        _ => None,
    },
    evaluate: |op, operands, context| {
        let Op::RmsNorm { epsilon } = op else { unreachable!("the table is right") };
        let (x, gain) = (operands[0].tensor()?.contiguous()?, operands[1].tensor()?);
        Ok(match context.mode {
            Mode::Inference => candle_nn::ops::rms_norm(&x, &gain, *epsilon as f32)?,
            Mode::Training => gradient::rms_norm(&x, &gain, *epsilon as f32)?,
        })
    },
    decompose: Some(|graph, name, op, inputs| {
        let Op::RmsNorm { epsilon } = *op else { unreachable!("the table is right") };
        let [x, gain] = inputs else { unreachable!("the operands were checked") };
        let unit = unit(graph, name, *x, epsilon)?;
        graph.node(name, Op::Mul, &[unit, *gain])
    }),
    several: None,
    macs: no_macs,
};

/// Adds `x / sqrt(mean(x^2) + epsilon)`.
pub(super) fn unit(graph: &mut Graph, name: &str, x: ValueId, epsilon: f64) -> Result<ValueId> {
    let square = graph.node(&format!("{name}.square"), Op::MeanSquare, &[x])?;
    let inverse = graph.node(&format!("{name}.inverse"), Op::Rsqrt { epsilon }, &[square])?;
    graph.node(&format!("{name}.unit"), Op::Mul, &[x, inverse])
}
