//! Root mean square normalisation.

use super::{Attribute, Op, OpDef, no_macs};
use crate::{Fact, Mode, gradient};

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
    decompose: None,
    several: None,
    macs: no_macs,
};
