//! Grouped-query causal attention (Vaswani et al. 2017; Ainslie et al. 2023).

use super::{Attribute, Attributes, Op, OpDef};
use crate::{Fact, Mode, error::Problem, gradient, kernel};

/// How queries meet keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Multiplies the scores before the softmax.
    pub scale: f64,
    /// A query sees this many positions, its own the last; all before it, if there is no window.
    pub window: Option<usize>,
}

pub(super) static DEF: OpDef = OpDef {
    name: "attention",
    wants: "query [batch, heads, seq, head], key and value [batch, some divisor of heads, past+seq, head]",
    parse,
    attributes: |op| {
        let attention = attention_of(op);
        let mut all = vec![("scale", Attribute::Number(attention.scale))];
        all.extend(attention.window.map(|n| ("window", n.into())));
        all
    },
    infer: |_, facts| match facts {
        [query, key, value] if query.dims.len() == 4 && key.dims.len() == 4 => {
            let grouped = query.dims[1].constant()?.checked_rem(key.dims[1].constant()?) == Some(0);
            let same = key.dims == value.dims && query.dims[0] == key.dims[0] && query.dims[3] == key.dims[3];
            (same && grouped && key.dims[2].reaches(&query.dims[2])).then(|| Fact::activation(query.dims.clone()))
        }
        _ => None,
    },
    evaluate: |op, operands, context| {
        let attention = attention_of(op);
        let (q, k, v) = (operands[0].tensor()?, operands[1].tensor()?, operands[2].tensor()?);
        Ok(match context.mode {
            Mode::Inference => kernel::attention(&q, &k, &v, attention.scale as f32, attention.window)?,
            Mode::Training => gradient::attention(attention, &q, &k, &v)?,
        })
    },
    decompose: None,
    macs: |_, dims| 2 * dims[0].iter().product::<usize>() as u64 * dims[1][2] as u64,
};

fn attention_of(op: &Op) -> &Attention {
    match op {
        Op::Attention(attention) => attention,
        _ => unreachable!("the table is right"),
    }
}

fn parse(attributes: &mut Attributes) -> Result<Op, Problem> {
    let scale = attributes.number("scale")?;
    let window = attributes.count_if_given("window")?;
    Ok(Op::Attention(Attention { scale, window }))
}
