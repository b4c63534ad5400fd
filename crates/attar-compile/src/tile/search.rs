//! The best tiling of a product. Every pair of tile sizes for m and n has a lower bound in closed form. Pairs are tried in
//! the order of their bounds, until the next bound exceeds the best tiling found.
//!
//! The candidates of a dimension are the smallest tile for each number of tiles, at most 2 sqrt(d) of them. Traffic depends on
//! the number of tiles and SRAM on their size, so no other tile is better when all or none of an operand is kept, except
//! through the padding of tiles that end within a byte. For dimensions of up to [`EVERY`] units all tiles and all counts of kept
//! tiles are tried; there the search is exact by bytes. By time and energy it comes within 1/32 of the least: tilings within 1/128
//! count as equal, twice, and costs average over tiles of several sizes, so that keeping fewer of them can look faster.

use super::axis::Axis;
use super::walk::{Nest, stage};
use super::{Buffering, Limits, Order, Product, Rates, Tiling};
use crate::{Error, Result, front::front};
use std::collections::BinaryHeap;

/// Units of a dimension up to which every tile is a candidate.
const EVERY: u64 = 48;
/// Counts of kept tiles of the outermost operand that are tried, from the largest that fits downwards.
const KEPT_BELOW: u64 = 48;
/// The most pairs that are tried, in the order of their bounds: bounds on time leave out some costs and may never be met.
const TRIED: usize = 192;
/// Predicted times and energies with a smaller relative difference count as equal.
pub const EQUAL: f64 = 1.0 / 128.0;

/// What is minimized, and what breaks ties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// DRAM bytes, then transfers, then SRAM. Each transfer costs `overhead` more bytes; without them, very small tiles win
    /// wherever [`Product::unit`] allows them.
    Dram {
        /// Bytes.
        overhead: u64,
    },
    /// Cycles; among tilings within 1/128 of the minimum, DRAM bytes (also to 1/128).
    Latency(Rates),
    /// Energy; among tilings within 1/128 of the minimum, cycles (also to 1/128).
    Energy(Rates),
}

impl Objective {
    /// The cost of a transfer in schedules, in bytes: a few bursts.
    pub const TRANSFER: u64 = 64;

    /// DRAM bytes alone.
    pub const BYTES: Objective = Objective::Dram { overhead: 0 };

    /// Whether outputs in strips may be better than whole tiles: they leave more SRAM to operands, but the array waits for their
    /// stores.
    pub(crate) fn tries_strips(&self, product: &Product, limits: &Limits) -> bool {
        matches!(self, Objective::Dram { .. }) && limits.staged && product.c.bits > 0
    }

    /// Whether something that moves `bytes` in so many `transfers` with outputs in strips is better than the same with whole
    /// tiles: it moves fewer bytes, and they outweigh its transfers.
    pub(crate) fn prefers_strips(&self, [bytes, transfers]: [u64; 2], tiles: [u64; 2]) -> bool {
        let Objective::Dram { overhead } = self else { return false };
        bytes < tiles[0] && bytes + overhead * transfers < tiles[0] + overhead * tiles[1]
    }
}

/// What to search.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Among {
    /// The loops.
    pub(crate) nests: Nests,
    /// What outputs are stored from.
    pub(crate) stage: Stage,
    /// The most DRAM bytes of interest.
    pub(crate) most: Option<u64>,
}

/// What [`Limits::staged`] outputs are stored from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A buffer of a tile.
    #[default]
    Tile,
    /// Two slots for strips of a tile: see [`Tiling::strip`].
    Strips,
}

impl Stage {
    /// The heights of strips that take less room than a tile of `rows` rows: divisors, since the strips of a tile begin with it.
    fn strips(self, rows: u64) -> Vec<u64> {
        match self {
            Stage::Tile => vec![rows],
            Stage::Strips => {
                let small = (1..=rows.isqrt()).filter(|strip| rows.is_multiple_of(*strip));
                let mut strips: Vec<u64> =
                    small.flat_map(|strip| [strip, rows / strip]).filter(|strip| 2 * strip < rows).collect();
                strips.sort_unstable();
                strips.dedup();
                strips
            }
        }
    }
}

/// The loop nests to search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Nests {
    /// All.
    #[default]
    All,
    /// Rows in the outermost loop, with the whole row block of A kept in SRAM.
    RowPanel,
    /// Columns in the outermost loop, tiles of rows inside.
    RowsWithin,
}

