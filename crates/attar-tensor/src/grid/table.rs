//! Values that a table lists: `value = table[code] * scale`.
//!
//! A grid of floats, or any other that is not evenly spaced, has one table for all tensors; a grid that *learns* its table
//! has one for every group, row or tensor, in [`Fit::table`], ascending.

use std::sync::OnceLock;

use super::{Fit, Grid, Inverse, Levels, Requires, Scales};
use crate::{Minifloat, ScaleFormat};

/// Partial sums: as many as the widest vector has lanes, so that every machine adds in the same order.
const LANES: usize = 16;

/// The most values that are compared one by one. Larger tables are those of floats, whose codes can be computed.
const SMALL: usize = 16;

/// A grid with a table.
pub(crate) struct Table {
    name: &'static str,
    bits: u32,
    /// By code; NaN where a code means no number. Of a grid that learns, those it starts from.
    values: &'static [f32],
    requires: Requires,
    learned: bool,
    /// The format that the codes are of, and the value that the extreme of a group becomes.
    float: Option<(Minifloat, f32)>,
    sorted: OnceLock<Sorted>,
}

impl Table {
    /// `values` by code, the same for all tensors.
    pub(crate) const fn new(name: &'static str, bits: u32, values: &'static [f32]) -> Table {
        Table::with(name, bits, values, None, Scales::Any, false)
    }

    /// Every group, row or tensor has its own values; `start` is evenly spaced.
    pub(crate) const fn learned(name: &'static str, bits: u32, start: &'static [f32]) -> Table {
        Table::with(name, bits, start, None, Scales::Plain, true)
    }

    /// Groups of `group` values, whose scales are stored as `scale`.
    pub(crate) const fn of_groups(
        name: &'static str,
        bits: u32,
        values: &'static [f32],
        group: usize,
        scale: ScaleFormat,
    ) -> Table {
        Table::with(name, bits, values, Some(group), Scales::Exactly(scale), false)
    }

    /// Floats of 8 bits. Groups reach to `reach`, and no farther: a scale must not become too small for its own format.
    pub(crate) const fn of_floats(name: &'static str, values: &'static [f32; 256], float: Minifloat, reach: f32) -> Table {
        let requires = Requires { group: None, scale: Scales::Any, symmetric: true };
        Table { name, bits: 8, values, requires, learned: false, float: Some((float, reach)), sorted: OnceLock::new() }
    }

    const fn with(
        name: &'static str,
        bits: u32,
        values: &'static [f32],
        group: Option<usize>,
        scale: Scales,
        learned: bool,
    ) -> Table {
        let requires = Requires { group, scale, symmetric: true };
        Table { name, bits, values, requires, learned, float: None, sorted: OnceLock::new() }
    }

    fn float_error(&self, float: Minifloat, values: &[f32], scale: f32) -> f32 {
        let inverse = Inverse::of(scale);
        let mut sums = [0.0f32; LANES];
        for (at, value) in values.iter().enumerate() {
            let difference = value - self.values[usize::from(float_code(float, inverse.times(*value)))] * scale;
            sums[at % LANES] += difference * difference;
        }
        sums.iter().sum()
    }

    fn sorted(&self) -> &Sorted {
        self.sorted.get_or_init(|| Sorted::of(self.values))
    }

    /// Calls `with` with the table that `fit` is about.
    #[inline(always)]
    fn look<T>(&self, fit: Fit<'_>, with: impl FnOnce(&Sorted) -> T) -> T {
        if self.learned { with(&Sorted::of(fit.table)) } else { with(self.sorted()) }
    }
}

/// The distinct values of a table in ascending order.
struct Sorted {
    values: Vec<f32>,
    codes: Vec<u8>,
    /// What a value must exceed to be the next one. Halves go to the even code.
    thresholds: Vec<f32>,
    /// The largest magnitudes below and above zero.
    reach: [f32; 2],
}

