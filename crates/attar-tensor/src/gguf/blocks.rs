//! The block formats of ggml: what their bytes mean.
//!
//! One function per format, with its layout; the order of operations is that of ggml's reference code
//! (`dequantize_row_*` in `ggml-quants.c`), so results agree to the bit. All numbers are little-endian.

use half::f16;

use crate::BlockFormat;

/// `bytes` as values. `bytes` holds exactly the blocks of `out.len()` values.
pub(super) fn decode(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len() / format.bytes() * format.values(), out.len());
    match format {
        BlockFormat::Q4_0 => each(bytes, out, q4_0),
        BlockFormat::Q4_1 => each(bytes, out, q4_1),
        BlockFormat::Q5_0 => each(bytes, out, q5_0),
        BlockFormat::Q5_1 => each(bytes, out, q5_1),
        BlockFormat::Q8_0 => each(bytes, out, q8_0),
        BlockFormat::Q2K => each(bytes, out, q2_k),
        BlockFormat::Q3K => each(bytes, out, q3_k),
        BlockFormat::Q4K => each(bytes, out, q4_k),
        BlockFormat::Q5K => each(bytes, out, q5_k),
        BlockFormat::Q6K => each(bytes, out, q6_k),
    }
}

fn each<const B: usize, const V: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; V])) {
    let (blocks, rest) = bytes.as_chunks();
    debug_assert!(rest.is_empty());
    for (bytes, values) in blocks.iter().zip(out.as_chunks_mut().0) {
        block(bytes, values);
    }
}

/// `d: f16, codes: [u4; 32]`, value `d * (code - 8)`.
///
/// Here and in the other formats of 32 values, byte `i` holds code `i` in its low half and code `i + 16` in its high half.
fn q4_0([d0, d1, codes @ ..]: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale([*d0, *d1]);
    for i in 0..16 {
        out[i] = d * (f32::from(codes[i] & 15) - 8.0);
        out[i + 16] = d * (f32::from(codes[i] >> 4) - 8.0);
    }
}

/// `d: f16, m: f16, codes: [u4; 32]`, value `d * code + m`.
fn q4_1([d0, d1, m0, m1, codes @ ..]: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale([*d0, *d1]), scale([*m0, *m1]));
    for i in 0..16 {
        out[i] = d * f32::from(codes[i] & 15) + m;
        out[i + 16] = d * f32::from(codes[i] >> 4) + m;
    }
}

/// `d: f16, high: [u1; 32], low: [u4; 32]`, value `d * (code - 16)`.
fn q5_0([d0, d1, h0, h1, h2, h3, low @ ..]: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale([*d0, *d1]);
    let codes = five_bits(u32::from_le_bytes([*h0, *h1, *h2, *h3]), low);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = d * (f32::from(code) - 16.0);
    }
}

/// `d: f16, m: f16, high: [u1; 32], low: [u4; 32]`, value `d * code + m`.
fn q5_1([d0, d1, m0, m1, h0, h1, h2, h3, low @ ..]: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale([*d0, *d1]), scale([*m0, *m1]));
    let codes = five_bits(u32::from_le_bytes([*h0, *h1, *h2, *h3]), low);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = d * f32::from(code) + m;
    }
}

/// `d: f16, codes: [i8; 32]`, value `d * code`.
fn q8_0([d0, d1, codes @ ..]: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale([*d0, *d1]);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = d * f32::from(*code as i8);
    }
}

/// `scales: [(u4, u4); 16], codes: [u2; 256], d: f16, m: f16`. A scale and a minimum, low half and high half of a byte,
/// serve 16 values: `d * scale * code - m * minimum`.
///
/// Codes lie as [`two_bits`] says.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, m) = (scale([block[80], block[81]]), scale([block[82], block[83]]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = d * f32::from(scales[group] & 15);
        let m = m * f32::from(scales[group] >> 4);
        for (out, code) in out.iter_mut().zip(two_bits(codes, group)) {
            *out = d * f32::from(code) - m;
        }
    }
}

