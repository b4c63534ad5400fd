//! Round to nearest on weights in memory, beside a plain copy and candle's Q4_0.

use std::{hint::black_box, io, ops::Range};

use attar_compress::{Error, QUANTIZERS, ScaleSearch, Seen, WeightRows};
use attar_tensor::{BlobWriter, Scheme};
use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};

use crate::{
    Bench, Failure, cost,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench = Bench { name: "rtn", about: "64M pseudo-Gaussian weights to 4 bits", quick: true, run };

const DIMS: [usize; 2] = [1 << 14, 1 << 12];

fn run(_options: &[String]) -> Result<(), Failure> {
    let weights = Weights(gaussian(DIMS[0] * DIMS[1]));
    let mut table = Table::new();
    // Touched first: the pages of a fresh vector of zeros do not exist yet.
    let mut copied = vec![1.0f32; weights.0.len()];
    let (_, copy) = cost::of(|| black_box(&mut copied).copy_from_slice(black_box(&weights.0)));
    table.add(Row { work: "copy", cost: copy, rate: rate(copy), ratio: String::new(), goal: "" });
    let tensor = Tensor::from_vec(copied, DIMS.as_slice(), &Device::Cpu)?;
    let (quantized, candle) = cost::of(|| QTensor::quantize(&tensor, GgmlDType::Q4_0));
    black_box(quantized?);
    drop(tensor);
    table.add(Row { work: "candle Q4_0", cost: candle, rate: rate(candle), ratio: "1".into(), goal: "" });
    for (scheme, search, goal) in [
        ("int4/g64", ScaleSearch::Absmax, "250 M/CPU-s"),
        ("int4/g64/asymmetric", ScaleSearch::Absmax, ""),
        ("int8/g64", ScaleSearch::Absmax, ""),
        ("int3/g32", ScaleSearch::Absmax, ""),
        ("int4/g64", ScaleSearch::Mse, "40 M/CPU-s"),
        ("int4/g64/asymmetric", ScaleSearch::Mse, ""),
        ("int3/g32", ScaleSearch::Mse, ""),
    ] {
        let scheme: Scheme = scheme.parse()?;
        let (bytes, rtn) = cost::of(|| quantize(&weights, scheme, search));
        black_box(bytes?);
        let ratio = format!("{:.2} x", candle.cpu / rtn.cpu);
        let work = format!("rtn {scheme} {}", format!("{search:?}").to_lowercase());
        table.add(Row { work: &work, cost: rtn, rate: rate(rtn), ratio, goal });
    }
    table.print();
    Ok(())
}

fn quantize(weights: &Weights, scheme: Scheme, search: ScaleSearch) -> Result<u64, Failure> {
    let mut bytes = Count(0);
    QUANTIZERS[0].quantize(weights, Seen::default(), scheme, search, BlobWriter::new(&mut bytes, scheme, DIMS)?, &|_| {})?;
    Ok(bytes.0)
}

fn rate(cost: cost::Cost) -> String {
    format!("{:.0} M/CPU-s", (DIMS[0] * DIMS[1]) as f64 / cost.cpu / 1e6)
}

/// Sums of four uniform numbers: near enough, and the same everywhere.
fn gaussian(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let next = move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let sum: i64 = state.to_le_bytes().chunks(2).map(|pair| i64::from(i16::from_le_bytes([pair[0], pair[1]]))).sum();
        sum as f32 * (0.02 / 37_837.0)
    };
    (0..count).map(next).collect()
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

/// Where bytes go that nobody wants.
struct Count(u64);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += black_box(bytes).len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
