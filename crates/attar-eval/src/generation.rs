//! How a text is continued: greedily, or by seeded sampling.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    runner::{all_finite, likeliest},
    statistics::SplitMix,
};

/// How a text is continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Tokens at most.
    pub limit: usize,
    /// Tokens that end it.
    pub stop: Vec<u32>,
    /// How a token is drawn; the likeliest is taken, if not given.
    pub sampling: Option<Sampling>,
}

impl Generation {
    /// Always the likeliest token.
    pub fn greedy(limit: usize, stop: &[u32]) -> Generation {
        Generation { limit, stop: stop.to_vec(), sampling: None }
    }

    /// Whether a token is the last of a continuation that has `tokens` with it.
    pub(crate) fn ends(&self, token: u32, tokens: usize) -> bool {
        self.stop.contains(&token) || tokens >= self.limit
    }
}

/// How a token is drawn: of the likeliest `top_k`, of those the fewest that together have `top_p` of the probability at
/// `temperature` (Holtzman et al. 2020).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides logits; more is more even.
    pub temperature: f64,
    /// Tokens to draw from at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// The share of the probability to draw from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Where the random numbers start.
    #[serde(default)]
    pub seed: u64,
}

/// Draws the tokens of one continuation.
pub(crate) struct Chooser<'g> {
    how: &'g Generation,
    random: SplitMix,
}

impl<'g> Chooser<'g> {
    /// For continuation number `at`, which has random numbers of its own.
    pub(crate) fn new(how: &'g Generation, at: usize) -> Chooser<'g> {
        let seed = how.sampling.as_ref().map_or(0, |sampling| sampling.seed);
        Chooser { how, random: SplitMix::new(seed.wrapping_add((at as u64).wrapping_mul(STRIDE))) }
    }

    /// The token after `tokens` others, whose logits are `row`.
    pub(crate) fn choose(&mut self, row: &[f32], tokens: usize) -> Result<u32> {
        if !all_finite(row) {
            return Err(Error::NoChoice { tokens });
        }
        Ok(match &self.how.sampling {
            None => likeliest(row),
            Some(sampling) => draw(row, sampling, self.random.unit()),
        })
    }
}

/// Between the seeds of continuations; odd, so that all differ.
const STRIDE: u64 = 0x2545_f491_4f6c_dd1d;

/// The token at `place` of the distribution, which is between 0 and 1.
fn draw(row: &[f32], sampling: &Sampling, place: f64) -> u32 {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    // Of equals the first, as in greedy decoding.
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    order.truncate(sampling.top_k.unwrap_or(usize::MAX).max(1));
    let top = f64::from(row[order[0] as usize]);
    let mut weights: Vec<f64> =
        order.iter().map(|token| ((f64::from(row[*token as usize]) - top) / sampling.temperature).exp()).collect();
    let nucleus = sampling.top_p.unwrap_or(1.0) * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let kept = weights.iter().position(|weight| {
        sum += weight;
        sum >= nucleus
    });
    weights.truncate(kept.map_or(weights.len(), |last| last + 1));
    let mut left = place * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    order[drawn.unwrap_or(weights.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [f32; 4] = [0.0, 2.0, 1.0, -1.0];

    fn sampling(temperature: f64) -> Sampling {
        Sampling { temperature, top_k: None, top_p: None, seed: 0 }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let how = Generation { sampling: Some(sampling(0.7)), ..Generation::greedy(1, &[]) };
        let mut chooser = Chooser::new(&how, 3);
        let mut counts = [0.0; 4];
        const DRAWS: usize = 20_000;
        (0..DRAWS).for_each(|_| counts[chooser.choose(&ROW, 0).expect("numbers") as usize] += 1.0 / DRAWS as f64);
        let all: f64 = ROW.iter().map(|x| (f64::from(*x) / 0.7).exp()).sum();
        for (count, x) in counts.iter().zip(ROW) {
            let expected = (f64::from(x) / 0.7).exp() / all;
            // Four standard errors.
            assert!((count - expected).abs() < 4.0 * (expected * (1.0 - expected) / DRAWS as f64).sqrt(), "{count} {expected}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        for place in [0.0, 0.5, 0.999_999] {
            assert_eq!(draw(&ROW, &Sampling { top_k: Some(1), ..sampling(1.0) }, place), 1);
            assert_eq!(draw(&ROW, &Sampling { top_p: Some(0.5), ..sampling(1.0) }, place), 1);
            assert_eq!(draw(&ROW, &Sampling { top_k: Some(0), ..sampling(1.0) }, place), 1);
        }
        let two = Sampling { top_p: Some(0.8), ..sampling(1.0) };
        assert_eq!([draw(&ROW, &two, 0.0), draw(&ROW, &two, 0.999_999)], [1, 2]);
    }

    #[test]
    fn a_seed_says_what_is_drawn() {
        let drawn = |seed, at| {
            let how = Generation { sampling: Some(Sampling { seed, ..sampling(5.0) }), ..Generation::greedy(1, &[]) };
            let mut chooser = Chooser::new(&how, at);
            (0..30).map(|n| chooser.choose(&ROW, n).expect("numbers")).collect::<Vec<u32>>()
        };
        assert_eq!(drawn(7, 2), drawn(7, 2));
        assert!(drawn(7, 2) != drawn(7, 3) && drawn(7, 2) != drawn(8, 2));
    }

    #[test]
    fn what_is_no_number_is_no_choice() {
        let how = Generation::greedy(1, &[]);
        assert!(matches!(Chooser::new(&how, 0).choose(&[0.0, f32::NAN], 5), Err(Error::NoChoice { tokens: 5 })));
    }
}
