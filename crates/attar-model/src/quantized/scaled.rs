//! Layers that are stored as `[out, in]`, with a scale for each tile: the whole, a row, a group of a row, or a block.

use std::ops::Range;

use attar_tensor::{Dtype, Source};

use super::{
    Files, Layer,
    parts::{Kind, Part, unpack},
};
use crate::Result;

/// Rows and columns that share a scale.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tile {
    /// All of them.
    Tensor,
    /// One row.
    Row,
    /// So many columns of a row.
    Group(usize),
    /// So many rows and columns.
    Block([usize; 2]),
}

impl Tile {
    /// For a layer of that shape.
    pub(super) fn size(self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        match self {
            Tile::Tensor => [rows, columns],
            Tile::Row => [1, columns],
            Tile::Group(group) => [1, group.min(columns)],
            Tile::Block([high, wide]) => [high.min(rows), wide.min(columns)],
        }
    }
}

/// How codes lie in their tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Codes {
    /// One element each.
    Plain,
    /// So many bits each, in i32 words along the inputs, with half their range added.
    Packed(usize),
}

/// A layer of codes and scales.
pub(super) struct Scaled {
    pub(super) dims: [usize; 2],
    pub(super) layout: Codes,
    pub(super) codes: Part,
    pub(super) scales: Part,
    pub(super) zeros: Option<Part>,
    /// The group of every column, with its tensor.
    pub(super) index: Option<(Part, Vec<u32>)>,
    /// What only running it as quantized needs.
    pub(super) unused: Vec<Part>,
    tile: [usize; 2],
    dtype: Dtype,
}

impl Scaled {
    /// A layer of that shape whose `scales` and `zeros` fit `tile`.
    pub(super) fn new(
        files: &Files<'_>,
        dims: [usize; 2],
        tile: Tile,
        (layout, codes): (Codes, Part),
        scales: Part,
        zeros: Option<Part>,
    ) -> Result<Scaled> {
        let tile = tile.size(dims);
        let counts = [dims[0].div_ceil(tile[0]), dims[1].div_ceil(tile[1])];
        check_scales(files, &scales, counts)?;
        if let Some(zeros) = &zeros {
            match layout {
                Codes::Plain => check_scales(files, zeros, counts)?,
                Codes::Packed(bits) => {
                    files.words(zeros)?;
                    files.check_dims(zeros, &[counts[0].div_ceil(32 / bits), counts[1]])?;
                }
            }
        }
        let dtype = files.scale_dtype(&scales)?;
        Ok(Scaled { dims, layout, codes, scales, zeros, index: None, unused: Vec::new(), tile, dtype })
    }

    /// Columns of tiles.
    pub(super) fn across(&self) -> usize {
        self.dims[1].div_ceil(self.tile[1])
    }

    fn codes(&self, source: &dyn Source, row: usize) -> attar_tensor::Result<Vec<f32>> {
        let columns = self.dims[1];
        match self.layout {
            Codes::Plain => self.codes.numbers(source, row * columns..(row + 1) * columns),
            Codes::Packed(bits) => {
                let words = self.codes.dims[1];
                let packed = self.codes.integers(source, row * words..(row + 1) * words)?;
                let code = |column| unpack(column, bits, |word| packed[word] as u32) - (1 << (bits - 1));
                Ok((0..columns).map(|column| code(column) as f32).collect())
            }
        }
    }

    fn zeros(&self, source: &dyn Source, tile_row: usize) -> attar_tensor::Result<Option<Vec<f32>>> {
        let (Some(zeros), across) = (&self.zeros, self.across()) else { return Ok(None) };
        match self.layout {
            Codes::Plain => zeros.numbers(source, tile_row * across..(tile_row + 1) * across).map(Some),
            Codes::Packed(bits) => {
                let (line, place) = (tile_row / (32 / bits), tile_row % (32 / bits));
                let words = zeros.integers(source, line * across..(line + 1) * across)?;
                let zero = |word: &i32| unpack(place, bits, |_| *word as u32) - (1 << (bits - 1));
                Ok(Some(words.iter().map(|word| zero(word) as f32).collect()))
            }
        }
    }
}

/// One scale for every tile; a single one may be a scalar or a vector, one for each row a vector.
fn check_scales(files: &Files<'_>, part: &Part, counts: [usize; 2]) -> Result<()> {
    let vector = counts[1] == 1 && part.dims == [counts[0]];
    let scalar = counts == [1, 1] && part.dims.is_empty();
    if vector || scalar { Ok(()) } else { files.check_dims(part, &counts) }
}

impl Layer for Scaled {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn parts(&self) -> Vec<&Part> {
        let index = self.index.as_ref().map(|(part, _)| part);
        let parts = [Some(&self.codes), Some(&self.scales), self.zeros.as_ref(), index];
        parts.into_iter().flatten().chain(&self.unused).collect()
    }

    fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        let across = self.across();
        for (row, out) in rows.zip(out.chunks_exact_mut(self.dims[1])) {
            let tile_row = row / self.tile[0];
            let scales = self.scales.numbers(source, tile_row * across..(tile_row + 1) * across)?;
            let zeros = self.zeros(source, tile_row)?;
            let codes = self.codes(source, row)?;
            for (column, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                let tile = self.index.as_ref().map_or(column / self.tile[1], |(_, index)| index[column] as usize);
                let zero = zeros.as_ref().map_or(0.0, |zeros| zeros[tile]);
                *out = self.dtype.round((code - zero) * scales[tile]);
            }
        }
        Ok(())
    }
}

/// Whether a tensor is of E4M3 or i8, as `kind` says, with two dimensions, which are returned.
pub(super) fn plain_codes(files: &Files<'_>, part: &Part, kind: Kind) -> Result<[usize; 2]> {
    files.check_kind(part, kind)?;
    files.matrix(part)
}
