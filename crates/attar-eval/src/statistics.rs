//! Means and percentiles of tokens, with standard errors over windows: tokens of one window are not independent.

use serde::{Deserialize, Deserializer, Serialize};

/// A number and its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The measured value.
    #[serde(deserialize_with = "number")]
    pub value: f64,
    /// Its standard error over windows; unknown with fewer than 2.
    pub standard_error: Option<f64>,
}

/// A number, where JSON may have `null` for what is not a number.
pub(crate) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The standard normal distribution's quantile, to four digits.
pub(crate) fn normal_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal(middle) < share { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// Its cumulative distribution (Abramowitz & Stegun 1964, 26.2.17), to seven digits.
fn normal(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - normal(-x);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let terms = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_53];
    let sum = terms.iter().fold(0.0, |sum, term| (sum + term) * t);
    1.0 - (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// Resamples of the bootstrap (Efron 1979).
const RESAMPLES: usize = 200;

/// Where the bootstrap's random numbers start: the same measurement has the same standard error.
const SEED: u64 = 0x61_74_74_61_72;

impl Estimate {
    /// `e` to the value, by the delta method.
    pub(crate) fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate { value, standard_error: self.standard_error.map(|error| value * error) }
    }

    /// The mean of estimates that are independent of each other, all of the same weight.
    pub(crate) fn mean_of(all: &[Estimate]) -> Estimate {
        let count = all.len() as f64;
        let variance = all.iter().map(|one| one.standard_error.map(|error| error * error)).sum::<Option<f64>>();
        Estimate {
            value: all.iter().map(|one| one.value).sum::<f64>() / count,
            standard_error: variance.map(|variance| variance.sqrt() / count),
        }
    }

    /// The geometric mean of such, by the delta method.
    pub(crate) fn geometric_mean(all: &[Estimate]) -> Estimate {
        let log = |one: &Estimate| Estimate {
            value: one.value.ln(),
            standard_error: one.standard_error.map(|error| error / one.value),
        };
        Estimate::mean_of(&all.iter().map(log).collect::<Vec<_>>()).exp()
    }

    /// The mean of all tokens. A ratio estimator: windows may differ in length.
    pub(crate) fn mean(windows: &[Vec<f64>]) -> Estimate {
        let sums: Vec<f64> = windows.iter().map(|tokens| tokens.iter().sum()).collect();
        let total: f64 = windows.iter().map(|tokens| tokens.len() as f64).sum();
        let value = sums.iter().sum::<f64>() / total;
        let residuals = sums.iter().zip(windows).map(|(sum, tokens)| (sum - value * tokens.len() as f64).powi(2));
        let count = windows.len() as f64;
        let variance = residuals.sum::<f64>() / (total * total) * count / (count - 1.0);
        Estimate { value, standard_error: (windows.len() > 1).then(|| variance.sqrt()) }
    }

    /// The percentile `share` of all tokens; its standard error by resampling windows.
    pub(crate) fn percentile(windows: &[Vec<f64>], share: f64) -> Estimate {
        let mut descending: Vec<(f64, usize)> =
            windows.iter().enumerate().flat_map(|(at, tokens)| tokens.iter().map(move |x| (*x, at))).collect();
        if descending.iter().any(|(x, _)| x.is_nan()) {
            return Estimate { value: f64::NAN, standard_error: None };
        }
        descending.sort_by(|a, b| b.0.total_cmp(&a.0));
        let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
        let value = weighted_percentile(&descending, &lengths, &vec![1; windows.len()], share);
        let standard_error = (windows.len() > 1).then(|| bootstrap(&descending, &lengths, share));
        Estimate { value, standard_error }
    }
}

/// The percentile where window `i` counts `times[i]` times. Between two tokens, it is interpolated.
fn weighted_percentile(descending: &[(f64, usize)], lengths: &[usize], times: &[usize], share: f64) -> f64 {
    let total: usize = lengths.iter().zip(times).map(|(length, times)| length * times).sum();
    let place = (1.0 - share) * (total - 1) as f64;
    let (above, below) = (place.floor() as usize, place.ceil() as usize);
    let mut passed = 0;
    let mut upper = f64::NAN;
    for (x, window) in descending {
        passed += times[*window];
        if upper.is_nan() && passed > above {
            upper = *x;
        }
        if passed > below {
            return upper + (x - upper) * place.fract();
        }
    }
    upper
}

fn bootstrap(descending: &[(f64, usize)], lengths: &[usize], share: f64) -> f64 {
    let mut random = SplitMix(SEED);
    let mut times = vec![0; lengths.len()];
    let drawn: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            times.fill(0);
            (0..lengths.len()).for_each(|_| times[random.below(lengths.len())] += 1);
            weighted_percentile(descending, lengths, &times, share)
        })
        .collect();
    deviation(&drawn)
}

