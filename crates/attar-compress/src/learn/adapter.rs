//! A low-rank term (LoRA, Hu et al. 2021): `B A`, with `A` `[rank, columns]` and `B` `[rows, rank]`.

use candle_core::{Device, Tensor};

use super::adam::{Adam, Rate};
use crate::Result;

/// A trainable low-rank term.
#[derive(Clone)]
pub(super) struct Adapter {
    dims: [usize; 2],
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    moments: [Adam; 2],
}

/// Where an `A` `[rank, columns]` starts: entries of either sign around `1 / sqrt(rank)` that `seed` decides.
pub fn directions(rank: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let width = (3.0 / rank as f32).sqrt();
    (0..rank * columns).map(|_| width * uniform()).collect()
}

impl Adapter {
    /// A term of zero: `B` is zero, and `A` has entries of either sign around `1 / sqrt(rank)`.
    pub(super) fn new(dims: [usize; 2], rank: usize, seed: u64) -> Adapter {
        let a = directions(rank, dims[1], seed);
        let b = vec![0.0; dims[0] * rank];
        Adapter { dims, rank, moments: [Adam::new(a.len()), Adam::new(b.len())], a, b }
    }

    /// Adds a row of the term.
    pub(super) fn add_row(&self, row: usize, to: &mut [f32]) {
        let b = &self.b[row * self.rank..][..self.rank];
        for (b, a) in b.iter().zip(self.a.chunks(self.dims[1])) {
            to.iter_mut().zip(a).for_each(|(to, a)| *to += b * a);
        }
    }

    /// One optimizer step, given the gradient `[rows, columns]` of the term; `unit` is the distance between two codes.
    pub(super) fn step(&mut self, gradient: Vec<f32>, unit: f32, rate: Rate) -> Result<()> {
        let ([rows, columns], rank) = (self.dims, self.rank);
        let tensor = |values: Vec<f32>, dims: (usize, usize)| Tensor::from_vec(values, dims, &Device::Cpu);
        let (g, a, b) =
            (tensor(gradient, (rows, columns))?, tensor(self.a.clone(), (rank, columns))?, tensor(self.b.clone(), (rows, rank))?);
        let gradients = [b.t()?.matmul(&g)?, g.matmul(&a.t()?)?];
        let units = [(rank as f32).sqrt().recip(), unit];
        for (((values, gradient), moments), unit) in
            [&mut self.a, &mut self.b].into_iter().zip(gradients).zip(&mut self.moments).zip(units)
        {
            let gradient = attar_graph::kernel::with_f32(&gradient, <[f32]>::to_vec)?;
            let mut moments = moments.chunks(values.len());
            for (at, (value, g)) in values.iter_mut().zip(gradient).enumerate() {
                *value -= unit * moments[0].step(at, g, rate);
            }
        }
        Ok(())
    }

    /// Trainable values and optimizer moments, under names of their own.
    pub(super) fn state(&self) -> [(&'static str, &[f32]); 6] {
        let [[a1, a2], [b1, b2]] = self.moments.each_ref().map(Adam::state);
        [("a", &self.a), ("b", &self.b), ("a1", a1), ("a2", a2), ("b1", b1), ("b2", b2)]
    }

    /// Restores an [`Adapter::state`].
    pub(super) fn restore(&mut self, part: &dyn Fn(&str) -> Result<Vec<f32>>) -> Result<()> {
        (self.a, self.b) = (part("a")?, part("b")?);
        self.moments = [Adam::restore(part("a1")?, part("a2")?), Adam::restore(part("b1")?, part("b2")?)];
        Ok(())
    }
}
