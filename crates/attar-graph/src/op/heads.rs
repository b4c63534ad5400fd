//! Between `[batch, seq, heads * head]` and `[batch, heads, seq, head]`.

use super::{Op, OpDef, no_attributes, no_macs};
use crate::{Dim, Fact, gradient};

pub(super) static SPLIT: OpDef = OpDef {
    name: "split_heads",
    wants: "x [batch, seq, heads * head]",
    parse: |attributes| Ok(Op::SplitHeads { heads: attributes.count("heads")? }),
    attributes: |op| vec![("heads", heads_of(op).into())],
    infer: |op, facts| match facts {
        [x] if x.dims.len() == 3 => {
            let heads = heads_of(op);
            let width = x.width().filter(|width| width.checked_rem(heads) == Some(0))?;
            let (batch, seq) = (x.dims[0].clone(), x.dims[1].clone());
            Some(Fact::activation(vec![batch, Dim::Constant(heads), seq, Dim::Constant(width / heads)]))
        }
        _ => None,
    },
    evaluate: |op, operands, _| Ok(gradient::split_heads(&operands[0].tensor()?, heads_of(op))?),
    decompose: None,
    several: None,
    macs: no_macs,
};

pub(super) static MERGE: OpDef = OpDef {
    name: "merge_heads",
    wants: "x [batch, heads, seq, head]",
    parse: |_| Ok(Op::MergeHeads),
    attributes: no_attributes,
    infer: |_, facts| match facts {
        [x] if x.dims.len() == 4 => {
            let width = x.dims[1].constant()?.checked_mul(x.dims[3].constant()?)?;
            Some(Fact::activation(vec![x.dims[0].clone(), x.dims[2].clone(), Dim::Constant(width)]))
        }
        _ => None,
    },
    evaluate: |_, operands, _| Ok(gradient::merge_heads(&operands[0].tensor()?)?),
    decompose: None,
    several: None,
    macs: no_macs,
};

fn heads_of(op: &Op) -> usize {
    match op {
        Op::SplitHeads { heads } => *heads,
        _ => unreachable!("the table is right"),
    }
}
