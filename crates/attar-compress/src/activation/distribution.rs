//! How often which values were seen.
//!
//! Values are counted in bins of f32s that agree in sign, exponent and 11 bits of mantissa: fine against the steps of any
//! code, whatever the range, and integers, so that the order of adding does not matter. The outermost bins stand for
//! the least and the greatest value exactly.

/// Low bits of an f32 that a bin does not look at.
const DROPPED: u32 = 12;

/// Values and how often each was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Ascending.
    values: Vec<f32>,
    counts: Vec<u64>,
}

/// A [`Distribution`] that is being counted.
pub struct Counts {
    bins: Vec<u64>,
    least: f32,
    greatest: f32,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts { bins: vec![0; 1 << (32 - DROPPED)], least: f32::INFINITY, greatest: f32::NEG_INFINITY }
    }
}

impl Counts {
    /// Bytes that one takes.
    pub const BYTES: u64 = 8 << (32 - DROPPED);

    /// Adds values, all of them finite.
    pub fn add(&mut self, values: &[f32]) {
        for value in values {
            self.bins[bin(*value)] += 1;
            self.least = self.least.min(*value);
            self.greatest = self.greatest.max(*value);
        }
    }

    /// What was seen.
    pub fn distribution(&self) -> Distribution {
        let seen = self.bins.iter().enumerate().filter(|(_, count)| **count > 0);
        let (values, counts) = seen.map(|(bin, count)| (middle(bin), *count)).unzip();
        Distribution { values, counts }.between(self.least, self.greatest)
    }
}

impl Distribution {
    /// Of some values, all of them finite.
    pub fn of(mut values: Vec<f32>) -> Distribution {
        values.sort_unstable_by(f32::total_cmp);
        let (Some(least), Some(greatest)) = (values.first().copied(), values.last().copied()) else {
            return Distribution::default();
        };
        let mut seen = Distribution::default();
        for run in values.chunk_by(|a, b| bin(*a) == bin(*b)) {
            seen.values.push(middle(bin(run[0])));
            seen.counts.push(run.len() as u64);
        }
        seen.between(least, greatest)
    }

    /// Ascending; none, if nothing was seen.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// How often each value was seen.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Least and greatest value; zeros, if nothing was seen.
    pub fn bounds(&self) -> [f32; 2] {
        [self.values.first(), self.values.last()].map(|value| value.copied().unwrap_or(0.0))
    }

    /// The least value such that at least that share of all is not greater.
    pub fn quantile(&self, share: f64) -> f32 {
        let all: u64 = self.counts.iter().sum();
        let wanted = share * all as f64;
        let mut seen = 0;
        for (value, count) in self.values.iter().zip(&self.counts) {
            seen += count;
            if seen as f64 >= wanted {
                return *value;
            }
        }
        self.bounds()[1]
    }

    fn between(mut self, least: f32, greatest: f32) -> Distribution {
        self.values.iter_mut().for_each(|value| *value = value.clamp(least, greatest));
        if let [first, .., last] = self.values.as_mut_slice() {
            (*first, *last) = (least, greatest);
        }
        self
    }
}

/// Bits in the order of the values.
fn bin(value: f32) -> usize {
    let bits = value.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (ordered >> DROPPED) as usize
}

/// A value in the middle of a bin.
fn middle(bin: usize) -> f32 {
    let ordered = (bin as u32) << DROPPED | 1 << (DROPPED - 1);
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    let value = f32::from_bits(bits);
    // The two bins around zero hold it; their middles are too small to matter.
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..5000).map(|i| next() * if i % 100 == 0 { 80.0 } else { 1.0 }).chain([0.0, -0.0]).collect()
    }

    #[test]
    fn counting_and_sorting_give_the_same() {
        let mut counts = Counts::default();
        samples().chunks(77).for_each(|part| counts.add(part));
        assert_eq!(counts.distribution(), Distribution::of(samples()));
    }

    #[test]
    fn quantiles_are_those_of_sorted_values() {
        let (mut sorted, seen) = (samples(), Distribution::of(samples()));
        sorted.sort_unstable_by(f32::total_cmp);
        for share in [0.0001, 0.01, 0.5, 0.9, 0.999, 1.0] {
            let wanted = sorted[(share * sorted.len() as f64).ceil() as usize - 1];
            let found = seen.quantile(share);
            assert!((found - wanted).abs() <= wanted.abs() / 2048.0, "{share}: {found}, {wanted}");
        }
        assert_eq!(seen.bounds(), [sorted[0], sorted[sorted.len() - 1]]);
    }

    #[test]
    fn nothing_and_one_value_are_distributions() {
        assert_eq!(Distribution::of(Vec::new()).bounds(), [0.0, 0.0]);
        assert_eq!(Counts::default().distribution().quantile(0.5), 0.0);
        let one = Distribution::of(vec![3.25; 4]);
        assert_eq!((one.counts(), one.quantile(0.5)), ([4].as_slice(), 3.25));
    }
}
