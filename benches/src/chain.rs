//! Two products with an op between them, fused or not: the MLP (gate and up, SwiGLU, down) and attention (scores, softmax,
//! values). The value between them is never smaller than the input, so keeping it on the chip saves most of the traffic; but a
//! fused chain reads its weights again for every block of rows, which can cost more. Both are counted and the cheaper is
//! chosen.
//!
//! Scores, softmax statistics and hidden activations are taken to be complete after one pass over their columns. Nothing is
//! skipped under a causal mask.

use attar_compile::{
    Element, Result,
    tile::{Buffering, Cost, EQUAL, Limits, Objective, Product, Rates, Tiling, candidates, search},
};

/// `Y[m,e] = between(X[m,d] W1[d, gates f]) W2[f,e]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// m: rows of X and Y: tokens, or the queries of all heads that share a KV head.
    pub(crate) rows: u64,
    /// d: columns of X.
    pub(crate) width: u64,
    /// f: columns between the products: features of the MLP, or keys.
    pub(crate) inner: u64,
    /// e: columns of Y.
    pub(crate) output: u64,
    /// Columns of W1 that make one between: 2 for gate and up, which lie side by side in W1's tiles, 1 for scores.
    pub(crate) gates: u64,
    /// X and Y.
    pub(crate) outside: Element,
    /// What lies between, as the second product reads it.
    pub(crate) between: Element,
    /// W1 and W2, stored tile by tile. Keys and values in attention.
    pub(crate) weights: Element,
    /// Sums under way.
    pub(crate) partial: Element,
    /// Bytes of state of a row over its columns: a softmax's largest value and sum.
    pub(crate) state: u64,
    /// Blocks are multiples of these in rows and inner columns, or the whole.
    pub(crate) unit: [u64; 2],
}

impl Chain {
    /// A gated MLP with int8 activations.
    pub(crate) fn mlp(rows: u64, width: u64, inner: u64, weights: Element) -> Chain {
        Chain {
            rows,
            width,
            inner,
            output: width,
            gates: 2,
            outside: Element::INT8,
            between: Element::INT8,
            weights,
            partial: Element::INT32,
            state: 0,
            unit: [1; 2],
        }
    }

    /// The attention of one KV head at int8: `queries` rows (those of all heads of its group), `keys`, heads of `width`.
    pub(crate) fn attention(queries: u64, keys: u64, width: u64) -> Chain {
        Chain { gates: 1, state: 8, ..Chain::mlp(queries, width, keys, Element::INT8) }
    }

    /// The same with tiles that are multiples of these in rows and inner columns, or the whole.
    pub(crate) fn aligned(self, unit: [u64; 2]) -> Chain {
        Chain { unit, ..self }
    }

    /// Every operand moved once.
    #[cfg(test)]
    pub(crate) fn compulsory(&self) -> u64 {
        let weights = self.weights.bytes(self.width * self.gates * self.inner) + self.weights.bytes(self.inner * self.output);
        weights + self.outside.bytes(self.rows * self.width) + self.outside.bytes(self.rows * self.output)
    }

    /// X W1 for one of the gates, stored.
    fn first(&self) -> Product {
        Product {
            c: self.between,
            partial: self.partial,
            unit: [self.unit[0], 1, self.unit[1]],
            ..Product::new(self.rows, self.width, self.inner, self.outside, self.weights)
        }
    }

    fn second(&self) -> Product {
        Product {
            c: self.outside,
            partial: self.partial,
            unit: [self.unit[0], self.unit[1], 1],
            ..Product::new(self.rows, self.inner, self.output, self.between, self.weights)
        }
    }

    /// X W1 for all gates at once, of which one between is stored: a stored byte stands for `gates` columns.
    fn gated(&self) -> Product {
        let c = Element { per: self.between.per * self.gates as u32, ..self.between };
        let [um, uf] = self.unit;
        Product { n: self.gates * self.inner, c, unit: [um, 1, self.gates * uf], ..self.first() }
    }

    /// The best ways to run it: apart, half fused, and fused, where they fit.
    ///
    /// # Errors
    /// If it does not even fit apart.
    pub(crate) fn plans(&self, limits: &Limits, objective: &Objective) -> Result<ChainPlans> {
        let (first, second) = (search(&self.first(), limits, objective)?, search(&self.second(), limits, objective)?);
        let between = (self.gates + 1) * self.between.bytes(self.rows * self.inner);
        let apart = ChainPlan::Apart { first, between, second, gates: self.gates };
        let half = (self.gates > 1).then(|| search(&self.gated(), limits, objective).ok()).flatten();
        let fused = FusedChain::search(self, limits, objective).map(ChainPlan::Fused);
        Ok(ChainPlans { apart, half: half.map(|first| ChainPlan::Half { first, second }), fused })
    }
}

