//! The parts of a norm, for runtimes that round between them.

use candle_core::D;

use super::{Attribute, Op, OpDef, no_attributes, no_macs, unary};
use crate::{Dim, Fact};

pub(super) static CENTER: OpDef = OpDef {
    name: "center",
    wants: "x [.., width]",
    parse: |_| Ok(Op::Center),
    attributes: no_attributes,
    infer: |_, facts| unary(facts).filter(|fact| fact.width().is_some()),
    evaluate: |_, operands, _| {
        let x = operands[0].tensor()?;
        Ok(x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?)
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static MEAN_SQUARE: OpDef = OpDef {
    name: "mean_square",
    wants: "x [.., width]",
    parse: |_| Ok(Op::MeanSquare),
    attributes: no_attributes,
    infer: |_, facts| {
        let mut fact = unary(facts).filter(|fact| fact.width().is_some())?;
        *fact.dims.last_mut()? = Dim::Constant(1);
        Some(fact)
    },
    evaluate: |_, operands, _| Ok(operands[0].tensor()?.sqr()?.mean_keepdim(D::Minus1)?),
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static RSQRT: OpDef = OpDef {
    name: "rsqrt",
    wants: "x",
    parse: |attributes| Ok(Op::Rsqrt { epsilon: attributes.number("epsilon")? }),
    attributes: |op| vec![("epsilon", Attribute::Number(epsilon_of(op)))],
    infer: |_, facts| unary(facts),
    evaluate: |op, operands, _| Ok(operands[0].tensor()?.affine(1.0, epsilon_of(op))?.sqrt()?.recip()?),
    decompose: None,
    several: None,
    macs: no_macs,
};

fn epsilon_of(op: &Op) -> f64 {
    match op {
        Op::Rsqrt { epsilon } => *epsilon,
        _ => unreachable!("the table is right"),
    }
}

/// The fact of a value beside which another may be stretched: of the same dimensions, of 1 where it is wide, or a vector for all rows.
pub(super) fn stretched(facts: &[&Fact]) -> Option<Fact> {
    let [x, other] = facts else { return None };
    let (last, before) = x.dims.split_last()?;
    let beside = |dims: &[Dim]| match dims.split_last() {
        Some((one, outer)) => outer == before && (one == last || *one == Dim::Constant(1)),
        None => false,
    };
    let vector = matches!(&other.dims[..], [width] if width == last);
    (beside(&other.dims) || vector).then(|| Fact::activation(x.dims.clone()))
}
