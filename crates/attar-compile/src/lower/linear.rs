//! The tiles of a product, with everything that it holds on the chip in addition to its operands: rescalings, the residual or
//! rotary table of its epilogue, and the norm at its entry.

mod code;

use super::Entry;
use crate::{
    Element, Program,
    program::{Column, Epilogue, Linear, Norm},
    tile::{self, Among, Limits, Nests, Objective, Order, Product, Stage, Tiling},
};

/// How a product is tiled.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearTiles {
    /// Its loops.
    pub tiling: Tiling,
    /// As it was searched for.
    pub product: Product,
    /// How `x` is normed before it is read, if there is a norm at the entry.
    pub entry: Option<Entry>,
    /// Bytes of the constants of that norm.
    gains: u64,
    /// Whether `x` (what is normed), the output, and the residual are kept on the chip.
    pub on_chip: [bool; 3],
    /// Whether the rescalings of all columns are loaded at once.
    pub columns_whole: bool,
    /// Whether the residual is loaded into the buffer of the result and added in place: less room, but the next residual
    /// waits for the store.
    pub in_place: bool,
    limits: Limits,
}

impl LinearTiles {
    /// The best tiles by `objective` that fit `limits` together with everything else that the kernel holds.
    ///
    /// # Errors
    /// Where not even the smallest tile fits.
    pub fn search(
        program: &Program,
        linear: &Linear,
        entry: Option<(Entry, &Norm)>,
        on_chip: [bool; 3],
        limits: &Limits,
        array: [u64; 2],
        objective: &Objective,
    ) -> crate::Result<LinearTiles> {
        let gains = entry.map_or(0, |(_, norm)| program.get(norm.gains).bytes());
        let entry = entry.map(|(entry, _)| entry);
        let product = product(program, linear, entry, on_chip, array);
        Problem { program, linear, product, entry, gains, on_chip, limits, objective }.best()
    }

    /// DRAM bytes, with rescalings and the extra operand of the epilogue.
    pub fn traffic(&self, program: &Program, linear: &Linear) -> u64 {
        let ([m, _, n], [rows, _, columns]) =
            ([self.product.m, self.product.k, self.product.n], self.tiling.counts(&self.product));
        let columns_first = matches!(self.tiling.order, Order::Nmk | Order::Nkm);
        let times = if self.columns_whole || columns_first { 1 } else { rows };
        let rescalings = times * Column::ELEMENT.bytes(n);
        let extra = match &linear.epilogue {
            Epilogue::Add { residual } if !self.on_chip[2] => program.get(*residual).element.bytes(n) * m,
            Epilogue::Rotary { table: Some(table), .. } => {
                let row = program.get(*table).bytes() / program.get(*table).rows;
                row * m * if columns_first { columns } else { 1 }
            }
            _ => 0,
        };
        self.x_loads() + self.tiling.dram.w + self.tiling.dram.c + self.gains + rescalings + extra
    }

    /// Transfers of tiles and strips: loads of the product's operands and of the residual, and stores.
    fn transfers(&self, linear: &Linear) -> u64 {
        let residual = matches!(linear.epilogue, Epilogue::Add { .. }) && !self.on_chip[2];
        self.tiling.transfers.iter().sum::<u64>() + if residual { self.tiling.transfers[2] } else { 0 }
    }

    /// DRAM bytes of `x`.
    fn x_loads(&self) -> u64 {
        match self.entry {
            Some(Entry::Once { .. }) => self.panel_loads(),
            _ => self.tiling.dram.a,
        }
    }

    /// DRAM bytes of the rows that fill the panel of [`Entry::Once`]: not those of the panel, but wider ones.
    fn panel_loads(&self) -> u64 {
        if self.on_chip[0] { 0 } else { Element::INT16.bytes(self.product.m * self.product.k) }
    }

    /// How many times each row is normed.
    pub fn norms(&self) -> u64 {
        match self.entry {
            None => 0,
            Some(Entry::Once { .. }) => 1,
            Some(Entry::Again { .. }) => self.tiling.counts(&self.product)[2],
        }
    }