/// The cheapest of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainPlans {
    /// Every op by itself.
    pub(crate) apart: ChainPlan,
    /// The first product with what follows it.
    pub(crate) half: Option<ChainPlan>,
    /// All in one.
    pub(crate) fused: Option<ChainPlan>,
}

impl ChainPlans {
    /// The best by this objective; the simpler of equals.
    #[cfg(test)]
    pub(crate) fn best(&self, chain: &Chain, limits: &Limits, objective: &Objective) -> ChainPlan {
        let value = |plan: &ChainPlan| plan.value(chain, limits, objective);
        let others = [self.half, self.fused].into_iter().flatten();
        others.fold(self.apart, |best, plan| if value(&plan) < value(&best) { plan } else { best })
    }
}

/// A way to run a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainPlan {
    /// Each gate's product, then the op between, which reads and writes DRAM, then the second product.
    Apart {
        /// Of each gate.
        first: Tiling,
        /// Bytes that the op between reads and writes.
        between: u64,
        /// Of the second product.
        second: Tiling,
        /// How many first products there are.
        gates: u64,
    },
    /// The gates' products and the op between in one, then the second product.
    Half {
        /// Its n counts all gates' columns, interleaved tile by tile.
        first: Tiling,
        /// Of the second product.
        second: Tiling,
    },
    /// One loop nest.
    Fused(FusedChain),
}

impl ChainPlan {
    /// Bytes between DRAM and SRAM.
    pub(crate) fn dram(&self) -> u64 {
        match self {
            ChainPlan::Apart { first, between, second, gates } => gates * first.dram.total() + between + second.dram.total(),
            ChainPlan::Half { first, second } => first.dram.total() + second.dram.total(),
            ChainPlan::Fused(fused) => fused.dram(),
        }
    }

    /// Predicted time and energy, without the vector work of the op between, which is the same in every plan.
    pub(crate) fn cost(&self, chain: &Chain, limits: &Limits, rates: &Rates) -> Cost {
        match self {
            ChainPlan::Apart { first, between, second, .. } => {
                let one = first.cost(&chain.first(), limits, rates);
                let gates = (1..chain.gates).fold(one, |sum, _| then(sum, one));
                let cycles = *between as f64 / rates.read.min(rates.write);
                let energy = *between as f64 * (rates.dram_pj + rates.sram_pj) + cycles * rates.cycle_pj;
                let between = Cost { cycles, compute: 0.0, dma: cycles, energy };
                then(then(gates, between), second.cost(&chain.second(), limits, rates))
            }
            ChainPlan::Half { first, second } => {
                then(first.cost(&chain.gated(), limits, rates), second.cost(&chain.second(), limits, rates))
            }
            ChainPlan::Fused(fused) => fused.cost(chain, limits, rates),
        }
    }

    /// What the objective makes small.
    fn value(&self, chain: &Chain, limits: &Limits, objective: &Objective) -> f64 {
        match objective {
            Objective::Dram { overhead } => (self.dram() + overhead * self.transfers(chain)) as f64,
            Objective::Latency(rates) => self.cost(chain, limits, rates).cycles,
            Objective::Energy(rates) => self.cost(chain, limits, rates).energy,
        }
    }

    fn transfers(&self, chain: &Chain) -> u64 {
        let sum = |tiling: &Tiling| tiling.transfers.iter().sum::<u64>();
        match self {
            ChainPlan::Apart { first, second, .. } => chain.gates * sum(first) + sum(second),
            ChainPlan::Half { first, second } => sum(first) + sum(second),
            ChainPlan::Fused(fused) => fused.transfers.iter().sum(),
        }
    }

    /// Bytes of SRAM at its fullest.
    #[cfg(test)]
    pub(crate) fn sram(&self) -> u64 {
        match self {
            ChainPlan::Apart { first, second, .. } | ChainPlan::Half { first, second } => first.sram.max(second.sram),
            ChainPlan::Fused(fused) => fused.sram,
        }
    }
}

