//! What is remembered of the activations that a layer reads.

use attar_graph::kernel::with_f32;
use candle_core::Tensor;

use crate::Hessian;

/// Magnitudes and second moments of inputs, over tokens.
pub struct Seeing {
    /// Mean of `x x^T`.
    pub hessian: Hessian,
    sum_abs: Vec<f64>,
    max_abs: Vec<f32>,
    tokens: u64,
}

impl Seeing {
    /// Nothing yet.
    pub fn new(inputs: usize) -> Seeing {
        Seeing { hessian: Hessian::new(inputs), sum_abs: vec![0.0; inputs], max_abs: vec![0.0; inputs], tokens: 0 }
    }

    /// Adds tokens `[.., inputs]`. Calls are made in a fixed order.
    pub fn add(&mut self, x: &Tensor) -> candle_core::Result<()> {
        self.hessian.add(x)?;
        let inputs = self.sum_abs.len();
        with_f32(x, |x| {
            for token in x.chunks_exact(inputs) {
                self.sum_abs.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(x.abs()));
                self.max_abs.iter_mut().zip(token).for_each(|(most, x)| *most = most.max(x.abs()));
            }
            self.tokens += (x.len() / inputs) as u64;
        })
    }

    /// Mean magnitude of an input.
    pub fn mean_abs(&self, input: usize) -> f64 {
        self.sum_abs[input] / self.tokens.max(1) as f64
    }

    /// Largest magnitude of an input.
    pub fn max_abs(&self, input: usize) -> f32 {
        self.max_abs[input]
    }
}
