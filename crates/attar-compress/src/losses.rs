//! What quantization lost, row by row and group by group: a row whose numbers are all gone must not hide behind the others.
//!
//! It is measured on what was written, with nothing of the algorithm that wrote it.

use std::{fmt, ops::Range};

use attar_tensor::{Damage, QuantizedTensor, Source};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Result, WeightRows};

/// Worst rows that are told one by one.
const WORST: usize = 3;

/// Lost rows and groups that are told one by one.
const FIRST: usize = 10;

/// Signal-to-noise ratio in decibels below which a scale that its format hardly holds has lost its precision.
const COARSE_DB: f64 = 10.0;

/// Weights in memory at a time: 1 MiB of f32, and as much decoded. Larger pieces leave the cache.
const PIECE: usize = 1 << 18;

/// What a quantized weight lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// The rows of least signal-to-noise ratio, the worst first, three at most. Rows of zeros and exact ones are left out.
    pub worst: Vec<RowLoss>,
    /// How many rows or groups of weights that are not all zero are lost; the groups of a lost row do not count.
    pub lost: usize,
    /// The first ten of these.
    pub first: Vec<Lost>,
}

/// How well a row is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowLoss {
    /// The row.
    pub row: usize,
    /// Its signal-to-noise ratio in decibels.
    pub snr_db: f64,
}

/// A lost row or group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// The row.
    pub row: usize,
    /// The group of the row; absent where the whole row is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Its columns.
    pub columns: Range<usize>,
    /// What became of it.
    pub became: Became,
}

/// What became of weights that are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// All of them are zero.
    Zeros,
    /// All of them are one number, which keeps less than half of their energy.
    Constant,
    /// Their scale has fewer than three significant bits in its format, and noise is a tenth of them or more.
    Coarse,
}

impl fmt::Display for Became {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Became::Zeros => "became zeros",
            Became::Constant => "became a single value",
            Became::Coarse => "have a scale without precision",
        })
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            None => write!(f, "row {}", self.row),
            Some(group) => write!(f, "row {}, group {group} (columns {:?})", self.row, self.columns),
        }
    }
}

impl Losses {
    /// Of `weights` that are stored in `codes` under `name`.
    pub fn measure(weights: &dyn WeightRows, codes: &dyn Source, name: &str) -> Result<Losses> {
        let [rows, columns] = weights.dims();
        let step = (PIECE / columns.max(1)).clamp(1, rows.max(1));
        let mut losses = Losses::default();
        let (mut original, mut decoded) = (vec![0.0; step * columns], vec![0.0; step * columns]);
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let (original, decoded) = (&mut original[..count * columns], &mut decoded[..count * columns]);
            weights.read(first..first + count, original)?;
            let quantized = codes.read_quantized(name, first..first + count)?;
            quantized.decode(decoded);
            losses.add(first, original, decoded, &quantized);
        }
        Ok(losses)
    }

    fn add(&mut self, first: usize, original: &[f32], decoded: &[f32], quantized: &QuantizedTensor) {
        let columns = quantized.dims[1].max(1);
        let rows = original.par_chunks(columns).zip(decoded.par_chunks(columns)).enumerate();
        let rows = rows.map(|(at, (original, decoded))| {
            let row = Row { number: first + at, at, original, decoded, quantized };
            (Damage::between(original, decoded), row.lost())
        });
        for (at, (damage, lost)) in rows.collect::<Vec<_>>().into_iter().enumerate() {
            self.lost += lost.len();
            self.first.extend(lost.into_iter().take(FIRST.saturating_sub(self.first.len())));
            if damage.energy > 0.0 && damage.squared_error > 0.0 {
                self.worst.push(RowLoss { row: first + at, snr_db: damage.snr_db() });
            }
        }
        self.worst.sort_by(|a, b| a.snr_db.total_cmp(&b.snr_db));
        self.worst.truncate(WORST);
    }
}

/// A row, before and after.
struct Row<'a> {
    number: usize,
    /// Among those of `quantized`.
    at: usize,
    original: &'a [f32],
    decoded: &'a [f32],
    quantized: &'a QuantizedTensor,
}

impl Row<'_> {
    /// The row, if all of it is lost, or else the groups that are.
    fn lost(&self) -> Vec<Lost> {
        let size = self.quantized.scheme.group(self.original.len()).max(1);
        let parts = self.original.chunks(size).zip(self.decoded.chunks(size)).enumerate();
        let groups: Vec<Lost> = parts
            .filter_map(|(group, (original, decoded))| {
                let became = became(original, decoded, self.is_coarse(group))?;
                let columns = group * size..group * size + original.len();
                Some(Lost { row: self.number, group: Some(group), columns, became })
            })
            .collect();
        match became(self.original, self.decoded, false) {
            Some(became) => vec![Lost { row: self.number, group: None, columns: 0..self.original.len(), became }],
            None => groups,
        }
    }

    /// Whether the scale of a group, or the super scale above it, is stored in fewer than three significant bits.
    fn is_coarse(&self, group: usize) -> bool {
        let scheme = &self.quantized.scheme;
        let table_has_scales = scheme.entries() > 1;
        let stored = match scheme.scale.supers() {
            Some(_) => self.quantized.super_of(self.at),
            None => self.quantized.fit(self.at, group).scale,
        };
        !table_has_scales && scheme.scale.is_coarse(stored)
    }
}

/// What became of weights, if they are lost.
fn became(original: &[f32], decoded: &[f32], coarse: bool) -> Option<Became> {
    let constant = |values: &[f32]| values.iter().all(|value| *value == values[0]);
    let one_value = constant(decoded);
    if !(one_value || coarse) || original.iter().all(|w| *w == 0.0) {
        return None;
    }
    let damage = Damage::between(original, decoded);
    match () {
        () if one_value && decoded.first() == Some(&0.0) => Some(Became::Zeros),
        () if one_value && damage.squared_error > damage.energy / 2.0 && !constant(original) => Some(Became::Constant),
        () if coarse && damage.snr_db() < COARSE_DB => Some(Became::Coarse),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_became_zeros_are_lost_and_zeros_are_not() {
        assert_eq!(became(&[0.0, 1e-30], &[0.0, -0.0], false), Some(Became::Zeros));
        assert_eq!(became(&[0.0, 0.0], &[0.0, 0.0], true), None);
        assert_eq!(became(&[1.0, 0.0], &[1.0, 0.0], false), None);
    }

    #[test]
    fn one_value_is_a_loss_where_the_weights_are_far_from_it() {
        assert_eq!(became(&[1.0, -1.0, 1.0], &[0.5, 0.5, 0.5], false), Some(Became::Constant));
        assert_eq!(became(&[1.0, 1.1, 0.9], &[1.0, 1.0, 1.0], false), None);
        assert_eq!(became(&[0.4, 0.4], &[1.0, 1.0], false), None);
    }

    #[test]
    fn a_coarse_scale_is_a_loss_where_it_makes_noise() {
        assert_eq!(became(&[1.0, -2.0], &[1.5, -1.0], true), Some(Became::Coarse));
        assert_eq!(became(&[1.0, -2.0], &[1.0, -2.0], true), None);
        assert_eq!(became(&[1.0, -2.0], &[1.5, -1.0], false), None);
    }
}