/// A fused chain:
///
/// ```text
/// for i                                  blocks of tm rows
///   load X[i]                            tm x d
///   Y sums = 0, state = start            tm x e, tm
///   for j                                blocks of tf inner columns
///     load W1[j], W2[j]                  d x gates tf, tf x e; where j < kept, only if i = 0
///     sums = X[i] W1[j]                  tm x gates tf
///     between = op(sums, state)          tm x tf
///     Y sums += between W2[j]
///   store Y[i]
/// ```
///
/// Blocks at the end are smaller. `W1[j]` and `W2[j]` are one tile each, padded to whole bytes. A streamed block is loaded at
/// every use, unless it is the only one that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FusedChain {
    /// tm, tf.
    pub(crate) tile: [u64; 2],
    /// Blocks of W1 and W2 with slots of their own.
    pub(crate) kept: u64,
    /// Slots through which the others pass: 0, 1 or 2 for each of W1 and W2.
    pub(crate) slots: u64,
    /// Bytes loaded of X and stored of Y.
    pub(crate) outside: u64,
    /// Bytes loaded of W1 and W2.
    pub(crate) weights: u64,
    /// Transfers: loads of X, of W1 and W2 together, stores of Y.
    pub(crate) transfers: [u64; 3],
    /// Bytes of SRAM: X, sums of Y, state, W1 and W2's slots, sums and between of a block, and with [`Limits::staged`] a
    /// block of Y; each rounded up to [`Limits::align`] by itself.
    pub(crate) sram: u64,
}

impl FusedChain {
    /// The plan of these blocks, not checked against any limit.
    pub(crate) fn new(chain: &Chain, limits: &Limits, tile: [u64; 2], kept: u64) -> FusedChain {
        let [tm, tf] = tile;
        let (nm, nf) = (chain.rows.div_ceil(tm), chain.inner.div_ceil(tf));
        let edge = chain.inner - (nf - 1) * tf;
        let round = |bytes: u64| bytes.next_multiple_of(limits.align);
        let tiles = |columns: u64| {
            [chain.weights.bytes(chain.width * chain.gates * columns), chain.weights.bytes(columns * chain.output)]
        };
        let (full, last) = (tiles(tf), tiles(edge));
        // The last block is at the edge, and so kept only with all others.
        let first = |count: u64, size: &dyn Fn([u64; 2]) -> u64| {
            if count == nf { (nf - 1) * size(full) + size(last) } else { count * size(full) }
        };
        let plain = |sizes: [u64; 2]| sizes.iter().sum();
        let rounded = |sizes: [u64; 2]| sizes.into_iter().map(round).sum();
        let streamed = nf - kept;
        let repeats = if streamed > 1 { nm } else { 1 };
        let (all, held) = (first(nf, &plain), first(kept, &plain));
        let slots = match (streamed * repeats, limits.buffering) {
            (0, _) => 0,
            (1, _) | (_, Buffering::Single) => 1,
            (_, Buffering::DoubleStreamed) => 2,
        };
        let rows = |element: Element, columns: u64| {
            let height = chain.rows - (nm - 1) * tm;
            (nm - 1) * element.bytes(tm * columns) + element.bytes(height * columns)
        };
        let stage = if limits.staged { round(chain.outside.bytes(tm * chain.output)) } else { 0 };
        let blocks = [
            round(chain.outside.bytes(tm * chain.width)),
            round(chain.partial.bytes(tm * chain.output)),
            round(tm * chain.state),
            first(kept, &rounded) + slots * rounded(full),
            round(chain.partial.bytes(tm * chain.gates * tf)),
            round(chain.between.bytes(tm * tf)),
            stage,
        ];
        FusedChain {
            tile,
            kept,
            slots,
            outside: rows(chain.outside, chain.width) + rows(chain.outside, chain.output),
            weights: held + (all - held) * repeats,
            transfers: [nm, 2 * (kept + streamed * repeats), nm],
            sram: blocks.iter().sum(),
        }
    }

    /// Bytes between DRAM and SRAM.
    pub(crate) fn dram(&self) -> u64 {
        self.outside + self.weights
    }

    /// Predicted time and energy. Each block waits for its weights (single buffers) or takes the longer of its computation
    /// and the next block's loads (double buffers); X is loaded and Y stored in between.
    pub(crate) fn cost(&self, chain: &Chain, limits: &Limits, rates: &Rates) -> Cost {
        let [tm, tf] = self.tile;
        let (nm, nf) = (chain.rows.div_ceil(tm) as f64, chain.inner.div_ceil(tf) as f64);
        let [array_m, array_k, array_n] = rates.array;
        let first = chain.width.div_ceil(array_k) * blocks(chain.gates * chain.inner, chain.gates * tf, array_n);
        let second = blocks(chain.inner, tf, array_k) * chain.output.div_ceil(array_n);
        let compute = (blocks(chain.rows, tm, array_m) * (first + second)) as f64 + 2.0 * nm * nf * rates.fill;
        let weights = self.weights as f64 / rates.read + self.transfers[1] as f64 * rates.setup;
        let each = weights / (self.transfers[1] as f64 / 2.0);
        let outside =
            self.outside as f64 / rates.read.min(rates.write) + (self.transfers[0] + self.transfers[2]) as f64 * rates.setup;
        let (steps, loads) = (nm * nf, self.transfers[1] as f64 / 2.0);
        let work = compute / steps;
        let inside = match limits.buffering {
            Buffering::Single => compute + weights,
            Buffering::DoubleStreamed => each + loads * work.max(each) + (steps - loads) * work,
        };
        let cycles = inside + outside;
        let moved = self.dram() as f64;
        Cost { cycles, compute, dma: weights + outside, energy: self.energy(chain, rates, moved) + cycles * rates.cycle_pj }
    }

