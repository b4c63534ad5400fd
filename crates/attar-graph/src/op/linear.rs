//! `y = x weight^T + bias`: a product of integers ([`crate::integer`]) where both `x` and the weight are quantized, of f32
//! otherwise.

use std::sync::Arc;

use candle_core::{D, Tensor};

use super::{Op, OpDef, Operand, no_attributes};
use crate::{
    Dim, Fact, Mode, Result, gradient,
    integer::{IntegerMatrix, RowScales},
    kernel::with_f32,
};

pub(super) static DEF: OpDef = OpDef {
    name: "linear",
    wants: "x [.., in], a weight [out, in] and perhaps a bias [out]",
    parse: |_| Ok(Op::Linear),
    attributes: no_attributes,
    infer: |_, facts| {
        let (x, weight, bias) = match facts {
            [x, weight] => (x, weight, None),
            [x, weight, bias] => (x, weight, Some(bias)),
            _ => return None,
        };
        let [out, input] = weight.dims.as_slice() else { return None };
        let bias_fits = bias.is_none_or(|b| b.dims == [out.clone()]);
        let fits = x.dims.last() == Some(input) && bias_fits && matches!(out, Dim::Constant(_));
        fits.then(|| {
            let mut dims = x.dims.clone();
            *dims.last_mut().expect("it has a last dimension") = out.clone();
            Fact::activation(dims)
        })
    },
    evaluate: |_, operands, context| {
        let x = operands[0].tensor()?;
        let y = match integers(operands, context.mode)? {
            Some((scales, weight)) => integer_product(&x, scales, &weight)?,
            None => matmul(&x, &operands[1].tensor()?, context.mode)?,
        };
        match operands.get(2) {
            Some(bias) => Ok(y.broadcast_add(&bias.tensor()?)?),
            None => Ok(y),
        }
    },
    decompose: None,
    several: None,
    macs: |_, dims| dims[0].iter().product::<usize>() as u64 * dims[1][0] as u64,
};

/// As one product of two matrices.
fn matmul(x: &Tensor, weight: &Tensor, mode: Mode) -> candle_core::Result<Tensor> {
    if mode == Mode::Training {
        return gradient::linear(x, weight);
    }
    let mut dims = x.dims().to_vec();
    let input = x.dim(D::Minus1)?;
    let y = x.reshape(((), input))?.matmul(&weight.t()?)?;
    *dims.last_mut().expect("activations have dimensions") = weight.dim(0)?;
    y.reshape(dims)
}

/// The scales and the weight of a product of integers, if it can be one. It has no gradients.
fn integers<'o>(operands: &'o [Operand<'_>], mode: Mode) -> Result<Option<(&'o RowScales, Arc<IntegerMatrix>)>> {
    match operands[0].row_scales().filter(|_| mode == Mode::Inference) {
        Some(scales) => Ok(operands[1].integers()?.map(|weight| (scales, weight))),
        None => Ok(None),
    }
}

fn integer_product(x: &Tensor, scales: &RowScales, weight: &IntegerMatrix) -> candle_core::Result<Tensor> {
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("activations have dimensions") = weight.dims()[0];
    Tensor::from_vec(with_f32(x, |x| weight.product(x, scales))?, dims, x.device())
}
