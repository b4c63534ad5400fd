//! Fast kernels for what candle computes slowly, and their gradients; [`crate::gradient`] joins the two.
//!
//! Each is plain arithmetic in a fixed order, in parallel over independent parts, so its bits depend on neither the number
//! of threads nor the width of vectors. (Matrix products go through `gemm`, whose bits depend on the instruction set.)

mod heads;
mod loss;
mod norm;
mod pointwise;

use candle_core::{CpuStorage, Result, Storage, Tensor};
use rayon::prelude::*;

pub use heads::swap_heads;
pub use loss::{Compared, Taught, Top, Wanted, kl_divergence};
pub use norm::{layer_norm, mean_pool, normalize, rms_norm_gradients};
pub use pointwise::{erf, gelu, gelu_tanh, softcap, tanh};

/// Partial sums of a reduction: as many as the widest vector has lanes.
const LANES: usize = 16;

/// Elements per parallel task.
const PART: usize = 1 << 14;

/// Query rows per product of [`attention`]: keys after the position of the last row are not read if it is causal.
const QUERIES: usize = 64;

/// The widest vector instructions that matrix products use here. Their last bits depend on it, so cache keys of results
/// that depend on products contain it.
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

/// How the products of queries and keys become weights of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Multiplies the products.
    pub scale: f32,
    /// Bounds them: `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Whether a query sees no position after its own.
    pub causal: bool,
    /// A query sees positions that are less than this away from its own; all, without a window.
    pub window: Option<usize>,
}

/// Attention of `q [batch, heads, seq, head]`, the last of the positions of `k` and `v` `[batch, key heads, past + seq,
/// head]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> Result<Tensor> {
    let (batch, heads, seq, head) = q.dims4()?;
    let (_, key_heads, all, _) = k.dims4()?;
    let shape = Shape { seq, all, head, scores };
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

struct Shape<'s> {
    seq: usize,
    all: usize,
    head: usize,
    scores: &'s Scores,
}

impl Shape<'_> {
    /// q, out: [seq, head]; k, v: [all, head].
    fn one_head(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let (head, past) = (self.head, self.all - self.seq);
        let mut scores = vec![0.0; QUERIES.min(self.seq) * self.all];
        for (chunk, (q, out)) in q.chunks(QUERIES * head).zip(out.chunks_mut(QUERIES * head)).enumerate() {
            let (first, rows) = (past + chunk * QUERIES, q.len() / head);
            let seen = self.seen(first + rows);
            let scores = &mut scores[..rows * seen];
            product(scores, [rows, seen, head], q, k, true);
            for (row, scores) in scores.chunks_mut(seen).enumerate() {
                self.softmax(scores, first + row);
            }
            product(out, [rows, head, seen], scores, v, false);
        }
    }

    /// How many positions queries before `end` see at most.
    fn seen(&self, end: usize) -> usize {
        if self.scores.causal { end } else { self.all }
    }

    /// The positions that the query at `position` sees.
    fn visible(&self, position: usize) -> std::ops::Range<usize> {
        let window = self.scores.window.unwrap_or(self.all);
        let end = if self.scores.causal { position + 1 } else { position.saturating_add(window).min(self.all) };
        (position + 1).saturating_sub(window)..end
    }

    fn softmax(&self, scores: &mut [f32], position: usize) {
        let range = self.visible(position);
        scores[..range.start].fill(0.0);
        scores[range.end..].fill(0.0);
        let visible = &mut scores[range];
        scale(visible, self.scores.scale);
        if let Some(cap) = self.scores.softcap {
            pointwise::softcap_row(visible, cap);
        }
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
    unsafe { multiply(out, [m, n, k], (a, 1, k as isize), (b, b_column, b_row), false) }
}

