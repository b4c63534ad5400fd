//! The parts of attention, for runtimes that round between them: products of queries and keys, the softmax, and the mixture of values.

use candle_core::{D, Tensor};

use super::{Attribute, Op, OpDef, attention, no_attributes, unary};
use crate::Fact;

pub(super) static SCORES: OpDef = OpDef {
    name: "scores",
    wants: "query [batch, heads, seq, head] and key [batch, some divisor of heads, past+seq, head]",
    parse: |attributes| Ok(Op::Scores { scale: attributes.number("scale")? }),
    attributes: |op| vec![("scale", Attribute::Number(scale_of(op)))],
    infer: |_, facts| match facts {
        [query, key] => {
            attention::fit(query, key)?;
            let [batch, heads, seq, _] = &query.dims[..] else { return None };
            Some(Fact::activation(vec![batch.clone(), heads.clone(), seq.clone(), key.dims[2].clone()]))
        }
        _ => None,
    },
    evaluate: |op, operands, _| {
        let (q, k) = (operands[0].tensor()?, operands[1].tensor()?);
        let (batch, heads, seq, _) = q.dims4()?;
        let products = grouped(&q, k.dim(1)?)?.matmul(&k.contiguous()?.t()?)?;
        Ok(products.affine(scale_of(op), 0.0)?.reshape((batch, heads, seq, k.dim(2)?))?)
    },
    decompose: None,
    several: None,
    macs: |_, dims| dims[0].iter().product::<usize>() as u64 * dims[1][2] as u64,
};

pub(super) static SOFTMAX: OpDef = OpDef {
    name: "softmax",
    wants: "x [batch, heads, seq, past+seq]",
    parse: |attributes| {
        let causal = attributes.flag("causal")?.unwrap_or(true);
        Ok(Op::Softmax { causal, window: attributes.count_if_given("window")? })
    },
    attributes: |op| {
        let (causal, window) = sight_of(op);
        let mut all = Vec::new();
        all.extend((!causal).then_some(("causal", Attribute::Flag(false))));
        all.extend(window.map(|n| ("window", n.into())));
        all
    },
    infer: |_, facts| unary(facts).filter(|fact| fact.dims.len() == 4 && fact.dims[3].reaches(&fact.dims[2])),
    evaluate: |op, operands, _| {
        let x = operands[0].tensor()?;
        let (causal, window) = sight_of(op);
        let (_, _, seq, all) = x.dims4()?;
        let sees = |query: usize, key: usize| {
            let at = all - seq + query;
            (!causal || key <= at) && window.is_none_or(|window| key.abs_diff(at) < window)
        };
        let hidden = |(query, key)| if sees(query, key) { 0.0 } else { f32::NEG_INFINITY };
        let mask: Vec<f32> = (0..seq).flat_map(|query| (0..all).map(move |key| (query, key))).map(hidden).collect();
        let seen = x.broadcast_add(&Tensor::from_vec(mask, (1, 1, seq, all), x.device())?)?;
        Ok(candle_nn::ops::softmax(&seen, D::Minus1)?)
    },
    decompose: None,
    several: None,
    macs: super::no_macs,
};

pub(super) static MIX: OpDef = OpDef {
    name: "mix",
    wants: "shares [batch, heads, seq, past+seq] and value [batch, some divisor of heads, past+seq, head]",
    parse: |_| Ok(Op::Mix),
    attributes: no_attributes,
    infer: |_, facts| match facts {
        [shares, value] if shares.dims.len() == 4 && value.dims.len() == 4 => {
            let grouped = shares.dims[1].constant()?.checked_rem(value.dims[1].constant()?) == Some(0);
            let same = shares.dims[0] == value.dims[0] && shares.dims[3] == value.dims[2];
            let [batch, heads, seq, _] = &shares.dims[..] else { return None };
            let dims = vec![batch.clone(), heads.clone(), seq.clone(), value.dims[3].clone()];
            (same && grouped).then(|| Fact::activation(dims))
        }
        _ => None,
    },
    evaluate: |_, operands, _| {
        let (shares, v) = (operands[0].tensor()?, operands[1].tensor()?);
        let (batch, heads, seq, _) = shares.dims4()?;
        Ok(grouped(&shares, v.dim(1)?)?.matmul(&v.contiguous()?)?.reshape((batch, heads, seq, v.dim(3)?))?)
    },
    decompose: None,
    several: None,
    macs: |_, dims| dims[0].iter().product::<usize>() as u64 * dims[1][3] as u64,
};

/// The rows of all heads that share a key head, one after the other.
fn grouped(x: &Tensor, key_heads: usize) -> candle_core::Result<Tensor> {
    let (batch, heads, seq, width) = x.dims4()?;
    x.contiguous()?.reshape((batch, key_heads, heads / key_heads.max(1) * seq, width))
}

fn scale_of(op: &Op) -> f64 {
    match op {
        Op::Scores { scale } => *scale,
        _ => unreachable!("the table is right"),
    }
}

fn sight_of(op: &Op) -> (bool, Option<usize>) {
    match op {
        Op::Softmax { causal, window } => (*causal, *window),
        _ => unreachable!("the table is right"),
    }
}
