//! The best tiling of a product. For a tile of m and n everything else is bounded from below in closed form; the pairs are
//! tried best bound first until the bound passes what was found.
//!
//! A dimension's candidates are the smallest tile for every number of tiles (of at most 2 sqrt(d)): traffic depends on how
//! many tiles there are and SRAM grows with the tile, so where all or none of an operand is kept nothing else can be
//! better, except by the padding of tiles that are no whole bytes. A dimension of up to [`EVERY`] units is tried with every
//! tile, and kept counts in every combination, which makes the search exact there without exception.

use super::axis::Axis;
use super::{Buffering, Limits, Order, Product, Rates, Tiling};
use crate::{Error, Result};

/// Units of a dimension up to which every tile is a candidate.
const EVERY: u64 = 48;
/// How many counts of kept tiles of the outermost operand are tried below the most that fit.
const KEPT_BELOW: u64 = 48;
/// Candidates for whose bound a whole evaluation is spent, at most. A determinate stop for objectives with many ties.
const TRIED: usize = 4096;

/// What is made small, and what decides between equals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// DRAM bytes, then transfers, then SRAM.
    Dram,
    /// Cycles, then DRAM bytes, then energy.
    Latency(Rates),
    /// Energy, then cycles, then DRAM bytes.
    Energy(Rates),
}

impl Objective {
    /// What is compared, the first first.
    fn key(&self, product: &Product, limits: &Limits, tiling: &Tiling) -> [f64; 3] {
        let dram = tiling.dram.total() as f64;
        match self {
            Objective::Dram => [dram, tiling.transfers.iter().sum::<u64>() as f64, tiling.sram as f64],
            Objective::Latency(rates) => {
                let cost = tiling.cost(product, limits, rates);
                [cost.cycles, dram, cost.energy]
            }
            Objective::Energy(rates) => {
                let cost = tiling.cost(product, limits, rates);
                [cost.energy, cost.cycles, dram]
            }
        }
    }
}

/// The best tiling that fits.
///
/// # Errors
/// Where not even the smallest tile fits.
pub fn search(product: &Product, limits: &Limits, objective: &Objective) -> Result<Tiling> {
    Search::new(product, limits, objective).run()
}

/// Tilings of which none is at least as good as another in DRAM bytes, SRAM and cycles at once, by falling SRAM. They are
/// the best by bytes and by cycles for SRAM sizes a quarter of an octave apart.
///
/// # Errors
/// Where not even the smallest tile fits.
pub fn pareto(product: &Product, limits: &Limits, rates: &Rates) -> Result<Vec<(Tiling, f64)>> {
    let mut found: Vec<(Tiling, f64)> = Vec::new();
    let mut budget = limits.sram;
    loop {
        let limits = Limits { sram: budget, ..*limits };
        for objective in [Objective::Dram, Objective::Latency(*rates)] {
            match search(product, &limits, &objective) {
                Ok(tiling) => found.push((tiling, tiling.cost(product, &limits, rates).cycles)),
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => return Ok(front(found)),
            }
        }
        let least = found.iter().map(|(t, _)| t.sram).min().unwrap_or(0);
        budget = (budget * 27 / 32).min(least.saturating_sub(1)).max(budget * 27 / 64);
    }
}

/// Those that no other dominates, by falling SRAM.
fn front(mut found: Vec<(Tiling, f64)>) -> Vec<(Tiling, f64)> {
    found.sort_by(|(s, x), (t, y)| t.sram.cmp(&s.sram).then(s.dram.total().cmp(&t.dram.total())).then(x.total_cmp(y)));
    found.dedup_by(|later, kept| later.0 == kept.0);
    let dominates = |(s, x): &(Tiling, f64), (t, y): &(Tiling, f64)| {
        let no_worse = s.sram <= t.sram && s.dram.total() <= t.dram.total() && x <= y;
        no_worse && (s.sram < t.sram || s.dram.total() < t.dram.total() || x < y)
    };
    let mut kept: Vec<(Tiling, f64)> = Vec::new();
    for one in &found {
        let known = kept.iter().any(|k| k.0.sram == one.0.sram && k.0.dram.total() == one.0.dram.total() && k.1 == one.1);
        if !known && !found.iter().any(|other| dominates(other, one)) {
            kept.push(*one);
        }
    }
    kept
}

