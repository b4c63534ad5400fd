//! The key-value cache: keys and values of earlier calls.

use candle_core::Tensor;

use super::{Attribute, Op, OpDef, no_macs};
use crate::{Fact, error::Problem};

pub(super) static DEF: OpDef = OpDef {
    name: "cache",
    wants: "x [batch, heads, seq, head]",
    parse: |attributes| match attributes.text("state")? {
        Some(name) => Ok(Op::Cache { name }),
        None => Err(Problem::MissingAttribute { op: "cache", name: "state" }),
    },
    attributes: |op| vec![("state", Attribute::Text(name_of(op).into()))],
    infer: |_, facts| match facts {
        [x] if x.dims.len() == 4 => {
            let mut dims = x.dims.clone();
            dims[2] = dims[2].plus("past")?;
            Some(Fact::activation(dims))
        }
        _ => None,
    },
    evaluate: |op, operands, context| {
        let new = operands[0].tensor()?;
        let Some(state) = &mut context.state else { return Ok(new) };
        let all = match state.0.get(name_of(op)) {
            Some(past) => Tensor::cat(&[past, &new], 2)?,
            None => new,
        };
        state.0.insert(name_of(op).into(), all.clone());
        Ok(all)
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

fn name_of(op: &Op) -> &str {
    match op {
        Op::Cache { name } => name,
        _ => unreachable!("the table is right"),
    }
}
