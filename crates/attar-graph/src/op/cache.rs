//! The key-value cache: keys and values of earlier calls.

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
        match &mut context.state {
            Some(state) => Ok(state.extended(name_of(op), new)?),
            None => Ok(new),
        }
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
