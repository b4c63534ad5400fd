//! Fast kernels as differentiable ops: candle's own fused ops silently drop gradients, and its differentiable ops are slow.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Storage, Tensor};

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

/// `x weight^T`, computed already. Operands keep all their dimensions: every view would cost another pass over its gradient.
struct LinearOp(Tensor);

/// All dimensions but the last as one.
fn rows(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.reshape(((), x.dim(D::Minus1)?))
}

impl CustomOp2 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        storage(&self.0)
    }

    /// Nothing is computed for what does not learn.
    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = rows(gradient)?;
        let of_x = x.track_op().then(|| gradient.matmul(&weight.detach())?.reshape(x.shape())).transpose()?;
        let of_weight = weight.track_op().then(|| gradient.t()?.matmul(&rows(&x.detach())?)).transpose()?;
        Ok((of_x, of_weight))
    }
}

/// `x weight^T`, with gradients.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("activations have dimensions") = weight.dim(0)?;
    let result = rows(&x.detach())?.matmul(&weight.detach().t()?)?.reshape(dims)?;
    x.apply_op2(&weight, LinearOp(result))
}

/// Root mean square normalisation, computed already.
struct RmsNormOp(Tensor, f32);

impl CustomOp2 for RmsNormOp {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        storage(&self.0)
    }

    fn bwd(&self, x: &Tensor, gain: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [of_x, of_gain] = kernel::rms_norm_gradients(x, gain, gradient, self.1)?;
        Ok((Some(of_x), gain.track_op().then_some(of_gain)))
    }
}

/// `x / sqrt(mean(x^2) + epsilon) * gain` over the last dimension, with gradients.
pub(crate) fn rms_norm(x: &Tensor, gain: &Tensor, epsilon: f32) -> Result<Tensor> {
    let (x, gain) = (x.contiguous()?, gain.contiguous()?);
    let result = candle_nn::ops::rms_norm(&x.detach(), &gain.detach(), epsilon)?;
    x.apply_op2(&gain, RmsNormOp(result, epsilon))
}

/// A rotation by angles, computed already.
struct RopeOp {
    result: Tensor,
    cos: Tensor,
    sin: Tensor,
}

impl CustomOp1 for RopeOp {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        storage(&self.result)
    }

    /// Turned back.
    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        candle_nn::rotary_emb::rope(&gradient.contiguous()?, &self.cos, &self.sin.neg()?).map(Some)
    }
}

/// The pairs of `x [batch, heads, seq, head]`, half a head apart, turned by angles, with gradients.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let result = candle_nn::rotary_emb::rope(&x.detach(), cos, sin)?;
    x.apply_op1(RopeOp { result, cos: cos.clone(), sin: sin.clone() })
}

/// Between `[batch, seq, heads * head]` and `[batch, heads, seq, head]`.
#[derive(Clone, Copy)]
enum HeadsOp {
    Split(usize),
    Merge,
}

impl HeadsOp {
    fn moved(self, x: &Tensor) -> Result<Tensor> {
        match self {
            HeadsOp::Split(heads) => {
                let (batch, seq, width) = x.dims3()?;
                kernel::swap_heads(&x.contiguous()?.reshape((batch, seq, heads, width / heads))?)
            }
            HeadsOp::Merge => {
                let (batch, heads, seq, head) = x.dims4()?;
                kernel::swap_heads(x)?.reshape((batch, seq, heads * head))
            }
        }
    }
}

impl CustomOp1 for HeadsOp {
    fn name(&self) -> &'static str {
        "heads"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        storage(&self.moved(&tensor(x, layout)?)?)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = match self {
            HeadsOp::Split(_) => HeadsOp::Merge,
            HeadsOp::Merge => HeadsOp::Split(x.dim(1)?),
        };
        back.moved(gradient).map(Some)
    }
}

/// `x [batch, seq, heads * head]` as `[batch, heads, seq, head]`, with gradients.
pub(crate) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    if x.track_op() { x.contiguous()?.apply_op1(HeadsOp::Split(heads)) } else { HeadsOp::Split(heads).moved(x) }
}

/// `x [batch, heads, seq, head]` as `[batch, seq, heads * head]`, with gradients.
pub(crate) fn merge_heads(x: &Tensor) -> Result<Tensor> {
    if x.track_op() { x.contiguous()?.apply_op1(HeadsOp::Merge) } else { HeadsOp::Merge.moved(x) }
}

struct SeedOp {
    value: f64,
    gradient: Tensor,
}

