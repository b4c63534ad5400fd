//! Hidden states: what the residual stream of a student is behind a block, against a teacher's (Romero et al. 2015; Jiao et al. 2020).
//!
//! The loss of a token is `|A h - y|^2 / |y|^2` for the student's state `h` and the teacher's `y`: relative, for a few tokens are
//! thousands of times larger than the others. `A` is the identity where both are as wide, and otherwise a matrix that is trained along
//! and no part of the student.

use attar_tensor::Dtype;
use candle_core::{D, Tensor};

use super::{Pace, Plain};
use crate::{
    Cross, Hessian, Result,
    prune::{Response, refitted},
};

/// How far states are apart.
pub(super) struct Apart {
    /// The mean over the tokens, times a weight.
    pub(super) loss: f64,
    /// Its gradient in the student's states.
    pub(super) gradient: Tensor,
    /// And in the map.
    pub(super) of_map: Option<Vec<f32>>,
}

/// Compares states `[windows, positions, width]`.
pub(super) fn compare(map: Option<&Plain>, state: &Tensor, wanted: &Tensor, weight: f64) -> Result<Apart> {
    let state = state.flatten_to(D::Minus2)?;
    let map = map.map(Plain::tensor).transpose()?;
    let mapped = map.as_ref().map_or_else(|| Ok(state.clone()), |map| state.matmul(&map.t()?))?;
    let wanted_rows = wanted.flatten_to(D::Minus2)?;
    let apart = (mapped - &wanted_rows)?;
    let sizes = wanted_rows.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0, f64::from(f32::MIN_POSITIVE))?;
    let tokens = wanted_rows.dim(0)? as f64;
    let losses = apart.sqr()?.sum_keepdim(D::Minus1)?.div(&sizes)?;
    let loss = attar_graph::kernel::with_f32(&losses, |losses| losses.iter().map(|loss| f64::from(*loss)).sum::<f64>())? / tokens;
    let outer = apart.broadcast_div(&sizes)?.affine(2.0 * weight / tokens, 0.0)?;
    let of_map =
        map.is_some().then(|| attar_graph::kernel::with_f32(&outer.t()?.matmul(&state)?, <[f32]>::to_vec)).transpose()?;
    let gradient = map.as_ref().map_or_else(|| Ok(outer.clone()), |map| outer.matmul(map))?;
    let dims = [&wanted.dims()[..wanted.rank() - 1], &[state.dim(1)?]].concat();
    Ok(Apart { loss: weight * loss, gradient: gradient.reshape(dims)?, of_map })
}

/// What tells the first map between states.
pub(super) struct Pairs {
    moments: Hessian,
    cross: Cross,
}

impl Pairs {
    /// Of no states yet; `[student's width, teacher's width]`.
    pub(super) fn new([own, wanted]: [usize; 2]) -> Pairs {
        Pairs { moments: Hessian::new(own), cross: Cross::new(wanted, own) }
    }

    pub(super) fn add(&mut self, state: &Tensor, wanted: &Tensor) -> Result<()> {
        let sizes = wanted.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, f64::from(f32::MIN_POSITIVE))?.sqrt()?;
        let (state, wanted) = (state.broadcast_div(&sizes)?, wanted.broadcast_div(&sizes)?);
        self.moments.add(&state)?;
        Ok(self.cross.add(&wanted, &state)?)
    }

    /// The map `[teacher's width, student's width]` that fits best, to be trained.
    pub(super) fn map(&self, rows: usize) -> Result<Plain> {
        let n = self.moments.inputs();
        let all: Vec<usize> = (0..n).collect();
        let fitted = refitted(&vec![0.0; rows * n], &self.moments, &Response::Wanted(&self.cross), &all)?;
        Ok(map([rows, n], fitted))
    }
}

/// A map `[teacher's width, student's width]` of these values, or to be restored. A step of length 1 moves a number by the mean magnitude of those
/// of an identity.
pub fn map(dims: [usize; 2], values: Vec<f32>) -> Plain {
    Plain::new(dims.to_vec(), values, Dtype::F32, Pace::Weight, 1.0 / dims[1].max(1) as f32)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 37 + seed * 101) % 29) as f32 / 14.0 - 1.0).collect()
    }

    fn tensor(dims: (usize, usize, usize), seed: usize) -> Tensor {
        Tensor::from_vec(numbers(dims.0 * dims.1 * dims.2, seed), dims, &Device::Cpu).unwrap()
    }

    /// Central differences of the loss in one number of the states and of the map.
    #[test]
    fn gradients_are_those_of_differences() {
        let (state, wanted) = (tensor((2, 3, 4), 1), tensor((2, 3, 5), 2));
        let map = |values: Vec<f32>| map([5, 4], values);
        let (at, by) = (7, 1e-2);
        let found = compare(Some(&map(numbers(20, 3))), &state, &wanted, 0.7).unwrap();
        let moved = |by: f32| {
            let mut values = state.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values[at] += by;
            let state = Tensor::from_vec(values, (2, 3, 4), &Device::Cpu).unwrap();
            compare(Some(&map(numbers(20, 3))), &state, &wanted, 0.7).unwrap().loss
        };
        let slope = (moved(by) - moved(-by)) / (2.0 * f64::from(by));
        let gradient = f64::from(found.gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()[at]);
        assert!((slope - gradient).abs() < 1e-3 * slope.abs(), "{slope}, {gradient}");
        let moved = |by: f32| {
            let mut values = numbers(20, 3);
            values[at] += by;
            compare(Some(&map(values)), &state, &wanted, 0.7).unwrap().loss
        };
        let slope = (moved(by) - moved(-by)) / (2.0 * f64::from(by));
        let gradient = f64::from(found.of_map.unwrap()[at]);
        assert!((slope - gradient).abs() < 1e-3 * slope.abs(), "{slope}, {gradient}");
    }

    #[test]
    fn a_first_map_finds_what_is_linear() {
        let state = tensor((4, 16, 3), 1);
        let map = Tensor::from_vec(numbers(15, 2), (5, 3), &Device::Cpu).unwrap();
        let wanted = state.flatten_to(1).unwrap().matmul(&map.t().unwrap()).unwrap().reshape((4, 16, 5)).unwrap();
        let mut pairs = Pairs::new([3, 5]);
        pairs.add(&state, &wanted).unwrap();
        let found = pairs.map(5).unwrap();
        assert!(compare(Some(&found), &state, &wanted, 1.0).unwrap().loss < 0.05, "as far as damping lets it");
        assert_eq!(compare(None, &wanted, &wanted, 1.0).unwrap().loss, 0.0);
    }
}
