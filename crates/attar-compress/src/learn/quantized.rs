//! A quantized matrix with trainable rounding and scales.

use std::{borrow::Cow, collections::BTreeMap};

use attar_graph::kernel::with_f32;
use attar_tensor::{BlobWriter, Damage, Fit, Granularity, Levels, QuantizedTensor, Scheme};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    adam::{Adam, Rate},
    adapter::Adapter,
};
use crate::{Error, Result};

/// A quantized matrix with trainable rounding and scales. Rounded, it has the values of a [`QuantizedTensor`].
#[derive(Clone)]
pub struct Learned {
    scheme: Scheme,
    dims: [usize; 2],
    /// Zeros and super scales, which are not trained.
    picked: QuantizedTensor,
    /// `[rows, columns]`: weights before rounding.
    latent: Vec<f32>,
    /// `[rows, groups]`, or one: not yet rounded to their format.
    scales: Vec<f32>,
    rounding: Adam,
    scaling: Adam,
    /// Added to `latent` before rounding; if there is one, `latent` itself is not trained.
    adapter: Option<Adapter>,
    /// `[rows, columns]`: weights that stay exactly zero; empty, if none has to.
    zeros: Vec<bool>,
}

/// Distance that weights keep at first from the midpoint between two codes, in steps.
const MARGIN: f32 = 0.02;

impl Learned {
    /// Starts at codes that an algorithm picked for the `original` weights `[rows, columns]`: each weight is as near to its
    /// original as it can be and still round to its code.
    pub fn new(picked: QuantizedTensor, original: &[f32]) -> Learned {
        let ([rows, columns], scheme) = (picked.dims, picked.scheme);
        let size = scheme.group(columns).max(1);
        let mut latent = vec![0.0; rows * columns];
        picked.decode(&mut latent);
        for (at, (latent, original)) in latent.chunks_mut(size).zip(original.chunks(size)).enumerate() {
            let groups = scheme.groups(columns);
            let fit = picked.fit(at / groups, at % groups);
            let reach = (0.5 - MARGIN) * fit.scale.abs();
            let near: Vec<f32> = latent.iter().zip(original).map(|(q, w)| w.clamp(*q - reach, *q + reach)).collect();
            let (mut codes, mut again) = (vec![0; near.len()], vec![0.0; near.len()]);
            scheme.grid.encode(&near, fit, &mut codes);
            scheme.grid.decode(&codes, fit, &mut again);
            // Where levels are not evenly spaced, half a step may be too far.
            latent.iter_mut().zip(near).zip(again).filter(|((q, _), again)| **q == *again).for_each(|((q, near), _)| *q = near);
        }
        Learned {
            scheme,
            dims: picked.dims,
            rounding: Adam::new(latent.len()),
            scaling: Adam::new(picked.scales.len()),
            adapter: None,
            zeros: Vec::new(),
            latent,
            scales: picked.scales.clone(),
            picked: QuantizedTensor { codes: Vec::new(), ..picked },
        }
    }

    /// Weights that are zero in `original` stay exactly zero: they left by pruning. Their codes mean zero already.
    pub fn keep_zeros(&mut self, original: &[f32]) {
        self.zeros = original.iter().map(|w| *w == 0.0).collect();
        self.latent.iter_mut().zip(&self.zeros).filter(|(_, zero)| **zero).for_each(|(latent, _)| *latent = 0.0);
    }

    /// Trains a term of rank `rank` in place of single weights. It starts at zero, along directions that `seed` decides.
    pub fn adapt(&mut self, rank: usize, seed: u64) {
        self.rounding = Adam::new(0);
        self.adapter = Some(Adapter::new(self.dims, rank, seed));
    }

