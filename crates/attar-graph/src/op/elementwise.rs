//! Sums and products of two values, the second of which is stretched to the shape of the first.

use super::{Op, OpDef, moments::stretched, no_attributes, no_macs};

pub(super) static ADD: OpDef = OpDef {
    name: "add",
    wants: "x [.., width], and another value of its shape, of width 1, or a vector [width]",
    parse: |_| Ok(Op::Add),
    attributes: no_attributes,
    infer: |_, facts| stretched(facts),
    evaluate: |_, operands, _| Ok(operands[0].tensor()?.broadcast_add(&operands[1].tensor()?)?),
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static MUL: OpDef = OpDef {
    name: "mul",
    wants: "x [.., width], and another value of its shape, of width 1, or a vector [width]",
    parse: |_| Ok(Op::Mul),
    attributes: no_attributes,
    infer: |_, facts| stretched(facts),
    evaluate: |_, operands, _| Ok(operands[0].tensor()?.broadcast_mul(&operands[1].tensor()?)?),
    decompose: None,
    several: None,
    macs: no_macs,
};
