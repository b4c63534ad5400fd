//! Between positions of heads and heads of positions.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{PART, with_f32};

/// `x [batch, a, b, head]` as `[batch, b, a, head]`.
pub fn swap_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, a, b, head) = x.dims4()?;
    let row = (a * head).max(1);
    let together = PART.div_ceil(row) * row;
    let out = with_f32(x, |x| {
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(together).enumerate().for_each(|(part, out)| {
            for (at, out) in out.chunks_mut(row).enumerate() {
                let at = part * together / row + at;
                let (of_batch, j) = (at / b, at % b);
                for (i, out) in out.chunks_mut(head).enumerate() {
                    out.copy_from_slice(&x[((of_batch * a + i) * b + j) * head..][..head]);
                }
            }
        });
        out
    })?;
    Tensor::from_vec(out, (batch, b, a, head), x.device())
}
