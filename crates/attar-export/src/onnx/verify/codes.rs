//! Weights in codes: what the codes mean, and tiles of rows decoded to f32.

use std::ops::Range;

use super::{chunks, file::Opened, grid::Grid};
use crate::Result;

/// Bytes of codes, one each, that are in memory at a time.
const TILE: usize = 4 << 20;

/// A weight `[_, columns]` in codes.
pub(super) struct Codes<'f> {
    pub(super) columns: usize,
    pub(super) codes: Grid<'f>,
    pub(super) scale: Scale<'f>,
    pub(super) values: Values<'f>,
    /// Columns that share a scale.
    pub(super) group: usize,
}

/// Scales, and what they are multiplied with.
pub(super) struct Scale<'f> {
    pub(super) grid: Option<Grid<'f>>,
    pub(super) over: Option<Grid<'f>>,
}

/// What codes mean at scale 1.
pub(super) enum Values<'f> {
    /// Their distance from a zero.
    Even(Zero<'f>),
    /// The same for all.
    Table(Vec<f32>),
    /// So many values for each group.
    Tables(Grid<'f>, usize),
}

/// The code that means zero.
pub(super) enum Zero<'f> {
    /// One for all.
    Code(u8),
    /// One for each group.
    Codes(Grid<'f>),
}

/// Some rows of a weight, in memory.
pub(super) struct Tile {
    pub(super) rows: Range<usize>,
    columns: usize,
    group: usize,
    codes: Vec<u8>,
    /// `[columns, rows]` instead of `[rows, columns]`.
    transposed: bool,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    meanings: Meanings,
}

/// What the codes of a tile mean at scale 1.
enum Meanings {
    /// Their distance from the zero of their group.
    Zeros(Vec<u8>),
    /// The same for all.
    Table(Vec<f32>),
    /// So many values for each group.
    Tables(Vec<f32>, usize),
}

impl<'f> Codes<'f> {
    /// Two's complement is read with its sign bit flipped, so that zero is in the middle.
    pub(super) fn normal(mut self) -> Codes<'f> {
        if let (Values::Even(Zero::Code(zero)), true) = (&mut self.values, self.codes.signed) {
            *zero ^= 1 << (self.codes.bits - 1);
        }
        self
    }

    /// How many rows to load at a time.
    pub(super) fn tile_rows(&self) -> usize {
        (TILE / self.columns.max(1)).max(64)
    }

    pub(super) fn load(&self, opened: &Opened, rows: Range<usize>) -> Result<Tile> {
        let groups = self.columns.div_ceil(self.group);
        let count = rows.len();
        let meanings = match &self.values {
            Values::Even(Zero::Code(code)) => Meanings::Zeros(vec![*code; count * groups]),
            Values::Even(Zero::Codes(grid)) => Meanings::Zeros(grid.by_rows(grid.codes(opened, &rows, groups)?, count, groups)),
            Values::Table(table) => Meanings::Table(table.clone()),
            Values::Tables(grid, entries) if grid.stride[0] == 0 => {
                let mut bytes = Vec::new();
                opened.read(grid.place, 0..grid.place.bytes, &mut bytes)?;
                Meanings::Tables(grid.decode(opened, &bytes)?.repeat(count * groups), *entries)
            }
            Values::Tables(grid, entries) => Meanings::Tables(grid.scales(opened, &rows, groups * entries)?, *entries),
        };
        Ok(Tile {
            columns: self.columns,
            group: self.group,
            codes: self.row_codes(opened, &rows, groups)?,
            transposed: self.codes.is_transposed(),
            scales: self.scale.load(opened, &rows, groups)?,
            meanings,
            rows,
        })
    }

    /// Codes of `rows`; what fills the last group of codes that are looked up is left out.
    fn row_codes(&self, opened: &Opened, rows: &Range<usize>, groups: usize) -> Result<Vec<u8>> {
        let held = groups * self.group;
        if self.codes.is_transposed()
            || self.codes.stride[0] != held
            || held == self.columns
            || matches!(self.values, Values::Even(_))
        {
            return self.codes.codes(opened, rows, self.columns);
        }
        let codes = self.codes.codes(opened, rows, held)?;
        Ok(codes.chunks(held).flat_map(|row| &row[..self.columns]).copied().collect())
    }
}

impl Scale<'_> {
    /// `[rows, groups]`.
    fn load(&self, opened: &Opened, rows: &Range<usize>, groups: usize) -> Result<Vec<f32>> {
        let Some(grid) = &self.grid else { return Ok(vec![1.0; rows.len() * groups]) };
        let mut scales = grid.by_rows(grid.scales(opened, rows, groups)?, rows.len(), groups);
        if let Some(over) = &self.over {
            let over = over.by_rows(over.scales(opened, rows, 1)?, rows.len(), 1);
            for (scales, over) in scales.chunks_mut(groups).zip(over) {
                scales.iter_mut().for_each(|scale| *scale *= over);
            }
        }
        Ok(scales)
    }
}

impl Tile {
    /// `rows`, counted from the tile's first, as f32: `out` is `[rows, columns]`.
    pub(super) fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut transposed = Vec::new();
        let codes = match self.transposed {
            true => {
                self.transpose(&rows, &mut transposed);
                &transposed
            }
            false => &self.codes[rows.start * self.columns..rows.end * self.columns],
        };
        let groups = self.columns.div_ceil(self.group);
        for (i, (codes, out)) in codes.chunks(self.columns).zip(out.chunks_mut(self.columns)).enumerate() {
            let shared = (rows.start + i) * groups;
            for (g, (codes, out)) in codes.chunks(self.group).zip(out.chunks_mut(self.group)).enumerate() {
                let scale = self.scales[shared + g];
                let table = match &self.meanings {
                    Meanings::Zeros(zeros) => {
                        let zero = i32::from(zeros[shared + g]);
                        codes.iter().zip(out).for_each(|(code, out)| *out = (i32::from(*code) - zero) as f32 * scale);
                        continue;
                    }
                    Meanings::Table(table) => table,
                    Meanings::Tables(tables, entries) => &tables[(shared + g) * entries..][..*entries],
                };
                for (code, out) in codes.iter().zip(out) {
                    *out = table.get(usize::from(*code)).copied().unwrap_or(f32::NAN) * scale;
                }
            }
        }
    }

    fn transpose(&self, rows: &Range<usize>, out: &mut Vec<u8>) {
        let all = self.rows.len();
        out.resize(rows.len() * self.columns, 0);
        for columns in chunks(self.columns, 64) {
            for (i, out) in out.chunks_mut(self.columns).enumerate() {
                for (out, codes) in out[columns.clone()].iter_mut().zip(self.codes[columns.start * all..].chunks(all)) {
                    *out = codes[rows.start + i];
                }
            }
        }
    }
}
