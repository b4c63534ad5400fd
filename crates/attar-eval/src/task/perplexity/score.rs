//! Logits to scores. Sums are in f64 and in a fixed order: no bit depends on the number of threads.

use std::ops::Range;

use attar_graph::kernel;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Estimate, Result, Window,
    runner::{Progress, Rows, likeliest, numbers},
    statistics::number,
    task::kind::{SIDES, Sides},
};

/// What was measured on one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Number of scored tokens.
    pub tokens: u64,
    /// Number of windows.
    pub windows: u64,
    /// `e` to the mean negative log likelihood of a scored token.
    pub perplexity: Estimate,
    /// The comparison with the base, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against_base: Option<AgainstBase>,
    /// The comparison with another run of the same artifact, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// A model against the one it was made from, on the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgainstBase {
    /// The perplexity of the base.
    pub perplexity: Estimate,
    /// The model's over the base's; the standard error is that of paired differences.
    pub perplexity_ratio: Estimate,
    /// Mean of `KL(base || model)` in nats, over the whole vocabulary.
    pub kl_mean: Estimate,
    /// 99th percentile of `KL(base || model)` over tokens.
    pub kl_p99: Estimate,
    /// Share of positions whose likeliest next token is the base's.
    pub top1_agreement: Estimate,
}

/// Two runs of the same artifact, on the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// `|a / b - 1|` for the two perplexities.
    #[serde(deserialize_with = "number")]
    pub perplexity_gap: f64,
    /// The largest difference of two logits.
    #[serde(deserialize_with = "number")]
    pub max_logit_difference: f64,
    /// The same over the largest absolute logit.
    #[serde(deserialize_with = "number")]
    pub relative: f64,
}

/// Measures one model. `sibling` is another run of the same artifact.
pub fn alone<'a>(
    windows: &[Window],
    model: &'a mut dyn Rows,
    sibling: Option<&'a mut dyn Rows>,
    progress: Progress<'_>,
) -> Result<Scores> {
    measure(&mut Sides { model, base: None, sibling }, windows, 0..windows.len(), progress)
}

/// Measures `model` and how far it is from `base`. `sibling` is another run of the same artifact as `model`.
pub fn compare<'a>(
    windows: &[Window],
    base: &'a mut dyn Rows,
    model: &'a mut dyn Rows,
    sibling: Option<&'a mut dyn Rows>,
    progress: Progress<'_>,
) -> Result<Scores> {
    measure(&mut Sides { model, base: Some(base), sibling }, windows, 0..windows.len(), progress)
}

/// Rows of logits that are held at once, per side.
const ROWS: usize = 256;

/// What one position yields.
#[derive(Clone, Copy, Default)]
struct Position {
    loss: f64,
    base_loss: f64,
    kl: f64,
    same_choice: bool,
    sibling_loss: f64,
    difference: f64,
    largest: f64,
}

/// Measures on some of the windows that the sides run on.
pub(in crate::task) fn measure(
    sides: &mut Sides<'_>,
    windows: &[Window],
    of: Range<usize>,
    progress: Progress<'_>,
) -> Result<Scores> {
    let mut buffers = Buffers::default();
    let mut positions = Vec::with_capacity(of.len());
    for at in of {
        positions.push(one_window(sides, at, &windows[at], &mut buffers)?);
        progress(at as u64 + 1, windows.len() as u64);
    }
    Ok(summary(&positions, sides.base.is_some(), sides.sibling.is_some()))
}

fn one_window(sides: &mut Sides<'_>, at: usize, window: &Window, buffers: &mut Buffers) -> Result<Vec<Position>> {
    let mut positions = Vec::with_capacity(window.scored.len());
    for start in window.scored.clone().step_by(ROWS) {
        let part = start..(start + ROWS).min(window.scored.end);
        let vocabulary = buffers.fill(sides, at, part.clone())?;
        let targets = &window.tokens[part.start + 1..part.end + 1];
        if let Some(token) = targets.iter().find(|token| **token as usize >= vocabulary) {
            return Err(Error::Token { token: *token, vocabulary });
        }
        let measured = targets.par_iter().enumerate().map_init(Vec::new, |scratch, (row, target)| {
            let [model, base, sibling] =
                [&buffers.model, &buffers.base, &buffers.sibling].map(|all| all.get(row * vocabulary..(row + 1) * vocabulary));
            position(model.expect("one row per target"), base, sibling, *target as usize, scratch)
        });
        positions.extend(measured.collect::<Vec<Position>>());
    }
    Ok(positions)
}

/// The logits of a part of a window, by side. The buffer of an absent side stays empty.
#[derive(Default)]
struct Buffers {
    model: Vec<f32>,
    base: Vec<f32>,
    sibling: Vec<f32>,
}

