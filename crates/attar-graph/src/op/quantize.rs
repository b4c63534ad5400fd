//! Fake quantization to integers: QuantizeLinear followed by DequantizeLinear of ONNX.
//!
//! `code = clamp(round(x / scale) + zero)`, halves to even, and the value is `(code - zero) * scale`. The value stays f32;
//! the scales are kept with it, so that a product with a quantized weight can be one of integers ([`crate::integer`]).
//!
//! Three forms, depending on the operands:
//!
//! | operands | scale | codes |
//! |---|---|---|
//! | `x` | dynamic: `max(max over the last dimension of abs(x), 1e-30) / (2^(bits - 1) - 1)` | symmetric |
//! | `x, scale` | static: one, or one per channel | `-2^(bits - 1)` to `2^(bits - 1) - 1` |
//! | `x, scale, zero` | static | the same, around `zero` |
//!
//! With one scale per channel of `x`, a product is computed in f32: per-channel scales cannot be factored out of a dot
//! product.
//!
//! With gradients it is the straight-through estimator, zero where codes end, and a static scale learns as in LSQ (Esser
//! et al. 2020, "Learned Step Size Quantization", equation 3).

use attar_tensor::{Dtype, Encoding};
use candle_core::{D, Tensor};

use super::{Attribute, Attributes, Op, OpDef, Operand, no_macs};
use crate::{
    Dim, Fact, Mode, Result,
    error::Problem,
    integer::{Rounding, SMALLEST_RANGE, nearest_integers},
    kernel::with_f32,
};

pub(super) static DEF: OpDef = OpDef {
    name: "quantize",
    wants: "x [.., width], perhaps a scale [1] or [width], perhaps a zero of its shape (i8, or i16 for 16 bits)",
    parse,
    attributes: |op| vec![("bits", Attribute::Number(bits_of(op).into()))],
    infer: |op, facts| {
        let (x, scale, zero) = match facts {
            [x] => (x, None, None),
            [x, scale] => (x, Some(scale), None),
            [x, scale, zero] => (x, Some(scale), Some(zero)),
            _ => return None,
        };
        let width = x.dims.last()?;
        // One scale is that of any width.
        if width.constant().is_none() && scale.is_none_or(|scale| scale.dims != [Dim::Constant(1)]) {
            return None;
        }
        let one_or_each = |scale: &&&Fact| scale.dims == [Dim::Constant(1)] || scale.dims == [width.clone()];
        let holds_codes = |zero: &&&Fact| zero.encoding == Encoding::Plain(zero_dtype(bits_of(op)));
        let scaled = scale.is_none_or(|scale| one_or_each(&scale));
        let zeroed = zero.is_none_or(|zero| scale.is_some_and(|scale| scale.dims == zero.dims) && holds_codes(&zero));
        (scaled && zeroed).then(|| Fact::activation(x.dims.clone()))
    },
    evaluate: |op, operands, context| {
        let x = operands[0].tensor()?.contiguous()?;
        let rounding = rounding(bits_of(op), operands)?;
        let width = x.dim(D::Minus1)?;
        match context.mode {
            Mode::Inference => {
                *context.row_scales = with_f32(&x, |x| rounding.row_scales(x, width))?;
                Ok(round(&rounding, &x)?)
            }
            Mode::Training => Ok(straight_through(&rounding, operands, &x)?),
        }
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

/// The number format of zeros: that of the codes.
pub fn zero_dtype(bits: u32) -> Dtype {
    if bits > 8 { Dtype::I16 } else { Dtype::I8 }
}

fn bits_of(op: &Op) -> u32 {
    match op {
        Op::Quantize { bits } => *bits,
        _ => unreachable!("the table is right"),
    }
}

fn parse(attributes: &mut Attributes) -> std::result::Result<Op, Problem> {
    match attributes.count("bits")? {
        bits @ (4 | 8 | 16) => Ok(Op::Quantize { bits: bits as u32 }),
        other => Err(Problem::Syntax { found: other.to_string(), wanted: "4, 8 or 16 bits" }),
    }
}

fn rounding(bits: u32, operands: &[Operand<'_>]) -> Result<Rounding> {
    let numbers =
        |at: usize| -> Result<Vec<f32>> { operands.get(at).map_or(Ok(Vec::new()), |operand| Ok(operand.tensor()?.to_vec1()?)) };
    match operands.len() {
        1 => Ok(Rounding::dynamic(bits)),
        _ => Ok(Rounding::fixed(bits, numbers(1)?, numbers(2)?)),
    }
}

fn round(rounding: &Rounding, x: &Tensor) -> candle_core::Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let values = with_f32(x, |x| {
        let mut out = vec![0.0; x.len()];
        rounding.round(x, width, &mut out);
        out
    })?;
    Tensor::from_vec(values, x.dims(), x.device())
}

/// `(clamp(x / s) + the rest of the rounding, held fixed) * s`.
fn straight_through(rounding: &Rounding, operands: &[Operand<'_>], x: &Tensor) -> Result<Tensor> {
    let scale = match operands.get(1) {
        Some(scale) => scale.tensor()?,
        None => {
            let reach = x.detach().abs()?.max_keepdim(D::Minus1)?.maximum(SMALLEST_RANGE)?;
            reach.broadcast_div(&Tensor::new(&rounding.codes()[1..], x.device())?)?
        }
    };
    let zero = operands.get(2).map_or_else(|| Ok(Tensor::zeros(1, x.dtype(), x.device())?), Operand::tensor)?.detach();
    let [low, high] = rounding.codes().map(f64::from);
    let bound = |code: f64| zero.affine(-1.0, code)?.broadcast_as(x.shape());
    let ratio = x.broadcast_div(&scale)?;
    let clamped = ratio.maximum(&bound(low)?)?.minimum(&bound(high)?)?;
    let fixed = clamped.detach().contiguous()?;
    let mut whole = vec![0.0; fixed.elem_count()];
    with_f32(&fixed, |fixed| nearest_integers(fixed, 1.0, &mut whole))?;
    let codes = (&clamped + (Tensor::from_vec(whole, x.dims(), x.device())? - fixed)?)?;
    Ok(codes.broadcast_mul(&scale)?)
}