    /// Trainable values and optimizer moments, under names of their own.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let ([r1, r2], [s1, s2]) = (self.rounding.state(), self.scaling.state());
        let mut parts = vec![("scales", &self.scales[..]), ("s1", s1), ("s2", s2)];
        match &self.adapter {
            Some(adapter) => parts.extend(adapter.state()),
            None => parts.extend([("latent", &self.latent[..]), ("r1", r1), ("r2", r2)]),
        }
        let tensor =
            |(name, values): (&str, &[f32])| Ok((name.to_owned(), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
        parts.into_iter().map(tensor).collect()
    }

    /// Restores a [`Learned::state`] of the same weight.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let part = |name: &str| match state.get(name) {
            Some(tensor) => Ok(with_f32(tensor, <[f32]>::to_vec)?),
            None => Err(Error::State { part: name.into() }),
        };
        match &mut self.adapter {
            Some(adapter) => adapter.restore(&part)?,
            None => {
                self.latent = part("latent")?;
                self.rounding = Adam::restore(part("r1")?, part("r2")?);
            }
        }
        self.scales = part("scales")?;
        self.scaling = Adam::restore(part("s1")?, part("s2")?);
        Ok(())
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The rounded weights: `[rows, columns]`.
    pub fn values(&self) -> Result<Vec<f32>> {
        let columns = self.dims[1].max(1);
        let mut values = vec![0.0; self.latent.len()];
        values.par_chunks_mut(columns).enumerate().try_for_each(|(row, values)| {
            let mut codes = vec![0; values.len()];
            self.encode_row(row, &mut codes)?;
            let size = self.scheme.group(columns).max(1);
            for (group, (codes, values)) in codes.chunks(size).zip(values.chunks_mut(size)).enumerate() {
                self.scheme.grid.decode(codes, self.fit(row, group)?, values);
            }
            Ok::<_, crate::Error>(())
        })?;
        Ok(values)
    }

    fn encode_row(&self, row: usize, codes: &mut [u8]) -> Result<()> {
        let size = self.scheme.group(self.dims[1]).max(1);
        let latent = self.latent_row(row);
        for (group, (codes, latent)) in codes.chunks_mut(size).zip(latent.chunks(size)).enumerate() {
            self.scheme.grid.encode(latent, self.fit(row, group)?, codes);
        }
        Ok(())
    }