/// The tiles of a dimension that are worth trying, ascending: multiples of `unit`, or the whole.
pub(super) fn candidates(whole: u64, unit: u64) -> Vec<u64> {
    let units = whole.div_ceil(unit);
    if units <= EVERY {
        return (1..=units).map(|u| (u * unit).min(whole)).collect();
    }
    let (mut tiles, mut count) = (vec![whole], 1);
    while let Some(&last) = tiles.last().filter(|t| **t > unit) {
        // The next number of tiles that makes them smaller.
        let smaller = (last - 1) / unit * unit;
        count = whole.div_ceil(smaller).max(count + 1);
        tiles.push(whole.div_ceil(count).next_multiple_of(unit).min(smaller));
    }
    tiles.reverse();
    tiles
}

/// An order and a tile of m and n, with what no tiling of these can be below.
struct Pair {
    bound: [f64; 2],
    order: Order,
    tm: u64,
    tn: u64,
}

struct Search<'a> {
    product: &'a Product,
    limits: &'a Limits,
    objective: &'a Objective,
    /// Candidates of k, descending.
    depths: Vec<u64>,
    best: Option<([f64; 3], Tiling)>,
}

impl<'a> Search<'a> {
    fn new(product: &'a Product, limits: &'a Limits, objective: &'a Objective) -> Self {
        let mut depths = candidates(product.k, product.unit[1]);
        depths.reverse();
        Search { product, limits, objective, depths, best: None }
    }

    fn run(mut self) -> Result<Tiling> {
        let mut pairs = self.pairs();
        if let Some(start) = (0..pairs.len()).min_by(|x, y| rank(&pairs[*x], &pairs[*y])) {
            self.attempt(&pairs.swap_remove(start));
        }
        pairs.retain(|pair| self.hopeful(pair.bound));
        pairs.sort_by(rank);
        for pair in pairs.iter().take(TRIED) {
            if !self.hopeful(pair.bound) {
                break;
            }
            self.attempt(pair);
        }
        self.best.map(|(_, tiling)| tiling).ok_or_else(|| self.too_small())
    }

    /// Every order with every tile of m and n whose sums fit.
    fn pairs(&self) -> Vec<Pair> {
        let (rows, columns) =
            (candidates(self.product.m, self.product.unit[0]), candidates(self.product.n, self.product.unit[2]));
        let depth = self.depths[self.depths.len() - 1];
        let mut pairs = Vec::with_capacity(4 * rows.len() * columns.len());
        for order in Order::ALL {
            for &tm in &rows {
                for &tn in &columns {
                    if let Some(bound) = self.bound(order, [tm, depth, tn]) {
                        pairs.push(Pair { bound, order, tm, tn });
                    }
                }
            }
        }
        pairs
    }

    /// What the first two places of the objective's key are at least, for streamed tiles no smaller than `tile`; none if
    /// that does not fit.
    fn bound(&self, order: Order, tile: [u64; 3]) -> Option<[f64; 2]> {
        let (p, [tm, _, tn]) = (self.product, tile);
        let dram = self.least_dram(order, tile)?;
        let (rows, columns) = (Axis { whole: p.m, tile: tm }, Axis { whole: p.n, tile: tn });
        Some(match self.objective {
            Objective::Dram => {
                let stores = if p.c.bits == 0 { 0 } else { rows.tiles() * columns.tiles() };
                [dram, (rows.tiles() + columns.tiles() + stores) as f64]
            }
            Objective::Latency(rates) => [self.least_cycles(rates, rows, columns, dram), dram],
            Objective::Energy(rates) => {
                let cycles = self.least_cycles(rates, rows, columns, dram);
                [self.least_energy(rates, tm, tn, dram) + cycles * rates.cycle_pj, cycles]
            }
        })
    }

