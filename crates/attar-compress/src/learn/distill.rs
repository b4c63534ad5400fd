//! Distillation: a float model in training towards another one, its teacher (Hinton et al. 2015), or towards the text itself.
//!
//! The loss is a mixture of the KL divergence from the teacher's next-token distributions and the cross-entropy with the tokens
//! that follow. AdamW (Loshchilov & Hutter 2019) updates f32 copies of the weights once the gradients of all blocks are known,
//! for they are clipped by their common norm (Pascanu et al. 2013). Every forward pass sees the weights as they will be stored.

use std::{collections::BTreeMap, ops::Range, path::PathBuf};

use attar_graph::{
    BlockId, Graph, Mode, ValueId, Values, Weights,
    kernel::{Taught, Top, Wanted},
};
use attar_tensor::Dtype;
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Differentiable, Found, Plain, Rate,
    autoround::block_matrices,
    gradients::relative_error,
    shape::{Init, StudentShape},
    states::{self, Pairs},
    student::{Criterion, Inner, Student, last_block, part_of, parts, shape_of},
};
use crate::{Error, Pattern, Patterns, Result};

/// Train a float model towards another one, or towards a text.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distill {
    /// The checkpoint to learn from, with the same tokenizer. By default the model as the recipe opened it, before its steps.
    #[serde(default)]
    pub teacher: Option<PathBuf>,
    /// The shape of the student, where the step is to make it of the model [default: the model as it is].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student: Option<StudentShape>,
    /// Weights to train, as patterns over canonical names. Every pattern must match at least one [default: all of the blocks, and the norms;
    /// with `rank`, the matrices of the blocks; of a random student, everything].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Patterns>,
    /// Train low-rank adapters of this rank next to the weights, which stay as they are (LoRA, Hu et al. 2021): how a student learns whose
    /// weights are codes. They are written to the folder `adapters` in PEFT's format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Weight of the KL divergence from the teacher's next-token distributions.
    #[serde(default = "one")]
    pub kl: f64,
    /// Keep only so many of the teacher's most probable tokens for every token of the training text, and hold the student against these and all
    /// others together: epochs and restarts do not ask the teacher again [default: its whole distribution, computed at every step from what
    /// enters its last block].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_top: Option<usize>,
    /// Divergence of a token, in nats, about from which on it counts by its square root instead of itself, so that few tokens far from the
    /// teacher do not drown all others: the loss of a token is `2 (sqrt(c^2 + c d) - c)` [default: its divergence `d`]. What is measured is the
    /// divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soften: Option<f64>,
    /// Weight of the cross-entropy with the tokens that follow in the text.
    #[serde(default)]
    pub labels: f64,
    /// Weight of the distance between hidden states: the mean over blocks of the relative mean square between the residual streams behind them.
    /// A student of fewer blocks is held against the teacher's spread evenly, last against last. Where the streams differ in width, a matrix
    /// between them learns along.
    #[serde(default)]
    pub hidden: f64,
    /// Passes over the training text in which every block, one after the other, learns to leave the residual stream as the teacher's block does,
    /// given what enters it in the student: a cheap first stage, for a student of as many blocks and as wide a stream.
    #[serde(default)]
    pub local: usize,
    /// Learning rate at its highest.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// Steps in which the learning rate rises to its highest, in a line.
    #[serde(default = "default_warmup")]
    pub warmup: usize,
    /// Share of the learning rate that is left at the end, reached along a cosine.
    #[serde(default = "tenth", rename = "final")]
    pub last: f64,
    /// Windows that go through the model together.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Batches per optimizer step.
    #[serde(default = "default_accumulate")]
    pub accumulate: usize,
    /// Passes over the training text [default: 1, unless `steps` is given].
    #[serde(default)]
    pub epochs: Option<usize>,
    /// Optimizer steps, in place of `epochs`.
    #[serde(default)]
    pub steps: Option<usize>,
    /// AdamW's decay rate of the first moment.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// AdamW's decay of matrices, per step of the learning rate; vectors such as gains do not decay.
    #[serde(default)]
    pub decay: f64,
    /// Bound on the norm of all gradients together.
    #[serde(default = "one")]
    pub clip: f64,
    /// Number format to store trained weights in [default: that of each weight, or f32 if that is not a plain one].
    #[serde(default)]
    pub dtype: Option<PlainDtype>,
    /// Optimizer steps between two measurements on the held-out windows [default: a tenth of all steps].
    #[serde(default)]
    pub evaluate: Option<usize>,
    /// Measurements without a better one after which training stops. With 0 it goes on to its end.
    #[serde(default)]
    pub patience: usize,
}

