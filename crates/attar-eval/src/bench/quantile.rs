//! Percentiles of samples, with confidence intervals by order statistics.
//!
//! The number of samples below a quantile is binomial whatever their distribution, so two of the sorted samples bound it with a known probability
//! (David & Nagaraja 2003, 7.1). Where there are too few samples for a bound, there is none.

use serde::{Deserialize, Serialize};

/// The probability that an interval holds the quantile, at least.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// Percentiles of times, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Number of samples.
    pub samples: u64,
    /// Half are below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// Nine tenths are below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// 99 of a hundred are below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// Where those lie with 95% confidence; no bound where there are too few samples for one.
    pub intervals: Intervals,
    /// The mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// The smallest sample, those at equal shares of all, and the largest: the distribution as a line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<f64>,
}

/// From and to, by percentile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Of the median.
    pub p50: [Option<f64>; 2],
    /// Of the 90th percentile.
    pub p90: [Option<f64>; 2],
    /// Of the 99th.
    pub p99: [Option<f64>; 2],
}

impl Percentiles {
    /// Of independent samples, which need not be sorted.
    pub fn of(samples: &[f64]) -> Percentiles {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = (!sorted.is_empty()).then(|| sorted.iter().sum::<f64>() / sorted.len() as f64);
        let [p50, p90, p99] = SHARES.map(|share| at(&sorted, share));
        let [of_p50, of_p90, of_p99] = SHARES.map(|share| interval(&sorted, share));
        let intervals = Intervals { p50: of_p50, p90: of_p90, p99: of_p99 };
        let curve = (0..=PIECES).filter_map(|piece| at(&sorted, piece as f64 / PIECES as f64)).collect();
        Percentiles { samples: sorted.len() as u64, p50, p90, p99, intervals, mean, curve }
    }
}

/// Of [`Percentiles::curve`].
const PIECES: usize = 40;

const SHARES: [f64; 3] = [0.5, 0.9, 0.99];

/// The smallest sample that `share` of all are not above: the nearest rank, which is a time that somebody waited.
pub(crate) fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// The samples that bound the quantile, each side with half of what may go wrong.
pub(crate) fn interval(sorted: &[f64], share: f64) -> [Option<f64>; 2] {
    let below = distribution(sorted.len(), share);
    let miss = (1.0 - CONFIDENCE) / 2.0;
    // Sample k (from 1) is above the quantile if fewer than k are below it, and below it if k or more are.
    let lower = below.iter().rposition(|p| *p <= miss).and_then(|k| sorted.get(k)).copied();
    let upper = below.iter().position(|p| *p >= 1.0 - miss).and_then(|k| sorted.get(k)).copied();
    [lower, upper]
}

/// The probability that at most `k` of `count` samples are below the quantile, for each `k` in order.
fn distribution(count: usize, share: f64) -> Vec<f64> {
    let (p, q) = (share.ln(), (1.0 - share).ln());
    let mut choose = 0.0;
    let mut sum = 0.0;
    (0..=count)
        .map(|k| {
            if k > 0 {
                choose += ((count - k + 1) as f64).ln() - (k as f64).ln();
            }
            sum += (choose + k as f64 * p + (count - k) as f64 * q).exp();
            sum
        })
        .collect()
}

/// Samples without which the 99th percentile has no upper bound.
pub(crate) fn enough_for_p99() -> usize {
    ((1.0 - CONFIDENCE) / 2.0).log(0.99).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::SplitMix;

    #[test]
    fn ranks_are_those_of_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let found = Percentiles::of(&samples);
        assert_eq!([found.p50, found.p90, found.p99], [Some(50.0), Some(90.0), Some(99.0)]);
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
        assert_eq!(Percentiles::of(&[3.0]).p99, Some(3.0));
    }

    /// scipy.stats.binom.ppf([.025, .975], 100, .5) is [40, 60], for a median of 100 samples: the 40th and the 61st of them.
    #[test]
    fn intervals_are_those_of_the_binomial_distribution() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(interval(&samples, 0.5), [Some(40.0), Some(61.0)]);
        assert_eq!(interval(&samples, 0.99)[1], None, "a hundred samples may all be below the 99th percentile");
        assert_eq!(enough_for_p99(), 368);
        let many: Vec<f64> = (0..368).map(f64::from).collect();
        assert!(interval(&many, 0.99)[1].is_some() && interval(&many[..367], 0.99)[1].is_none());
    }

    /// Of distributions whose quantiles are known.
    #[test]
    fn intervals_hold_the_quantile_as_often_as_they_say() {
        let exponential = |u: f64| -(1.0 - u).ln();
        let heavy = |u: f64| (1.0 - u).powf(-1.0 / 1.5);
        for of in [exponential, heavy] {
            for share in [0.5, 0.9, 0.99] {
                let mut random = SplitMix::new(7);
                let mut held = 0;
                const ROUNDS: usize = 400;
                for _ in 0..ROUNDS {
                    let mut samples: Vec<f64> = (0..500).map(|_| of(random.unit())).collect();
                    samples.sort_by(f64::total_cmp);
                    let [lower, upper] = interval(&samples, share);
                    let truth = of(share);
                    held += usize::from(lower.is_none_or(|x| x <= truth) && upper.is_none_or(|x| truth <= x));
                }
                // Three standard errors of 400 rounds below 95%.
                assert!(held as f64 / ROUNDS as f64 > CONFIDENCE - 0.033, "{share}: {held} of {ROUNDS}");
            }
        }
    }
}
