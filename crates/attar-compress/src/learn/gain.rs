//! The gain of a norm that learns.

use std::collections::BTreeMap;

use attar_graph::kernel::with_f32;
use attar_tensor::Dtype;
use candle_core::{Device, Tensor};

use super::adam::{Adam, Rate};
use crate::{Error, Result};

/// The gain of a norm, `[width]`, that learns. It is used as it will be stored.
#[derive(Clone)]
pub struct Gain {
    dtype: Dtype,
    /// Not rounded to `dtype`.
    values: Vec<f32>,
    moments: Adam,
    /// How far a gain moves in a step of length 1: the mean magnitude at the start.
    unit: f32,
}

impl Gain {
    /// Starts at `values`, to be stored as `dtype`.
    pub fn new(values: Vec<f32>, dtype: Dtype) -> Gain {
        let sum: f64 = values.iter().map(|gain| f64::from(gain.abs())).sum();
        Gain { dtype, moments: Adam::new(values.len()), unit: (sum / values.len().max(1) as f64) as f32, values }
    }

    /// As they will be stored.
    pub fn values(&self) -> Vec<f32> {
        self.values.iter().map(|gain| self.dtype.round(*gain)).collect()
    }

    /// One step against the gradient of [`Gain::values`], by shares of the mean gain.
    pub fn step(&mut self, gradient: &[f32], rate: Rate) {
        let mut moments = self.moments.chunks(gradient.len());
        for (at, (gain, g)) in self.values.iter_mut().zip(gradient).enumerate() {
            *gain -= self.unit * moments[0].step(at, *g, rate);
        }
    }

    /// All that learns and its moments, by names of their own.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let [first, second] = self.moments.state();
        let parts = [("gain", &self.values[..]), ("g1", first), ("g2", second)];
        let tensor =
            |(name, values): (&str, &[f32])| Ok((name.to_owned(), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
        parts.into_iter().map(tensor).collect()
    }

    /// Goes on from a [`Gain::state`] of the same norm.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let part = |name: &str| match state.get(name) {
            Some(tensor) => Ok(with_f32(tensor, <[f32]>::to_vec)?),
            None => Err(Error::State { part: name.into() }),
        };
        self.values = part("gain")?;
        self.moments = Adam::restore(part("g1")?, part("g2")?);
        Ok(())
    }
}
