//! What a tiling costs in time and energy, by a closed form that averages over edge tiles. The event-driven timeline is
//! the judge; this ranks candidates.

use serde::{Deserialize, Serialize};

use super::axis::Axis;
use super::{Buffering, Limits, Product, Tiling};
use crate::Element;

/// What a device does in a cycle and what it pays, for one pair of number formats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Multiply-accumulates of one cycle, as a block of m, k and n: a 32 x 32 weight-stationary array is [1, 32, 32].
    pub array: [u64; 3],
    /// Cycles that each tile costs besides its multiplications: filling and draining.
    pub fill: f64,
    /// Bytes loaded from DRAM in a cycle.
    pub read: f64,
    /// Bytes stored to DRAM in a cycle.
    pub write: f64,
    /// Cycles before the first byte of a transfer.
    pub setup: f64,
    /// Requests of one burst each that a stream of transfers keeps in flight. With more than one, the next transfer is requested
    /// before the last byte of this one, and so much of its setup is hidden. At least 1.
    pub outstanding: u64,
    /// A contiguous piece of a transfer takes a multiple of this many bytes. At least 1.
    pub burst: u64,
    /// Bytes that move for a stored byte of an int8 weight: less than 1 where weights come as a compressed stream.
    pub coded: f64,
    /// Energy of a multiply-accumulate, pJ.
    pub mac_pj: f64,
    /// Energy of a byte read from or written to SRAM, pJ.
    pub sram_pj: f64,
    /// Energy of a byte moved to or from DRAM, pJ.
    pub dram_pj: f64,
    /// Energy of a cycle, whatever is done in it, pJ.
    pub cycle_pj: f64,
}

/// What [`Tiling::cost`] predicts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// From the first load to the last store, cycles.
    pub cycles: f64,
    /// Of those, cycles in which the array works.
    pub compute: f64,
    /// Cycles in which the DMA works: overlapped or not.
    pub dma: f64,
    /// Energy of all of it, pJ.
    pub energy: f64,
}

impl Rates {
    /// Cycles of a transfer of `bytes` after its setup, the mean of many. Bursts make each longer by as much as they do one of
    /// contiguous pieces of `piece` bytes: rounding the mean itself would make it jump with the mix of whole tiles and edges.
    fn transfer(&self, bytes: f64, piece: u64, per_cycle: f64) -> f64 {
        let longer = piece.next_multiple_of(self.burst) as f64 / piece.max(1) as f64;
        bytes * longer / per_cycle
    }

    /// How many cycles before the end of a transfer the next one is requested: what the other requests in flight still move.
    pub(crate) fn lead(&self, per_cycle: f64) -> f64 {
        (self.outstanding.max(1) - 1) as f64 * self.burst as f64 / per_cycle
    }

    /// Cycles of setup that a transfer adds to the one before it, with buffers that let it be requested early.
    pub(super) fn exposed_setup(&self, buffering: Buffering, per_cycle: f64) -> f64 {
        match buffering {
            Buffering::Single => self.setup,
            Buffering::DoubleStreamed => (self.setup - self.lead(per_cycle)).max(0.0),
        }
    }

    /// Bytes that move for a stored byte of such weights.
    pub(crate) fn moved(&self, weights: Element) -> f64 {
        if weights == Element::INT8 { self.coded } else { 1.0 }
    }

    /// Array cycles along one dimension: every tile takes whole blocks.
    pub(super) fn blocks(axis: Axis, block: u64) -> u64 {
        let edge = axis.whole % axis.tile;
        (axis.whole / axis.tile) * axis.tile.div_ceil(block) + edge.div_ceil(block)
    }
}

impl Tiling {
    /// Predicted time and energy. Each step waits for its own loads (single buffers) or takes the longer of its
    /// computation and the next step's loads (double buffers); stores of whole tiles are spread over the steps when they leave
    /// from a buffer of their own. Otherwise they add up, and so do those of strips but for the last two of a tile.
    pub fn cost(&self, product: &Product, limits: &Limits, rates: &Rates) -> Cost {
        self.cost_with(product, limits, rates, 0.0)
    }

    /// The same with `work` cycles of other work spread over the steps.
    pub(crate) fn cost_with(&self, product: &Product, limits: &Limits, rates: &Rates, work: f64) -> Cost {
        let counts = self.counts(product);
        let steps = (counts[0] * counts[1] * counts[2]) as f64;
        let compute = self.compute(product, rates) + steps * rates.fill + work;
        let [a, w, c] = self.transfer_cycles(product, limits.buffering, rates);
        let store = self.transfers[2] as f64 * c;
        let hidden = if limits.staged && limits.buffering == Buffering::DoubleStreamed { store * self.behind() } else { 0.0 };
        let exposed = store - hidden;
        // The setup of the very first loads hides behind nothing.
        let first = rates.setup - rates.exposed_setup(limits.buffering, rates.read);
        let mut cycles = first + a + w + exposed + if exposed == 0.0 { c } else { 0.0 };
        for (outer, inner, count) in self.load_classes(product) {
            let [loads_a, loads_w] = if self.order.columns_first() { [inner, outer] } else { [outer, inner] };
            let dma = f64::from(u8::from(loads_a)) * a + f64::from(u8::from(loads_w)) * w + hidden / steps;
            let work = compute / steps;
            cycles += count as f64 * if limits.buffering == Buffering::Single { work + dma } else { work.max(dma) };
        }
        let dma = self.transfers[0] as f64 * a + self.transfers[1] as f64 * w + store;
        if limits.buffering == Buffering::Single {
            cycles -= a + w; // the first loads are in the first step
        }
        let energy = self.energy(product, rates) + cycles * rates.cycle_pj;
        Cost { cycles, compute, dma, energy }
    }

