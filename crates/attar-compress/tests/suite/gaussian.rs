//! How far number formats are from the rate-distortion bound of normally distributed weights: `cargo xtask bench gaussian`
//! in small.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{io, ops::Range};

use attar_compress::{QUANTIZERS, Result, ScaleSearch, Seen, WeightRows};
use attar_tensor::{BlobWriter, Scheme};

/// Columns as in the benchmark, since super scales and tables are shared by rows.
const DIMS: [usize; 2] = [64, 4096];

/// Twice the standard error of the ratio over so many weights: the squared error of one is about as spread as its mean.
const SAMPLING: f64 = 2.0 * 4.3 * 1.2 / 512.0;

struct Normal(Vec<f32>);

impl Normal {
    /// By Box and Muller.
    fn new() -> Normal {
        let mut state = 5u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let pair = |_| {
            let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
            [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
        };
        Normal((0..DIMS[0] * DIMS[1] / 2).flat_map(pair).collect())
    }
}

impl WeightRows for Normal {
    fn dims(&self) -> [usize; 2] {
        DIMS
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.0[rows.start * DIMS[1]..rows.end * DIMS[1]]);
        Ok(())
    }

    fn name(&self) -> &str {
        "w"
    }
}

/// True bits a weight, and decibels below the bound.
fn gap(weights: &Normal, scheme: &str) -> (f64, f64) {
    let scheme: Scheme = scheme.parse().unwrap();
    let mut nowhere = io::sink();
    let to = BlobWriter::new(&mut nowhere, scheme, DIMS).unwrap();
    let damage = QUANTIZERS[0].quantize(weights, Seen::default(), scheme, ScaleSearch::Mse, to, &|_| {}).unwrap();
    let bits = scheme.bits_per_weight(DIMS);
    (bits, 6.0206 * bits - damage.snr_db())
}

#[test]
fn some_format_is_near_the_bound_at_4_and_at_3_bits() {
    let weights = Normal::new();
    for (scheme, bits, wanted) in
        [("gauss4/g32/int6", 4.25, 3.3), ("gauss3/g32/int6", 3.25, 4.2), ("int3/g32/int6", 3.25, 4.2), ("lut3/row", 3.25, 4.2)]
    {
        let (true_bits, found) = gap(&weights, scheme);
        assert!(true_bits <= bits && found <= wanted - SAMPLING, "{scheme}: {true_bits} bits, {found} dB below the bound");
    }
}

/// Lloyd-Max values for one scale in all: Max 1960.
#[test]
fn learned_tables_reach_the_optimal_scalar_quantizers() {
    let weights = Normal::new();
    for (scheme, decibels) in [("lut1/tensor", 4.40), ("lut2/tensor", 9.30), ("lut3/tensor", 14.62), ("lut4/tensor", 20.22)] {
        let (bits, gap) = gap(&weights, scheme);
        let found = 6.0206 * bits - gap;
        assert!((found - decibels).abs() <= SAMPLING + 0.02, "{scheme}: {found} dB, and {decibels} are optimal");
    }
    let (bits, below) = gap(&weights, "ternary/row");
    let ternary = 6.0206 * bits - below;
    assert!((ternary - 7.21).abs() <= SAMPLING + 0.02, "ternary: {ternary} dB");
}
