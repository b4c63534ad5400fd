//! Lower bounds on the DRAM bytes of a product and of exact attention for a given SRAM. The derivation and its assumptions are in
//! `docs/lower-bound.md`; equation numbers refer to that page.

use crate::Element;
use crate::tile::Product;

/// DRAM bytes that any schedule of `product` moves with `sram` bytes on chip: the larger of what must move once and of the
/// streaming bound.
pub fn lower_bound(product: &Product, sram: u64) -> u64 {
    let stores = product.c.bytes(product.m * product.n);
    product.compulsory().total().max(stores + streaming_loads(product, sram))
}

/// One KV head's exact attention: `rows` query rows (all heads of the group), `keys` keys and values of `width` numbers,
/// everything stored as `element`, scores accumulated as `partial` and never stored. Masked scores are counted as if
/// computed: for a plan that skips them, count only the keys that are seen.
pub fn attention_lower_bound(rows: u64, keys: u64, width: u64, element: Element, partial: Element, sram: u64) -> u64 {
    let scores = Product { c: Element { bits: 0, per: 1 }, partial, ..Product::new(rows, width, keys, element, element) };
    let once = element.bytes(rows * width) + element.bytes(keys * width);
    // Q and K as the product says; O is written and V is read at least once.
    once + (once.max(streaming_loads(&scores, sram)))
}

/// Bytes loaded by any schedule, equation (5): the best over phases of T bytes and prices of a new output.
fn streaming_loads(product: &Product, sram: u64) -> u64 {
    /// Phase lengths from 1/64 of SRAM to 8 times its size, sixteen per octave.
    const PHASES: i32 = 9 * 16;
    /// Prices as parts of k.
    const PRICES: u32 = 256;
    let bytes = |element: Element| f64::from(element.bits) / (8.0 * f64::from(element.per));
    let phase = Phase { a: bytes(product.a), b: bytes(product.w), p: bytes(product.partial), volume: product.macs() as f64 };
    let (outputs, depth, sram) = ((product.m * product.n) as f64, product.k as f64, sram as f64);
    let largest = phase.a.max(phase.b).max(phase.p);
    let mut best = 0.0f64;
    let mut length = sram / 64.0;
    for _ in 0..=PHASES {
        for part in 1..PRICES {
            let price = depth * f64::from(part) / f64::from(PRICES);
            let first = phase.most(length, price);
            let other = phase.most(sram + length, price);
            best = best.max((length - largest) * (outputs * (depth - price) - first) / other);
        }
        length *= 1.044_273_782_427_413_8; // 2^(1/16)
    }
    best as u64
}

/// What can be done between two loads far apart.
struct Phase {
    /// Bytes of a number of A, of W, of a partial sum.
    a: f64,
    b: f64,
    p: f64,
    /// Every multiply-accumulate there is.
    volume: f64,
}

impl Phase {
    /// g, equations (3) and (4): multiply-accumulates less `price` for each output begun, with `bytes` of A, W and sums
    /// begun earlier in reach.
    fn most(&self, bytes: f64, price: f64) -> f64 {
        let new = bytes * bytes / (16.0 * self.a * self.b * price);
        let third = bytes / 3.0;
        let old = third * (third / (self.a * self.b * self.p)).sqrt();
        new.max(old).min(self.volume)
    }
}