/// `high: [u1; 256], low: [u2; 256], scales: [u6; 16], d: f16`. A scale serves 16 values:
/// `d * (scale - 32) * (code - 4)`.
///
/// Low bits lie as [`two_bits`] says; bit `r` of byte `i` of `high` belongs to value `32 r + i`. The low four bits of
/// scales `j` and `j + 8` are the halves of byte `j`; their high two bits follow, those of scales `j`, `j + 4`, `j + 8` and
/// `j + 12` in one byte.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, low, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = scale([block[108], block[109]]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = (scales[group % 8] >> (group / 8 * 4)) & 15 | ((scales[8 + group % 4] >> (group / 4 * 2)) & 3) << 4;
        let d = d * (f32::from(scale) - 32.0);
        let (run, high) = (group / 2, &high[group % 2 * 16..][..16]);
        for ((out, low), high) in out.iter_mut().zip(two_bits(low, group)).zip(high) {
            let code = low | ((high >> run) & 1) << 2;
            *out = d * (f32::from(code) - 4.0);
        }
    }
}

/// `d: f16, m: f16, scales: [(u6, u6); 8], codes: [u4; 256]`. A scale and a minimum serve 32 values:
/// `d * scale * code - m * minimum`.
///
/// Runs `2 c` and `2 c + 1` of 32 codes are the low and the high halves of the same 32 bytes.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[4..16], &block[16..]);
    let (d, m) = (scale([block[0], block[1]]), scale([block[2], block[3]]));
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, run);
        let (d, m) = (d * scale, m * minimum);
        for (out, code) in out.iter_mut().zip(&codes[run / 2 * 32..]) {
            *out = d * f32::from((code >> (run % 2 * 4)) & 15) - m;
        }
    }
}

/// `d: f16, m: f16, scales: [(u6, u6); 8], high: [u1; 256], low: [u4; 256]`, value as in [`q4_k`].
///
/// Bit `r` of byte `i` of `high` belongs to value `32 r + i`.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scales, high, low) = (&block[4..16], &block[16..48], &block[48..]);
    let (d, m) = (scale([block[0], block[1]]), scale([block[2], block[3]]));
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, run);
        let (d, m) = (d * scale, m * minimum);
        for ((out, low), high) in out.iter_mut().zip(&low[run / 2 * 32..]).zip(high) {
            let code = (low >> (run % 2 * 4)) & 15 | ((high >> run) & 1) << 4;
            *out = d * f32::from(code) - m;
        }
    }
}

/// `low: [u4; 256], high: [u2; 256], scales: [i8; 16], d: f16`. A scale serves 16 values: `d * scale * (code - 32)`.
///
/// Of each half of the block, the low bits of runs 0 and 1 of 32 codes are the low halves of 64 bytes, and those of runs 2
/// and 3 the high halves. High bits lie as [`two_bits`] says.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = scale([block[208], block[209]]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = d * f32::from(scales[group] as i8);
        let (low, shift) = (&low[group / 8 * 64 + group % 4 * 16..][..16], group / 4 % 2 * 4);
        for ((out, low), high) in out.iter_mut().zip(low).zip(two_bits(high, group)) {
            let code = (low >> shift) & 15 | high << 4;
            *out = d * (f32::from(code) - 32.0);
        }
    }
}

fn scale(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

fn five_bits(high: u32, low: &[u8; 16]) -> [u8; 32] {
    let mut codes = [0; 32];
    for i in 0..16 {
        codes[i] = low[i] & 15 | ((high >> i) as u8 & 1) << 4;
        codes[i + 16] = low[i] >> 4 | ((high >> (i + 16)) as u8 & 1) << 4;
    }
    codes
}

/// Two bits each of the 16 values of `group`, from the 64 bytes for a block's 256.
///
/// Each half of the block is 32 bytes; bits `2 r` and `2 r + 1` of byte `i` belong to value `32 r + i` of the half.
fn two_bits(bytes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let shift = group / 2 % 4 * 2;
    bytes[group / 8 * 32 + group % 2 * 16..][..16].iter().map(move |byte| (byte >> shift) & 3)
}

/// The scale and the minimum of run `run` of [`q4_k`] and [`q5_k`], from 12 bytes for eight of each.
///
/// The first four of each take six bits of bytes 0 to 3 and 4 to 7. The others have their low four bits in the halves of
/// bytes 8 to 11, and their high two in what is left of the first eight.
fn scale_and_minimum(bytes: &[u8], run: usize) -> (f32, f32) {
    let (scale, minimum) = match run {
        0..4 => (bytes[run] & 63, bytes[run + 4] & 63),
        _ => (bytes[run + 4] & 15 | bytes[run - 4] >> 6 << 4, bytes[run + 4] >> 4 | bytes[run] >> 6 << 4),
    };
    (f32::from(scale), f32::from(minimum))
}