    /// Predicted cycles, where norming each row once takes `norm` cycles of work.
    pub(crate) fn cycles(&self, rates: &tile::Rates, norm: f64) -> f64 {
        match self.entry {
            None => self.tiling.cost(&self.product, &self.limits, rates).cycles,
            Some(Entry::Again { .. }) => {
                let work = norm * self.norms() as f64;
                self.tiling.cost_with(&self.product, &self.limits, rates, work).cycles
            }
            Some(Entry::Once { .. }) => {
                // Rows come and are normed before the rest begins.
                let product = Product { a: NOTHING, ..self.product };
                let Tiling { order, tile, kept, strip, .. } = self.tiling;
                let alone = Tiling::new(&product, &self.limits, order, tile, kept).in_strips(&product, &self.limits, strip);
                let alone = alone.cost(&product, &self.limits, rates);
                alone.cycles + norm.max(self.panel_loads() as f64 / rates.read)
            }
        }
    }

    /// The product of what is loaded: of rows that are on the chip, nothing is.
    pub(crate) fn loaded(&self) -> Product {
        if self.on_chip[0] { Product { a: NOTHING, ..self.product } } else { self.product }
    }

    /// Bytes on the chip of the norm, without a panel.
    fn entry_bytes(&self, normed: Element) -> u64 {
        let [tm, k, align] = [self.tiling.tile[0], self.product.k, self.limits.align];
        self.entry.map_or(0, |entry| entry.bytes([tm, k], normed, self.on_chip[0], align) + self.gains.next_multiple_of(align))
    }

    /// Slots on the chip for rescalings and for the extra operand of the epilogue, and the bytes of each.
    fn extra(&self, program: &Program, linear: &Linear) -> [[u64; 2]; 2] {
        let ([tm, _, tn], strip) = (self.tiling.tile, self.tiling.strip);
        let columns = Column::ELEMENT.bytes(if self.columns_whole { self.product.n } else { tn });
        let extra = match &linear.epilogue {
            Epilogue::Add { residual } if !self.on_chip[2] && !self.in_place => {
                [self.tiling.strip_slots(), program.get(*residual).element.bytes(tn) * strip]
            }
            Epilogue::Rotary { table: Some(table), .. } => [1, program.get(*table).bytes() / program.get(*table).rows * tm],
            _ => [0; 2],
        };
        [[1, columns], extra]
    }
}

/// A product with everything that decides its tiles.
struct Problem<'a> {
    program: &'a Program,
    linear: &'a Linear,
    product: Product,
    entry: Option<Entry>,
    gains: u64,
    on_chip: [bool; 3],
    limits: &'a Limits,
    objective: &'a Objective,
}

