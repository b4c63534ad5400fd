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
    /// With respect to the block's inputs.
    pub entering: Values,
}

/// One block of a graph, with the current values of its trainable weights.
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

/// A block that was computed with all that its gradients need.
pub struct Tape {
    vars: BTreeMap<String, Var>,
    entering: Values,
    /// What the block made.
    pub leaving: Values,
}

impl Differentiable<'_> {
    /// The gradients of `loss`, a scalar function of the block's outputs; those with respect to its inputs only if asked for.
    /// A weight that the loss does not depend on is an error.
    pub fn gradients(
        &self,
        entering: &Values,
        back: bool,
        loss: &dyn Fn(&Values) -> candle_core::Result<Tensor>,
    ) -> Result<Gradients> {
        self.record(entering, back)?.gradients(loss)
    }

    /// Computes the block; with `back`, gradients with respect to its inputs can be asked for, too.
    pub fn record(&self, entering: &Values, back: bool) -> Result<Tape> {
        let vars: BTreeMap<String, Var> =
            self.learned.iter().map(|(name, t)| Ok((name.clone(), Var::from_tensor(t)?))).collect::<candle_core::Result<_>>()?;
        let tensors: HashMap<String, Tensor> = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let weights = TensorWeights { tensors, below: self.below };
        let mut entering: Values = entering.clone();
        for tensor in entering.values_mut().filter(|t| back && t.dtype().is_float()) {
            *tensor = Var::from_tensor(tensor)?.as_tensor().clone();
        }
        let leaving = self.graph.evaluate_block(self.block, &weights, Mode::Training, &entering)?;
        Ok(Tape { vars, entering, leaving })
    }
}

impl Tape {
    /// The gradients of `loss`, a scalar function of what the block made.
    pub fn gradients(self, loss: &dyn Fn(&Values) -> candle_core::Result<Tensor>) -> Result<Gradients> {
        let loss = loss(&self.leaving)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let mut store = loss.backward()?;
        let mut weights = BTreeMap::new();
        for (name, var) in self.vars {
            let gradient = store.remove(var.as_tensor()).ok_or_else(|| Error::NoGradient { weight: name.clone() })?;
            weights.insert(name, with_f32(&gradient, <[f32]>::to_vec)?);
        }
        let entering = self.entering.iter().filter_map(|(id, tensor)| Some((*id, store.remove(tensor)?))).collect();
        Ok(Gradients { loss: value, weights, entering })
    }
}

/// The squared error of each position relative to the position's energy, averaged. A norm follows every block, so a few
/// positions of huge norm must not outweigh the others.
pub fn relative_error(found: &Tensor, wanted: &Tensor) -> candle_core::Result<Tensor> {
    let error = (found - wanted)?.sqr()?.mean(D::Minus1)?;
    (error / wanted.sqr()?.mean(D::Minus1)?.affine(1.0, f64::from(f32::MIN_POSITIVE))?)?.mean_all()
}

#[cfg(test)]
mod tests {
    use attar_graph::{Dim, Expr, Fact, Op};
    use attar_tensor::{Dtype, Encoding};
    use candle_core::Device;

    use super::*;

    /// A central difference of f32 sums against a derivative.
    const DIFFERENCE: f32 = 2e-2;

    /// Everything that it is asked for is in memory.
    struct Nowhere;

    impl Weights for Nowhere {
        fn whole(&self, name: &str, _: &Expr) -> attar_graph::Result<Tensor> {
            panic!("`{name}` learns, and was read elsewhere")
        }
    }

    /// `rms_norm` of an input `[1, 3, 4]`.
    fn norm() -> (Graph, attar_graph::ValueId) {
        let mut graph = Graph::new("norm");
        let x = graph.input("x", Fact::activation([1, 3, 4].map(Dim::Constant).to_vec())).unwrap();
        let fact = Fact { dims: vec![Dim::Constant(4)], encoding: Encoding::Plain(Dtype::F32) };
        let gain = graph.weight("gain", fact, Expr::tensor("gain")).unwrap();
        graph.block("only");
        let y = graph.node("y", Op::RmsNorm { epsilon: 1e-5 }, &[x, gain]).unwrap();
        graph.output(y);
        (graph, x)
    }

    fn gradients(learned: &[(&str, [f32; 4])]) -> Result<Gradients> {
        let (graph, x) = norm();
        let block = graph.blocks().next().unwrap();
        let tensor = |(name, gain): &(&str, [f32; 4])| ((*name).to_owned(), Tensor::new(gain, &Device::Cpu).unwrap());
        let learned: BTreeMap<String, Tensor> = learned.iter().map(tensor).collect();
        let input: Vec<f32> = (0..12).map(|at| ((at * 7) % 12) as f32 / 5.0 - 1.0).collect();
        let entering = Values::from([(x, Tensor::from_vec(input, (1, 3, 4), &Device::Cpu).unwrap())]);
        let task = Differentiable { graph: &graph, block, learned: &learned, below: &Nowhere };
        task.gradients(&entering, false, &|left| left[&graph.outputs()[0]].sqr()?.sum_all())
    }

    #[test]
    fn a_gain_gets_the_gradient_that_differences_say() {
        let gain = [0.5, -1.0, 0.0, 2.0];
        let found = gradients(&[("gain", gain)]).unwrap();
        for at in 0..4 {
            let loss = |by: f32| {
                let mut moved = gain;
                moved[at] += by;
                gradients(&[("gain", moved)]).unwrap().loss as f32
            };
            let wanted = (loss(0.01) - loss(-0.01)) / 0.02;
            assert!((found.weights["gain"][at] - wanted).abs() < DIFFERENCE, "{at}: {:?}, {wanted}", found.weights["gain"]);
        }
    }

    #[test]
    fn a_weight_that_the_loss_does_not_reach_is_an_error() {
        let lost = gradients(&[("gain", [1.0; 4]), ("elsewhere", [1.0; 4])]);
        assert!(matches!(lost, Err(Error::NoGradient { weight }) if weight == "elsewhere"));
    }
}
