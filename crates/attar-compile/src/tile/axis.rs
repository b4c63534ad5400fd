//! One dimension cut into tiles, and sums over a grid of two of them.

use crate::Element;

/// `whole` numbers in tiles of `tile`, of which the last may be smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) whole: u64,
    pub(crate) tile: u64,
}

impl Axis {
    pub(crate) fn tiles(self) -> u64 {
        self.whole.div_ceil(self.tile)
    }

    /// Numbers in tile `index`.
    pub(crate) fn width(self, index: u64) -> u64 {
        self.tile.min(self.whole - index * self.tile)
    }

    /// Its first `count` tiles.
    fn first(self, count: u64) -> Axis {
        Axis { whole: self.whole.min(count * self.tile), tile: self.tile }
    }

    /// (how many, how wide): the full tiles and the one at the edge.
    fn widths(self) -> [(u64, u64); 2] {
        let edge = self.whole % self.tile;
        [(self.whole / self.tile, self.tile), (u64::from(edge > 0), edge)]
    }
}

/// Bytes of every tile of a grid, each rounded up to `align`.
pub(crate) fn grid(element: Element, rows: Axis, columns: Axis, align: u64) -> u64 {
    let mut sum = 0;
    for (row_count, height) in rows.widths() {
        for (column_count, width) in columns.widths() {
            sum += row_count * column_count * element.bytes(height * width).next_multiple_of(align);
        }
    }
    sum
}

/// Bytes of the first `count` tiles of a grid walked with `inner` fastest, each rounded up to `align`.
pub(crate) fn leading(element: Element, outer: Axis, inner: Axis, count: u64, align: u64) -> u64 {
    let (lines, rest) = (count / inner.tiles(), count % inner.tiles());
    let whole = grid(element, outer.first(lines), inner, align);
    if rest == 0 {
        return whole;
    }
    let width = outer.width(lines);
    whole + grid(element, Axis { whole: width, tile: width }, inner.first(rest), align)
}
