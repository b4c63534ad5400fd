//! The tiles of a product, with everything that it holds on the chip in addition to its operands: rescalings, the residual or
//! rotary table of its epilogue, and the norm at its entry.

mod code;

use super::Entry;
use crate::{
    Element, Program,
    program::{Column, Epilogue, Linear},
    tile::{self, Limits, Nests, Objective, Order, Product, Tiling},
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
        entry: Option<Entry>,
        on_chip: [bool; 3],
        limits: &Limits,
        array: [u64; 2],
        objective: &Objective,
    ) -> crate::Result<LinearTiles> {
        let fitting = |in_place| {
            let product = product(program, linear, entry, on_chip, array);
            LinearTiles::fitting(program, linear, (entry, product), on_chip, limits, objective, in_place)
        };
        let apart = fitting(false);
        if !matches!(linear.epilogue, Epilogue::Add { .. }) || on_chip[1] || on_chip[2] {
            return apart;
        }
        let in_place = fitting(true);
        let value = |tiles: &LinearTiles| match objective {
            Objective::Dram { .. } => tiles.traffic(program, linear) as f64,
            Objective::Latency(rates) => tiles.tiling.cost(&tiles.product, limits, rates).cycles,
            Objective::Energy(rates) => tiles.tiling.cost(&tiles.product, limits, rates).energy,
        };
        match (apart, in_place) {
            (Ok(apart), Ok(in_place)) => Ok(if value(&in_place) < value(&apart) { in_place } else { apart }),
            (apart, in_place) => apart.or(in_place),
        }
    }

    /// The best with or without the residual in place.
    fn fitting(
        program: &Program,
        linear: &Linear,
        (entry, product): (Option<Entry>, Product),
        on_chip: [bool; 3],
        limits: &Limits,
        objective: &Objective,
        in_place: bool,
    ) -> crate::Result<LinearTiles> {
        let nests = match entry {
            None => Nests::All,
            Some(Entry::Once { .. }) => Nests::RowPanel,
            Some(Entry::Again { .. }) => Nests::RowsWithin,
        };
        let columns_whole = 16 * Column::ELEMENT.bytes(product.n) <= limits.sram;
        let mut reserve = 0;
        loop {
            let left = Limits { sram: limits.sram.saturating_sub(reserve), ..*limits };
            let tiling = tile::search_nests(&product, &left, objective, nests)?;
            let found = LinearTiles { tiling, product, entry, on_chip, columns_whole, in_place, limits: *limits };
            let extra = found.extra(program, linear).iter().map(|bytes| bytes.next_multiple_of(limits.align)).sum::<u64>();
            let extra = extra + found.entry_bytes(program.get(linear.x).element);
            if tiling.sram + extra <= limits.sram {
                return Ok(found);
            }
            reserve = (limits.sram + reserve + 1 - tiling.sram.min(limits.sram)).min(extra).max(reserve + limits.align);
        }
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
            Epilogue::Rotary { table, .. } => {
                let row = program.get(*table).bytes() / program.get(*table).rows;
                row * m * if columns_first { columns } else { 1 }
            }
            _ => 0,
        };
        let gains = self.entry.map_or(0, |_| Element::INT32.bytes(self.product.k));
        let x = match self.entry {
            Some(Entry::Once { .. }) => self.panel_loads(),
            _ => self.tiling.dram.a,
        };
        x + self.tiling.dram.w + self.tiling.dram.c + gains + rescalings + extra
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
                let Tiling { order, tile, kept, .. } = self.tiling;
                let alone = Tiling::new(&product, &self.limits, order, tile, kept).cost(&product, &self.limits, rates);
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
        self.entry.map_or(0, |entry| entry.bytes([tm, k], normed, self.on_chip[0], align))
    }

    /// Bytes on the chip for rescalings and for the extra operand of the epilogue.
    fn extra(&self, program: &Program, linear: &Linear) -> [u64; 2] {
        let [tm, _, tn] = self.tiling.tile;
        let columns = Column::ELEMENT.bytes(if self.columns_whole { self.product.n } else { tn });
        let extra = match &linear.epilogue {
            Epilogue::Add { residual } if !self.on_chip[2] && !self.in_place => program.get(*residual).element.bytes(tn) * tm,
            Epilogue::Rotary { table, .. } => program.get(*table).bytes() / program.get(*table).rows * tm,
            _ => 0,
        };
        [columns, extra]
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