impl Nests {
    fn orders(self) -> &'static [Order] {
        match self {
            Nests::All => &Order::ALL,
            Nests::RowPanel => &[Order::Mnk],
            Nests::RowsWithin => &[Order::Nmk],
        }
    }
}

/// The best tiling that fits. Outputs that are staged leave in strips where that moves fewer bytes of DRAM and these count.
///
/// # Errors
/// When not even the smallest tile fits.
pub fn search(product: &Product, limits: &Limits, objective: &Objective) -> Result<Tiling> {
    let tiles = search_among(product, limits, objective, &Among::default());
    if !objective.tries_strips(product, limits) {
        return tiles;
    }
    let most = tiles.as_ref().ok().map(|tiles| tiles.dram.total());
    let strips = search_among(product, limits, objective, &Among { stage: Stage::Strips, most, ..Among::default() });
    let moved = |tiling: &Tiling| [tiling.dram.total(), tiling.transfers.iter().sum()];
    match (tiles, strips) {
        (Ok(tiles), Ok(strips)) => Ok(if objective.prefers_strips(moved(&strips), moved(&tiles)) { strips } else { tiles }),
        (tiles, strips) => strips.or(tiles),
    }
}

/// The best tiling among these.
pub(crate) fn search_among(product: &Product, limits: &Limits, objective: &Objective, among: &Among) -> Result<Tiling> {
    let Among { nests, stage, most } = *among;
    let (first, second) = match objective {
        Objective::Dram { overhead } => {
            let within = most.map(|most| (Measure::Bytes(0), most as f64));
            return Search { nests, stage, within, ..Search::new(product, limits, Measure::Bytes(*overhead)) }.run();
        }
        Objective::Latency(rates) => (Measure::Cycles(rates), Measure::Bytes(0)),
        Objective::Energy(rates) => (Measure::Energy(rates), Measure::Cycles(rates)),
    };
    let best = Search { nests, stage, equal: EQUAL, ..Search::new(product, limits, first) }.run()?;
    let most = first.key(product, limits, &best)[0] * (1.0 + EQUAL);
    let start = Some((second.key(product, limits, &best), best));
    let within = Some((first, most));
    Search { nests, stage, equal: EQUAL, within, best: start, ..Search::new(product, limits, second) }.run()
}

/// The Pareto front of DRAM bytes, SRAM and cycles, with the cycles of each tiling, in descending order of SRAM. It is built from
/// the best tilings by bytes and by cycles for SRAM sizes in steps of half an octave, down to 1/256 of the limit.
///
/// # Errors
/// Where not even the smallest tile fits.
pub fn pareto(product: &Product, limits: &Limits, rates: &Rates) -> Result<Vec<(Tiling, f64)>> {
    pareto_by(product, limits, rates, &|limits, objective| search(product, limits, objective))
}

/// The same for the tilings that `find` returns, which may hold more in SRAM than the product.
pub(crate) fn pareto_by(
    product: &Product,
    limits: &Limits,
    rates: &Rates,
    find: &dyn Fn(&Limits, &Objective) -> Result<Tiling>,
) -> Result<Vec<(Tiling, f64)>> {
    let mut found: Vec<(Tiling, f64)> = Vec::new();
    let mut budget = limits.sram;
    'budgets: while budget >= limits.sram.div_ceil(256) {
        let limits = Limits { sram: budget, ..*limits };
        for objective in [Objective::BYTES, Objective::Latency(*rates)] {
            match find(&limits, &objective) {
                Ok(tiling) => found.push((tiling, tiling.cost(product, &limits, rates).cycles)),
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => break 'budgets,
            }
        }
        budget = budget * 181 / 256;
    }
    let bytes = |tiling: &Tiling| tiling.dram.total();
    found.sort_by(|(s, x), (t, y)| t.sram.cmp(&s.sram).then(bytes(s).cmp(&bytes(t))).then(x.total_cmp(y)));
    Ok(front(found, |(tiling, cycles)| [tiling.sram as f64, bytes(tiling) as f64, *cycles]))
}

/// The candidates of a dimension of W: if W is stored in tiles, their size alone.
fn of_weight(whole: u64, unit: u64, stored: Option<u64>) -> Vec<u64> {
    match stored {
        None => candidates(whole, unit),
        Some(tile) => {
            Some(tile).filter(|tile| *tile == whole || *tile < whole && tile.is_multiple_of(unit)).into_iter().collect()
        }
    }
}

