//! Scales and zeros in files.

use attar_tensor::{Dtype, QuantizedTensor, ScaleFormat, pack};

/// Scales in `format`, and zeros if there are any, by rows. The zeros of a row are packed in `zero_bits` each; 8 is a byte.
pub(crate) fn shared_by_rows(tensor: &QuantizedTensor, format: ScaleFormat, zero_bits: u32) -> [Vec<u8>; 2] {
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    let width = tensor.scheme.scale_dims([1, tensor.dims[1]])[1].max(1);
    for (row, of_row) in tensor.scales.chunks(width).enumerate() {
        encode(format, of_row, tensor.super_of(row), &mut scales);
    }
    for row in tensor.zeros.chunks(tensor.scheme.groups(tensor.dims[1])) {
        pack::pack_row(row, zero_bits, &mut zeros);
    }
    [scales, zeros]
}

/// Scales of a row as their element type has them: codes take a byte each, powers of two are bf16.
pub(crate) fn encode(format: ScaleFormat, scales: &[f32], over: f32, out: &mut Vec<u8>) {
    match (format, format.plain()) {
        (_, Some(dtype)) => dtype.encode(scales, out),
        (ScaleFormat::E8m0, _) => Dtype::BF16.encode(scales, out),
        (ScaleFormat::E4m3, _) => out.extend(scales.iter().map(|scale| format.code(*scale, over))),
        _ => out.extend(scales.iter().map(|scale| format.value(format.code(*scale, over)) as i8 as u8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_their_own_format() {
        let bytes = |format, scales: &[f32], over| {
            let mut bytes = Vec::new();
            encode(format, scales, over, &mut bytes);
            bytes
        };
        assert_eq!(bytes(ScaleFormat::F32, &[1.0], 1.0), 1f32.to_le_bytes());
        assert_eq!(bytes(ScaleFormat::E8m0, &[0.5], 1.0), [0x00, 0x3f], "a power of two is a bf16");
        assert_eq!(bytes(ScaleFormat::Int8, &[-3.0, 2.0], 0.5), [(-6i8) as u8, 4], "multiples of the super scale");
        assert_eq!(bytes(ScaleFormat::E4m3, &[1.0], 1.0), [0x38], "OCP 8-bit floating point, E4M3");
    }

    #[test]
    fn zeros_take_the_bits_that_are_asked_for() {
        let scheme: attar_tensor::Scheme = "int4/g16/asymmetric/f32".parse().unwrap();
        let mut tensor = QuantizedTensor { dims: [2, 48], ..QuantizedTensor::empty(scheme, 48) };
        (tensor.scales, tensor.zeros) = (vec![1.0; 6], vec![1, 2, 3, 4, 5, 6]);
        assert_eq!(shared_by_rows(&tensor, ScaleFormat::F32, 4)[1], [0x21, 0x03, 0x54, 0x06]);
        assert_eq!(shared_by_rows(&tensor, ScaleFormat::F32, 8)[1], [1, 2, 3, 4, 5, 6]);
        assert_eq!(shared_by_rows(&tensor, ScaleFormat::F32, 8)[0].len(), 24);
    }
}
