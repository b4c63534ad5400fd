//! Codes in the order `[in, out]`.

use std::ops::Range;

use attar_tensor::{QuantizedTensor, pack::Packing};

use crate::kit::chunks;

/// Rows, and the most columns, that are transposed at a time: what stays in the cache.
pub(crate) const BLOCK: [usize; 2] = [64, 3 * Packing::PERIOD];

/// Codes of columns `band` of all rows, transposed: `out` is `[band, rows]`, a code per byte. The band starts at a multiple of
/// [`Packing::PERIOD`].
pub(crate) fn transpose(tensor: &QuantizedTensor, band: Range<usize>, out: &mut [u8]) {
    let [rows, columns] = tensor.dims;
    let packing = tensor.scheme.grid.packing();
    let (row_bytes, start, width) = (packing.row_bytes(columns), packing.row_bytes(band.start), band.len());
    let bytes = packing.row_bytes(width);
    let mut square = [0; BLOCK[0] * BLOCK[1]];
    for block in chunks(rows, BLOCK[0]) {
        for (row, codes) in block.clone().zip(square.chunks_mut(BLOCK[1])) {
            packing.unpack(&tensor.codes[row * row_bytes + start..][..bytes], &mut codes[..width]);
        }
        for column in 0..width {
            let out = &mut out[column * rows..][block.clone()];
            for (code, row) in out.iter_mut().zip(square.chunks(BLOCK[1])) {
                *code = row[column];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let scheme = "int4/g16".parse().unwrap();
        let (rows, columns) = (67, 2 * Packing::PERIOD + 3);
        let code = |row: usize, column: usize| ((row * 7 + column * 3) % 16) as u8;
        let mut tensor = QuantizedTensor { dims: [rows, columns], ..QuantizedTensor::empty(scheme, columns) };
        for row in 0..rows {
            let codes: Vec<u8> = (0..columns).map(|column| code(row, column)).collect();
            attar_tensor::pack::pack_row(&codes, 4, &mut tensor.codes);
        }
        for band in [0..columns.min(BLOCK[1]), Packing::PERIOD..2 * Packing::PERIOD, 2 * Packing::PERIOD..columns] {
            let mut out = vec![0; band.len() * rows];
            transpose(&tensor, band.clone(), &mut out);
            for (column, codes) in band.zip(out.chunks(rows)) {
                let wanted: Vec<u8> = (0..rows).map(|row| code(row, column)).collect();
                assert_eq!(codes, wanted, "column {column}");
            }
        }
    }
}