/// The candidate tiles of a dimension in ascending order: multiples of `unit`, and the whole dimension.
pub fn candidates(whole: u64, unit: u64) -> Vec<u64> {
    let units = whole.div_ceil(unit);
    if units <= EVERY {
        return (1..=units).map(|u| (u * unit).min(whole)).collect();
    }
    let (mut tiles, mut count) = (vec![whole], 1);
    while let Some(&last) = tiles.last().filter(|t| **t > unit) {
        // The next number of tiles that gives a smaller tile.
        let smaller = (last - 1) / unit * unit;
        count = whole.div_ceil(smaller).max(count + 1);
        tiles.push(whole.div_ceil(count).next_multiple_of(unit).min(smaller));
    }
    tiles.reverse();
    tiles
}

/// A key to minimize, with its tie-breakers.
#[derive(Clone, Copy)]
enum Measure<'a> {
    /// DRAM bytes plus this many per transfer.
    Bytes(u64),
    Cycles(&'a Rates),
    Energy(&'a Rates),
}

impl Measure<'_> {
    /// The key, most significant part first.
    fn key(&self, product: &Product, limits: &Limits, tiling: &Tiling) -> [f64; 3] {
        let dram = tiling.dram.total() as f64;
        let cost = |rates| tiling.cost(product, limits, rates);
        match self {
            Measure::Bytes(overhead) => {
                let transfers = tiling.transfers.iter().sum::<u64>();
                [dram + (overhead * transfers) as f64, transfers as f64, tiling.sram as f64]
            }
            Measure::Cycles(rates) => [cost(rates).cycles, dram, tiling.sram as f64],
            Measure::Energy(rates) => [cost(rates).energy, cost(rates).cycles, dram],
        }
    }

    /// A lower bound on the first two parts of the key, for at least `dram` bytes and at least `depths` tiles of k.
    fn least(&self, product: &Product, limits: &Limits, cut: Cut, depths: u64, dram: f64) -> [f64; 2] {
        let [tm, _, tn] = cut.tile;
        let (rows, columns) = (Axis { whole: product.m, tile: tm }, Axis { whole: product.n, tile: tn });
        let outputs = rows.tiles() * columns.tiles();
        let strips = Axis { whole: product.m, tile: cut.strip }.tiles() * columns.tiles();
        let stores = if product.c.bits == 0 { 0 } else { strips };
        let transfers = ((rows.tiles() + columns.tiles()) * depths + stores) as f64;
        let cycles = |rates: &Rates| {
            let depth = product.k.div_ceil(rates.array[1]);
            let blocks = Rates::blocks(rows, rates.array[0]) * Rates::blocks(columns, rates.array[2]) * depth;
            let compute = blocks as f64 + (outputs * depths) as f64 * rates.fill;
            let setup = rates.exposed_setup(limits.buffering, rates.read.min(rates.write));
            let dma = dram * rates.moved(product.w).min(1.0) / rates.read.max(rates.write) + transfers * setup;
            if limits.buffering == Buffering::Single { compute + dma } else { compute.max(dma) }
        };
        match self {
            Measure::Bytes(overhead) => [dram + *overhead as f64 * transfers, transfers],
            Measure::Cycles(rates) => [cycles(rates), dram],
            Measure::Energy(rates) => {
                let least = least_energy(product, rates, tm, tn, dram) + cycles(rates) * rates.cycle_pj;
                [least, cycles(rates)]
            }
        }
    }
}

/// Energy without the part that grows with cycles, for tiles of k of any size.
fn least_energy(p: &Product, rates: &Rates, tm: u64, tn: u64, dram: f64) -> f64 {
    let (macs, bytes) = (p.macs() as f64, |e: crate::Element| f64::from(e.bits) / (8.0 * f64::from(e.per)));
    let reads_a = macs / tn as f64 * bytes(p.a) * tn.div_ceil(rates.array[2]) as f64;
    let reads_w = macs / tm as f64 * bytes(p.w);
    let sums = 2.0 * macs * bytes(p.partial) / rates.array[1] as f64;
    macs * rates.mac_pj + dram * rates.dram_pj + (dram + reads_a + reads_w + sums) * rates.sram_pj
}