    /// DRAM bytes if SRAM could be filled with kept pieces of any size, those first that save most.
    fn least_dram(&self, order: Order, [tm, tk, tn]: [u64; 3]) -> Option<f64> {
        let (p, limits) = (self.product, self.limits);
        let held = match order {
            Order::Mnk | Order::Nmk => tm * tn,
            Order::Mkn => tm * p.n,
            Order::Nkm => p.m * tn,
        };
        let stage = if limits.staged { p.c.bytes(tm * tn) } else { 0 };
        let tiles = [p.a.bytes(tm * tk), p.w.bytes(tk * tn)];
        let left = limits.sram.checked_sub(p.partial.bytes(held) + stage)?;
        left.checked_sub(tiles[0] + tiles[1])?;
        let (wholes, repeats) = ([p.a.bytes(p.m * p.k), p.w.bytes(p.k * p.n)], [p.n.div_ceil(tn), p.m.div_ceil(tm)]);
        let (outer, inner) = if order.columns_first() { (1, 0) } else { (0, 1) };
        let block = if outer == 0 { p.a.bytes(tm * p.k) } else { p.w.bytes(p.k * tn) };
        let mut least = p.c.bytes(p.m * p.n) as f64 + (wholes[inner] * repeats[inner]) as f64;
        let mut room = left as f64;
        if wholes[inner] > left {
            room -= tiles[inner] as f64;
        }
        if !order.depth_last() {
            let save = room.min(wholes[inner] as f64) * (repeats[inner] - 1) as f64;
            return Some(least + wholes[outer] as f64 - save);
        }
        if block > left {
            room -= tiles[outer] as f64;
        }
        least += (wholes[outer] * repeats[outer]) as f64;
        // (SRAM it can take, saved bytes for each of these)
        let mut savings = [
            (block as f64, wholes[outer] as f64 * (repeats[outer] - 1) as f64 / block as f64),
            (wholes[inner] as f64, (repeats[inner] - 1) as f64),
        ];
        savings.sort_by(|x, y| y.1.total_cmp(&x.1));
        for (most, each) in savings {
            let taken = room.clamp(0.0, most);
            room -= taken;
            least -= taken * each;
        }
        Some(least)
    }

    fn least_cycles(&self, rates: &Rates, rows: Axis, columns: Axis, dram: f64) -> f64 {
        let depth = self.product.k.div_ceil(rates.array[1]);
        let compute = (Rates::blocks(rows, rates.array[0]) * Rates::blocks(columns, rates.array[2]) * depth) as f64;
        let dma = dram / rates.read.max(rates.write);
        match self.limits.buffering {
            Buffering::Single => compute + dma,
            Buffering::DoubleStreamed => compute.max(dma),
        }
    }

    fn least_energy(&self, rates: &Rates, tm: u64, tn: u64, dram: f64) -> f64 {
        let p = self.product;
        let (macs, bytes) = (p.macs() as f64, |e: crate::Element| f64::from(e.bits) / (8.0 * f64::from(e.per)));
        let reads_a = macs / tn as f64 * bytes(p.a) * tn.div_ceil(rates.array[2]) as f64;
        let reads_w = macs / tm as f64 * bytes(p.w);
        let sums = 2.0 * macs * bytes(p.partial) / rates.array[1] as f64;
        macs * rates.mac_pj + dram * rates.dram_pj + (dram + reads_a + reads_w + sums) * rates.sram_pj
    }

    /// Whether something with this bound may still be better than the best.
    fn hopeful(&self, bound: [f64; 2]) -> bool {
        // Times and energies are sums of rounded terms.
        const SLACK: f64 = 1.0 - 1e-9;
        self.best.is_none_or(|(key, _)| {
            let exact = matches!(self.objective, Objective::Dram);
            let first = if exact { bound[0] } else { bound[0] * SLACK };
            first < key[0] || (first == key[0] && bound[1] <= key[1])
        })
    }

