//! Sums and products of two values of one shape.

use super::{Op, OpDef, no_attributes, no_macs};
use crate::Fact;

pub(super) static ADD: OpDef = OpDef {
    name: "add",
    wants: "two values of one shape",
    parse: |_| Ok(Op::Add),
    attributes: no_attributes,
    infer: |_, facts| same(facts),
    evaluate: |_, operands, _| Ok((operands[0].tensor()? + operands[1].tensor()?)?),
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static MUL: OpDef = OpDef {
    name: "mul",
    wants: "two values of one shape",
    parse: |_| Ok(Op::Mul),
    attributes: no_attributes,
    infer: |_, facts| same(facts),
    evaluate: |_, operands, _| Ok((operands[0].tensor()? * operands[1].tensor()?)?),
    decompose: None,
    several: None,
    macs: no_macs,
};

fn same(facts: &[&Fact]) -> Option<Fact> {
    match facts {
        [a, b] if a.dims == b.dims => Some(Fact::activation(a.dims.clone())),
        _ => None,
    }
}
