//! Number formats on weights that are independent and normally distributed: how far each is from the best there can be.
//!
//! For such weights the rate-distortion bound is 6.0206 dB a bit. What scales, super scales and tables take counts.

use std::{io, ops::Range};

use attar_compress::{Error, QUANTIZERS, ScaleSearch, Seen, WeightRows};
use attar_tensor::{BlobWriter, Scheme};

use crate::{
    Bench, Failure, cost,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench =
    Bench { name: "gaussian", about: "4096 x 4096 normal weights in every kind of format", quick: false, run };

const DIMS: [usize; 2] = [4096, 4096];

/// Of the bound, a bit.
const DECIBELS: f64 = 6.0206;

/// Formats, and how far from the bound they should be.
static FORMATS: &[(&str, &str)] = &[
    ("int8/g64", ""),
    ("fp8_e4m3/g64", ""),
    ("fp8_e5m2/g64", ""),
    ("int4/g64", ""),
    ("int4/g32", ""),
    ("int4/g32/int6", ""),
    ("int4/g64/int6", ""),
    ("nf4/g64", ""),
    ("nf4/g32/int6", ""),
    ("mxfp4/g32", ""),
    ("nvfp4/g16", ""),
    ("gauss4/g32/int6", "3.3 dB"),
    ("lut4/row", ""),
    ("int3/g64", ""),
    ("int3/g32/int6", "4.2 dB"),
    ("gauss3/g32/int6", "4.2 dB"),
    ("lut3/row", "4.2 dB"),
    ("int2/g64", ""),
    ("lut2/row", ""),
    ("ternary/row", ""),
    ("lut1/row", ""),
];

fn run(_options: &[String]) -> Result<(), Failure> {
    let weights = Weights(normal(DIMS[0] * DIMS[1]));
    let mut table = Table::new();
    for (format, goal) in FORMATS {
        let scheme: Scheme = format.parse()?;
        let write = || -> Result<f64, Failure> {
            let (mut nowhere, search) = (io::sink(), ScaleSearch::Mse);
            let to = BlobWriter::new(&mut nowhere, scheme, DIMS)?;
            Ok(QUANTIZERS[0].quantize(&weights, Seen::default(), scheme, search, to, &|_| {})?.snr_db())
        };
        let (snr, cost) = cost::of(write);
        let (snr, bits) = (snr?, scheme.bits_per_weight(DIMS));
        let (rate, ratio) = (format!("{bits:.3} bits, {snr:.2} dB"), format!("gap {:.2} dB", DECIBELS * bits - snr));
        table.add(Row { work: format, cost, rate, ratio, goal });
    }
    table.print();
    Ok(())
}

/// By Box and Muller, from a fixed seed.
fn normal(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let pair = |_| {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt() * 0.02, std::f64::consts::TAU * uniform());
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    (0..count / 2).flat_map(pair).collect()
}

struct Weights(Vec<f32>);

impl WeightRows for Weights {
    fn dims(&self) -> [usize; 2] {
        DIMS
    }

    fn name(&self) -> &str {
        "w"
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        out.copy_from_slice(&self.0[rows.start * DIMS[1]..rows.end * DIMS[1]]);
        Ok(())
    }
}
