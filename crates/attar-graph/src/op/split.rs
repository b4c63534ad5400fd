//! The last dimension in pieces, a result each: what a fused projection is read by.

use candle_core::{D, Tensor};

use super::{Attribute, Attributes, Op, OpDef, Operand, Several, no_macs};
use crate::{Dim, Fact, Graph, Result, ValueId, error::Problem};

pub(super) static DEF: OpDef = OpDef {
    name: "split",
    wants: "x [.., width] with the sum of `widths` as its width",
    parse,
    attributes: |op| vec![("widths", Attribute::Counts(widths(op).to_vec()))],
    infer: |op, facts| infer(op, facts)?.into_iter().next(),
    evaluate: |op, operands, _| Ok(pieces(op, operands)?.swap_remove(0)),
    decompose: None,
    several: Some(Several { infer, evaluate: |op, operands, _| pieces(op, operands), decompose }),
    macs: no_macs,
};

fn widths(op: &Op) -> &[usize] {
    match op {
        Op::Split { widths } => widths,
        _ => unreachable!("the table is right"),
    }
}

fn parse(attributes: &mut Attributes) -> std::result::Result<Op, Problem> {
    let widths = attributes.counts("widths")?;
    if widths.is_empty() || widths.contains(&0) {
        return Err(Problem::Syntax { found: Attribute::Counts(widths).to_string(), wanted: "widths of at least 1" });
    }
    Ok(Op::Split { widths })
}

fn infer(op: &Op, facts: &[&Fact]) -> Option<Vec<Fact>> {
    let [x] = facts else { return None };
    let (width, outer) = x.dims.split_last()?;
    let sum = widths(op).iter().try_fold(0usize, |sum, width| sum.checked_add(*width).filter(|_| *width > 0))?;
    let piece = |width: &usize| Fact::activation(outer.iter().cloned().chain([Dim::Constant(*width)]).collect());
    (sum > 0 && width.constant() == Some(sum)).then(|| widths(op).iter().map(piece).collect())
}

fn pieces(op: &Op, operands: &[Operand<'_>]) -> Result<Vec<Tensor>> {
    let x = operands[0].tensor()?;
    let mut start = 0;
    let piece = |width: &usize| {
        start += width;
        Ok(x.narrow(D::Minus1, start - width, *width)?.contiguous()?)
    };
    widths(op).iter().map(piece).collect()
}

/// As slices.
fn decompose(graph: &mut Graph, names: &[&str], op: &Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
    let mut start = 0;
    let slice = |(name, width): (&&str, &usize)| {
        start += width;
        graph.node(name, Op::Slice { start: start - width, length: *width }, inputs)
    };
    names.iter().zip(widths(op)).map(slice).collect()
}
