//! Grouped-query attention, causal or full (Vaswani et al. 2017; Ainslie et al. 2023).

use super::{Attribute, Attributes, Op, OpDef};
use crate::{
    Fact, Mode,
    error::Problem,
    gradient,
    kernel::{self, Scores},
};

/// How queries meet keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Multiplies the products of queries and keys.
    pub scale: f64,
    /// Whether a query sees no position after its own. Encoders see all: full attention.
    pub causal: bool,
    /// A query sees the positions that are less than this away from its own; all, without a window.
    pub window: Option<usize>,
    /// Scores are bounded before the softmax: `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
}

impl Attention {
    /// Causal attention without a window or a soft cap.
    pub fn causal(scale: f64) -> Attention {
        Attention { scale, causal: true, window: None, softcap: None }
    }

    /// Full attention: every query sees every key.
    pub fn full(scale: f64) -> Attention {
        Attention { causal: false, ..Attention::causal(scale) }
    }

    fn scores(&self) -> Scores {
        let Attention { scale, causal, window, softcap } = *self;
        Scores { scale: scale as f32, softcap: softcap.map(|cap| cap as f32), causal, window }
    }
}

pub(super) static DEF: OpDef = OpDef {
    name: "attention",
    wants: "query [batch, heads, seq, head], key and value [batch, some divisor of heads, past+seq, head]",
    parse,
    attributes: |op| {
        let attention = attention_of(op);
        let mut all = vec![("scale", Attribute::Number(attention.scale))];
        all.extend((!attention.causal).then_some(("causal", Attribute::Flag(false))));
        all.extend(attention.window.map(|n| ("window", n.into())));
        all.extend(attention.softcap.map(|cap| ("softcap", Attribute::Number(cap))));
        all
    },
    infer: |_, facts| match facts {
        [query, key, value] if key.dims == value.dims => fit(query, key).map(|()| Fact::activation(query.dims.clone())),
        _ => None,
    },
    evaluate: |op, operands, context| {
        let scores = attention_of(op).scores();
        let (q, k, v) = (operands[0].tensor()?, operands[1].tensor()?, operands[2].tensor()?);
        Ok(match context.mode {
            Mode::Inference => kernel::attention(&q, &k, &v, &scores)?,
            Mode::Training => gradient::attention(&q, &k, &v, &scores)?,
        })
    },
    decompose: Some(|graph, name, op, inputs| {
        let [query, key, value] = inputs else { unreachable!("the operands were checked") };
        let Attention { scale, causal, window, softcap } = *attention_of(op);
        let mut scores = graph.node(&format!("{name}.scores"), Op::Scores { scale }, &[*query, *key])?;
        if let Some(cap) = softcap {
            scores = graph.node(&format!("{name}.capped"), Op::Softcap { cap }, &[scores])?;
        }
        let shares = graph.node(&format!("{name}.shares"), Op::Softmax { causal, window }, &[scores])?;
        graph.node(name, Op::Mix, &[shares, *value])
    }),
    several: None,
    macs: |_, dims| 2 * dims[0].iter().product::<usize>() as u64 * dims[1][2] as u64,
};

/// Whether queries can meet keys.
pub(super) fn fit(query: &Fact, key: &Fact) -> Option<()> {
    let ([batch, heads, seq, head], [key_batch, key_heads, all, key_head]) = (&query.dims[..], &key.dims[..]) else {
        return None;
    };
    let grouped = heads.constant()?.checked_rem(key_heads.constant()?) == Some(0);
    (grouped && batch == key_batch && head == key_head && all.reaches(seq)).then_some(())
}

fn attention_of(op: &Op) -> &Attention {
    match op {
        Op::Attention(attention) => attention,
        _ => unreachable!("the table is right"),
    }
}

fn parse(attributes: &mut Attributes) -> Result<Op, Problem> {
    let scale = attributes.number("scale")?;
    let causal = attributes.flag("causal")?.unwrap_or(true);
    let window = attributes.count_if_given("window")?;
    let softcap = attributes.positive_if_given("softcap")?;
    Ok(Op::Attention(Attention { scale, causal, window, softcap }))
}
