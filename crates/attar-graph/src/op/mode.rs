//! What an evaluation is for, and what it remembers.

use std::collections::HashMap;

use candle_core::Tensor;

/// What evaluation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Fast kernels; no gradients.
    Inference,
    /// Ops that all have gradients.
    Training,
}

/// What [`crate::Op::Cache`] remembers between calls, by the name of the state.
#[derive(Clone, Debug, Default)]
pub struct State(pub(crate) HashMap<String, Tensor>);