/// `out [m, n] += a^T b`, with `a` `[k, m]` and `b` `[k, n]`. On this thread.
fn add_product_of_transposed(out: &mut [f32], [m, n, k]: [usize; 3], a: &[f32], b: &[f32]) {
    assert!(out.len() >= m * n && a.len() >= m * k && b.len() >= n * k);
    // SAFETY: as above.
    unsafe { multiply(out, [m, n, k], (a, m as isize, 1), (b, 1, n as isize), true) }
}

/// `out [m, n] = a [m, k] b [k, n]`, or `out += ...`; operands come with the strides of their columns and rows.
///
/// # Safety
/// The slices hold what sizes and strides describe.
unsafe fn multiply(
    out: &mut [f32],
    [m, n, k]: [usize; 3],
    (a, a_column, a_row): (&[f32], isize, isize),
    (b, b_column, b_row): (&[f32], isize, isize),
    on_top: bool,
) {
    debug_assert!(
        holds(out, [m, n], [n as isize, 1]) && holds(a, [m, k], [a_row, a_column]) && holds(b, [k, n], [b_row, b_column])
    );
    let (to, n_row) = (out.as_mut_ptr(), n as isize);
    let (a, b, none) = (a.as_ptr(), b.as_ptr(), gemm::Parallelism::None);
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(m, n, k, to, 1, n_row, on_top, a, a_column, a_row, b, b_column, b_row, 1.0, 1.0, false, false, false, none);
    }
}

/// Whether every element of a matrix of such size and strides lies in the slice.
pub(crate) fn holds(slice: &[f32], size: [usize; 2], strides: [isize; 2]) -> bool {
    let last = |(size, stride): (usize, isize)| usize::try_from(stride).ok()?.checked_mul(size - 1);
    let far = || last((size[0], strides[0]))?.checked_add(last((size[1], strides[1]))?);
    size.contains(&0) || far().is_some_and(|far| far < slice.len())
}

/// The gradients of [`attention`] with respect to queries, keys and values, given that of its result. Scores are
/// recomputed.
pub fn attention_gradients([q, k, v]: [&Tensor; 3], gradient: &Tensor, scores: &Scores) -> Result<[Tensor; 3]> {
    let (batch, heads, seq, head) = q.dims4()?;
    let (_, key_heads, all, _) = k.dims4()?;
    let shape = Shape { seq, all, head, scores };
    let group = heads / key_heads;
    let (queries, keys) = (group * seq * head, all * head);
    let mut of_q = vec![0.0; batch * heads * seq * head];
    let (mut of_k, mut of_v) = (vec![0.0; batch * key_heads * keys], vec![0.0; batch * key_heads * keys]);
    with_f32(q, |q| {
        with_f32(k, |k| {
            with_f32(v, |v| {
                with_f32(gradient, |gradient| {
                    // One task per key head: its query heads add to one gradient, in order.
                    let parts = of_q.par_chunks_mut(queries.max(1)).zip(of_k.par_chunks_mut(keys)).zip(of_v.par_chunks_mut(keys));
                    parts.enumerate().for_each(|(at, ((of_q, of_k), of_v))| {
                        let (k, v) = (&k[at * keys..][..keys], &v[at * keys..][..keys]);
                        for (h, of_q) in of_q.chunks_mut(seq * head).enumerate() {
                            let from = at * queries + h * seq * head;
                            let (q, gradient) = (&q[from..][..seq * head], &gradient[from..][..seq * head]);
                            shape.one_head_back([q, k, v], gradient, [of_q, of_k, of_v]);
                        }
                    });
                })
            })
        })
    })????;
    let tensor =
        |values: Vec<f32>, heads: usize, length: usize| Tensor::from_vec(values, (batch, heads, length, head), gradient.device());
    Ok([tensor(of_q, heads, seq)?, tensor(of_k, key_heads, all)?, tensor(of_v, key_heads, all)?])
}