    /// The weights of a row before rounding.
    fn latent_row(&self, row: usize) -> Cow<'_, [f32]> {
        let latent = &self.latent[row * self.dims[1]..][..self.dims[1]];
        match &self.adapter {
            None => Cow::Borrowed(latent),
            Some(adapter) => {
                let mut latent = latent.to_vec();
                adapter.add_row(row, &mut latent);
                let zeros = self.zeros.chunks(self.dims[1].max(1)).nth(row).unwrap_or_default();
                latent.iter_mut().zip(zeros).filter(|(_, zero)| **zero).for_each(|(latent, _)| *latent = 0.0);
                Cow::Owned(latent)
            }
        }
    }

    fn scale_at(&self, row: usize, group: usize) -> usize {
        match self.scheme.granularity {
            Granularity::Tensor => 0,
            _ => row * self.scheme.groups(self.dims[1]) + group,
        }
    }

    fn fit(&self, row: usize, group: usize) -> Result<Fit<'_>> {
        let scale = self.stored(row, self.scales[self.scale_at(row, group)])?;
        Ok(Fit { scale, ..self.picked.fit(row, group) })
    }

    /// A scale of a row as it is stored.
    fn stored(&self, row: usize, scale: f32) -> Result<f32> {
        let (format, over) = (self.scheme.scale, self.picked.super_of(row));
        Ok(if format.plain().is_some() { format.round(scale)? } else { format.scale(format.code(scale, over), over) })
    }

    /// One optimizer step, given the gradient of [`Learned::values`]. Weights move in units of their scale, scales relative to
    /// themselves.
    pub fn step(&mut self, gradient: &[f32], values: &[f32], rounding: Rate, scaling: Rate) -> Result<()> {
        let (of_latent, of_scales) = self.through(gradient, values);
        match &mut self.adapter {
            Some(adapter) => {
                let unit = self.scales.iter().map(|s| f64::from(s.abs())).sum::<f64>() / self.scales.len().max(1) as f64;
                adapter.step(of_latent, unit as f32, rounding)?;
            }
            None => self.step_latent(&of_latent, rounding),
        }
        let mut moments = self.scaling.chunks(of_scales.len());
        for (at, (scale, g)) in self.scales.iter_mut().zip(of_scales).enumerate() {
            *scale *= 1.0 - moments[0].step(at, g, scaling);
        }
        Ok(())
    }

    /// The gradients of weights before rounding, and of scales relative to themselves. A weight beyond the outermost code has
    /// none; its scale does. Weights that stay zero have none.
    fn through(&self, gradient: &[f32], values: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let columns = self.dims[1].max(1);
        let (size, groups) = (self.scheme.group(columns).max(1), self.scheme.groups(columns));
        let ends = self.ends();
        let mut of_latent = gradient.to_vec();
        let rows = of_latent.par_chunks_mut(columns).zip(values.par_chunks(columns)).enumerate();
        let of_rows = rows.map(|(row, (gradients, values))| {
            let latent = self.latent_row(row);
            let mut of_scales = vec![0.0; groups];
            for (at, g) in gradients.iter_mut().enumerate() {
                let fit = Fit { scale: self.scales[self.scale_at(row, at / size)], ..self.picked.fit(row, at / size) };
                let level = if fit.scale == 0.0 { 0.0 } else { latent[at] / fit.scale };
                let inside = ends(fit.zero).contains(&level);
                of_scales[at / size] += *g * if inside { values[at] - latent[at] } else { values[at] };
                *g = if inside { *g } else { 0.0 };
            }
            of_scales
        });
        let of_rows: Vec<Vec<f32>> = of_rows.collect();
        of_latent.iter_mut().zip(&self.zeros).filter(|(_, zero)| **zero).for_each(|(g, _)| *g = 0.0);
        let of_scales = match self.scheme.granularity {
            Granularity::Tensor => vec![of_rows.iter().flatten().sum()],
            _ => of_rows.into_iter().flatten().collect(),
        };
        (of_latent, of_scales)
    }

    /// The range in which a weight is rounded to its nearest code, at scale 1, by the code that means zero.
    fn ends(&self) -> impl Fn(u8) -> std::ops::RangeInclusive<f32> + Sync + use<> {
        let grid = self.scheme.grid;
        let table = match grid.levels() {
            Levels::Table(values) => {
                let finite = values.iter().copied().filter(|value| value.is_finite());
                Some(finite.clone().fold(f32::INFINITY, f32::min)..=finite.fold(f32::NEG_INFINITY, f32::max))
            }
            _ => None,
        };
        let top = ((1u32 << grid.bits()) - 1) as f32;
        move |zero| table.clone().unwrap_or(-0.5 - f32::from(zero)..=top + 0.5 - f32::from(zero))
    }

    fn step_latent(&mut self, gradient: &[f32], rate: Rate) {
        let columns = self.dims[1].max(1);
        let size = self.scheme.group(columns).max(1);
        let (scales, groups, shared) =
            (&self.scales, self.scheme.groups(columns), self.scheme.granularity == Granularity::Tensor);
        let rows = self.latent.par_chunks_mut(columns).zip(gradient.par_chunks(columns)).zip(self.rounding.chunks(columns));
        rows.enumerate().for_each(|(row, ((latent, gradient), mut moments))| {
            for (at, (latent, g)) in latent.iter_mut().zip(gradient).enumerate() {
                let unit = scales[if shared { 0 } else { row * groups + at / size }].abs();
                *latent -= moments.step(at, *g, rate) * unit;
            }
        });
    }

    /// Writes the current codes and scales, and their error against `original`.
    pub fn write(&self, original: &[f32], mut to: BlobWriter<'_>) -> Result<Damage> {
        let [rows, columns] = self.dims;
        let mut all = self.picked.clone();
        let mut codes = vec![0; columns];
        for row in 0..rows {
            self.encode_row(row, &mut codes)?;
            self.scheme.grid.packing().pack(&codes, &mut all.codes);
        }
        let shared = self.scales.len().div_ceil(rows.max(1)).max(1);
        let rounded = self.scales.iter().enumerate().map(|(at, scale)| self.stored(at / shared, *scale));
        all.scales = rounded.collect::<Result<_>>()?;
        let damage = Damage::between(original, &self.values()?);
        to.append(&all)?;
        to.finish(damage)?;
        Ok(damage)
    }
}
