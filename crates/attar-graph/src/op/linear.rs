//! `y = x weight^T + bias`.

use candle_core::{D, Tensor};

use super::{Op, OpDef, no_attributes};
use crate::{Dim, Fact};

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
    evaluate: |_, operands, _| {
        let (x, weight) = (operands[0].tensor()?, operands[1].tensor()?);
        let y = matmul(&x, &weight)?;
        match operands.get(2) {
            Some(bias) => Ok(y.broadcast_add(&bias.tensor()?)?),
            None => Ok(y),
        }
    },
    decompose: None,
    macs: |_, dims| dims[0].iter().product::<usize>() as u64 * dims[1][0] as u64,
};

/// Flat, so that one large product runs.
fn matmul(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let input = x.dim(D::Minus1)?;
    let y = x.reshape(((), input))?.matmul(&weight.t()?)?;
    *dims.last_mut().expect("activations have dimensions") = weight.dim(0)?;
    y.reshape(dims)
}
