//! Gradients through one block.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{BlockId, Graph, Mode, TensorWeights, Values, Weights, kernel::with_f32};
use candle_core::{D, Tensor, Var};

use crate::{Error, Result};

/// The gradients of a loss.
pub struct Gradients {
    /// The loss.
    pub loss: f64,
    /// By canonical name.
    pub weights: BTreeMap<String, Vec<f32>>,
    /// Of what entered.
    pub entering: Values,
}

/// One block of a graph, with the values of the weights that learn.
pub struct Differentiable<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The block.
    pub block: BlockId,
    /// By canonical name.
    pub learned: &'a BTreeMap<String, Tensor>,
    /// All other weights.
    pub below: &'a dyn Weights,
}

impl Differentiable<'_> {
    /// The gradients of `loss`, a number that is computed from what leaves the block; those of what enters only if asked
    /// for. A weight that the loss does not reach is an error.
    pub fn gradients(
        &self,
        entering: &Values,
        back: bool,
        loss: &dyn Fn(&Values) -> candle_core::Result<Tensor>,
    ) -> Result<Gradients> {
        let vars: BTreeMap<&String, Var> =
            self.learned.iter().map(|(name, t)| Ok((name, Var::from_tensor(t)?))).collect::<candle_core::Result<_>>()?;
        let tensors: HashMap<String, Tensor> =
            vars.iter().map(|(name, var)| ((*name).clone(), var.as_tensor().clone())).collect();
        let weights = TensorWeights { tensors, below: self.below };
        let mut inside: Values = entering.clone();
        for tensor in inside.values_mut().filter(|t| back && t.dtype().is_float()) {
            *tensor = Var::from_tensor(tensor)?.as_tensor().clone();
        }
        let leaving = self.graph.evaluate_block(self.block, &weights, Mode::Training, &inside)?;
        let loss = loss(&leaving)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let mut store = loss.backward()?;
        let mut of_weights = BTreeMap::new();
        for (name, var) in vars {
            let gradient = store.remove(var.as_tensor()).ok_or_else(|| Error::NoGradient { weight: name.clone() })?;
            of_weights.insert(name.clone(), with_f32(&gradient, <[f32]>::to_vec)?);
        }
        let entering = inside.iter().filter_map(|(id, tensor)| Some((*id, store.remove(tensor)?))).collect();
        Ok(Gradients { loss: value, weights: of_weights, entering })
    }
}

/// The squared error of each position as a share of the position's own energy, averaged. What follows a block is a norm,
/// so a few positions of huge norm must not drown the others.
pub fn relative_error(found: &Tensor, wanted: &Tensor) -> candle_core::Result<Tensor> {
    let error = (found - wanted)?.sqr()?.mean(D::Minus1)?;
    (error / wanted.sqr()?.mean(D::Minus1)?.affine(1.0, f64::from(f32::MIN_POSITIVE))?)?.mean_all()
}