impl Buffers {
    fn fill(&mut self, sides: &mut Sides<'_>, window: usize, part: Range<usize>) -> Result<usize> {
        let [own, base, sibling] = SIDES;
        let vocabulary = numbers(sides.model, own, window, part.clone(), &mut self.model)?;
        let others = [(&mut sides.base, base, &mut self.base), (&mut sides.sibling, sibling, &mut self.sibling)];
        for (side, whose, buffer) in others {
            let Some(side) = side else { continue };
            let other = numbers(*side, whose, window, part.clone(), buffer)?;
            if other != vocabulary {
                return Err(Error::Vocabularies { first: vocabulary, second: other });
            }
        }
        Ok(vocabulary)
    }
}

fn position(model: &[f32], base: Option<&[f32]>, sibling: Option<&[f32]>, target: usize, scratch: &mut Vec<f32>) -> Position {
    let of_model = Normalizer::of(model, scratch);
    let mut position = Position { loss: of_model.loss(model[target]), ..Position::default() };
    if let Some(base) = base {
        let of_base = Normalizer::of(base, scratch);
        position.base_loss = of_base.loss(base[target]);
        position.kl = divergence(base, &of_base, model, &of_model, scratch);
        position.same_choice = likeliest(base) == likeliest(model);
    }
    if let Some(sibling) = sibling {
        position.sibling_loss = Normalizer::of(sibling, scratch).loss(sibling[target]);
        (position.difference, position.largest) = differences(model, sibling);
    }
    position
}

/// What turns logits into log probabilities: `log p = logit - log_sum`.
pub(in crate::task) struct Normalizer {
    log_sum: f64,
    /// Of `e^(logit - max)`.
    sum: f64,
}

impl Normalizer {
    /// Leaves `e^(logit - max)` in `scratch`.
    pub(in crate::task) fn of(logits: &[f32], scratch: &mut Vec<f32>) -> Normalizer {
        scratch.clear();
        scratch.extend_from_slice(logits);
        let max = kernel::max(logits);
        kernel::exp_sum(scratch, max);
        let sum = sum(scratch, |i| f64::from(scratch[i]));
        Normalizer { log_sum: f64::from(max) + sum.ln(), sum }
    }

    pub(in crate::task) fn loss(&self, logit: f32) -> f64 {
        self.log_sum - f64::from(logit)
    }
}

/// `KL(p || q) = sum p (log p - log q)`, with `e` the unnormalised `p`. Rounding may take it below zero; it is not.
fn divergence(p: &[f32], of_p: &Normalizer, q: &[f32], of_q: &Normalizer, e: &[f32]) -> f64 {
    let mean = sum(e, |i| f64::from(e[i]) * (f64::from(p[i]) - f64::from(q[i]))) / of_p.sum;
    let kl = mean - of_p.log_sum + of_q.log_sum;
    if kl < 0.0 { 0.0 } else { kl }
}

/// `sum f(i)` over the indices of `row`, in a fixed order that vectors can follow.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(usize) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let whole = row.len() / LANES * LANES;
    for chunk in (0..whole).step_by(LANES) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(chunk + lane);
        }
    }
    lanes.into_iter().chain((whole..row.len()).map(f)).sum()
}

/// The largest difference and the largest value.
fn differences(a: &[f32], b: &[f32]) -> (f64, f64) {
    let difference = a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    let largest = b.iter().fold(0.0f32, |most, b| most.max(b.abs()));
    (f64::from(difference), f64::from(largest))
}

fn summary(windows: &[Vec<Position>], with_base: bool, with_sibling: bool) -> Scores {
    let each = |of: fn(&Position) -> f64| -> Vec<Vec<f64>> { windows.iter().map(|w| w.iter().map(of).collect()).collect() };
    let perplexity = Estimate::mean(&each(|p| p.loss)).exp();
    let against_base = with_base.then(|| AgainstBase {
        perplexity: Estimate::mean(&each(|p| p.base_loss)).exp(),
        perplexity_ratio: Estimate::mean(&each(|p| p.loss - p.base_loss)).exp(),
        kl_mean: Estimate::mean(&each(|p| p.kl)),
        kl_p99: Estimate::percentile(&each(|p| p.kl), 0.99),
        top1_agreement: Estimate::mean(&each(|p| f64::from(u8::from(p.same_choice)))),
    });
    let agreement = with_sibling.then(|| {
        let sibling = Estimate::mean(&each(|p| p.sibling_loss)).exp();
        let max_logit_difference = largest(windows, |p| p.difference);
        Agreement {
            perplexity_gap: (perplexity.value / sibling.value - 1.0).abs(),
            max_logit_difference,
            relative: max_logit_difference / largest(windows, |p| p.largest),
        }
    });
    let tokens = windows.iter().map(|w| w.len() as u64).sum();
    Scores { tokens, windows: windows.len() as u64, perplexity, against_base, agreement }
}

/// The logit of the right token in [`certain`]; others are 0. `e` to its negative is nothing in f32.
const CERTAIN: f32 = 60.0;

/// The logits of a model that knows the next token of a window.
pub(in crate::task) fn certain(window: &Window, position: usize, width: usize) -> Vec<f32> {
    let mut logits = vec![0.0; width];
    if let Some(next) = window.tokens.get(position + 1) {
        logits[*next as usize] = CERTAIN;
    }
    logits
}

