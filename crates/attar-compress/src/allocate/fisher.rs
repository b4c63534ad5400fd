//! What changes of weights do to a model's predictions, to second order.
//!
//! With logits `z` moved by `dz`, the KL divergence of a token is `1/2 dz^T F dz` plus terms of third order, where `F` is
//! the Fisher information of the logits. A linear layer `y = W x` moves the logits by their Jacobian times `dW x`; with
//! labels drawn from the model's own predictions the expectation of `(g . dW x)^2` is twice the divergence, where `g` is
//! the gradient of the log-likelihood in `y` (Martens 2020, "New insights and perspectives on the natural gradient
//! method", section 9). What changes every position of a window alike is taken as one change, for positions see it through
//! attention together: a shift of all keys does nothing. What changes them each in its own way is taken position by
//! position, which a few thousand tokens are enough for.
//!
//! [`Backward`] goes through a model from its last block to its first. What enters every few blocks is kept and the rest
//! is computed again (Chen et al. 2016), so that memory grows with the root of the number of blocks.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{BlockId, Graph, Mode, Node, Op, Origin, ValueId, Values, Weights, kernel, kernel::with_f32};
use candle_core::{DType, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;

use super::{divergence::divergence, forward};
use crate::{Error, Hessian, Result};

/// Tokens whose logits are in memory at a time.
const LOGITS: usize = 128;

/// Tokens on which layers that compute logits are measured: their divergence is exact, not sampled, so few are enough.
const JUDGED: usize = 1024;

/// The inputs of the reader of a weight in the forward pass, and the gradients of its outputs.
pub enum Reads {
    /// A linear layer.
    Linear {
        /// `[tokens, in]`.
        inputs: Tensor,
        /// Of the log-likelihood with respect to the layer's outputs: `[tokens, out]`.
        gradients: Tensor,
        /// Tokens per window.
        length: usize,
    },
    /// A linear layer that computes the logits, at some of the tokens.
    Logits {
        /// `[tokens, in]`.
        inputs: Tensor,
    },
    /// A table.
    Table {
        /// The rows that were looked up.
        tokens: Tensor,
        /// Of the log-likelihood with respect to those rows: `[tokens, width]`.
        gradients: Tensor,
        /// Tokens per window.
        length: usize,
    },
}

impl Reads {
    /// The sum over tokens of the divergence that follows from `change` of the `weight`, both `[out, in]`, in nats; and
    /// the number of tokens.
    pub fn divergence(&self, weight: &Tensor, change: &Tensor) -> Result<(f64, usize)> {
        match self {
            Reads::Linear { inputs, gradients, length } => along(&inputs.matmul(&change.t()?)?, gradients, *length),
            Reads::Table { tokens, gradients, length } => along(&change.index_select(tokens, 0)?, gradients, *length),
            Reads::Logits { inputs } => of_logits(inputs, weight, change),
        }
    }
}

/// A value of the forward pass, and its gradients.
pub struct Watched {
    /// `[tokens, width]`.
    pub values: Tensor,
    /// Of the log-likelihood with respect to them: `[tokens, width]`.
    gradients: Tensor,
    /// Tokens per window.
    length: usize,
}

impl Watched {
    /// The sum over tokens of the divergence that follows from `change` of the values, `[tokens, width]`, in nats; and the number
    /// of tokens.
    pub fn divergence(&self, change: &Tensor) -> Result<(f64, usize)> {
        along(change, &self.gradients, self.length)
    }
}

/// Half the squares of `g . dy`: of the mean change of each window as a whole, and of the deviations from it per token.
/// `length` is the number of tokens per window.
fn along(moved: &Tensor, gradients: &Tensor, length: usize) -> Result<(f64, usize)> {
    let (tokens, width) = gradients.dims2()?;
    let sums = with_f32(moved, |moved| {
        with_f32(gradients, |gradients| {
            let windows = moved.par_chunks(length * width).zip(gradients.par_chunks(length * width));
            windows.map(|(dy, g)| in_window(dy, g, width)).collect::<Vec<f64>>()
        })
    })??;
    Ok((sums.iter().sum(), tokens))
}

fn in_window(moved: &[f32], gradients: &[f32], width: usize) -> f64 {
    let mut mean = vec![0.0f64; width];
    moved.chunks(width).for_each(|dy| mean.iter_mut().zip(dy).for_each(|(mean, y)| *mean += f64::from(*y)));
    let share = width as f64 / moved.len() as f64;
    let (mut apart, mut together) = (0.0, 0.0);
    for (dy, g) in moved.chunks(width).zip(gradients.chunks(width)) {
        let (mut all, mut steady) = (0.0, 0.0);
        for ((y, g), mean) in dy.iter().zip(g).zip(&mean) {
            all += f64::from(*y) * f64::from(*g);
            steady += mean * share * f64::from(*g);
        }
        apart += (all - steady).powi(2);
        together += steady;
    }
    0.5 * (apart + together.powi(2))
}

/// `KL(softmax z || softmax (z + dz)) = ln E[e^dz] - E[dz]`, exactly.
fn of_logits(inputs: &Tensor, weight: &Tensor, change: &Tensor) -> Result<(f64, usize)> {
    let tokens = inputs.dim(0)?;
    let mut total = 0.0;
    for first in (0..tokens).step_by(LOGITS) {
        let x = inputs.narrow(0, first, LOGITS.min(tokens - first))?;
        let (z, moved) = (x.matmul(&weight.t()?)?, x.matmul(&change.t()?)?);
        let width = z.dim(1)?;
        let each = with_f32(&z, |z| {
            with_f32(&moved, |moved| {
                let rows = z.par_chunks(width).zip(moved.par_chunks(width));
                rows.map(|(z, dz)| divergence(z, dz)).collect::<Vec<f64>>()
            })
        })??;
        total += each.iter().sum::<f64>();
    }
    Ok((total, tokens))
}

/// Results of the backward pass of one block.
#[derive(Default)]
pub struct Outputs {
    /// By weight: inputs and gradients of its readers, per lane.
    pub reads: BTreeMap<ValueId, Vec<Reads>>,
    /// By the value that is watched, per lane.
    pub watched: BTreeMap<ValueId, Vec<Watched>>,
    /// By the value that linear layers read.
    hessians: BTreeMap<ValueId, Hessian>,
    /// Which value a linear layer's weight is multiplied with.
    inputs: BTreeMap<ValueId, ValueId>,
}

impl Outputs {
    /// The second moments of what the weight of a linear layer is multiplied with.
    pub fn hessian(&self, weight: ValueId) -> Option<&Hessian> {
        self.hessians.get(self.inputs.get(&weight)?)
    }
}

/// A backward pass to be started.
pub struct Backward<'a> {
    /// The model.
    pub graph: &'a Graph,
    /// Its constants.
    pub weights: &'a dyn Weights,
    /// The weights to report on, and the values that nodes compute.
    pub wanted: &'a dyn Fn(ValueId) -> bool,
    /// Seed of the random labels.
    pub seed: u64,
}

