//! The distribution of weights: sorted points with running sums, and optimal tables for them.
//!
//! The table of least squared error is found by optimal one-dimensional k-means (dynamic programming over runs of
//! neighbours; the best splits move one way, so each layer is solved in halves) and Lloyd's iteration over all points.

use std::ops::Range;

/// Runs of points that the dynamic programme looks at: so many hold equally many, and so many reach equally far. Fewer
/// points stand alone.
const RUNS: usize = 256;

/// Rounds of Lloyd's iteration at most.
const ROUNDS: usize = 30;

/// Values of one bin of a [`Histogram`] share the upper half of their bits: they differ by less than 1%.
const BINS: usize = 1 << 16;

/// Points in ascending order, as running sums of their mass, moment and second moment.
pub(crate) struct Distribution {
    values: Vec<f64>,
    masses: Vec<f64>,
    sums: Vec<[f64; 3]>,
}

/// Weights by value, while they come in.
pub(crate) struct Histogram(Vec<[f64; 2]>);

impl Histogram {
    pub(crate) fn new() -> Histogram {
        Histogram(vec![[0.0; 2]; BINS])
    }

    /// Values, each as often as its importance, or once.
    pub(crate) fn add(&mut self, values: &[f32], importance: Option<&[f32]>) {
        for (at, value) in values.iter().enumerate() {
            let weight = importance.map_or(1.0, |all| f64::from(all[at]));
            let bits = value.to_bits();
            // Ascending in value: negative numbers grow with smaller bits.
            let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            let [mass, moment] = &mut self.0[(ordered >> 16) as usize];
            *mass += weight;
            *moment += weight * f64::from(*value);
        }
    }

    pub(crate) fn distribution(&self) -> Distribution {
        let filled = self.0.iter().filter(|[mass, _]| *mass > 0.0);
        Distribution::from_sorted(filled.map(|[mass, moment]| (moment / mass, *mass)).collect())
    }
}

impl Distribution {
    /// Of values, each as often as its importance, or once.
    pub(crate) fn of(values: &[f32], importance: Option<&[f32]>) -> Distribution {
        let mass = |at: usize| importance.map_or(1.0, |all| f64::from(all[at]));
        let mut points: Vec<(f64, f64)> = values.iter().enumerate().map(|(at, value)| (f64::from(*value), mass(at))).collect();
        // Where nothing counts, everything counts the same.
        if points.iter().all(|(_, mass)| *mass <= 0.0) {
            points.iter_mut().for_each(|(_, mass)| *mass = 1.0);
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        Distribution::from_sorted(points)
    }

    fn from_sorted(points: Vec<(f64, f64)>) -> Distribution {
        let mut sums = vec![[0.0; 3]];
        for (value, mass) in &points {
            let [s0, s1, s2] = sums[sums.len() - 1];
            sums.push([s0 + mass, s1 + mass * value, s2 + mass * value * value]);
        }
        let (values, masses) = points.into_iter().unzip();
        Distribution { values, masses, sums }
    }

    /// Magnitudes and their masses, the largest first.
    pub(crate) fn magnitudes(self) -> impl Iterator<Item = (f64, f64)> {
        let mut all: Vec<(f64, f64)> = self.values.into_iter().map(f64::abs).zip(self.masses).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)));
        all.into_iter()
    }

    /// The `count` values that lose least, ascending; some are equal where there are fewer points.
    pub(crate) fn table(&self, count: usize) -> Vec<f64> {
        let mut table = self.optimal(count);
        for _ in 0..ROUNDS {
            let cuts = self.cuts(&table);
            let next: Vec<f64> =
                cuts.windows(2).zip(&table).map(|(cut, old)| self.mean(cut[0]..cut[1]).unwrap_or(*old)).collect();
            if next == table {
                break;
            }
            table = next;
        }
        table
    }

    /// Where the points nearest to each value of `table` start, and the end.
    fn cuts(&self, table: &[f64]) -> Vec<usize> {
        let middle = |pair: &[f64]| self.values.partition_point(|value| *value < (pair[0] + pair[1]) / 2.0);
        let inner = table.windows(2).map(middle);
        std::iter::once(0).chain(inner).chain([self.values.len()]).collect()
    }

    fn within(&self, points: Range<usize>) -> [f64; 3] {
        let ([a0, a1, a2], [b0, b1, b2]) = (self.sums[points.start], self.sums[points.end]);
        [b0 - a0, b1 - a1, b2 - a2]
    }

    fn mean(&self, points: Range<usize>) -> Option<f64> {
        let [mass, moment, _] = self.within(points);
        (mass > 0.0).then_some(moment / mass)
    }

    /// Squared error of points that all become their mean.
    fn cost(&self, points: Range<usize>) -> f64 {
        let [mass, moment, second] = self.within(points);
        if mass > 0.0 { (second - moment * moment / mass).max(0.0) } else { 0.0 }
    }

    /// Where runs of points start, and the end.
    fn runs(&self) -> Vec<usize> {
        let points = self.values.len();
        if points <= 2 * RUNS {
            return (0..=points).collect();
        }
        let (low, high) = (self.values[0], self.values[points - 1]);
        let reach = |run: usize| low + (high - low) * run as f64 / RUNS as f64;
        let far = (1..RUNS).map(|run| self.values.partition_point(|value| *value < reach(run)));
        let mut starts: Vec<usize> = (0..=RUNS).map(|run| run * points / RUNS).chain(far).collect();
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    /// The best means of `count` runs of points.
    fn optimal(&self, count: usize) -> Vec<f64> {
        let points = self.values.len();
        let starts = self.runs();
        let runs = starts.len() - 1;
        let mut costs: Vec<f64> = starts.iter().map(|end| self.cost(0..*end)).collect();
        let mut splits: Vec<Vec<usize>> = Vec::new();
        for _ in 1..count {
            let mut layer =
                Layer { of: self, starts: &starts, before: &costs, costs: vec![0.0; runs + 1], splits: vec![0; runs + 1] };
            layer.solve(0..runs + 1, 0..runs + 1);
            let Layer { costs: next, splits: at, .. } = layer;
            costs = next;
            splits.push(at);
        }
        let (mut end, mut cuts) = (runs, vec![points]);
        for split in splits.iter().rev() {
            end = split[end];
            cuts.push(starts[end]);
        }
        cuts.push(0);
        cuts.reverse();
        let last = self.values.last().copied().unwrap_or(0.0);
        let mut table: Vec<f64> = cuts.windows(2).map(|cut| self.mean(cut[0]..cut[1]).unwrap_or(last)).collect();
        table.sort_by(f64::total_cmp);
        table
    }
}