/// Loops over tiles, and the rows of outputs that are stored at once.
#[derive(Clone, Copy)]
struct Cut {
    order: Order,
    tile: [u64; 3],
    strip: u64,
}

/// Tiles of m and n, with the smallest of k and a lower bound on every tiling that has them.
struct Pair {
    bound: [f64; 2],
    cut: Cut,
}

struct Search<'a> {
    product: &'a Product,
    limits: &'a Limits,
    nests: Nests,
    stage: Stage,
    measure: Measure<'a>,
    /// Relative distance from the best that is accepted.
    equal: f64,
    /// An upper limit on another measure.
    within: Option<(Measure<'a>, f64)>,
    /// Candidate tiles of k, in descending order.
    depths: Vec<u64>,
    best: Option<([f64; 3], Tiling)>,
}

impl<'a> Search<'a> {
    fn new(product: &'a Product, limits: &'a Limits, measure: Measure<'a>) -> Self {
        let mut depths = of_weight(product.k, product.unit[1], limits.stored.map(|[depth, _]| depth));
        depths.reverse();
        let Among { nests, stage, .. } = Among::default();
        Search { product, limits, nests, stage, measure, equal: 0.0, within: None, depths, best: None }
    }

    fn run(mut self) -> Result<Tiling> {
        let mut pairs = BinaryHeap::from(self.pairs());
        let tried = if self.equal > 0.0 { TRIED } else { pairs.len() };
        for _ in 0..tried {
            let Some(pair) = pairs.pop().filter(|pair| self.hopeful(pair.bound)) else { break };
            self.attempt(&pair);
        }
        self.best.map(|(_, tiling)| tiling).ok_or_else(|| self.too_small())
    }

    /// Every order with all tiles of m and n whose accumulators fit.
    fn pairs(&self) -> Vec<Pair> {
        let rows = candidates(self.product.m, self.product.unit[0]);
        let columns = of_weight(self.product.n, self.product.unit[2], self.limits.stored.map(|[_, columns]| columns));
        let Some(&depth) = self.depths.last() else { return Vec::new() };
        let strips: Vec<(u64, u64)> =
            rows.iter().flat_map(|tm| self.stage.strips(*tm).into_iter().map(|strip| (*tm, strip))).collect();
        let mut pairs = Vec::with_capacity(4 * rows.len() * columns.len());
        for &order in self.nests.orders() {
            for &(tm, strip) in &strips {
                for &tn in &columns {
                    let cut = Cut { order, tile: [tm, depth, tn], strip };
                    if let Some(bound) = self.bound(cut, 1) {
                        pairs.push(Pair { bound, cut });
                    }
                }
            }
        }
        pairs
    }

    /// A lower bound on the first two parts of the key, for at least `depths` tiles of k that are no smaller than `cut` says;
    /// `None` if such tiles do not fit, or exceed the limits.
    fn bound(&self, cut: Cut, depths: u64) -> Option<[f64; 2]> {
        let dram = self.least_dram(cut)?;
        self.least(cut, depths, dram)
    }

    /// The same for at least `dram` bytes.
    fn least(&self, cut: Cut, depths: u64, dram: f64) -> Option<[f64; 2]> {
        if let Some((measure, most)) = self.within
            && measure.least(self.product, self.limits, cut, depths, dram)[0] > most
        {
            return None;
        }
        Some(self.measure.least(self.product, self.limits, cut, depths, dram))
    }