impl Sorted {
    fn of(table: &[f32]) -> Sorted {
        let mut all: Vec<(f32, u8)> =
            table.iter().zip(0..=u8::MAX).map(|(v, c)| (*v, c)).filter(|(v, _)| v.is_finite()).collect();
        all.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("no NaN is left").then(a.1.cmp(&b.1)));
        all.dedup_by(|later, first| later.0 == first.0);
        let threshold = |pair: &[(f32, u8)]| {
            let middle = pair[0].0 + (pair[1].0 - pair[0].0) / 2.0;
            if pair[0].1 & 1 == 0 { middle } else { middle.next_down() }
        };
        let (low, high) = (all.first().map_or(0.0, |a| a.0), all.last().map_or(0.0, |a| a.0));
        Sorted {
            thresholds: all.windows(2).map(threshold).collect(),
            reach: [-low.min(0.0), high.max(0.0)],
            values: all.iter().map(|(value, _)| *value).collect(),
            codes: all.iter().map(|(_, code)| *code).collect(),
        }
    }

    #[inline(always)]
    fn encode_all(&self, values: &[f32], scale: f32, codes: &mut [u8]) {
        let inverse = Inverse::of(scale);
        for (codes, values) in codes.chunks_mut(LANES).zip(values.chunks(LANES)) {
            let (mut scaled, mut ranks) = ([0.0f32; LANES], [0u32; LANES]);
            scaled.iter_mut().zip(values).for_each(|(scaled, value)| *scaled = inverse.times(*value));
            for threshold in &self.thresholds {
                for (rank, value) in ranks.iter_mut().zip(&scaled) {
                    *rank += u32::from(value > threshold);
                }
            }
            codes.iter_mut().zip(ranks).for_each(|(code, rank)| *code = self.codes[rank as usize]);
        }
    }

    #[inline(always)]
    fn error_all(&self, values: &[f32], scale: f32) -> f32 {
        let mut sums = [0.0f32; LANES];
        let mut points = [0.0f32; SMALL];
        points.iter_mut().zip(&self.values).for_each(|(point, value)| *point = value * scale);
        let points = &points[..self.values.len()];
        for chunk in values.chunks(LANES) {
            // What is missing in the last chunk is a value of the grid.
            let (mut whole, mut least) = ([points[0]; LANES], [f32::INFINITY; LANES]);
            whole[..chunk.len()].copy_from_slice(chunk);
            for point in points {
                for (least, value) in least.iter_mut().zip(&whole) {
                    let difference = value - point;
                    let square = difference * difference;
                    *least = if square < *least { square } else { *least };
                }
            }
            sums.iter_mut().zip(least).for_each(|(sum, least)| *sum += least);
        }
        sums.iter().sum()
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn encode_avx2(&self, values: &[f32], scale: f32, codes: &mut [u8]) {
        self.encode_all(values, scale, codes);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn error_avx2(&self, values: &[f32], scale: f32) -> f32 {
        self.error_all(values, scale)
    }
}

impl Grid for Table {
    fn name(&self) -> &'static str {
        self.name
    }

    fn bits(&self) -> u32 {
        self.bits
    }

    fn middle(&self) -> u8 {
        self.values.iter().position(|value| *value == 0.0).unwrap_or(0) as u8
    }

    fn levels(&self) -> Levels {
        if self.learned { Levels::Learned } else { Levels::Table(self.values) }
    }

    fn requires(&self) -> Requires {
        self.requires
    }

    /// A grid that reaches farther below zero than above gets the sign under which the extreme value is reached.
    fn cover(&self, low: f32, high: f32, _: bool) -> Fit<'static> {
        let extreme = if high > -low { high } else { low };
        let [below, above] = self.sorted().reach;
        let scale = match () {
            _ if self.requires.scale == Scales::Exactly(ScaleFormat::E8m0) => microscaling(extreme.abs(), above),
            _ if below > above => -extreme / below,
            _ => extreme.abs() / self.float.map_or(above, |(_, reach)| reach),
        };
        Fit { scale, zero: self.middle(), table: if self.learned { self.values } else { &[] } }
    }

    fn signs(&self) -> &'static [f32] {
        let mirrored = |value: &f32| value.is_nan() || self.values.contains(&-value);
        if self.learned || self.values.iter().all(mirrored) { &[1.0] } else { &[1.0, -1.0] }
    }

    fn encode(&self, values: &[f32], fit: Fit<'_>, codes: &mut [u8]) {
        debug_assert_eq!(values.len(), codes.len());
        if let ([value], [code], true) = (values, &mut *codes, self.learned) {
            *code = nearest(*value, fit);
            return;
        }
        if let Some((float, _)) = self.float {
            let inverse = Inverse::of(fit.scale);
            codes.iter_mut().zip(values).for_each(|(code, value)| *code = float_code(float, inverse.times(*value)));
            return;
        }
        self.look(fit, |sorted| {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                return unsafe { sorted.encode_avx2(values, fit.scale, codes) };
            }
            sorted.encode_all(values, fit.scale, codes);
        });
    }

    fn decode(&self, codes: &[u8], fit: Fit<'_>, values: &mut [f32]) {
        debug_assert_eq!(values.len(), codes.len());
        let table = if self.learned { fit.table } else { self.values };
        for (value, code) in values.iter_mut().zip(codes) {
            *value = table[usize::from(*code)] * fit.scale;
        }
    }

    fn error(&self, values: &[f32], fit: Fit<'_>) -> f32 {
        if let Some((float, _)) = self.float {
            return self.float_error(float, values, fit.scale);
        }
        self.look(fit, |sorted| {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                return unsafe { sorted.error_avx2(values, fit.scale) };
            }
            sorted.error_all(values, fit.scale)
        })
    }
}

/// The nearest code; zero has one.
#[inline(always)]
fn float_code(float: Minifloat, value: f32) -> u8 {
    match float.nearest(value) {
        0x80 => 0,
        code => code,
    }
}

/// The code of one value, without looking at the whole table first.
fn nearest(value: f32, fit: Fit<'_>) -> u8 {
    let distance = |code: usize| (value - fit.table[code] * fit.scale).abs();
    let mut best = 0;
    for code in 1..fit.table.len() {
        let (new, old) = (distance(code), distance(best));
        if new < old || new == old && code & 1 == 0 && fit.table[code] != fit.table[best] {
            best = code;
        }
    }
    best as u8
}

/// `2^(floor(log2 |extreme|) - floor(log2 reach))`: section 6.3 of the OCP Microscaling Formats specification 1.0.
fn microscaling(extreme: f32, reach: f32) -> f32 {
    let exponent = |value: f32| (value.to_bits() >> 23) as i32 - 127;
    let wanted = exponent(extreme) - exponent(reach);
    if extreme == 0.0 { 0.0 } else { f32::from_bits(((wanted + 127).max(1) as u32) << 23) }
}