    /// Every depth and kept count for a pair.
    fn attempt(&mut self, pair: &Pair) {
        for index in 0..self.depths.len() {
            let tile = [pair.tm, self.depths[index], pair.tn];
            if self.bound(pair.order, tile).is_some_and(|bound| self.hopeful(bound)) {
                self.keep(pair.order, tile);
            }
        }
    }

    /// Every kept count worth trying for a tile.
    fn keep(&mut self, order: Order, tile: [u64; 3]) {
        let [nm, nk, nn] = [self.product.m.div_ceil(tile[0]), self.product.k.div_ceil(tile[1]), self.product.n.div_ceil(tile[2])];
        let (outers, inners) = if order.columns_first() { (nn, nm) } else { (nm, nn) };
        let block = if order.depth_last() { nk } else { 0 };
        let most = self.most(order, tile, block, |count| [count, 0]);
        let Some(most) = most else { return self.consider(order, tile, [block, nk * inners]) };
        let lowest = if inners == 1 { most } else { most.saturating_sub(KEPT_BELOW) };
        let outer_counts = (lowest..=most).rev().chain([block, 0]);
        for outer in outer_counts {
            self.consider(order, tile, [outer, nk * inners]);
            if outers == 1 {
                self.consider(order, tile, [outer, 0]);
            } else if let Some(inner) = self.most(order, tile, nk * inners, |count| [outer, count]) {
                self.consider(order, tile, [outer, inner]);
                self.consider(order, tile, [outer, 0]);
            }
        }
    }

    /// The most tiles, at most `total`, that can be kept beside everything else: SRAM grows with the count until all are
    /// kept and no streaming slot is needed. None if not even none fits.
    fn most(&self, order: Order, tile: [u64; 3], total: u64, kept: impl Fn(u64) -> [u64; 2]) -> Option<u64> {
        let fits = |count| self.tiling(order, tile, kept(count)).sram <= self.limits.sram;
        if fits(total) {
            return Some(total);
        }
        let (mut low, mut high) = (0, total);
        if !fits(low) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(low)
    }

    /// The tiling that keeps these counts of the outer and the inner operand.
    fn tiling(&self, order: Order, tile: [u64; 3], [outer, inner]: [u64; 2]) -> Tiling {
        let kept = if order.columns_first() { [inner, outer] } else { [outer, inner] };
        Tiling::new(self.product, self.limits, order, tile, kept)
    }

    fn consider(&mut self, order: Order, tile: [u64; 3], kept: [u64; 2]) {
        let tiling = self.tiling(order, tile, kept);
        if tiling.sram > self.limits.sram {
            return;
        }
        let key = self.objective.key(self.product, self.limits, &tiling);
        if self.best.is_none_or(|(best, _)| compare(&key, &best).is_lt()) {
            self.best = Some((key, tiling));
        }
    }

    /// The least SRAM that any tiling needs, beside what there is.
    fn too_small(&self) -> Error {
        let (p, least) = (self.product, |whole: u64, unit: u64| whole.min(unit));
        let tile = [least(p.m, p.unit[0]), least(p.k, p.unit[1]), least(p.n, p.unit[2])];
        let needed = Order::ALL.map(|order| Tiling::new(p, self.limits, order, tile, [0, 0]).sram).into_iter().min();
        Error::SramTooSmall { m: p.m, k: p.k, n: p.n, tile, needed: needed.unwrap_or(u64::MAX), sram: self.limits.sram }
    }
}

fn compare<const N: usize>(x: &[f64; N], y: &[f64; N]) -> std::cmp::Ordering {
    x.iter().zip(y).map(|(x, y)| x.total_cmp(y)).find(|order| order.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
}

/// By bound, then by what is the same on every machine.
fn rank(x: &Pair, y: &Pair) -> std::cmp::Ordering {
    compare(&x.bound, &y.bound).then((x.order, x.tm, x.tn).cmp(&(y.order, y.tm, y.tn)))
}