/// The standard error of a statistic of independent samples, by resampling them.
pub(crate) fn bootstrap_of<T: Copy>(samples: &[T], statistic: impl Fn(&[T]) -> f64) -> f64 {
    let mut random = SplitMix(SEED);
    let resample = |_| {
        let drawn: Vec<T> = samples.iter().map(|_| samples[random.below(samples.len())]).collect();
        statistic(&drawn)
    };
    // A resample may be without any variation, and then has no correlation.
    deviation(&(0..RESAMPLES).map(resample).filter(|x| x.is_finite()).collect::<Vec<f64>>())
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)).sqrt()
}

/// SplitMix64 (Steele, Lea & Flood 2014).
pub(crate) struct SplitMix(u64);

impl SplitMix {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> SplitMix {
        SplitMix(seed)
    }

    /// From 0 up to, and without, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of a few dozen numbers in f64.
    const ROUNDING: f64 = 1e-12;

    #[test]
    fn equal_windows_have_the_textbook_standard_error() {
        let windows = [vec![1.0, 3.0], vec![3.0, 5.0], vec![4.0, 8.0]];
        let estimate = Estimate::mean(&windows);
        let (mean, deviation) = (4.0, (((2.0f64 - 4.0).powi(2) + 0.0 + 4.0) / 2.0).sqrt());
        assert!((estimate.value - mean).abs() < ROUNDING);
        assert!((estimate.standard_error.unwrap() - deviation / 3f64.sqrt()).abs() < ROUNDING);
    }

    #[test]
    fn tokens_weigh_the_same_in_windows_of_any_length() {
        assert_eq!(Estimate::mean(&[vec![1.0; 6], vec![4.0; 3]]).value, 2.0);
    }

    #[test]
    fn one_window_has_no_standard_error() {
        assert_eq!(Estimate::mean(&[vec![1.0, 2.0]]).standard_error, None);
        assert_eq!(Estimate::percentile(&[vec![1.0, 2.0]], 0.99).standard_error, None);
    }

    #[test]
    fn the_percentile_is_that_of_numpy() {
        let windows: Vec<Vec<f64>> = (0..7).map(|w| (0..29).map(|i| f64::from((w * 29 + i) * 7919 % 203)).collect()).collect();
        let estimate = Estimate::percentile(&windows, 0.99);
        assert!((estimate.value - 0.99 * 202.0).abs() < 1e-9, "{estimate:?}");
        let error = estimate.standard_error.unwrap();
        assert!(error > 0.0 && error < 20.0, "{error}");
        assert_eq!(Estimate::percentile(&windows, 0.99), estimate, "seeded");
    }

    /// scipy.stats.norm.ppf
    #[test]
    fn quantiles_are_those_of_scipy() {
        for (share, expected) in [(0.5, 0.0), (0.9, 1.281_551_6), (0.95, 1.644_853_6), (0.975, 1.959_964), (0.999, 3.090_232_3)] {
            assert!((normal_quantile(share) - expected).abs() < 1e-4, "{share}: {}", normal_quantile(share));
        }
    }

    #[test]
    fn what_is_not_a_number_stays_none() {
        let estimate = Estimate::percentile(&[vec![1.0; 300], vec![f64::NAN]], 0.5);
        assert!(estimate.value.is_nan());
        let again: Estimate = serde_json::from_str(&serde_json::to_string(&estimate).unwrap()).unwrap();
        assert!(again.value.is_nan());
    }
}