impl CustomOp1 for SeedOp {
    fn name(&self) -> &'static str {
        "seeded"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value as f32]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        match gradient.to_scalar::<f32>()? {
            1.0 => Ok(Some(self.gradient.clone())),
            by => Ok(Some(self.gradient.affine(f64::from(by), 0.0)?)),
        }
    }
}

/// A scalar function of `x` of which both the value at `x` and the gradient are known.
pub fn seeded(x: &Tensor, value: f64, gradient: Tensor) -> Result<Tensor> {
    x.apply_op1(SeedOp { value, gradient })
}

#[cfg(test)]
mod tests {
    //! The same in candle's own ops is the oracle.

    use candle_core::{Device, Var};

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

    /// Divergence from `teacher`, and cross-entropy with `labels`, summed, in candle's own ops.
    fn slow_losses(teacher: &Tensor, student: &Tensor, labels: &[u32]) -> [Tensor; 2] {
        let log = |x: &Tensor| candle_nn::ops::log_softmax(x, D::Minus1).unwrap();
        let (t, s) = (log(teacher), log(student));
        let divergence = (t.exp().unwrap() * (&t - &s).unwrap()).unwrap().sum_all().unwrap();
        let (texts, tokens, _) = teacher.dims3().unwrap();
        let labels = Tensor::new(labels, &Device::Cpu).unwrap().reshape((texts, tokens, 1)).unwrap();
        [divergence, s.gather(&labels, D::Minus1).unwrap().sum_all().unwrap().neg().unwrap()]
    }