fn largest(windows: &[Vec<Position>], of: fn(&Position) -> f64) -> f64 {
    windows.iter().flatten().map(of).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits that are given.
    struct Given {
        vocabulary: usize,
        logits: Vec<Vec<f32>>,
    }

    impl Rows for Given {
        fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
            out.clear();
            out.extend_from_slice(&self.logits[window][positions.start * self.vocabulary..positions.end * self.vocabulary]);
            Ok(self.vocabulary)
        }
    }

    const VOCABULARY: usize = 37;

    fn windows() -> Vec<Window> {
        let window = |seed: u32, length: u32| Window {
            tokens: (0..length).map(|i| (i * 7 + seed * 5) % VOCABULARY as u32).collect(),
            scored: seed as usize % 3..length as usize - 1,
        };
        vec![window(0, 600), window(1, 9), window(2, 30)]
    }

    fn given(factor: f32) -> Given {
        let value = |w: usize, i: usize| ((w * 31 + i * 7919) % 1009) as f32 * 0.006 * factor - 2.0;
        let logits = |w: usize, length: usize| (0..length * VOCABULARY).map(|i| value(w, i)).collect();
        let logits = windows().iter().enumerate().map(|(w, window)| logits(w, window.tokens.len())).collect();
        Given { vocabulary: VOCABULARY, logits }
    }

    fn softmax(row: &[f32]) -> Vec<f64> {
        let all: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        row.iter().map(|x| f64::from(*x).exp() / all).collect()
    }

    /// `exp` in f32 is good to a few units in the seventh place.
    const CLOSE: f64 = 1e-6;

    #[test]
    fn measurements_follow_their_definitions() {
        let windows = windows();
        let (mut base, mut model) = (given(1.0), given(0.9));
        let measured = compare(&windows, &mut base, &mut model, None, &|_, _| {}).unwrap();
        let (mut losses, mut kls, mut same) = (0.0, 0.0, 0.0);
        for (w, window) in windows.iter().enumerate() {
            for at in window.scored.clone() {
                let row = at * VOCABULARY..(at + 1) * VOCABULARY;
                let (b, m) = (&base.logits[w][row.clone()], &model.logits[w][row]);
                let (p, q) = (softmax(b), softmax(m));
                losses -= q[window.tokens[at + 1] as usize].ln();
                kls += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                same += f64::from(u8::from(likeliest(b) == likeliest(m)));
            }
        }
        let tokens = measured.tokens as f64;
        assert_eq!(measured.tokens, 599 + 7 + 27);
        assert!((measured.perplexity.value.ln() - losses / tokens).abs() < CLOSE);
        let against = measured.against_base.unwrap();
        assert!((against.kl_mean.value - kls / tokens).abs() < CLOSE, "{} {}", against.kl_mean.value, kls / tokens);
        assert!((against.top1_agreement.value - same / tokens).abs() < CLOSE);
        let ratio = measured.perplexity.value / against.perplexity.value;
        assert!((against.perplexity_ratio.value / ratio - 1.0).abs() < CLOSE);
    }

    #[test]
    fn a_model_is_no_distance_from_itself() {
        let measured = compare(&windows(), &mut given(1.0), &mut given(1.0), Some(&mut given(1.0)), &|_, _| {}).unwrap();
        let against = measured.against_base.unwrap();
        assert_eq!([against.kl_mean.value, against.kl_p99.value, against.perplexity_ratio.value], [0.0, 0.0, 1.0]);
        assert_eq!(against.perplexity_ratio.standard_error, Some(0.0));
        assert_eq!(against.top1_agreement.value, 1.0);
        let agreement = measured.agreement.unwrap();
        assert_eq!([agreement.perplexity_gap, agreement.max_logit_difference, agreement.relative], [0.0; 3]);
    }

    #[test]
    fn thread_counts_change_no_bit() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let one = || compare(&windows(), &mut given(1.0), &mut given(0.8), Some(&mut given(0.7)), &|_, _| {}).unwrap();
            serde_json::to_string(&pool.install(one)).unwrap()
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error_on_every_side() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (side, whose) in SIDES.into_iter().enumerate() {
                let mut sides = [given(1.0), given(1.0), given(1.0)];
                sides[side].logits[1][3 * VOCABULARY + 5] = bad;
                let [model, base, sibling] = &mut sides;
                let error = compare(&windows(), base, model, Some(sibling), &|_, _| {}).unwrap_err();
                assert_eq!(error.to_string(), format!("the output of {whose} is {bad} at token 3 of text window 1"));
            }
        }
    }

    #[test]
    fn vocabularies_that_differ_are_an_error() {
        let mut other = Given { vocabulary: 5, logits: vec![vec![0.0; 5 * 600]; 3] };
        let error = compare(&windows(), &mut other, &mut given(1.0), None, &|_, _| {}).unwrap_err();
        assert_eq!(error.to_string(), "one model has 37 logits per token, the other 5");
        assert!(matches!(alone(&windows(), &mut other, None, &|_, _| {}), Err(Error::Token { vocabulary: 5, .. })));
    }
}
