//! Fast kernels as differentiable ops: candle's own fused ops silently drop gradients, and its differentiable ops are slow.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor};

use crate::kernel::{self, Scores};

/// The contiguous f32 tensor that a kernel returned, as storage.
fn storage(tensor: &Tensor) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(kernel::with_f32(tensor, <[f32]>::to_vec)?), tensor.shape().clone()))
}

/// The operand of an op as a tensor.
fn tensor(storage: &CpuStorage, layout: &Layout) -> Result<Tensor> {
    let storage = Storage::Cpu(storage.clone());
    let count = layout.shape().elem_count();
    let Storage::Cpu(CpuStorage::F32(values)) = &storage else { candle_core::bail!("f32 on the CPU was expected") };
    match layout.contiguous_offsets() {
        Some((from, to)) if to - from == count => {
            Tensor::from_slice(&values[from..to], layout.shape(), &candle_core::Device::Cpu)
        }
        _ => candle_core::bail!("a contiguous operand was expected"),
    }
}

struct AttentionOp(Scores);

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (tensor(q, ql)?, tensor(k, kl)?, tensor(v, vl)?);
        storage(&kernel::attention(&q, &k, &v, &self.0)?)
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [q, k, v] = kernel::attention_gradients([q, k, v], gradient, &self.0)?;
        Ok((Some(q), Some(k), Some(v)))
    }
}

/// [`kernel::attention`], with gradients.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> Result<Tensor> {
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, AttentionOp(*scores))
}

struct SwigluOp;

impl CustomOp2 for SwigluOp {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        storage(&kernel::swiglu(&tensor(gate, gl)?, &tensor(up, ul)?)?)
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [gate, up] = kernel::swiglu_gradients(gate, up, gradient)?;
        Ok((Some(gate), Some(up)))
    }
}

/// [`kernel::swiglu`], with gradients.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwigluOp)
}

struct KlOp;

impl CustomOp2 for KlOp {
    fn name(&self) -> &'static str {
        "kl_divergence"
    }

    fn cpu_fwd(&self, teacher: &CpuStorage, tl: &Layout, student: &CpuStorage, sl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (divergence, _) = kernel::kl_divergence(&tensor(teacher, tl)?, &tensor(student, sl)?)?;
        Ok((CpuStorage::F32(vec![divergence as f32]), Shape::from(())))
    }

    fn bwd(&self, teacher: &Tensor, student: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, of_student) = kernel::kl_divergence(teacher, student)?;
        Ok((None, Some(of_student.affine(f64::from(gradient.to_scalar::<f32>()?), 0.0)?)))
    }
}

/// The KL divergence `KL(teacher || student)` of the distributions that logits `[.., vocabulary]` mean, averaged over
/// positions, with a gradient with respect to the student's.
pub fn kl_divergence(teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    teacher.contiguous()?.apply_op2(&student.contiguous()?, KlOp)
}

#[cfg(test)]
mod tests {
    //! The same in candle's own ops is the oracle.

    use candle_core::{D, Device, Var};

    use super::*;

    /// Sums of a few hundred f32 products in another order.
    const RELATIVE: f32 = 1e-4;

    fn noise(dims: &[usize], seed: u32) -> Var {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| next()).collect();
        Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
    }

    fn slow_attention(op: &Scores, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (batch, heads, seq, head) = q.dims4().unwrap();
        let (_, key_heads, all, _) = k.dims4().unwrap();
        let wide = (batch, key_heads, heads / key_heads, all, head);
        let spread = |x: &Tensor| {
            let x = x.unsqueeze(2).unwrap().expand(wide).unwrap().contiguous().unwrap();
            x.reshape((batch, heads, all, head)).unwrap()
        };
        let scores = (q.matmul(&spread(k).transpose(2, 3).unwrap()).unwrap() * f64::from(op.scale)).unwrap();
        let scores = op
            .softcap
            .map(f64::from)
            .map_or(scores.clone(), |cap| scores.affine(1.0 / cap, 0.0).unwrap().tanh().unwrap().affine(cap, 0.0).unwrap());
        let (past, window) = (all - seq, op.window.unwrap_or(all));
        let seen = |i: usize, j: usize| (past + i).abs_diff(j) < window && (j <= past + i || !op.causal);
        let mask: Vec<f32> = (0..seq * all).map(|at| if seen(at / all, at % all) { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mask = Tensor::from_vec(mask, (seq, all), &Device::Cpu).unwrap();
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask).unwrap(), D::Minus1).unwrap();
        p.matmul(&spread(v)).unwrap()
    }

    fn assert_same(what: &str, vars: &[&Var], fast: &Tensor, slow: &Tensor) {
        let weights = noise(fast.dims(), 99);
        let back = |y: &Tensor| (y * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (a, b) = (back(fast), back(slow));
        let far = |a: &Tensor, b: &Tensor| {
            let most = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            most((a - b).unwrap()) / most(b.clone())
        };
        assert!(far(fast, slow) < RELATIVE, "{what}");
        for (at, var) in vars.iter().enumerate() {
            let off = far(a.get(var).unwrap(), b.get(var).unwrap());
            assert!(off < RELATIVE, "{what}: operand {at} is {off} off");
        }
    }

    #[test]
    fn attention_has_the_gradients_of_its_definition() {
        for (seq, past, window) in [(2, 0, None), (7, 0, None), (70, 0, None), (130, 5, None), (70, 0, Some(9))] {
            for (causal, softcap) in [(true, None), (false, None), (true, Some(0.7)), (false, Some(2.0))] {
                let q = noise(&[2, 6, seq, 8], 1);
                let (k, v) = (noise(&[2, 3, past + seq, 8], 2), noise(&[2, 3, past + seq, 8], 3));
                let op = Scores { scale: 0.3, softcap, causal, window };
                let fast = attention(&q, &k, &v, &op).unwrap();
                assert_same(&format!("{seq} {past} {op:?}"), &[&q, &k, &v], &fast, &slow_attention(&op, &q, &k, &v));
            }
        }
    }

    #[test]
    fn divergence_has_the_gradient_of_its_definition() {
        let (teacher, student) = (noise(&[2, 3, 101], 6), noise(&[2, 3, 101], 7));
        let log = |x: &Tensor| candle_nn::ops::log_softmax(x, D::Minus1).unwrap();
        let (t, s) = (log(&teacher.as_detached_tensor()), log(&student));
        let each = (t.exp().unwrap() * (&t - s).unwrap()).unwrap().sum(D::Minus1).unwrap();
        let slow = each.mean_all().unwrap();
        assert_same("divergence", &[&student], &kl_divergence(&teacher.as_detached_tensor(), &student).unwrap(), &slow);
    }

    #[test]
    fn swiglu_has_the_gradients_of_its_definition() {
        let (gate, up) = (noise(&[2, 5, 33], 4), noise(&[2, 5, 33], 5));
        let slow = (gate.silu().unwrap() * up.as_tensor()).unwrap();
        assert_same("swiglu", &[&gate, &up], &swiglu(&gate, &up).unwrap(), &slow);
    }
}
