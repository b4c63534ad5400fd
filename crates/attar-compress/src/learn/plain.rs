//! A trainable tensor without codes: the gain of a norm, or a factor of an adapter.

use std::collections::BTreeMap;

use attar_graph::kernel::with_f32;
use attar_tensor::Dtype;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::adam::{Adam, Rate, Rates};
use crate::{Error, Result};

/// Numbers that are updated together.
const PART: usize = 1 << 14;

/// Which learning rate a plain tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// That of weights before rounding.
    Weight,
    /// That of norm gains.
    Norm,
}

/// A trainable tensor without codes. Its values are those that will be stored.
#[derive(Clone)]
pub struct Plain {
    dims: Vec<usize>,
    dtype: Dtype,
    /// Not rounded to `dtype`.
    values: Vec<f32>,
    moments: Adam,
    pace: Pace,
    /// Change of a number in a step of length 1.
    unit: f32,
    /// Numbers that stay exactly zero; empty, if none has to.
    zeros: Vec<bool>,
}

impl Plain {
    /// Starts at `values`, to be stored as `dtype`. A step of length 1 moves a number by `unit`.
    pub fn new(dims: Vec<usize>, values: Vec<f32>, dtype: Dtype, pace: Pace, unit: f32) -> Plain {
        Plain { dims, dtype, moments: Adam::new(values.len()), pace, unit, values, zeros: Vec::new() }
    }

    /// Numbers that are zero now left by pruning and stay exactly zero.
    pub fn keep_zeros(&mut self) {
        self.zeros = self.values.iter().map(|value| *value == 0.0).collect();
    }

    /// As they will be stored.
    pub fn values(&self) -> Vec<f32> {
        self.values.iter().map(|value| self.dtype.round(*value)).collect()
    }

    /// The same as a tensor.
    pub fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.values(), self.dims.as_slice(), &Device::Cpu)?)
    }

    /// One step against the gradient of [`Plain::values`].
    pub(super) fn step(&mut self, gradient: &[f32], rates: Rates) {
        let rate: Rate = match self.pace {
            Pace::Weight => rates.rounding,
            Pace::Norm => rates.norming,
        };
        self.descend(gradient, rate, 1.0);
    }

    /// One step against a gradient, after every number was multiplied by `kept` (decoupled decay, Loshchilov & Hutter 2019).
    pub(super) fn descend(&mut self, gradient: &[f32], rate: Rate, kept: f32) {
        let unit = self.unit;
        let parts = self.values.par_chunks_mut(PART).zip(gradient.par_chunks(PART)).zip(self.moments.chunks(PART));
        parts.for_each(|((values, gradient), mut moments)| {
            for (at, (value, g)) in values.iter_mut().zip(gradient).enumerate() {
                *value = *value * kept - unit * moments.step(at, *g, rate);
            }
        });
    }

    /// Numbers that stay zero have no gradient.
    pub(super) fn freeze(&self, gradient: &mut [f32]) {
        gradient.iter_mut().zip(&self.zeros).filter(|(_, zero)| **zero).for_each(|(g, _)| *g = 0.0);
    }

    /// The same, at other values, with moments of zero.
    pub fn at(self, values: Vec<f32>) -> Plain {
        Plain { moments: Adam::new(values.len()), values, ..self }
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Values and optimizer moments, under names of their own.
    pub fn parts(&self) -> [(&'static str, &[f32]); 3] {
        let [first, second] = self.moments.state();
        [("plain", &self.values[..]), ("p1", first), ("p2", second)]
    }

    /// The same as tensors.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor =
            |(name, values): (&str, &[f32])| Ok((name.to_owned(), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
        self.parts().into_iter().map(tensor).collect()
    }

    /// Restores a [`Plain::state`] of the same tensor.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let part = |name: &str| match state.get(name) {
            Some(tensor) => Ok(with_f32(tensor, <[f32]>::to_vec)?),
            None => Err(Error::State { part: name.into() }),
        };
        self.values = part("plain")?;
        self.moments = Adam::restore(part("p1")?, part("p2")?);
        Ok(())
    }
}
