//! What an evaluation is for, and what it remembers.

use std::collections::HashMap;

use candle_core::Tensor;

use crate::Result;

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
pub struct State {
    pub(crate) tensors: HashMap<String, Tensor>,
    /// Whether calls that read it leave it as it is.
    fixed: bool,
}

impl State {
    /// What `count` windows go on from that begin with the first `length` tokens of window `window`. Calls leave it as it is,
    /// so that what they add takes memory no longer than its block runs.
    ///
    /// # Errors
    /// If the state has no such window, or fewer tokens.
    pub fn begin(&self, window: usize, length: usize, count: usize) -> Result<State> {
        let begin = |tensor: &Tensor| {
            let begin = tensor.narrow(0, window, 1)?.narrow(2, 0, length)?;
            let (_, heads, _, width) = begin.dims4()?;
            begin.broadcast_as((count, heads, length, width))
        };
        let tensors = self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), begin(tensor)?)));
        Ok(State { tensors: tensors.collect::<Result<_>>()?, fixed: true })
    }

    /// The same, of which calls make a longer one.
    #[must_use]
    pub fn growing(self) -> State {
        State { fixed: false, ..self }
    }

    /// What there is of a cache with what is new, which it remembers unless it is fixed.
    pub(crate) fn extended(&mut self, name: &str, new: Tensor) -> candle_core::Result<Tensor> {
        let all = match self.tensors.get(name) {
            Some(past) => Tensor::cat(&[&past.contiguous()?, &new], 2)?,
            None => new,
        };
        if !self.fixed {
            self.tensors.insert(name.into(), all.clone());
        }
        Ok(all)
    }
}
