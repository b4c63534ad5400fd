//! The tile search: DRAM bytes against the lower bound, the best known and ZigZag 3.9.1, and milliseconds a product on one
//! core. Bytes alone decide. The rule of the published rows is no alignment and single buffers; beside it stands the rule
//! of a device: tiles of 32, buffers at 64 bytes, streamed operands double-buffered, outputs staged.

use attar_compile::tile::{Buffering, Limits, Objective, Product, Tiling, search};
use attar_compile::{Element, lower_bound};
use std::path::PathBuf;
use std::time::Instant;

use crate::{Bench, Failure};

pub(crate) const BENCH: Bench =
    Bench { name: "tiles", about: "Tilings of 48 prefill products and 28 of ZigZag's (needs ATTAR_SHARED)", quick: false, run };

/// Each time is the least of so many.
const REPEATS: usize = 5;

fn run(_options: &[String]) -> Result<(), Failure> {
    prefill(&table("prefill-48.csv")?)?;
    zigzag(&table("zigzag-3.9.1.csv")?)
}

/// The first columns of a table of the reference data, without its head.
fn table(name: &str) -> Result<Vec<Vec<String>>, Failure> {
    let shared = std::env::var_os("ATTAR_SHARED").ok_or("ATTAR_SHARED does not say where the reference tables are")?;
    let text = std::fs::read_to_string(PathBuf::from(shared).join("data/tiling").join(name))?;
    Ok(text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

fn product(row: &[String]) -> Result<Product, Failure> {
    let weights = if row[3] == "4" { Element::INT4 } else { Element::INT8 };
    Ok(Product::new(row[0].parse()?, row[1].parse()?, row[2].parse()?, Element::INT8, weights))
}

fn device_rule(product: &Product, sram: u64) -> Result<u64, Failure> {
    let limits = Limits { align: 64, buffering: Buffering::DoubleStreamed, staged: true, ..Limits::of(sram) };
    Ok(search(&product.aligned([1, 32, 32]), &limits, &Objective::BYTES)?.dram.total())
}

/// The best tiling by bytes, and the milliseconds it took to find.
fn timed(product: &Product, sram: u64) -> Result<(Tiling, f64), Failure> {
    let mut least = f64::INFINITY;
    let mut found = None;
    for _ in 0..REPEATS {
        let start = Instant::now();
        found = Some(search(product, &Limits::of(sram), &Objective::BYTES)?);
        least = least.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok((found.ok_or("no repeats")?, least))
}

/// A product of ratios on its way to their geometric mean.
#[derive(Default)]
struct Mean {
    logarithms: f64,
    count: f64,
    largest: f64,
}

impl Mean {
    fn add(&mut self, ratio: f64) {
        self.logarithms += ratio.ln();
        self.count += 1.0;
        self.largest = self.largest.max(ratio);
    }

    fn words(&self) -> String {
        format!("geomean {:.3}, largest {:.3}", (self.logarithms / self.count).exp(), self.largest)
    }
}

fn prefill(rows: &[Vec<String>]) -> Result<(), Failure> {
    println!(
        "| m,k,n | w | SRAM KiB | DRAM bytes | best known | / bound | / published bound | device rule / bound | ms | tiling |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let (mut own, mut published, mut device, mut slowest) = (Mean::default(), Mean::default(), Mean::default(), 0.0f64);
    for row in rows {
        let (product, sram) = (product(row)?, row[4].parse::<u64>()? << 10);
        let (tiling, took) = timed(&product, sram)?;
        let (bytes, bound) = (tiling.dram.total(), lower_bound(&product, sram) as f64);
        let ratios = [bytes as f64 / bound, bytes as f64 / row[6].parse::<f64>()?, device_rule(&product, sram)? as f64 / bound];
        [&mut own, &mut published, &mut device].into_iter().zip(ratios).for_each(|(mean, ratio)| mean.add(ratio));
        slowest = slowest.max(took);
        let [tm, tk, tn] = tiling.tile;
        println!(
            "| {},{},{} | {} | {} | {bytes} | {} | {:.3} | {:.3} | {:.3} | {took:.2} | {:?} {tm}x{tk}x{tn}, kept {:?} |",
            row[0], row[1], row[2], row[3], row[4], row[5], ratios[0], ratios[1], ratios[2], tiling.order, tiling.kept
        );
    }
    println!("\nAgainst the bound: {}; against the published one: {} (goal 1.17 and 1.67).", own.words(), published.words());
    println!("By the device's rule against the bound: {}. Slowest {slowest:.2} ms (goal 5).\n", device.words());
    Ok(())
}

fn zigzag(rows: &[Vec<String>]) -> Result<(), Failure> {
    println!("| m,k,n | w | SRAM | ZigZag | ours | ratio | device rule | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    let (mut beyond, mut strict) = (Mean::default(), Mean::default());
    for row in rows {
        let (product, sram, theirs) = (product(row)?, row[4].parse::<u64>()?, row[14].parse::<u64>()?);
        let ours = search(&product, &Limits::of(sram), &Objective::BYTES)?.dram.total();
        let device = device_rule(&product, sram)?;
        let [ratio, device_ratio] = [ours, device].map(|bytes| theirs as f64 / bytes as f64);
        if ours > product.compulsory().total() {
            beyond.add(ratio);
            strict.add(device_ratio);
        }
        println!(
            "| {},{},{} | {} | {sram} | {theirs} | {ours} | {ratio:.3} | {device} | {device_ratio:.3} |",
            row[0], row[1], row[2], row[3]
        );
    }
    println!("\nZigZag forces neither alignment nor double buffers. Where compulsory traffic is not reached:");
    println!("{} (goal 1.2); by the device's rule {}.", beyond.words(), strict.words());
    Ok(())
}
