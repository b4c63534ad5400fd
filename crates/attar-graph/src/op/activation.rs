//! SiLU, and the gated unit built on it.

use super::{Op, OpDef, no_attributes, no_macs, unary};
use crate::{Fact, Mode, gradient, kernel};

pub(super) static SWIGLU: OpDef = OpDef {
    name: "swiglu",
    wants: "gate and up of one shape",
    parse: |_| Ok(Op::Swiglu),
    attributes: no_attributes,
    infer: |_, facts| match facts {
        [gate, up] if gate.dims == up.dims => Some(Fact::activation(gate.dims.clone())),
        _ => None,
    },
    evaluate: |_, operands, context| {
        let (gate, up) = (operands[0].tensor()?, operands[1].tensor()?);
        Ok(match context.mode {
            Mode::Inference => kernel::swiglu(&gate, &up)?,
            Mode::Training => gradient::swiglu(&gate, &up)?,
        })
    },
    decompose: Some(|graph, name, _, inputs| {
        let silu = graph.node(&format!("{name}.silu"), Op::Silu, &inputs[..1])?;
        graph.node(name, Op::Mul, &[silu, inputs[1]])
    }),
    several: None,
    macs: no_macs,
};

pub(super) static SILU: OpDef = OpDef {
    name: "silu",
    wants: "x",
    parse: |_| Ok(Op::Silu),
    attributes: no_attributes,
    infer: |_, facts| unary(facts),
    evaluate: |_, operands, _| Ok(operands[0].tensor()?.silu()?),
    decompose: None,
    several: None,
    macs: no_macs,
};
