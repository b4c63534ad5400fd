//! A quantized matrix whose rounding and scales learn.

use std::collections::BTreeMap;

use attar_graph::kernel::with_f32;
use attar_tensor::{BlobWriter, Damage, Fit, Granularity, QuantizedTensor, Scheme, pack};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::adam::{Adam, Moments, Rate};
use crate::{Error, Result};

/// A quantized matrix whose rounding and scales learn. Rounded, it is what a [`QuantizedTensor`] holds.
#[derive(Clone)]
pub struct Learned {
    scheme: Scheme,
    dims: [usize; 2],
    /// Zeros and super scales, which do not learn.
    picked: QuantizedTensor,
    /// `[rows, columns]`: what is rounded.
    latent: Vec<f32>,
    /// `[rows, groups]`, or one: not rounded to their format.
    scales: Vec<f32>,
    rounding: Adam,
    scaling: Adam,
}

/// How far beyond the middle between two codes a weight starts at most that was not rounded to its nearest one.
const MARGIN: f32 = 0.02;

impl Learned {
    /// Starts at codes that were already picked for `original` weights `[rows, columns]`: each weight as near to its
    /// original as still rounds to its code.
    pub fn new(picked: QuantizedTensor, original: &[f32]) -> Learned {
        let ([rows, columns], scheme) = (picked.dims, picked.scheme);
        let size = scheme.group(columns).max(1);
        let mut latent = vec![0.0; rows * columns];
        picked.decode(&mut latent);
        for (at, (latent, original)) in latent.chunks_mut(size).zip(original.chunks(size)).enumerate() {
            let groups = scheme.groups(columns);
            let fit = picked.fit(at / groups, at % groups);
            let reach = (0.5 - MARGIN) * fit.scale.abs();
            latent.iter_mut().zip(original).for_each(|(q, w)| *q = w.clamp(*q - reach, *q + reach));
        }
        Learned {
            scheme,
            dims: picked.dims,
            rounding: Adam::new(latent.len()),
            scaling: Adam::new(picked.scales.len()),
            latent,
            scales: picked.scales.clone(),
            picked: QuantizedTensor { codes: Vec::new(), ..picked },
        }
    }

    /// All that learns and its moments, by names of their own.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let ([r1, r2], [s1, s2]) = (self.rounding.state(), self.scaling.state());
        let parts = [("latent", &self.latent[..]), ("r1", r1), ("r2", r2), ("scales", &self.scales), ("s1", s1), ("s2", s2)];
        let tensor = |(name, values): (&str, &[f32])| Ok((name.to_owned(), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
        parts.into_iter().map(tensor).collect()
    }

    /// Goes on from a [`Learned::state`] of the same weight.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let part = |name: &str| match state.get(name) {
            Some(tensor) => Ok(with_f32(tensor, <[f32]>::to_vec)?),
            None => Err(Error::State { part: name.into() }),
        };
        (self.latent, self.scales) = (part("latent")?, part("scales")?);
        self.rounding = Adam::restore(part("r1")?, part("r2")?);
        self.scaling = Adam::restore(part("s1")?, part("s2")?);
        Ok(())
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// What the rounded weights are: `[rows, columns]`.
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
        let latent = &self.latent[row * self.dims[1]..][..self.dims[1]];
        for (group, (codes, latent)) in codes.chunks_mut(size).zip(latent.chunks(size)).enumerate() {
            self.scheme.grid.encode(latent, self.fit(row, group)?, codes);
        }
        Ok(())
    }

    fn scale_at(&self, row: usize, group: usize) -> usize {
        match self.scheme.granularity {
            Granularity::Tensor => 0,
            _ => row * self.scheme.groups(self.dims[1]) + group,
        }
    }

    fn fit(&self, row: usize, group: usize) -> Result<Fit> {
        let scale = self.stored(row, self.scales[self.scale_at(row, group)])?;
        Ok(Fit { scale, ..self.picked.fit(row, group) })
    }

    /// A scale of a row as it is stored.
    fn stored(&self, row: usize, scale: f32) -> Result<f32> {
        let (format, over) = (self.scheme.scale, self.picked.super_of(row));
        Ok(if format.plain().is_some() { format.round(scale)? } else { format.scale(format.code(scale, over), over) })
    }

    /// One step against the gradient of [`Learned::values`]. Weights move by shares of their scale, scales by shares of
    /// themselves.
    pub fn step(&mut self, gradient: &[f32], values: &[f32], rounding: Rate, scaling: Rate) {
        let columns = self.dims[1].max(1);
        let (size, groups) = (self.scheme.group(columns).max(1), self.scheme.groups(columns));
        let shared = self.scheme.granularity == Granularity::Tensor;
        let top = ((1u32 << self.scheme.grid.bits()) - 1) as f32;
        let (scales, zeros, middle) = (&self.scales, &self.picked.zeros, self.scheme.grid.middle());
        let of_scales: Vec<Vec<f32>> = self
            .latent
            .par_chunks_mut(columns)
            .zip(self.rounding.chunks(columns))
            .enumerate()
            .map(|(row, (latent, mut moments))| {
                let mut of_scales = vec![0.0; groups];
                for at in 0..latent.len() {
                    let group = at / size;
                    let index = if shared { 0 } else { row * groups + group };
                    let (scale, zero) = (scales[index], f32::from(zeros.get(index).copied().unwrap_or(middle)));
                    let (g, value) = (gradient[row * columns + at], values[row * columns + at]);
                    let level = if scale == 0.0 { zero } else { latent[at] / scale + zero };
                    let inside = (-0.5..=top + 0.5).contains(&level);
                    of_scales[group] += g * if inside { value - latent[at] } else { value };
                    let off = moments.step(at, if inside { g } else { 0.0 }, rounding);
                    latent[at] -= off * scale.abs();
                }
                of_scales
            })
            .collect();
        let flat: Vec<f32> = match shared {
            true => vec![of_scales.iter().flatten().sum()],
            false => of_scales.into_iter().flatten().collect(),
        };
        let size = flat.len();
        let mut moments: Vec<Moments<'_>> = self.scaling.chunks(size);
        for (at, (scale, g)) in self.scales.iter_mut().zip(flat).enumerate() {
            *scale *= 1.0 - moments[0].step(at, g, scaling);
        }
    }

    /// Writes the codes and scales as they are now, and what they do to `original`.
    pub fn write(&self, original: &[f32], mut to: BlobWriter<'_>) -> Result<Damage> {
        let [rows, columns] = self.dims;
        let mut all = self.picked.clone();
        let mut codes = vec![0; columns];
        for row in 0..rows {
            self.encode_row(row, &mut codes)?;
            pack::pack_row(&codes, self.scheme.grid.bits(), &mut all.codes);
        }
        let shared = self.scales.len().div_ceil(rows.max(1)).max(1);
        let rounded = self.scales.iter().enumerate().map(|(at, scale)| self.stored(at / shared, *scale));
        all.scales = rounded.collect::<Result<_>>()?;
        let mut damage = Damage::default();
        for (w, q) in original.iter().zip(self.values()?) {
            damage.squared_error += f64::from(w - q).powi(2);
            damage.energy += f64::from(*w).powi(2);
        }
        to.append(&all)?;
        to.finish(damage)?;
        Ok(damage)
    }
}
