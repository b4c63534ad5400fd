//! What an op sees of an evaluation: its operands, and what surrounds it.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Mode, State, rope};
use crate::{
    Expr, Fact, Result, Weights,
    integer::{IntegerMatrix, RowScales},
};

/// One argument of an evaluation.
pub enum Operand<'a> {
    /// A computed value.
    Tensor(Tensor),
    /// The result of [`crate::Op::Quantize`], with the scales of its rows.
    Quantized(Tensor, &'a RowScales),
    /// A constant, read on demand.
    Weight(&'a dyn Weights, &'a str, &'a Expr),
}

impl<'a> Operand<'a> {
    /// A copy.
    pub(crate) fn again(&self) -> Operand<'a> {
        match self {
            Operand::Tensor(tensor) => Operand::Tensor(tensor.clone()),
            Operand::Quantized(tensor, scales) => Operand::Quantized(tensor.clone(), scales),
            Operand::Weight(weights, name, expr) => Operand::Weight(*weights, name, expr),
        }
    }

    /// Its shape; a constant's is that of its fact.
    pub(crate) fn dims(&self, fact: &Fact) -> Vec<usize> {
        match self {
            Operand::Tensor(tensor) | Operand::Quantized(tensor, _) => tensor.dims().to_vec(),
            Operand::Weight(..) => fact.constant_dims().unwrap_or_default(),
        }
    }

    /// All of it.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Operand::Tensor(tensor) | Operand::Quantized(tensor, _) => Ok(tensor.clone()),
            Operand::Weight(weights, name, expr) => weights.whole(name, expr),
        }
    }

    /// The scales of its rows, if it was quantized.
    pub(crate) fn row_scales(&self) -> Option<&RowScales> {
        match self {
            Operand::Quantized(_, scales) => Some(scales),
            _ => None,
        }
    }

    /// A constant as integers, if it is stored as integer codes.
    pub(crate) fn integers(&self) -> Result<Option<Arc<IntegerMatrix>>> {
        match self {
            Operand::Weight(weights, name, expr) => weights.integers(name, expr),
            _ => Ok(None),
        }
    }

    /// Some of its rows, in the given order.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        match self {
            Operand::Tensor(tensor) | Operand::Quantized(tensor, _) => {
                Ok(tensor.index_select(&Tensor::new(rows, tensor.device())?, 0)?)
            }
            Operand::Weight(weights, name, expr) => weights.rows(name, expr, rows),
        }
    }
}

/// The surroundings of an evaluation.
pub struct Context<'a> {
    /// Whether gradients are needed.
    pub mode: Mode,
    /// What [`crate::Op::Cache`] keeps; without it, nothing is kept.
    pub state: Option<&'a mut State>,
    /// Set by [`crate::Op::Quantize`]: the scales of its result.
    pub(crate) row_scales: &'a mut Option<RowScales>,
    pub(crate) tables: &'a mut rope::Tables,
    /// Multiply-accumulates so far.
    pub(crate) macs: &'a mut u64,
}
