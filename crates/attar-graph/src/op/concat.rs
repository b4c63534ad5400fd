//! Concatenation along the last dimension, and slices of it.

use candle_core::{D, Tensor};

use super::{Attributes, Op, OpDef, no_attributes, no_macs};
use crate::{Dim, Fact, error::Problem};

pub(super) static CONCAT: OpDef = OpDef {
    name: "concat",
    wants: "values whose shapes differ in the last dimension only",
    parse: |_| Ok(Op::Concat),
    attributes: no_attributes,
    infer: |_, facts| {
        let (_, outer) = facts.first()?.dims.split_last()?;
        let mut all = 0usize;
        for fact in facts {
            let (_, same) = fact.dims.split_last().filter(|(_, same)| *same == outer)?;
            debug_assert_eq!(same.len(), outer.len());
            all = all.checked_add(fact.width()?)?;
        }
        Some(Fact::activation(outer.iter().cloned().chain([Dim::Constant(all)]).collect()))
    },
    evaluate: |_, operands, _| {
        let parts = operands.iter().map(|operand| operand.tensor()).collect::<crate::Result<Vec<Tensor>>>()?;
        Ok(Tensor::cat(&parts, D::Minus1)?.contiguous()?)
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static SLICE: OpDef = OpDef {
    name: "slice",
    wants: "x [.., width] with a width of at least `start + length`",
    parse,
    attributes: |op| {
        let (start, length) = range_of(op);
        let start = (start > 0).then(|| ("start", start.into()));
        start.into_iter().chain([("length", length.into())]).collect()
    },
    infer: |op, facts| match facts {
        [x] => {
            let (start, length) = range_of(op);
            let (width, outer) = x.dims.split_last()?;
            let fits = length > 0 && start.checked_add(length)? <= width.constant()?;
            fits.then(|| Fact::activation(outer.iter().cloned().chain([Dim::Constant(length)]).collect()))
        }
        _ => None,
    },
    evaluate: |op, operands, _| {
        let (start, length) = range_of(op);
        Ok(operands[0].tensor()?.narrow(D::Minus1, start, length)?.contiguous()?)
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

fn range_of(op: &Op) -> (usize, usize) {
    match op {
        Op::Slice { start, length } => (*start, *length),
        _ => unreachable!("the table is right"),
    }
}

fn parse(attributes: &mut Attributes) -> Result<Op, Problem> {
    let start = attributes.count_if_given("start")?.unwrap_or(0);
    Ok(Op::Slice { start, length: attributes.count("length")? })
}