    /// The part of a tile's store behind which the next tile's computation may begin.
    fn behind(&self) -> f64 {
        (self.strip_slots() * self.strip) as f64 / self.tile[0] as f64
    }

    /// Cycles of multiplication alone, exact for the array's shape.
    fn compute(&self, product: &Product, rates: &Rates) -> f64 {
        let whole = [product.m, product.k, product.n];
        (0..3).map(|d| Rates::blocks(Axis { whole: whole[d], tile: self.tile[d] }, rates.array[d]) as f64).product()
    }

    /// Mean cycles of one load of A, of W, and one store of C. A and C lie row by row in DRAM, W tile by tile.
    fn transfer_cycles(&self, product: &Product, buffering: Buffering, rates: &Rates) -> [f64; 3] {
        let [tm, tk, tn] = self.tile;
        let mean = |bytes: u64, transfers: u64| bytes as f64 / transfers.max(1) as f64;
        let piece =
            |element: Element, rows: u64, part: u64, whole: u64| element.bytes(if part == whole { rows * part } else { part });
        let [a, c] = [piece(product.a, tm, tk, product.k), piece(product.c, self.strip, tn, product.n)];
        let [read, write] = [rates.read, rates.write].map(|per_cycle| rates.exposed_setup(buffering, per_cycle));
        let weights = mean(self.dram.w, self.transfers[1]) * rates.moved(product.w);
        [
            read + rates.transfer(mean(self.dram.a, self.transfers[0]), a, rates.read),
            read + rates.transfer(weights, product.w.bytes(tk * tn), rates.read),
            match self.transfers[2] {
                0 => 0.0,
                stores => write + rates.transfer(mean(self.dram.c, stores), c, rates.write),
            },
        ]
    }

    /// (the outer operand is loaded, the inner operand is loaded, in how many steps).
    fn load_classes(&self, product: &Product) -> [(bool, bool, u64); 4] {
        let [nm, nk, nn] = self.counts(product);
        let (outers, inners) = if self.order.columns_first() { (nn, nm) } else { (nm, nn) };
        let [outer_kept, inner_kept] = if self.order.columns_first() { [self.kept[1], self.kept[0]] } else { self.kept };
        let streamed = if self.order.depth_last() && nk - outer_kept > 1 { nk - outer_kept } else { 0 };
        // Of one block: steps that load the outer operand, and how many of those use a kept tile of the inner one.
        let block = nk * inners;
        let loading = nk + streamed * (inners - 1);
        let both_kept = if self.order.depth_last() {
            let (lines, rest) = (inner_kept / nk, inner_kept % nk);
            let later =
                lines.saturating_sub(1) * streamed + if lines > 0 && streamed > 0 { rest.saturating_sub(outer_kept) } else { 0 };
            inner_kept.min(nk) + later
        } else {
            inner_kept.div_ceil(inners)
        };
        // After the first block the inner operand is loaded where it is streamed, unless one tile of it is left.
        let resident = if block - inner_kept > 1 { inner_kept } else { block };
        let resident_loading = if resident == block { loading } else { both_kept };
        let later = outers - 1;
        [
            (true, true, loading + later * (loading - resident_loading)),
            (false, true, (block - loading) + later * ((block - loading) - (resident - resident_loading))),
            (true, false, later * resident_loading),
            (false, false, later * (resident - resident_loading)),
        ]
    }

    /// Energy of the multiplications and of every byte moved: DMA on both of its sides, and the array's reads of A (once
    /// for every block of columns), of W (once a step), and its reads and writes of sums (once for every block of depth).
    fn energy(&self, product: &Product, rates: &Rates) -> f64 {
        let [tm, tk, tn] = self.tile;
        let [nm, nk, nn] = self.counts(product);
        let [_, block_k, block_n] = rates.array;
        let reads_a = product.a.bytes(tm * tk) * tn.div_ceil(block_n);
        let reads_w = product.w.bytes(tk * tn);
        let sums = 2 * product.partial.bytes(tm * tn) * tk.div_ceil(block_k);
        let volume = (product.macs() as f64) / ((tm * tk * tn) as f64);
        debug_assert!(volume <= (nm * nk * nn) as f64);
        let moved = self.dram.total() as f64;
        let sram = moved + volume * (reads_a + reads_w + sums) as f64;
        product.macs() as f64 * rates.mac_pj + sram * rates.sram_pj + moved * rates.dram_pj
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, Order, Product, Tiling};
    use crate::Element;

    #[test]
    fn load_classes_count_the_steps() {
        let product = Product::new(5, 4, 6, Element::INT8, Element::INT8);
        for order in Order::ALL {
            for tile in (0..120).map(|x| [1 + x % 5, 1 + x / 5 % 4, 1 + x / 20]) {
                let [nm, nk, nn] = [5u64.div_ceil(tile[0]), 4u64.div_ceil(tile[1]), 6u64.div_ceil(tile[2])];
                let [most_a, most_w] = match order {
                    Order::Mnk => [nk, nk * nn],
                    Order::Nmk => [nk * nm, nk],
                    Order::Mkn => [0, nk * nn],
                    Order::Nkm => [nk * nm, 0],
                };
                for kept in (0..=most_a).flat_map(|a| (0..=most_w).map(move |w| [a, w])) {
                    let tiling = Tiling::new(&product, &Limits::of(1 << 20), order, tile, kept);
                    for (outer, inner, count) in tiling.load_classes(&product) {
                        let [a, w] = if order.columns_first() { [inner, outer] } else { [outer, inner] };
                        let steps = tiling.steps(&product).filter(|step| (step.a.load, step.w.load) == (a, w)).count();
                        assert_eq!(steps as u64, count, "{order:?} {tile:?} {kept:?} {a} {w}");
                    }
                }
            }
        }
    }
}