/// A plain number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlainDtype {
    /// 32 bits.
    F32,
    /// 16 bits, 10 of them for the fraction.
    F16,
    /// 16 bits, 7 of them for the fraction.
    Bf16,
}

impl From<PlainDtype> for Dtype {
    fn from(dtype: PlainDtype) -> Dtype {
        match dtype {
            PlainDtype::F32 => Dtype::F32,
            PlainDtype::F16 => Dtype::F16,
            PlainDtype::Bf16 => Dtype::BF16,
        }
    }
}

fn one() -> f64 {
    1.0
}

fn tenth() -> f64 {
    0.1
}

fn default_learning_rate() -> f64 {
    2e-4
}

fn default_warmup() -> usize {
    10
}

fn default_batch() -> usize {
    4
}

fn default_accumulate() -> usize {
    1
}

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.95
}

/// AdamW's: keeps the root of the second moment away from zero.
const EPSILON: f64 = 1e-8;

/// Windows of text, and what is known of them.
pub struct Batch<'b> {
    /// What enters the student's graph.
    pub inputs: &'b Values,
    /// The tokens of each window.
    pub tokens: &'b [Vec<u32>],
    /// What the teacher says, if it is asked.
    pub teacher: Option<Teacher<'b>>,
    /// Its most probable tokens, in place of that: a row for every position of every window.
    pub top: Option<&'b Top>,
    /// The teacher's residual stream, by the student's block that it is held against and the value behind that; empty, where only what the
    /// model says counts.
    pub states: BTreeMap<BlockId, (ValueId, Tensor)>,
}

/// A teacher that has come to its last block.
#[derive(Clone, Copy)]
pub struct Teacher<'b> {
    /// Its graph.
    pub graph: &'b Graph,
    /// What enters its last block.
    pub entering: &'b Values,
    /// The weights of that block, kept in memory.
    pub head: &'b dyn Weights,
}

impl Teacher<'_> {
    /// Its logits at some positions of all windows.
    fn logits(&self, positions: &Range<usize>) -> Result<Tensor> {
        let Teacher { graph, entering, head } = self;
        let left = graph.evaluate_block(last_block(graph), *head, Mode::Inference, &part_of(entering, positions)?)?;
        Ok(left[&graph.outputs()[0]].clone())
    }

    /// Its `count` most probable tokens at every position of every window.
    pub fn top(&self, count: usize) -> Result<Top> {
        let (windows, length) = shape_of(self.entering)?;
        let mut of_windows: Vec<Top> = vec![Top { count, ..Top::default() }; windows];
        for positions in parts(windows, length) {
            let top = Top::of(&self.logits(&positions)?, count)?;
            for (window, all) in of_windows.iter_mut().enumerate() {
                let part = top.rows(window * positions.len()..(window + 1) * positions.len());
                all.count = part.count;
                all.tokens.extend(part.tokens);
                all.logs.extend(part.logs);
                all.rest.extend(part.rest);
            }
        }
        let mut of_windows = of_windows.into_iter();
        let mut all = of_windows.next().unwrap_or_default();
        for part in of_windows {
            all.tokens.extend(part.tokens);
            all.logs.extend(part.logs);
            all.rest.extend(part.rest);
        }
        Ok(all)
    }
}

/// Mean losses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// KL divergence from the teacher, per token.
    pub kl: f64,
    /// Cross-entropy with the tokens that follow, per token.
    pub labels: f64,
}

impl Batch<'_> {
    /// What some positions are held against; the weights are those of a row.
    fn wanted(&self, positions: Range<usize>, [kl, labels]: [f32; 2], soften: Option<f64>) -> Result<Wanted> {
        let teacher = match (self.top, &self.teacher) {
            (Some(top), _) => {
                let length = top.rest.len() / self.tokens.len().max(1);
                let rows = (0..self.tokens.len()).flat_map(|window| positions.clone().map(move |at| window * length + at));
                Some((Taught::Top(top.rows(rows)), kl))
            }
            (None, Some(teacher)) => Some((Taught::Logits(teacher.logits(&positions)?), kl)),
            (None, None) => None,
        };
        let followers = |window: &Vec<u32>| positions.clone().map(|at| window.get(at + 1).copied()).collect::<Vec<_>>();
        let labels = Some((self.tokens.iter().flat_map(followers).collect(), labels));
        Ok(Wanted { teacher, labels, soften: soften.map(|c| c as f32) })
    }

    /// Rows that have a distribution, and rows that have a token behind them.
    fn rows(&self) -> [usize; 2] {
        [0, 1].map(|without| self.tokens.iter().map(|window| window.len().saturating_sub(without)).sum())
    }

    /// The losses of a student.
    pub fn measure(&self, student: &Student<'_>, head: &dyn Weights) -> Result<Measured> {
        let mut sums = [0.0; 2];
        student.logits(self.inputs, head, &mut |positions, logits| {
            let found = self.wanted(positions, [0.0; 2], None)?.compare(logits)?;
            sums = [sums[0] + found.divergence, sums[1] + found.entropy];
            Ok(())
        })?;
        let [rows, followed] = self.rows().map(|rows| rows.max(1) as f64);
        Ok(Measured { kl: sums[0] / rows, labels: sums[1] / followed })
    }
}