impl<'a> Backward<'a> {
    /// The forward pass. `differentiated` lanes get gradients; second moments come from the `observed` lanes, or from the
    /// differentiated ones if there are none. All are inputs of the graph.
    pub fn start(self, differentiated: Vec<Values>, observed: Vec<Values>) -> Result<Backwards<'a>> {
        let count = self.graph.block_count();
        let stride = (count as f64).sqrt().ceil() as usize;
        let (differentiated, mut lanes) = (differentiated.len(), differentiated);
        lanes.extend(observed);
        let mut kept = Vec::new();
        for block in self.graph.blocks() {
            if block.index() % stride == 0 {
                kept.push((block, lanes.clone()));
            }
            if block.index() < (count - 1) / stride * stride {
                lanes = lanes.iter().map(|lane| forward::after(self.graph, self.weights, block, lane)).collect::<Result<_>>()?;
            }
        }
        let gradients = vec![Values::new(); differentiated];
        Ok(Backwards { of: self, differentiated, stride, kept, ahead: Vec::new(), gradients })
    }

    /// The linear layers and tables of a block whose weight is wanted.
    fn readers(&self, block: BlockId) -> impl Iterator<Item = &'a Node> {
        let reads = |node: &&Node| matches!(node.op, Op::Linear | Op::Embedding) && (self.wanted)(node.inputs[1]);
        self.graph.nodes_of(block).filter(reads)
    }
}