    /// Energy as for a tiling: X is read for every block of W1's columns, W1 and W2 once a step, sums and what lies between
    /// as often as the array passes over them.
    fn energy(&self, chain: &Chain, rates: &Rates, moved: f64) -> f64 {
        let [tm, tf] = self.tile;
        let steps = (chain.rows as f64 / tm as f64) * (chain.inner as f64 / tf as f64);
        let [_, array_k, array_n] = rates.array;
        let reads = chain.outside.bytes(tm * chain.width) * (chain.gates * tf).div_ceil(array_n)
            + chain.weights.bytes(chain.width * chain.gates * tf)
            + chain.weights.bytes(tf * chain.output)
            + chain.between.bytes(tm * tf) * (1 + chain.output.div_ceil(array_n));
        let sums = 2 * chain.partial.bytes(tm * chain.gates * tf) * chain.width.div_ceil(array_k)
            + 2 * chain.partial.bytes(tm * chain.output) * tf.div_ceil(array_k);
        let macs = (chain.rows * chain.inner * (chain.gates * chain.width + chain.output)) as f64;
        macs * rates.mac_pj + (moved + steps * (reads + sums) as f64) * rates.sram_pj + moved * rates.dram_pj
    }

    /// The best blocks that fit, if any do: those that move fewest bytes, then take fewest transfers, then least SRAM; for time
    /// and energy those that move fewest bytes of all within 1/128 of the least.
    pub(crate) fn search(chain: &Chain, limits: &Limits, objective: &Objective) -> Option<FusedChain> {
        let value = |fused: &FusedChain| ChainPlan::Fused(*fused).value(chain, limits, objective);
        let bytes = |fused: &FusedChain| (fused.dram(), fused.transfers.iter().sum::<u64>(), fused.sram);
        let all: Vec<(f64, FusedChain)> =
            FusedChain::fitting(chain, limits).into_iter().map(|fused| (value(&fused), fused)).collect();
        let equal = if matches!(objective, Objective::Dram { .. }) { 0.0 } else { EQUAL };
        let most = all.iter().map(|(v, _)| *v).fold(f64::INFINITY, f64::min) * (1.0 + equal);
        let best = all.iter().filter(|(v, _)| *v <= most).min_by_key(|(_, fused)| bytes(fused));
        best.map(|(_, fused)| *fused)
    }

    /// Every pair of blocks worth trying that fits, with as many weights kept as there is room for.
    fn fitting(chain: &Chain, limits: &Limits) -> Vec<FusedChain> {
        let mut all = Vec::new();
        for tf in candidates(chain.inner, chain.unit[1]) {
            for tm in candidates(chain.rows, chain.unit[0]) {
                let Some(fused) = FusedChain::keeping(chain, limits, [tm, tf]) else { break };
                all.push(fused);
            }
        }
        all
    }

    /// With as many blocks of weights kept as fit.
    fn keeping(chain: &Chain, limits: &Limits, tile: [u64; 2]) -> Option<FusedChain> {
        let count = chain.inner.div_ceil(tile[1]);
        let all = FusedChain::new(chain, limits, tile, count);
        if all.sram <= limits.sram {
            return Some(all);
        }
        let none = FusedChain::new(chain, limits, tile, 0);
        let room = limits.sram.checked_sub(none.sram)?;
        if none.transfers[0] == 1 || count == 1 {
            return Some(none);
        }
        let each = FusedChain::new(chain, limits, tile, 1).sram - none.sram;
        Some(FusedChain::new(chain, limits, tile, (room / each).min(count - 1)))
    }
}

/// One after the other.
fn then(first: Cost, second: Cost) -> Cost {
    Cost {
        cycles: first.cycles + second.cycles,
        compute: first.compute + second.compute,
        dma: first.dma + second.dma,
        energy: first.energy + second.energy,
    }
}

/// Array passes along one dimension: every tile takes whole blocks.
fn blocks(whole: u64, tile: u64, block: u64) -> u64 {
    (whole / tile) * tile.div_ceil(block) + (whole % tile).div_ceil(block)
}

#[cfg(test)]
mod tests;