/// Gradients of all trainable tensors, by block and canonical name.
#[derive(Default)]
struct Gradients {
    weights: BTreeMap<BlockId, BTreeMap<String, Vec<f32>>>,
    /// Of the maps between hidden states.
    maps: BTreeMap<BlockId, Vec<f32>>,
}

fn add(sum: Option<&mut Vec<f32>>, gradient: Vec<f32>) -> Option<Vec<f32>> {
    match sum {
        Some(sum) => {
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            None
        }
        None => Some(gradient),
    }
}

impl Gradients {
    /// Those of tied weights are added to those of the tensor that they are.
    fn add(&mut self, student: &Student<'_>, block: BlockId, found: Found) {
        for (name, gradient) in found.gradients {
            let (block, name) = student.of_tensor(block, &name);
            let sums = self.weights.entry(block).or_default();
            if let Some(first) = add(sums.get_mut(name), gradient) {
                sums.insert(name.to_owned(), first);
            }
        }
    }

    /// The norm of all of them, or the block nearest to the head with one that is not finite.
    fn norm(&self) -> std::result::Result<f64, BlockId> {
        let mut sum = 0.0;
        for (block, gradients) in self.weights.iter().rev() {
            let of_block: f64 = gradients.values().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum();
            if !of_block.is_finite() {
                return Err(*block);
            }
            sum += of_block;
        }
        Ok(sum.sqrt())
    }
}

impl Distill {
    /// Refuses settings that cannot work.
    pub fn check(&self) -> Result<()> {
        let counts = [("batch", self.batch), ("accumulate", self.accumulate)];
        let given = [
            ("epochs", self.epochs),
            ("steps", self.steps),
            ("evaluate", self.evaluate),
            ("rank", self.rank),
            ("teacher_top", self.teacher_top),
        ];
        let counts: Vec<_> = counts.into_iter().chain(given.into_iter().filter_map(|(key, n)| Some((key, n?)))).collect();
        let shares = [("final", self.last), ("beta1", self.beta1), ("beta2", self.beta2), ("decay", self.decay)];
        super::check(&counts, &shares)?;
        if let Some((key, found)) = [("beta1", self.beta1), ("beta2", self.beta2)].into_iter().find(|(_, beta)| *beta == 1.0) {
            return Err(Error::Number { key, found, wanted: "a share below 1" });
        }
        let positive = [("learning_rate", self.learning_rate), ("clip", self.clip)];
        let mut positive = positive.into_iter().chain(self.soften.map(|c| ("soften", c)));
        if let Some((key, found)) = positive.find(|(_, x)| !(*x > 0.0 && x.is_finite())) {
            return Err(Error::Number { key, found, wanted: "a number above 0" });
        }
        if let Some((key, found)) =
            [("kl", self.kl), ("labels", self.labels), ("hidden", self.hidden)].into_iter().find(|(_, x)| !(0.0..1e6).contains(x))
        {
            return Err(Error::Number { key, found, wanted: "a number of 0 or more" });
        }
        if self.kl == 0.0 && self.labels == 0.0 {
            let hint = "give one of them a weight above 0";
            return Err(Error::Contradiction { key: "kl", other: "labels = 0".into(), hint });
        }
        if let (Some(_), true) = (self.teacher_top, self.hidden > 0.0 || self.kl == 0.0) {
            let (other, hint) = match self.kl == 0.0 {
                true => ("kl = 0".to_owned(), "the teacher is not asked about the training text: leave `teacher_top` out"),
                false => {
                    (format!("hidden = {}", self.hidden), "hidden states take the teacher at every step: leave one of them out")
                }
            };
            return Err(Error::Contradiction { key: "teacher_top", other, hint });
        }
        if let (Some(rank), true) = (self.rank, self.hidden > 0.0 || self.local > 0) {
            let key = if self.local > 0 { "local" } else { "hidden" };
            let hint = "adapters learn from what the teacher says: leave one of them out";
            return Err(Error::Contradiction { key, other: format!("rank = {rank}"), hint });
        }
        if let (Some(rank), Some(_)) = (self.rank, self.dtype) {
            let hint = "adapters are f32, and the weights next to them stay as they are: leave `dtype` out";
            return Err(Error::Contradiction { key: "dtype", other: format!("rank = {rank}"), hint });
        }
        if self.epochs.is_some() && self.steps.is_some() {
            let hint = "training ends after one of the two: leave the other out";
            return Err(Error::Contradiction { key: "steps", other: "epochs".into(), hint });
        }
        Ok(())
    }

