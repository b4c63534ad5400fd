//! The layout of tensors in memory: by rows, or a weight tile by tile, columns of tiles first, from the top.

use super::Placed;
use crate::{
    Tensor,
    data::{self, Data},
    program::{Column, Role},
};

/// Rows and columns, half-open.
type Region = [[u64; 2]; 2];

impl Placed {
    /// What lies together: each tile with its first byte within the tensor, or all of it.
    fn pieces(&self) -> Vec<(Region, u64)> {
        let Some([height, width]) = self.tile else { return vec![([[0, self.rows], [0, self.columns]], 0)] };
        let starts = |whole: u64, tile: u64| (0..whole).step_by(tile.max(1) as usize);
        let mut offset = 0;
        let mut pieces = Vec::new();
        for column in starts(self.columns, width) {
            for row in starts(self.rows, height) {
                let region = [[row, (row + height).min(self.rows)], [column, (column + width).min(self.columns)]];
                pieces.push((region, offset));
                offset += self.element.bytes((region[0][1] - region[0][0]) * (region[1][1] - region[1][0]));
            }
        }
        pieces
    }

    /// The first byte of a tile within the tensor, as [`Placed::bytes`] counts.
    fn offset(&self, [height, width]: [u64; 2], [rows, columns]: Region) -> u64 {
        let across = |width: u64| {
            let (full, rest) = (self.rows / height, self.rows % height);
            full * self.element.bytes(height * width) + self.element.bytes(rest * width)
        };
        columns[0] / width * across(width) + rows[0] / height * self.element.bytes(height * (columns[1] - columns[0]))
    }

    /// All of its bytes.
    pub(crate) fn stored(&self, data: &Data) -> Vec<u8> {
        let tensor = self.tensor();
        self.pieces().into_iter().flat_map(|([rows, columns], _)| data::pack(&tensor, data, rows, columns)).collect()
    }

    /// A box of `bytes`, which are all of its bytes. Of a weight in tiles, the box is one of them.
    pub(crate) fn part(&self, bytes: &[u8], region @ [rows, columns]: Region) -> Vec<u8> {
        let size = |numbers: u64| self.element.bytes(numbers) as usize;
        let width = columns[1] - columns[0];
        match self.tile {
            Some(tile) => {
                let at = self.offset(tile, region) as usize;
                bytes[at..at + size((rows[1] - rows[0]) * width)].to_vec()
            }
            None => {
                let row = |row: u64| &bytes[size(self.columns) * row as usize + size(columns[0])..][..size(width)];
                (rows[0]..rows[1]).flat_map(row).copied().collect()
            }
        }
    }

    /// The numbers that `bytes`, which are all of its bytes, hold.
    pub(crate) fn read(&self, bytes: &[u8]) -> Data {
        let [rows, columns] = [self.rows, self.columns].map(|n| n as usize);
        match self.role {
            Role::Weight => {
                let (bits, per) = (data::code_bits(self.element), self.element.per as usize);
                let groups = if per > 1 { columns.div_ceil(per) } else { 0 };
                let (mut codes, mut scales) = (vec![0i8; rows * columns], vec![0i8; rows * groups]);
                for ([across, down], offset) in
                    self.pieces().into_iter().map(|([rows, columns], at)| ([rows, columns], at as usize))
                {
                    let [height, width] = [across, down].map(|[from, to]| (to - from) as usize);
                    let tile = data::codes(&bytes[offset..], bits, height * width);
                    let first = offset + (height * width * bits as usize).div_ceil(8);
                    let tile_groups = if per > 1 { width.div_ceil(per) } else { 0 };
                    for row in 0..height {
                        let at = across[0] as usize + row;
                        let line = tile[row * width..][..width].iter().map(|code| *code as i8);
                        codes[at * columns + down[0] as usize..].iter_mut().zip(line).for_each(|(place, code)| *place = code);
                        let line = bytes[first + row * tile_groups..][..tile_groups].iter().map(|scale| *scale as i8);
                        let from = if per > 1 { at * groups + down[0] as usize / per } else { 0 };
                        scales[from..].iter_mut().zip(line).for_each(|(place, scale)| *place = scale);
                    }
                }
                Data::Weight { codes, scales }
            }
            Role::Constant if self.element == Column::ELEMENT => {
                Data::Columns(bytes.chunks_exact(Column::ELEMENT.bytes(1) as usize).map(data::column).collect())
            }
            _ => Data::Numbers(data::numbers(bytes, self.element.bits)),
        }
    }

    /// As a program has it, without a name.
    pub(crate) fn tensor(&self) -> Tensor {
        Tensor { name: String::new(), rows: self.rows, columns: self.columns, element: self.element, role: self.role }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Element, plan::Space, program::Role};

    #[test]
    fn tiles_lie_where_they_are_looked_for() {
        for element in [Element::INT8, Element::INT4, Element { bits: 4 * 8 + 8, per: 8 }] {
            let [rows, columns] = [13, 40];
            for tile in [[4, 16], [13, 8], [5, 40], [1, 8], [13, 40]] {
                let (space, role) = (Space::Dram, Role::Weight);
                let placed = Placed { name: "w".into(), rows, columns, element, role, space, address: 0, tile: Some(tile) };
                let groups = if element.per > 1 { 5 } else { 0 };
                let codes = (0..rows * columns).map(|at| (at % 13) as i8 - 7).collect();
                let data = Data::Weight { codes, scales: (0..rows * groups).map(|at| at as i8).collect() };
                let bytes = placed.stored(&data);
                assert_eq!(bytes.len() as u64, placed.bytes(), "{tile:?}");
                assert_eq!(placed.read(&bytes), data, "{tile:?}");
                for ([rows, columns], offset) in placed.pieces() {
                    assert_eq!(placed.offset(tile, [rows, columns]), offset, "{tile:?} {rows:?} {columns:?}");
                    assert_eq!(placed.part(&bytes, [rows, columns]), data::pack(&placed.tensor(), &data, rows, columns));
                }
            }
        }
    }
}
