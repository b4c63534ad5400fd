//! GPTAQ (Li et al. 2025): GPTQ that also compensates for the error of the quantized layers upstream.
//!
//! Let `x'` be the layer's input in the float model and `x` its input in the quantized model. The layer should return `W x'` but
//! reads `x`. The best float weights for that are `W (I + D (H + damping)^-1)` with `H = E[x x^T]` and `D = E[(x' - x) x^T]`;
//! GPTQ then rounds these.

use attar_tensor::{BlobWriter, Damage, Scheme};
use candle_core::{Device, Tensor};
use faer::{Mat, Side, linalg::solvers::Solve};

use super::{Needs, Quantizer, Seen, WeightRows, gptq};
use crate::{Drift, Hessian, Result, ScaleSearch, hessian::damped};

/// GPTAQ.
pub(super) struct Gptaq;

/// Damping of the correction, as a share of the mean of the diagonal: its moments are noisier than GPTQ's.
const DAMPING: f64 = 0.1;

impl Quantizer for Gptaq {
    fn name(&self) -> &'static str {
        "gptaq"
    }

    fn version(&self) -> u32 {
        1
    }

    fn needs(&self) -> Needs {
        Needs::Drift
    }

    fn weighs_bits(&self) -> bool {
        true
    }

    fn memory(&self, dims @ [rows, columns]: [usize; 2]) -> u64 {
        gptq::Gptq.memory(dims) + (4 * rows * columns) as u64 + 2 * Hessian::bytes(columns)
    }

    fn quantize(
        &self,
        weights: &dyn WeightRows,
        seen: Seen<'_>,
        scheme: Scheme,
        search: ScaleSearch,
        mut to: BlobWriter<'_>,
        rows_done: &(dyn Fn(usize) + Sync),
    ) -> Result<Damage> {
        let hessian = seen.hessian.expect("the caller gives what `needs` asks for");
        let original = gptq::whole(weights)?;
        let target = match seen.drift {
            Some(drift) => corrected(&original, hessian, drift)?,
            None => original.clone(),
        };
        let damage = gptq::round_towards(weights, [&original, &target], hessian, scheme, search, &mut to)?;
        rows_done(weights.dims()[0]);
        to.finish(damage)?;
        Ok(damage)
    }
}

/// `W + W D (H + damping)^-1`.
fn corrected(original: &[f32], hessian: &Hessian, drift: &Drift) -> Result<Vec<f32>> {
    let n = hessian.inputs();
    let (cholesky, _) = damped(hessian, DAMPING, |damping| {
        let damped = Mat::from_fn(n, n, |i, j| hessian.mean(i, j) + if i == j { damping } else { 0.0 });
        damped.llt(Side::Lower).ok()
    })?;
    // H is symmetric, so the transpose of the correction solves H P^T = D^T.
    let transposed = cholesky.solve(Mat::from_fn(n, n, |i, j| drift.mean(j, i)));
    let correction: Vec<f32> = (0..n * n).map(|at| transposed[(at % n, at / n)] as f32).collect();
    let correction = Tensor::from_vec(correction, (n, n), &Device::Cpu)?;
    let weights = Tensor::from_slice(original, (original.len() / n, n), &Device::Cpu)?;
    let target = (&weights + weights.matmul(&correction)?)?;
    Ok(attar_graph::kernel::with_f32(&target, <[f32]>::to_vec)?)
}