/// One more run: the least cost of the first `end` runs of points, for every `end`.
struct Layer<'a> {
    of: &'a Distribution,
    starts: &'a [usize],
    before: &'a [f64],
    costs: Vec<f64>,
    splits: Vec<usize>,
}

impl Layer<'_> {
    /// For all of `ends`, whose best splits lie in `splits`.
    fn solve(&mut self, ends: Range<usize>, splits: Range<usize>) {
        if ends.is_empty() {
            return;
        }
        let end = ends.start + ends.len() / 2;
        let mut best = (f64::INFINITY, splits.start);
        for split in splits.start..splits.end.min(end + 1) {
            let cost = self.before[split] + self.of.cost(self.starts[split]..self.starts[end]);
            if cost < best.0 {
                best = (cost, split);
            }
        }
        (self.costs[end], self.splits[end]) = best;
        self.solve(ends.start..end, splits.start..best.1 + 1);
        self.solve(end + 1..ends.end, best.1..splits.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: usize) -> Vec<f32> {
        let mut state = 3u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() + next() * next()).collect()
    }

    fn error(values: &[f32], table: &[f64]) -> f64 {
        let nearest = |v: f64| table.iter().map(|t| (t - v) * (t - v)).fold(f64::INFINITY, f64::min);
        values.iter().map(|v| nearest(f64::from(*v))).sum()
    }

    /// Every way to cut eleven points into four runs.
    #[test]
    fn no_other_cut_loses_less() {
        let values = samples(11);
        let of = Distribution::of(&values, None);
        let found = error(&values, &of.table(4));
        let mut least = f64::INFINITY;
        for a in 0..12 {
            for b in a..12 {
                for c in b..12 {
                    least = least.min([0..a, a..b, b..c, c..11].map(|run| of.cost(run)).iter().sum());
                }
            }
        }
        assert!((found - least).abs() <= 1e-12, "{found}, and {least} is possible");
    }

    #[test]
    fn a_histogram_loses_little_more_than_the_values_themselves() {
        let values = samples(20_000);
        let mut histogram = Histogram::new();
        histogram.add(&values, None);
        let [exact, binned] = [Distribution::of(&values, None), histogram.distribution()].map(|d| error(&values, &d.table(8)));
        assert!(binned <= exact * 1.002, "{binned} and {exact}");
    }

    #[test]
    fn fewer_values_than_entries_are_all_kept() {
        let table = Distribution::of(&[0.5, -1.0, 0.5], None).table(8);
        assert_eq!(error(&[0.5, -1.0], &table), 0.0);
        assert!(table.is_sorted() && table.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn what_counts_for_nothing_moves_nothing() {
        let table = Distribution::of(&[1.0, 2.0, 30.0], Some(&[1.0, 1.0, 0.0])).table(2);
        assert_eq!(table[..1], [1.0]);
        assert_eq!(error(&[1.0, 2.0], &table), 0.0);
    }
}
