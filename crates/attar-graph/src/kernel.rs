//! Fast forms of what candle computes slowly: for inference only, none of them has a gradient.
//!
//! Each is plain arithmetic in a fixed order, in parallel over parts that do not meet, so its bits depend on neither
//! thread count nor vector width. (Products go through `gemm`, whose bits depend on the instruction set.)

use candle_core::{CpuStorage, Result, Storage, Tensor};
use rayon::prelude::*;

/// Partial results: as many as the widest vector has lanes.
const LANES: usize = 16;

/// Elements a parallel part.
const PART: usize = 1 << 14;

/// Query rows a product of [`attention`]: keys beyond the last row's position are not touched.
const QUERIES: usize = 64;

/// The widest vectors that matrix products use here. Their last bits depend on it: what hangs on them says so in its key.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "x86-64-avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "x86-64-avx2";
        }
    }
    std::env::consts::ARCH
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
pub fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { candle_core::bail!("f32 on the CPU was expected") };
    let start = layout.start_offset();
    Ok(f(&values[start..start + layout.shape().elem_count()]))
}

/// `e^x` to about 1 unit in the last place: Cody-Waite reduction and the minimax polynomial of Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    // The low bits of the sum are the integer that it was rounded to.
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    p * f32::from_bits(power << 23)
}

/// Compiles a function twice, plain and with AVX2, and picks at run time. Both give the same bits.
macro_rules! wide {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}

pub(crate) use wide;

wide! {
    /// The largest value of a row.
    pub fn max(row: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut chunks = row.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        lanes.iter().chain(chunks.remainder()).copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

wide! {
    /// Replaces a row by `e^(x - offset)` and returns the sum.
    pub fn exp_sum(row: &mut [f32], offset: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = exp(*x - offset);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
            *x = exp(*x - offset);
            *lane += *x;
        }
        lanes.iter().sum()
    }
}

wide! {
    fn scale(row: &mut [f32], factor: f32) {
        for x in row {
            *x *= factor;
        }
    }
}

wide! {
    fn gate_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((g, u), o) in gate.iter().zip(up).zip(out) {
            *o = g / (1.0 + exp(-g)) * u;
        }
    }
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let out = with_f32(gate, |gate| {
        with_f32(up, |up| {
            let mut out = vec![0.0; gate.len()];
            let parts = gate.par_chunks(PART).zip(up.par_chunks(PART)).zip(out.par_chunks_mut(PART));
            parts.for_each(|((gate, up), out)| gate_row(gate, up, out));
            out
        })
    })??;
    Tensor::from_vec(out, gate.shape(), gate.device())
}

/// Causal attention over `q [batch, heads, seq, head]`, `k` and `v` `[batch, key heads, past + seq, head]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, window: Option<usize>) -> Result<Tensor> {
    let (batch, heads, seq, head) = q.dims4()?;
    let (_, key_heads, all, _) = k.dims4()?;
    let shape = Shape { seq, all, head, scale, window: window.unwrap_or(all) };
    let mut out = vec![0.0; batch * heads * seq * head];
    with_f32(q, |q| {
        with_f32(k, |k| {
            with_f32(v, |v| {
                let each = out.par_chunks_mut((seq * head).max(1)).zip(q.par_chunks((seq * head).max(1)));
                each.enumerate().for_each(|(i, (out, q))| {
                    let (at, h) = (i / heads, i % heads);
                    let from = (at * key_heads + h * key_heads / heads) * all * head;
                    shape.one_head(q, &k[from..from + all * head], &v[from..from + all * head], out);
                });
            })
        })
    })???;
    Tensor::from_vec(out, (batch, heads, seq, head), q.device())
}

struct Shape {
    seq: usize,
    all: usize,
    head: usize,
    scale: f32,
    window: usize,
}

impl Shape {
    /// q, out: [seq, head]; k, v: [all, head].
    fn one_head(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let (head, past) = (self.head, self.all - self.seq);
        let mut scores = vec![0.0; QUERIES.min(self.seq) * self.all];
        for (chunk, (q, out)) in q.chunks(QUERIES * head).zip(out.chunks_mut(QUERIES * head)).enumerate() {
            let (first, rows) = (past + chunk * QUERIES, q.len() / head);
            let seen = first + rows;
            let scores = &mut scores[..rows * seen];
            product(scores, [rows, seen, head], q, k, true);
            for (row, scores) in scores.chunks_mut(seen).enumerate() {
                self.softmax(scores, first + row);
            }
            product(out, [rows, head, seen], scores, v, false);
        }
    }

    fn softmax(&self, scores: &mut [f32], position: usize) {
        let (visible, hidden) = scores.split_at_mut(position + 1);
        let start = (position + 1).saturating_sub(self.window);
        visible[..start].fill(0.0);
        hidden.fill(0.0);
        let visible = &mut visible[start..];
        scale(visible, self.scale);
        let offset = max(visible);
        let sum = exp_sum(visible, offset);
        scale(visible, 1.0 / sum);
    }
}

/// `out [m, n] = a [m, k] b`, with `b` `[k, n]` or, transposed, `[n, k]`. On this thread.
fn product(out: &mut [f32], [m, n, k]: [usize; 3], a: &[f32], b: &[f32], transposed: bool) {
    assert!(out.len() >= m * n && a.len() >= m * k && b.len() >= n * k);
    let (b_column, b_row) = if transposed { (k as isize, 1) } else { (1, n as isize) };
    // SAFETY: the three slices hold the matrices that the sizes and strides describe: asserted above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `exp` claims about one unit in the last place; softmax over thousands of terms needs no more.
    const EXP_RELATIVE: f64 = 2.5e-7;

    #[test]
    fn exp_is_exact_to_the_last_places() {
        for i in -8000..8000 {
            let x = i as f32 * 0.0107;
            let (got, want) = (f64::from(exp(x)), f64::from(x.clamp(-87.0, 88.0)).exp());
            assert!((got - want).abs() <= EXP_RELATIVE * want, "e^{x}: {got}, {want}");
        }
    }

    #[test]
    fn log_sum_exp_agrees_with_f64() {
        let row: Vec<f32> = (0..1003).map(|i| ((i * 7919) % 997) as f32 * 0.02 - 10.0).collect();
        let want: f64 = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let offset = max(&row);
        let sum = exp_sum(&mut row.clone(), offset);
        assert!((f64::from(offset) + f64::from(sum).ln() - want).abs() < 1e-6);
    }
}
