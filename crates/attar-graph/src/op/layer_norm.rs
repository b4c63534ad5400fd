//! Layer normalisation (Ba et al. 2016).

use candle_core::{D, Tensor};

use super::{Attribute, Op, OpDef, no_macs, rms_norm};
use crate::{Fact, Mode, kernel};

pub(super) static DEF: OpDef = OpDef {
    name: "layer_norm",
    wants: "x [.., width], a gain [width] and perhaps a bias [width]",
    parse: |attributes| Ok(Op::LayerNorm { epsilon: attributes.number("epsilon")? }),
    attributes: |op| vec![("epsilon", Attribute::Number(epsilon_of(op)))],
    infer: |_, facts| match facts {
        [x, vectors @ ..] if (1..=2).contains(&vectors.len()) => {
            let fits = |vector: &&Fact| vector.dims.len() == 1 && vector.dims.last() == x.dims.last();
            vectors.iter().all(fits).then(|| Fact::activation(x.dims.clone()))
        }
        _ => None,
    },
    evaluate: |op, operands, context| {
        let (x, gain) = (operands[0].tensor()?, operands[1].tensor()?);
        let bias = operands.get(2).map(|bias| bias.tensor()).transpose()?;
        Ok(match context.mode {
            Mode::Inference => kernel::layer_norm(&x, &gain, bias.as_ref(), epsilon_of(op) as f32)?,
            Mode::Training => differentiable(&x, &gain, bias.as_ref(), epsilon_of(op))?,
        })
    },
    decompose: Some(|graph, name, op, inputs| {
        let centered = graph.node(&format!("{name}.centered"), Op::Center, &inputs[..1])?;
        let unit = rms_norm::unit(graph, name, centered, epsilon_of(op))?;
        match inputs[1..] {
            [gain, bias] => {
                let scaled = graph.node(&format!("{name}.scaled"), Op::Mul, &[unit, gain])?;
                graph.node(name, Op::Add, &[scaled, bias])
            }
            [gain] => graph.node(name, Op::Mul, &[unit, gain]),
            _ => unreachable!("the operands were checked"),
        }
    }),
    several: None,
    macs: no_macs,
};

fn epsilon_of(op: &Op) -> f64 {
    match op {
        Op::LayerNorm { epsilon } => *epsilon,
        _ => unreachable!("the table is right"),
    }
}

/// The same in ops that have gradients.
fn differentiable(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = centred.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, epsilon)?.sqrt()?;
    let y = centred.broadcast_div(&deviation)?.broadcast_mul(gain)?;
    bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}