impl Problem<'_> {
    /// The best tiles, with outputs in whole tiles or in strips.
    fn best(&self) -> crate::Result<LinearTiles> {
        let tiles = self.whole_tiles();
        if !self.objective.tries_strips(&self.product, self.limits) {
            return tiles;
        }
        let most = tiles.as_ref().ok().map(|tiles| self.bytes(tiles) - tiles.x_loads() + tiles.tiling.dram.a);
        let strips = self.fitting(false, Stage::Strips, most);
        let moved = |tiles: &LinearTiles| [self.bytes(tiles), tiles.transfers(self.linear)];
        better(tiles, strips, |strips, tiles| self.objective.prefers_strips(moved(strips), moved(tiles)))
    }

    /// The best with outputs in whole tiles, with or without the residual in place.
    fn whole_tiles(&self) -> crate::Result<LinearTiles> {
        let apart = self.fitting(false, Stage::Tile, None);
        if !matches!(self.linear.epilogue, Epilogue::Add { .. }) || self.on_chip[1] || self.on_chip[2] {
            return apart;
        }
        let in_place = self.fitting(true, Stage::Tile, None);
        better(apart, in_place, |in_place, apart| self.value(in_place) < self.value(apart))
    }

    fn bytes(&self, tiles: &LinearTiles) -> u64 {
        tiles.traffic(self.program, self.linear)
    }

    /// What the objective counts first.
    fn value(&self, tiles: &LinearTiles) -> f64 {
        match self.objective {
            Objective::Dram { .. } => self.bytes(tiles) as f64,
            Objective::Latency(rates) => tiles.tiling.cost(&tiles.product, self.limits, rates).cycles,
            Objective::Energy(rates) => tiles.tiling.cost(&tiles.product, self.limits, rates).energy,
        }
    }

    /// The best with the residual in place or not, with outputs that are stored from such a buffer, of at most so many DRAM bytes
    /// of the product alone.
    fn fitting(&self, in_place: bool, stage: Stage, most: Option<u64>) -> crate::Result<LinearTiles> {
        let Problem { program, linear, product, entry, gains, on_chip, limits, objective } = *self;
        let nests = match entry {
            None => Nests::All,
            Some(Entry::Once { .. }) => Nests::RowPanel,
            Some(Entry::Again { .. }) => Nests::RowsWithin,
        };
        let among = Among { nests, stage, most };
        let columns_whole = 16 * Column::ELEMENT.bytes(product.n) <= limits.sram;
        let mut reserve = 0;
        loop {
            let left = Limits { sram: limits.sram.saturating_sub(reserve), ..*limits };
            let tiling = tile::search_among(&product, &left, objective, &among)?;
            let found = LinearTiles { tiling, product, entry, gains, on_chip, columns_whole, in_place, limits: *limits };
            let extra = found.extra(program, linear).map(|[slots, bytes]| slots * bytes.next_multiple_of(limits.align));
            let extra = extra.iter().sum::<u64>() + found.entry_bytes(program.get(linear.x).element);
            if tiling.sram + extra <= limits.sram {
                return Ok(found);
            }
            reserve = (limits.sram + reserve + 1 - tiling.sram.min(limits.sram)).min(extra).max(reserve + limits.align);
        }
    }
}

/// The second if it is the only one, or if it `wins` over the first.
fn better(
    first: crate::Result<LinearTiles>,
    second: crate::Result<LinearTiles>,
    wins: impl Fn(&LinearTiles, &LinearTiles) -> bool,
) -> crate::Result<LinearTiles> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok(if wins(&second, &first) { second } else { first }),
        (first, second) => first.or(second),
    }
}

/// The element of an operand that is on the chip already, or stays there.
const NOTHING: Element = Element { bits: 0, per: 1 };

/// A linear kernel as a product to be tiled: after a norm, rows are whole or a panel of normed ones.
fn product(program: &Program, linear: &Linear, entry: Option<Entry>, [x, out, _]: [bool; 3], array: [u64; 2]) -> Product {
    let ([m, k, n], weight) = (program.product(linear), program.get(linear.weight).element);
    let pairs = linear.epilogue.pairs() as u32;
    let depth = array[0].max(u64::from(weight.per)).next_multiple_of(u64::from(weight.per));
    let c = program.get(linear.out[0].tensor).element;
    let columns = match &linear.epilogue {
        Epilogue::Rotary { head, .. } => *head,
        _ => array[1].max(u64::from(pairs)),
    };
    Product {
        m,
        k,
        n,
        a: match entry {
            Some(Entry::Once { .. }) => program.get(linear.x).element,
            _ if x => NOTHING,
            Some(Entry::Again { .. }) => Element::INT16,
            None => program.get(linear.x).element,
        },
        w: weight,
        c: if out { NOTHING } else { Element { bits: c.bits, per: pairs } },
        partial: program.sums(linear),
        unit: match entry {
            Some(Entry::Once { rows }) => [rows, depth, columns],
            Some(Entry::Again { times }) => [1, k, n.div_ceil(times).next_multiple_of(columns)],
            None => [1, depth, columns],
        },
    }
}