/// A backward pass: blocks from the last to the first.
pub struct Backwards<'a> {
    of: Backward<'a>,
    /// How many of the lanes get gradients.
    differentiated: usize,
    stride: usize,
    /// What enters every `stride`th block, by lane.
    kept: Vec<(BlockId, Vec<Values>)>,
    /// What enters the blocks before the one that is next, back to a kept one.
    ahead: Vec<(BlockId, Vec<Values>)>,
    /// Of the log-likelihood, in what leaves the next block, by lane.
    gradients: Vec<Values>,
}

impl Backwards<'_> {
    /// The next block, towards the first; nothing when all are through.
    pub fn step(&mut self) -> Result<Option<(BlockId, Outputs)>> {
        if self.ahead.is_empty() && !self.fill()? {
            return Ok(None);
        }
        let Some((block, lanes)) = self.ahead.pop() else { return Ok(None) };
        let mut outputs = Outputs::default();
        let observed = if lanes.len() > self.differentiated { &lanes[self.differentiated..] } else { &lanes[..] };
        observed.iter().try_for_each(|lane| self.look(block, lane, &mut outputs))?;
        for (at, entering) in lanes[..self.differentiated].iter().enumerate() {
            let leaving = std::mem::take(&mut self.gradients[at]);
            self.gradients[at] = match self.gives_logits(block) {
                true => self.back_from_logits(block, at, entering, &mut outputs)?,
                false => self.through(block, entering, leaving, &mut outputs)?,
            };
        }
        Ok(Some((block, outputs)))
    }

    /// Runs forward from the last kept block.
    fn fill(&mut self) -> Result<bool> {
        let Some((first, mut lanes)) = self.kept.pop() else { return Ok(false) };
        let mut block = first;
        let last = (first.index() + self.stride).min(self.of.graph.block_count());
        while block.index() + 1 < last {
            let next =
                lanes.iter().map(|lane| forward::after(self.of.graph, self.of.weights, block, lane)).collect::<Result<_>>()?;
            self.ahead.push((block, std::mem::replace(&mut lanes, next)));
            block = BlockId::after(block);
        }
        self.ahead.push((block, lanes));
        Ok(true)
    }

    fn gives_logits(&self, block: BlockId) -> bool {
        self.of.graph.nodes_of(block).any(|node| node.outputs.iter().any(|id| self.of.graph.outputs().contains(id)))
    }

    /// Adds to the second moments.
    fn look(&self, block: BlockId, entering: &Values, outputs: &mut Outputs) -> Result<()> {
        let readers: Vec<&Node> = self.of.readers(block).filter(|node| node.op == Op::Linear).collect();
        let mut values: HashMap<ValueId, Tensor> = entering.clone().into_iter().collect();
        let made = |id: ValueId, tensor: Tensor| {
            if readers.iter().any(|reader| reader.inputs[0] == id) {
                values.insert(id, tensor.clone());
            }
            Ok(tensor)
        };
        if readers.is_empty() {
            return Ok(());
        }
        self.inner(block, entering, Mode::Inference, made)?;
        for reader in readers {
            let (input, weight) = (reader.inputs[0], reader.inputs[1]);
            outputs.inputs.insert(weight, input);
            // Layers that read the same value share its moments.
            if let Some(x) = values.remove(&input) {
                let width = x.dims().last().copied().unwrap_or(1);
                let hessian = outputs.hessians.entry(input).or_insert_with(|| Hessian::new(width));
                hessian.add(&x)?;
                if !hessian.is_finite() {
                    let graph = self.of.graph;
                    let (block, value) = (graph.block_name(block).into(), graph.get(input).name.clone());
                    return Err(Error::Activations { block, value });
                }
            }
        }
        Ok(())
    }

    fn inner(
        &self,
        block: BlockId,
        entering: &Values,
        mode: Mode,
        mut change: impl FnMut(ValueId, Tensor) -> attar_graph::Result<Tensor>,
    ) -> Result<Values> {
        Ok(self.of.graph.evaluate_block_with(block, self.of.weights, mode, entering, &mut change)?)
    }

    /// Gradients in what enters a block from those in what leaves it.
    fn through(&self, block: BlockId, entering: &Values, leaving: Values, outputs: &mut Outputs) -> Result<Values> {
        let traced = self.trace(block, entering)?;
        let made = self.of.graph.leaving(block);
        let mut loss: Option<Tensor> = None;
        for id in &made {
            let Some(gradient) = leaving.get(id) else { continue };
            let term = (&traced.leaving[id] * gradient)?.sum_all()?;
            loss = Some(match loss {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        let mut gradients: Values = leaving.into_iter().filter(|(id, _)| !made.contains(id)).collect();
        let Some(loss) = loss else { return Ok(gradients) };
        let mut store = loss.backward()?;
        traced.report(&mut store, self.of.graph, outputs)?;
        for (id, tensor) in traced.entering {
            let Some(gradient) = store.remove(&tensor) else { continue };
            let sum = match gradients.remove(&id) {
                Some(other) => (other + gradient)?,
                None => gradient,
            };
            gradients.insert(id, sum);
        }
        Ok(gradients)
    }

    /// Evaluates a block with a variable wherever a gradient is wanted.
    fn trace(&self, block: BlockId, entering: &Values) -> Result<Traced> {
        let mut inside = entering.clone();
        for (id, tensor) in inside.iter_mut() {
            if matches!(self.of.graph.get(*id).origin, Origin::Node(_)) && tensor.dtype().is_float() {
                *tensor = Var::from_tensor(tensor)?.as_tensor().clone();
            }
        }
        let readers: Vec<Node> = self.of.readers(block).cloned().collect();
        let (mut values, mut steps): (HashMap<ValueId, Tensor>, HashMap<ValueId, Tensor>) = Default::default();
        values.extend(inside.clone());
        let mut watched = BTreeMap::new();
        let leaving = self.inner(block, &inside, Mode::Training, |id, tensor| {
            let is_watched = (self.of.wanted)(id);
            if is_watched {
                watched.insert(id, tensor.detach());
            }
            let tensor = match is_watched || readers.iter().any(|reader| reader.output() == id) {
                true => {
                    let step = Var::zeros(tensor.shape(), DType::F32, tensor.device())?;
                    steps.insert(id, step.as_tensor().clone());
                    (tensor + step.as_tensor())?
                }
                false => tensor,
            };
            if readers.iter().any(|reader| reader.inputs[0] == id) {
                values.insert(id, tensor.clone());
            }
            Ok(tensor)
        })?;
        let inputs = readers.iter().map(|reader| (reader.output(), values[&reader.inputs[0]].detach())).collect();
        Ok(Traced { entering: inside, leaving, readers, inputs, watched, steps })
    }

    /// The same for the block that gives the logits, with labels drawn from them, some positions at a time.
    fn back_from_logits(&self, block: BlockId, lane: usize, entering: &Values, outputs: &mut Outputs) -> Result<Values> {
        let graph = self.of.graph;
        let computed: Vec<ValueId> = graph.live_into(block);
        let Some(&[windows, length]) = computed.iter().find_map(|id| entering.get(id)?.dims().get(..2)) else {
            return Ok(Values::new());
        };
        let pointwise = graph.nodes_of(block).all(|node| node.op.is_pointwise());
        let at_once = if pointwise { (LOGITS / windows).clamp(1, length) } else { length };
        let (mut parts, mut found): (BTreeMap<ValueId, Vec<Tensor>>, Outputs) = Default::default();
        for first in (0..length).step_by(at_once) {
            let positions = first..(first + at_once).min(length);
            let cut = |tensor: &Tensor| tensor.narrow(1, positions.start, positions.len())?.contiguous();
            let part: Values = computed.iter().map(|id| Ok((*id, cut(&entering[id])?))).collect::<candle_core::Result<_>>()?;
            let traced = self.trace(block, &part)?;
            let logits = &traced.leaving[&graph.outputs()[0]];
            let pull = self.pull(logits, (lane as u64) << 32 | first as u64)?;
            let mut store = (logits * pull)?.sum_all()?.backward()?;
            traced.report(&mut store, graph, &mut found)?;
            for (id, tensor) in &traced.entering {
                parts.entry(*id).or_default().extend(store.remove(tensor));
            }
        }
        self.merge(found, outputs)?;
        let whole = |(id, parts): (ValueId, Vec<Tensor>)| (!parts.is_empty()).then(|| Ok((id, Tensor::cat(&parts, 1)?)));
        parts.into_iter().filter_map(whole).collect()
    }

    /// The gradient of the log-likelihood in the logits, up to its sign: `p` less one at a label that is drawn from `p`.
    fn pull(&self, logits: &Tensor, place: u64) -> Result<Tensor> {
        let width = logits.dims().last().copied().unwrap_or(1);
        let mut pull = with_f32(logits, <[f32]>::to_vec)?;
        let seed = self.of.seed;
        pull.par_chunks_mut(width).enumerate().for_each(|(row, p)| {
            let largest = kernel::max(p);
            kernel::exp_sum(p, largest);
            let sum: f64 = p.iter().map(|p| f64::from(*p)).sum();
            let label = draw(p, sum * uniform(seed, place, row as u64));
            p.iter_mut().for_each(|p| *p = (f64::from(*p) / sum) as f32);
            p[label] -= 1.0;
        });
        Ok(Tensor::from_vec(pull, logits.shape(), logits.device())?)
    }

    /// Takes in what a lane's parts read; of the inputs of logits only so many that all lanes together have enough.
    fn merge(&self, parts: Outputs, outputs: &mut Outputs) -> Result<()> {
        parts.watched.into_iter().for_each(|(id, watched)| outputs.watched.entry(id).or_default().extend(watched));
        let most = JUDGED.div_ceil(self.differentiated);
        for (weight, reads) in parts.reads {
            let all = outputs.reads.entry(weight).or_default();
            let mut of_logits = Vec::new();
            for reads in reads {
                match reads {
                    Reads::Logits { inputs } => of_logits.push(inputs),
                    other => all.push(other),
                }
            }
            if !of_logits.is_empty() {
                let inputs = Tensor::cat(&of_logits, 0)?;
                let stride = inputs.dim(0)?.div_ceil(most) as u32;
                let rows = Tensor::arange_step(0, inputs.dim(0)? as u32, stride, inputs.device())?;
                all.push(Reads::Logits { inputs: inputs.index_select(&rows, 0)? });
            }
        }
        Ok(())
    }
}

/// A block that was evaluated for its gradients.
struct Traced {
    entering: Values,
    leaving: Values,
    readers: Vec<Node>,
    /// What a reader reads, by what it makes.
    inputs: HashMap<ValueId, Tensor>,
    /// Values that are watched.
    watched: BTreeMap<ValueId, Tensor>,
    /// Zeros that were added to what a reader makes, and to what is watched: their gradients are its.
    steps: HashMap<ValueId, Tensor>,
}

impl Traced {
    fn report(&self, store: &mut GradStore, graph: &Graph, outputs: &mut Outputs) -> Result<()> {
        for reader in &self.readers {
            let Some(gradient) = store.remove(&self.steps[&reader.output()]) else { continue };
            let [.., length, width] = *gradient.dims() else { continue };
            let (inputs, gradients) = (&self.inputs[&reader.output()], gradient.reshape(((), width))?);
            let rows = || inputs.reshape(((), inputs.dims().last().copied().unwrap_or(1)));
            let reads = match reader.op {
                Op::Embedding => Reads::Table { tokens: inputs.flatten_all()?.to_dtype(DType::U32)?, gradients, length },
                _ if graph.outputs().contains(&reader.output()) => Reads::Logits { inputs: rows()? },
                _ => Reads::Linear { inputs: rows()?, gradients, length },
            };
            outputs.reads.entry(reader.inputs[1]).or_default().push(reads);
        }
        for (id, values) in &self.watched {
            let Some(gradient) = store.remove(&self.steps[id]) else { continue };
            let [.., length, width] = *gradient.dims() else { continue };
            let (values, gradients) = (values.reshape(((), width))?, gradient.reshape(((), width))?);
            outputs.watched.entry(*id).or_default().push(Watched { values, gradients, length });
        }
        Ok(())
    }
}

/// The index at which the running sum of `p` passes `level`.
fn draw(p: &[f32], level: f64) -> usize {
    let mut sum = 0.0;
    let passes = p.iter().position(|p| {
        sum += f64::from(*p);
        sum > level
    });
    passes.unwrap_or(p.len() - 1)
}

/// From 0 to 1: SplitMix64 of a place.
fn uniform(seed: u64, place: u64, row: u64) -> f64 {
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let step = |z: u64, by: u64| mix(z.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(by));
    (step(step(step(seed, 0), place), row) >> 11) as f64 / (1u64 << 53) as f64
}