    #[test]
    fn linear_layers_norms_and_rotations_have_the_gradients_of_their_definitions() {
        let (x, weight, gain) = (noise(&[2, 3, 33], 8), noise(&[20, 33], 9), noise(&[33], 10));
        let slow = x.reshape((6, 33)).unwrap().matmul(&weight.t().unwrap()).unwrap().reshape((2, 3, 20)).unwrap();
        assert_same("linear", &[&x, &weight], &linear(&x, &weight).unwrap(), &slow);
        let slow = candle_nn::ops::rms_norm_slow(&x, &gain, 1e-5).unwrap();
        assert_same("rms_norm", &[&x, &gain], &rms_norm(&x, &gain, 1e-5).unwrap(), &slow);
        let (x, cos, sin) = (noise(&[2, 3, 5, 8], 11), noise(&[5, 4], 12), noise(&[5, 4], 13));
        let (cos, sin) = (cos.as_detached_tensor(), sin.as_detached_tensor());
        let slow = candle_nn::rotary_emb::rope_slow(&x, &cos, &sin).unwrap();
        assert_same("rope", &[&x], &rope(&x, &cos, &sin).unwrap(), &slow);
        let slow = x.transpose(1, 2).unwrap().reshape((2, 5, 24)).unwrap();
        assert_same("merged heads", &[&x], &merge_heads(&x).unwrap(), &slow);
        let x = noise(&[2, 5, 24], 14);
        let slow = x.reshape((2, 5, 3, 8)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        assert_same("split heads", &[&x], &split_heads(&x, 3).unwrap(), &slow);
    }

    #[test]
    fn nothing_is_computed_for_a_weight_that_does_not_learn() {
        let (x, weight) = (noise(&[6, 33], 8), noise(&[20, 33], 9).as_detached_tensor());
        let store = linear(&x, &weight).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(store.get(&x).is_some() && store.get(&weight).is_none());
    }

    #[test]
    fn losses_have_the_gradients_of_their_definitions() {
        let (teacher, student) = (noise(&[2, 3, 101], 6).as_detached_tensor(), noise(&[2, 3, 101], 7));
        let labels = [3, 100, 0, 7, 7, 50];
        for (of_teacher, of_labels) in [(1.0, 0.0), (0.0, 1.0), (0.7, 0.2)] {
            let wanted = kernel::Wanted {
                teacher: (of_teacher > 0.0).then(|| (kernel::Taught::Logits(teacher.clone()), of_teacher)),
                labels: Some((labels.map(Some).to_vec(), of_labels)),
                soften: None,
            };
            let found = wanted.compare(&student).unwrap();
            let value = f64::from(of_teacher) * found.divergence + f64::from(of_labels) * found.entropy;
            let fast = seeded(&student, value, found.gradient).unwrap();
            let [divergence, entropy] = slow_losses(&teacher, &student, &labels);
            let slow = ((divergence * f64::from(of_teacher)).unwrap() + (entropy * f64::from(of_labels)).unwrap()).unwrap();
            assert_same("losses", &[&student], &fast, &slow);
        }
        let (mean, gradient) = kernel::kl_divergence(&teacher, &student).unwrap();
        let slow = (&slow_losses(&teacher, &student, &labels)[0] / 6.0).unwrap();
        assert_same("mean divergence", &[&student], &seeded(&student, mean, gradient).unwrap(), &slow);
    }

    /// The most probable tokens and all others as one, by ops; with all of them, the whole distribution.
    #[test]
    fn a_softened_loss_has_the_gradient_of_its_definition() {
        let (teacher, student) = (noise(&[1, 1, 101], 6).as_detached_tensor(), noise(&[1, 1, 101], 7));
        let c = 0.05;
        for top in [false, true] {
            let taught = match top {
                false => kernel::Taught::Logits(teacher.clone()),
                true => kernel::Taught::Top(kernel::Top::of(&teacher, 101).unwrap()),
            };
            let wanted = kernel::Wanted { teacher: Some((taught, 0.7)), labels: Some((vec![Some(3)], 0.2)), soften: Some(c) };
            let found = wanted.compare(&student).unwrap();
            let [divergence, entropy] = slow_losses(&teacher, &student, &[3]);
            let c = f64::from(c);
            let softened = divergence.affine(c, c * c).unwrap().sqrt().unwrap().affine(2.0, -2.0 * c).unwrap();
            let slow = ((softened * 0.7).unwrap() + (entropy * 0.2).unwrap()).unwrap();
            let value = 0.7 * 2.0 * ((c * c + c * found.divergence).sqrt() - c) + 0.2 * found.entropy;
            assert_same("softened", &[&student], &seeded(&student, value, found.gradient).unwrap(), &slow);
        }
    }

    #[test]
    fn a_teachers_top_has_the_loss_of_its_definition() {
        let (teacher, student) = (noise(&[2, 3, 101], 6).as_detached_tensor(), noise(&[2, 3, 101], 7));
        let labels = [3, 100, 0, 7, 7, 50];
        let [t, s] = [&teacher, student.as_tensor()].map(|z| candle_nn::ops::log_softmax(z, D::Minus1).unwrap());
        for count in [1, 10, 101] {
            let top = kernel::Top::of(&teacher, count).unwrap();
            let mut mask = vec![0.0f32; 6 * 101];
            top.tokens.chunks(count).enumerate().for_each(|(row, tokens)| {
                tokens.iter().for_each(|token| mask[row * 101 + *token as usize] = 1.0);
            });
            let mask = Tensor::from_vec(mask, (2, 3, 101), &Device::Cpu).unwrap();
            let others = mask.affine(-1.0, 1.0).unwrap();
            let of_top = (t.exp().unwrap() * (&t - &s).unwrap()).unwrap().mul(&mask).unwrap().sum_all().unwrap();
            let rest = |z: &Tensor| z.exp().unwrap().mul(&others).unwrap().sum_keepdim(D::Minus1).unwrap();
            let (r, q) = (rest(&t), rest(&s));
            let of_rest = match count {
                101 => (of_top.zeros_like()).unwrap(),
                _ => (&r * (r.log().unwrap() - q.log().unwrap()).unwrap()).unwrap().sum_all().unwrap(),
            };
            let divergence = (of_top + of_rest).unwrap();
            let entropy = &slow_losses(&teacher, &student, &labels)[1];
            let wanted = kernel::Wanted {
                teacher: Some((kernel::Taught::Top(top), 0.7)),
                labels: Some((labels.map(Some).to_vec(), 0.2)),
                soften: None,
            };
            let found = wanted.compare(&student).unwrap();
            let value = 0.7 * found.divergence + 0.2 * found.entropy;
            let fast = seeded(&student, value, found.gradient).unwrap();
            let slow = ((divergence * 0.7).unwrap() + (entropy * 0.2).unwrap()).unwrap();
            assert_same("top", &[&student], &fast, &slow);
        }
    }

    #[test]
    fn swiglu_has_the_gradients_of_its_definition() {
        let (gate, up) = (noise(&[2, 5, 33], 4), noise(&[2, 5, 33], 5));
        let slow = (gate.silu().unwrap() * up.as_tensor()).unwrap();
        assert_same("swiglu", &[&gate, &up], &swiglu(&gate, &up).unwrap(), &slow);
    }
}
