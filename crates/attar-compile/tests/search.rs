//! The search against brute force, and against published tables.

use attar_compile::Element;
use attar_compile::tile::{Limits, Objective, Order, Product, Tiling, search};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

fn table(name: &str) -> Option<Vec<Vec<String>>> {
    let path = std::env::var_os("ATTAR_SHARED").map(|shared| PathBuf::from(shared).join("data/tiling").join(name));
    let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) else {
        let _ = writeln!(std::io::stderr(), "skipped: ATTAR_SHARED has no data/tiling/{name}");
        return None;
    };
    Some(text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

fn weights(bits: &str) -> Element {
    if bits == "4" { Element::INT4 } else { Element::INT8 }
}

#[test]
fn prefill_rows_need_no_more_than_the_best_known() {
    let Some(rows) = table("prefill-48.csv") else { return };
    let (mut logs, mut worst) = (0.0, 0.0f64);
    for row in &rows {
        let [m, k, n, sram, best, bound] = [0, 1, 2, 4, 5, 6].map(|column| number(&row[column]));
        let product = Product::new(m, k, n, Element::INT8, weights(&row[3]));
        let start = Instant::now();
        let tiling = search(&product, &Limits::of(sram << 10), &Objective::Dram).unwrap();
        let took = start.elapsed().as_secs_f64() * 1e3;
        let dram = tiling.dram.total();
        let ratio = dram as f64 / bound as f64;
        println!(
            "{m},{k},{n} w{} {sram} KiB: {dram} best known {best} ({:.3}) bound {ratio:.3}; {took:.2} ms {:?}",
            row[3],
            dram as f64 / best as f64,
            (tiling.order, tiling.tile, tiling.kept)
        );
        assert!(dram <= best && tiling.sram <= sram << 10);
        logs += ratio.ln();
        worst = worst.max(ratio);
    }
    let mean = (logs / rows.len() as f64).exp();
    println!("geomean {mean:.4}, worst {worst:.3}");
    assert!(mean <= 1.17 && worst <= 1.67, "{mean} {worst}");
}