impl Shape<'_> {
    /// q, gradient, of_q: [seq, head]; all others: [all, head]. Adds to `of_k` and `of_v`.
    fn one_head_back(&self, [q, k, v]: [&[f32]; 3], gradient: &[f32], [of_q, of_k, of_v]: [&mut [f32]; 3]) {
        let (head, past) = (self.head, self.all - self.seq);
        let mut both = vec![0.0; 2 * QUERIES.min(self.seq) * self.all];
        let chunks = q.chunks(QUERIES * head).zip(gradient.chunks(QUERIES * head)).zip(of_q.chunks_mut(QUERIES * head));
        for (chunk, ((q, gradient), of_q)) in chunks.enumerate() {
            let (first, rows) = (past + chunk * QUERIES, q.len() / head);
            let seen = self.seen(first + rows);
            let (p, of_p) = both[..2 * rows * seen].split_at_mut(rows * seen);
            product(p, [rows, seen, head], q, k, true);
            let capped = self.capped(p);
            for (row, p) in p.chunks_mut(seen).enumerate() {
                self.softmax(p, first + row);
            }
            add_product_of_transposed(of_v, [seen, head, rows], p, gradient);
            product(of_p, [rows, seen, head], gradient, v, true);
            for (p, of_p) in p.chunks(seen).zip(of_p.chunks_mut(seen)) {
                softmax_back(p, of_p, self.scores.scale);
            }
            if let (Some(capped), Some(cap)) = (capped, self.scores.softcap) {
                pointwise::softcap_row_back(&capped, of_p, cap);
            }
            product(of_q, [rows, head, seen], of_p, k, false);
            add_product_of_transposed(of_k, [seen, head, rows], of_p, q);
        }
    }

    /// Scores after the soft cap, if there is one, from products.
    fn capped(&self, products: &[f32]) -> Option<Vec<f32>> {
        let cap = self.scores.softcap?;
        let mut capped = products.to_vec();
        scale(&mut capped, self.scores.scale);
        pointwise::softcap_row(&mut capped, cap);
        Some(capped)
    }
}

wide! {
    /// Replaces the gradient with respect to a row of probabilities by that with respect to the scores before scaling.
    fn softmax_back(p: &[f32], gradient: &mut [f32], scale: f32) {
        let mut lanes = [0.0f32; LANES];
        let (mut left, mut right) = (p.chunks_exact(LANES), gradient.chunks_exact(LANES));
        for (p, g) in (&mut left).zip(&mut right) {
            for ((lane, p), g) in lanes.iter_mut().zip(p).zip(g) {
                *lane += p * g;
            }
        }
        let rest = left.remainder().iter().zip(right.remainder()).map(|(p, g)| p * g);
        let mean: f32 = lanes.iter().copied().chain(rest).sum();
        for (p, g) in p.iter().zip(gradient) {
            *g = p * (*g - mean) * scale;
        }
    }
}

wide! {
    fn gate_row_back(gate: &[f32], up: &[f32], gradient: &[f32], of_gate: &mut [f32], of_up: &mut [f32]) {
        for i in 0..gradient.len() {
            let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * sigmoid;
            of_up[i] = gradient[i] * silu;
            of_gate[i] = gradient[i] * up[i] * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

/// The gradients of [`swiglu`] with respect to gate and up, given that of its result.
pub fn swiglu_gradients(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<[Tensor; 2]> {
    let (mut of_gate, mut of_up) = (vec![0.0; gate.elem_count()], vec![0.0; gate.elem_count()]);
    with_f32(gate, |gate| {
        with_f32(up, |up| {
            with_f32(gradient, |gradient| {
                let inputs = gate.par_chunks(PART).zip(up.par_chunks(PART)).zip(gradient.par_chunks(PART));
                let outputs = of_gate.par_chunks_mut(PART).zip(of_up.par_chunks_mut(PART));
                inputs.zip(outputs).for_each(|(((gate, up), g), (of_gate, of_up))| gate_row_back(gate, up, g, of_gate, of_up));
            })
        })
    })???;
    Ok([Tensor::from_vec(of_gate, gate.shape(), gate.device())?, Tensor::from_vec(of_up, up.shape(), up.device())?])
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