    /// The weights to train, or to train adapters of.
    pub fn selected(&self) -> Patterns {
        let default = || match self.rank {
            Some(_) => block_matrices(),
            None if self.student.as_ref().is_some_and(|student| student.init == Init::Random) => {
                [Pattern::new("**").expect("a constant")].into()
            }
            None => ["blocks.**", "*norm"].map(|text| Pattern::new(text).expect("a constant that the tests parse")).into(),
        };
        self.select.clone().unwrap_or_else(default)
    }

    /// Optimizer steps, where the text has so many batches.
    pub fn steps(&self, batches: usize) -> usize {
        let epochs = self.epochs.unwrap_or(1);
        self.steps.unwrap_or_else(|| epochs.saturating_mul(batches).div_ceil(self.accumulate))
    }

    /// Optimizer steps between two measurements.
    pub fn evaluated_every(&self, steps: usize) -> usize {
        self.evaluate.unwrap_or(steps.div_ceil(10)).max(1)
    }

    /// The weighted sum of losses.
    pub fn loss(&self, measured: Measured) -> f64 {
        self.kl * measured.kl + self.labels * measured.labels
    }

    /// The learning rate of step `step` of `steps`: linear warm-up, then a cosine down to the last share.
    fn learning_rate(&self, step: usize, steps: usize) -> f64 {
        let warm = ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0);
        let behind = step.saturating_sub(self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * behind.min(1.0)).cos());
        self.learning_rate * warm * (self.last + (1.0 - self.last) * cosine)
    }

    /// Step `step` of `steps`, the first being 0, on some batches. `head` are the weights of the student's last block, kept in memory.
    /// Returns the loss before the step.
    pub fn step(
        &self,
        student: &mut Student<'_>,
        batches: &[Batch<'_>],
        head: &dyn Weights,
        [step, steps]: [usize; 2],
    ) -> Result<f64> {
        let diverged =
            |student: &Student<'_>, block| Error::Diverged { step: step + 1, block: student.graph.block_name(block).into() };
        let (mut gradients, mut loss) = (Gradients::default(), 0.0);
        for batch in batches {
            let found = self.backward(student, batch, head, 1.0 / batches.len() as f64, &mut gradients);
            loss += match found {
                Err(Error::Loss { .. }) => return Err(diverged(student, student.first_not_finite(batch.inputs)?)),
                found => found?,
            };
        }
        for (block, gradients) in &mut gradients.weights {
            student
                .plain
                .get(block)
                .into_iter()
                .flatten()
                .for_each(|(name, plain)| gradients.get_mut(name).into_iter().for_each(|g| plain.freeze(g)));
        }
        let norm = gradients.norm().map_err(|block| diverged(student, block))?;
        let shrink = (self.clip / norm.max(f64::MIN_POSITIVE)).min(1.0) as f32;
        let length = self.learning_rate(step, steps);
        let rate = Rate::with(length, step, [self.beta1, self.beta2], EPSILON);
        for (block, gradients) in &mut gradients.weights {
            for (name, plain) in student.plain.get_mut(block).into_iter().flatten() {
                let gradient = gradients.get_mut(name).expect("the backward pass finds all");
                gradient.iter_mut().for_each(|g| *g *= shrink);
                let kept = if plain.dims().len() > 1 { (1.0 - length * self.decay) as f32 } else { 1.0 };
                plain.descend(gradient, rate, kept);
            }
        }
        for (block, gradient) in &gradients.maps {
            student.maps.get_mut(block).expect("it has a gradient").descend(gradient, rate, 1.0);
        }
        Ok(loss)
    }

    /// A step of the first stage: a block's weights move so that `value`, which leaves it, comes closer to what was wanted. Returns the relative
    /// error before.
    pub fn local_step(
        &self,
        block: &Differentiable<'_>,
        plain: &mut BTreeMap<String, Plain>,
        entering: &Values,
        (value, wanted): (ValueId, &Tensor),
        [step, steps]: [usize; 2],
    ) -> Result<f64> {
        let mut found = block.gradients(entering, false, &|left| relative_error(&left[&value], wanted))?;
        for (name, plain) in plain.iter() {
            found.weights.get_mut(name).into_iter().for_each(|gradient| plain.freeze(gradient));
        }
        let norm = found.weights.values().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
        if !norm.is_finite() || !found.loss.is_finite() {
            return Err(Error::Diverged { step: step + 1, block: block.graph.block_name(block.block).into() });
        }
        let shrink = (self.clip / norm.max(f64::MIN_POSITIVE)).min(1.0) as f32;
        let length = self.learning_rate(step, steps);
        let rate = Rate::with(length, step, [self.beta1, self.beta2], EPSILON);
        for (name, plain) in plain {
            let gradient = found.weights.get_mut(name).expect("the block has all");
            gradient.iter_mut().for_each(|g| *g *= shrink);
            let kept = if plain.dims().len() > 1 { (1.0 - length * self.decay) as f32 } else { 1.0 };
            plain.descend(gradient, rate, kept);
        }
        Ok(found.loss)
    }

    /// Gives the student the maps between hidden states that it needs, as they fit best on some batches.
    pub fn begin_maps(&self, student: &mut Student<'_>, batches: &[Batch<'_>]) -> Result<()> {
        let graph = student.graph;
        let mut found: BTreeMap<BlockId, (usize, Pairs)> = BTreeMap::new();
        for batch in batches {
            let mut values = batch.inputs.clone();
            for block in graph.blocks().take_while(|block| *block != last_block(graph)) {
                values = student.advance(block, &values)?;
                let Some((value, wanted)) = batch.states.get(&block) else { continue };
                let state = &values[value];
                let [own, other] = [state, wanted].map(|tensor| tensor.dims().last().copied().unwrap_or(0));
                if own != other {
                    found.entry(block).or_insert_with(|| (other, Pairs::new([own, other]))).1.add(state, wanted)?;
                }
            }
        }
        for (block, (rows, pairs)) in found {
            student.maps.insert(block, pairs.map(rows)?);
        }
        Ok(())
    }

    /// The gradients of the loss of a batch, by canonical name.
    pub fn gradients(
        &self,
        student: &mut Student<'_>,
        batch: &Batch<'_>,
        head: &dyn Weights,
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut found = Gradients::default();
        self.backward(student, batch, head, 1.0, &mut found)?;
        Ok(found.weights.into_values().flatten().collect())
    }

    /// Adds the gradients of a batch that counts as a `share` of the step. Returns its share of the loss.
    fn backward(
        &self,
        student: &mut Student<'_>,
        batch: &Batch<'_>,
        head: &dyn Weights,
        share: f64,
        gradients: &mut Gradients,
    ) -> Result<f64> {
        let [rows, followed] = batch.rows().map(|rows| rows.max(1) as f64);
        let weights = [self.kl * share / rows, self.labels * share / followed];
        let objective = |positions: Range<usize>| {
            let wanted = batch.wanted(positions, weights.map(|weight| weight as f32), self.soften)?;
            Ok(Box::new(move |logits: &Tensor| {
                let found = wanted.compare(logits)?;
                Ok((weights[0] * found.divergence + weights[1] * found.entropy, found.gradient))
            }) as Criterion)
        };
        let weight = self.hidden * share / batch.states.len().max(1) as f64;
        let mut of_maps: BTreeMap<BlockId, Vec<f32>> = BTreeMap::new();
        let mut within = |student: &Student<'_>, block: BlockId, values: &Values| {
            let Some((value, wanted)) = batch.states.get(&block) else { return Ok(None) };
            let apart = states::compare(student.maps.get(&block), &values[value], wanted, weight)?;
            of_maps.extend(apart.of_map.map(|gradient| (block, gradient)));
            Ok(Some(Inner { value: *value, loss: apart.loss, gradient: apart.gradient }))
        };
        let loss = student.backward(batch.inputs, head, &objective, &mut within, &mut |student, block, found| {
            gradients.add(student, block, found);
            Ok(())
        })?;
        for (block, gradient) in of_maps {
            if let Some(first) = add(gradients.maps.get_mut(&block), gradient) {
                gradients.maps.insert(block, first);
            }
        }
        Ok(loss)
    }
}