    /// DRAM bytes of a relaxation: SRAM filled with kept pieces of any size, those that save most first.
    fn least_dram(&self, Cut { order, tile, strip }: Cut) -> Option<f64> {
        let (p, limits, [tm, tk, tn]) = (self.product, self.limits, tile);
        let held = match order {
            Order::Mnk | Order::Nmk => tm * tn,
            Order::Mkn => tm * p.n,
            Order::Nkm => p.m * tn,
        };
        let stage = stage(p, limits, tile, strip);
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
        // (SRAM that it can fill, DRAM bytes saved per byte of it)
        let mut savings = [
            (block as f64, wholes[outer] as f64 * (repeats[outer] - 1) as f64 / block.max(1) as f64),
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

    /// Whether a tiling with this bound can beat the best by more than the tolerance.
    fn hopeful(&self, bound: [f64; 2]) -> bool {
        self.best.is_none_or(|(key, _)| {
            let first = bound[0] * (1.0 + self.equal);
            first < key[0] || (self.equal == 0.0 && first == key[0] && bound[1] <= key[1])
        })
    }

    /// Tries every depth and every count of kept tiles for a pair.
    fn attempt(&mut self, pair: &Pair) {
        for index in 0..self.depths.len() {
            let [tm, _, tn] = pair.cut.tile;
            let cut = Cut { tile: [tm, self.depths[index], tn], ..pair.cut };
            let depths = self.product.k.div_ceil(self.depths[index]);
            if self.bound(cut, depths).is_some_and(|bound| self.hopeful(bound)) {
                self.keep(cut, depths);
            }
        }
    }

    /// Tries the candidate counts of kept tiles for a tile.
    fn keep(&mut self, cut: Cut, depths: u64) {
        let (p, limits) = (self.product, self.limits);
        let nest = Nest::new(p, cut.order, cut.tile, [0, 0]);
        let held = nest.sums(p.partial, limits.align) + stage(p, limits, cut.tile, cut.strip);
        let Some(room) = limits.sram.checked_sub(held) else { return };
        let most = nest.most_outer(room.saturating_sub(nest.inner_least(limits)), limits);
        let panel = self.nests == Nests::RowPanel;
        if panel && most < depths {
            return;
        }
        let lowest = if nest.outer_saves() && !panel { most.saturating_sub(KEPT_BELOW) } else { most };
        for outer in (lowest..=most).rev().chain((lowest > 0 && !panel).then_some(0)) {
            let nest = nest.keeping_outer(outer);
            let Some(left) = room.checked_sub(nest.outer_sram(limits)) else { continue };
            let dram = p.c.bytes(p.m * p.n) as f64 + nest.outer_bytes() as f64 + nest.least_inner(left);
            if self.least(cut, depths, dram).is_some_and(|bound| self.hopeful(bound)) {
                for inner in nest.inner_counts(left, limits) {
                    self.consider(cut, [outer, inner]);
                }
            } else if outer == most && !nest.inner_saves_more() {
                return;
            }
        }
    }

    /// The tiling that keeps these numbers of tiles of the outer and the inner operand.
    fn tiling(&self, Cut { order, tile, strip }: Cut, [outer, inner]: [u64; 2]) -> Tiling {
        let kept = if order.columns_first() { [inner, outer] } else { [outer, inner] };
        Tiling::new(self.product, self.limits, order, tile, kept).in_strips(self.product, self.limits, strip)
    }

    fn consider(&mut self, cut: Cut, kept: [u64; 2]) {
        let tiling = self.tiling(cut, kept);
        if tiling.sram > self.limits.sram {
            return;
        }
        if self.within.is_some_and(|(measure, most)| measure.key(self.product, self.limits, &tiling)[0] > most) {
            return;
        }
        let key = self.measure.key(self.product, self.limits, &tiling);
        if self.best.is_none_or(|(best, _)| compare(&key, &best).is_lt()) {
            self.best = Some((key, tiling));
        }
    }

    /// The error: the least SRAM that any tiling needs, and the SRAM available.
    fn too_small(&self) -> Error {
        let (p, least) = (self.product, |whole: u64, unit: u64| whole.min(unit));
        let [depth, columns] = self.limits.stored.unwrap_or([least(p.k, p.unit[1]), least(p.n, p.unit[2])]);
        let tile = [least(p.m, p.unit[0]), depth, columns];
        let kept = if self.nests == Nests::RowPanel { [p.k.div_ceil(tile[1]), 0] } else { [0, 0] };
        let needed = self.nests.orders().iter().map(|order| Tiling::new(p, self.limits, *order, tile, kept).sram).min();
        Error::SramTooSmall { m: p.m, k: p.k, n: p.n, tile, needed: needed.unwrap_or(u64::MAX), sram: self.limits.sram }
    }
}

fn compare<const N: usize>(x: &[f64; N], y: &[f64; N]) -> std::cmp::Ordering {
    x.iter().zip(y).map(|(x, y)| x.total_cmp(y)).find(|order| order.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
}

/// The greatest has the lowest bound. The pair itself breaks ties, so that the order is the same on every machine.
impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> std::cmp::Ordering {
        let known = |pair: &Pair| (pair.cut.order, pair.cut.tile, pair.cut.strip);
        compare(&self.bound, &other.bound).then(known(self).cmp(&known(other))).reverse()
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}
