//! attar's one canonical packing: the codes of a row as one stream of bits, lowest bit first; every row starts on a
//! byte. Codes of three values go five to a byte, as digits to base 3, lowest first. Exporters lay it out anew for their
//! targets.

/// How codes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// So many bits per code.
    Bits(u32),
    /// Five codes below 3 a byte.
    Trits,
}

/// Digits to base 3 in a byte.
const TRITS: usize = 5;

impl Packing {
    /// A row may be read from any multiple of so many codes on.
    pub const PERIOD: usize = 8 * TRITS;

    /// Bytes of a row of `columns` codes.
    pub fn row_bytes(self, columns: usize) -> usize {
        match self {
            Packing::Bits(bits) => row_bytes(columns, bits),
            Packing::Trits => columns.div_ceil(TRITS),
        }
    }

    /// Appends one row.
    pub fn pack(self, codes: &[u8], out: &mut Vec<u8>) {
        match self {
            Packing::Bits(bits) => pack_row(codes, bits, out),
            Packing::Trits => out.extend(codes.chunks(TRITS).map(|five| five.iter().rev().fold(0, |byte, code| 3 * byte + code))),
        }
    }

    /// The codes of one row of [`Packing::row_bytes`] bytes. Whatever the bytes are, codes of three values are below 3.
    pub fn unpack(self, packed: &[u8], codes: &mut [u8]) {
        match self {
            Packing::Bits(bits) => unpack_row(packed, bits, codes),
            Packing::Trits => {
                for (five, byte) in codes.chunks_mut(TRITS).zip(packed) {
                    five.iter_mut().fold(*byte, |rest, code| {
                        *code = rest % 3;
                        rest / 3
                    });
                }
            }
        }
    }
}

/// Bytes of a row of `columns` codes.
pub fn row_bytes(columns: usize, bits: u32) -> usize {
    (columns * bits as usize).div_ceil(8)
}

/// Appends one row. Every code is below `2^bits`.
pub fn pack_row(codes: &[u8], bits: u32, out: &mut Vec<u8>) {
    match bits {
        8 => out.extend_from_slice(codes),
        4 => {
            let (pairs, last) = codes.as_chunks::<2>();
            out.extend(pairs.iter().map(|[low, high]| low | high << 4));
            out.extend_from_slice(last);
        }
        _ => {
            for chunk in codes.chunks(8) {
                let word = chunk.iter().rev().fold(0u64, |word, c| word << bits | u64::from(*c));
                let bytes = (chunk.len() * bits as usize).div_ceil(8);
                out.extend_from_slice(&word.to_le_bytes()[..bytes]);
            }
        }
    }
}

/// The codes of one row of [`row_bytes`] bytes.
pub fn unpack_row(packed: &[u8], bits: u32, codes: &mut [u8]) {
    debug_assert_eq!(packed.len(), row_bytes(codes.len(), bits));
    match bits {
        8 => codes.copy_from_slice(packed),
        4 => {
            // Pairs of a fixed length become vector code.
            let (pairs, last) = codes.as_chunks_mut::<2>();
            pairs.iter_mut().zip(packed).for_each(|(pair, byte)| *pair = [byte & 15, byte >> 4]);
            if let ([low], Some(byte)) = (last, packed.last()) {
                *low = byte & 15;
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            for (chunk, bytes) in codes.chunks_mut(8).zip(packed.chunks(bits as usize)) {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                let word = u64::from_le_bytes(word);
                for (i, code) in chunk.iter_mut().enumerate() {
                    *code = (word >> (i as u32 * bits) & mask) as u8;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_length_survives_a_round_trip() {
        for bits in 1..=8 {
            for columns in 0..70usize {
                let codes: Vec<u8> = (0..columns).map(|i| ((i * 37 + 11) % (1 << bits)) as u8).collect();
                let (mut packed, mut again) = (Vec::new(), vec![0; columns]);
                pack_row(&codes, bits, &mut packed);
                assert_eq!(packed.len(), row_bytes(columns, bits));
                unpack_row(&packed, bits, &mut again);
                assert_eq!(codes, again, "{bits} bits, {columns} columns");
            }
        }
    }

    #[test]
    fn the_lowest_bits_come_first() {
        let mut packed = Vec::new();
        pack_row(&[1, 2, 3], 3, &mut packed);
        assert_eq!(packed, [0b11_010_001, 0b0]);
    }
}
