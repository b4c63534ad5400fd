//! Rates of a device: everything that the timeline needs to know of it.

use serde::{Deserialize, Serialize};

use crate::tile;

/// Rates and energies, in cycles of the compute clock. These are a model of the device, not measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Cycles per second.
    pub clock: f64,
    /// Elementwise operations per cycle.
    pub lanes: u64,
    /// Flash bytes per cycle; 0 without flash.
    pub flash: f64,
    /// Cycles from the start of a run to its first load.
    pub dispatch: u64,
    /// Of products of int8 and of transfers.
    pub tile: tile::Rates,
    /// Multiply-accumulates of one cycle with int16 activations, as a block of m, k and n; none where there are no such products.
    pub wide: Option<[u64; 3]>,
    /// Of elementwise work.
    pub elementwise: Elementwise,
}

/// Cycles of elementwise work for one number, where they are known. Where they are not, a number takes some operations of
/// [`Rates::lanes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Elementwise {
    /// A multiply-accumulate of two activations; on the array, if absent.
    pub product: Option<f64>,
    /// A score of a softmax.
    pub score: Option<f64>,
    /// A number that is normed.
    pub norm: Option<f64>,
    /// An output that is only rescaled.
    pub rescale: Option<f64>,
    /// An output with a residual added.
    pub add: Option<f64>,
    /// An output with a rotary embedding.
    pub rotary: Option<f64>,
    /// An output of a gate, made of two sums.
    pub gate: Option<f64>,
}

/// Elementwise work on numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Numbers of a norm: square, sum, scale.
    Norm,
    /// Numbers of a norm that takes off their mean: two operations more.
    Centered,
    /// Outputs that are rescaled.
    Rescale,
    /// Outputs with a residual.
    Add,
    /// Sums of a gate, two for each output.
    Gate,
}

impl Rates {
    /// The 32 x 32 array of published comparisons: 32 bytes of DRAM a cycle, at 1 GHz.
    pub fn generic() -> Rates {
        let tile = tile::Rates {
            array: [1, 32, 32],
            fill: 0.0,
            read: 32.0,
            write: 32.0,
            setup: 0.0,
            outstanding: 1,
            burst: 1,
            coded: 1.0,
            mac_pj: 0.2,
            sram_pj: 1.6,
            dram_pj: 64.0,
            cycle_pj: 0.0,
        };
        Rates {
            clock: 1e9,
            lanes: 32,
            flash: 0.0,
            dispatch: 0,
            tile,
            wide: Some([1, 16, 32]),
            elementwise: Elementwise::default(),
        }
    }

    /// The rates of products with activations of so many bits.
    pub(crate) fn of(&self, bits: u32) -> tile::Rates {
        let wide = self.wide.filter(|_| bits > 8);
        let mac_pj = if bits > 8 { self.products(1, 1) } else { self.tile.mac_pj };
        tile::Rates { array: wide.unwrap_or(self.tile.array), mac_pj, ..self.tile }
    }

    /// Whether work can be counted in them: no array is without rows, depth or columns, and no rate is none.
    pub(crate) fn are_possible(&self) -> bool {
        let arrays = self.wide.iter().chain([&self.tile.array]).flatten();
        let positive = [self.clock, self.tile.read, self.tile.write];
        let others = [self.flash, self.tile.fill, self.tile.setup, self.tile.coded];
        self.lanes > 0
            && arrays.into_iter().all(|size| *size > 0)
            && self.tile.outstanding > 0
            && self.tile.burst > 0
            && positive.into_iter().all(|rate| rate > 0.0 && rate.is_finite())
            && others.into_iter().all(|rate| rate >= 0.0 && rate.is_finite())
    }

    /// Picojoules of multiply-accumulates, of which `wide` have int16 activations: energy goes with the product of the widths.
    pub(crate) fn products(&self, macs: u64, wide: u64) -> f64 {
        (macs + wide) as f64 * self.tile.mac_pj
    }

    /// Cycles of a product of tiles, with activations of so many bits.
    pub(crate) fn multiply(&self, m: u64, n: u64, k: u64, bits: u32) -> u64 {
        let [rows, depth, columns] = self.of(bits).array;
        m.div_ceil(rows) * n.div_ceil(columns) * k.div_ceil(depth) + self.tile.fill as u64
    }

    /// Cycles of elementwise work on `count` numbers.
    pub(crate) fn work(&self, work: Work, count: u64) -> u64 {
        let known = &self.elementwise;
        let (each, operations) = match work {
            Work::Norm => (known.norm, 3),
            Work::Centered => (known.norm, 5),
            Work::Rescale => (known.rescale, 2),
            Work::Add => (known.add, 2),
            Work::Gate => (known.gate.map(|output| output / 2.0), 2),
        };
        self.elements(each, count, operations)
    }

    /// Cycles of norming `count` numbers.
    pub(crate) fn norm(&self, count: u64, centered: bool, adds: bool) -> u64 {
        let added = if adds { self.work(Work::Add, count) } else { 0 };
        self.work(if centered { Work::Centered } else { Work::Norm }, count) + added
    }

    /// Cycles of finishing `all` outputs, of which `rotated` have a rotary embedding and the others are only rescaled.
    pub(crate) fn rotary(&self, all: u64, rotated: u64) -> u64 {
        match self.elementwise.rotary {
            Some(each) => (rotated as f64 * each).ceil() as u64 + self.work(Work::Rescale, all - rotated),
            None => self.work(Work::Rescale, all),
        }
    }

    /// Cycles of attention of `rows` rows to `keys` keys of one head: scores, softmax, and means of values.
    pub(crate) fn attend(&self, rows: u64, keys: u64, head: u64) -> u64 {
        let products = match self.elementwise.product {
            Some(each) => ((2 * rows * keys * head) as f64 * each).ceil() as u64,
            None => self.multiply(rows, keys, head, 8) + self.multiply(rows, head, keys, 8),
        };
        products + self.elements(self.elementwise.score, rows * keys, 4)
    }

    /// At `each` cycles per number, or by `operations` in the lanes.
    fn elements(&self, each: Option<f64>, count: u64, operations: u64) -> u64 {
        each.map_or(count.div_ceil(self.lanes) * operations, |each| (count as f64 * each).ceil() as u64)
    }

    /// Cycles of a transfer of `pieces` contiguous pieces of `bytes` each, after its setup; `moved` is what a byte of them becomes on
    /// its way.
    pub(crate) fn transfer(&self, pieces: u64, bytes: u64, moved: f64, port: Port) -> u64 {
        ((pieces * bytes.next_multiple_of(self.tile.burst)) as f64 * moved / self.speed(port)).ceil() as u64
    }

    /// How many cycles before the end of a transfer the next one of its queue may be requested.
    pub(crate) fn lead(&self, port: Port) -> u64 {
        self.tile.lead(self.speed(port)) as u64
    }

    /// Bytes per cycle.
    fn speed(&self, port: Port) -> f64 {
        match port {
            Port::Read => self.tile.read,
            Port::Write => self.tile.write,
            Port::Flash => self.flash,
        }
    }
}

/// A way to a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// From DRAM.
    Read,
    /// To DRAM.
    Write,
    /// From flash.
    Flash,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::Device, schedule::Target};

    /// Starts of blocks of `size` in `whole`, one after the other.
    fn blocks(whole: u64, size: u64) -> u64 {
        let (mut count, mut at) = (0, 0);
        while at < whole {
            (count, at) = (count + 1, at + size);
        }
        count
    }

    #[test]
    fn a_product_of_int16_takes_the_energy_that_the_device_says() {
        let devices = Device::names().map(|name| Device::named(name).unwrap());
        let pairs: Vec<[f64; 2]> = devices
            .filter_map(|device| Some([Target::new(&device, 8).ok()?.rates.of(16).mac_pj, device.rates(8, 16).ok()?.mac_pj]))
            .collect();
        assert!(pairs.len() > 3 && pairs.iter().all(|[ours, device]| ours == device), "{pairs:?}");
    }

    /// The simulator and the planner share these formulas; this counts the same with loops.
    #[test]
    fn cycles_are_those_of_blocks_and_bursts_counted_one_by_one() {
        let mut rates = Rates::generic();
        rates.tile = tile::Rates { array: [2, 8, 4], fill: 3.0, burst: 16, read: 4.0, write: 2.0, ..rates.tile };
        rates.wide = Some([1, 4, 4]);
        for (m, n, k) in [(1, 1, 1), (3, 9, 17), (4, 8, 16), (5, 13, 40)] {
            for (bits, [rows, depth, columns]) in [(8, [2, 8, 4]), (16, [1, 4, 4])] {
                let mut cycles = 3;
                for _ in 0..blocks(m, rows) {
                    for _ in 0..blocks(n, columns) {
                        cycles += blocks(k, depth);
                    }
                }
                assert_eq!(rates.multiply(m, n, k, bits), cycles, "{m} {n} {k} {bits}");
            }
        }
        for (pieces, bytes) in [(1, 1), (3, 16), (5, 33), (7, 48)] {
            let mut moved = 0;
            for _ in 0..pieces {
                moved += 16 * blocks(bytes, 16);
            }
            assert_eq!(rates.transfer(pieces, bytes, 1.0, Port::Read), blocks(moved, 4));
            assert_eq!(rates.transfer(pieces, bytes, 1.0, Port::Write), blocks(moved, 2));
        }
        for count in [1, 31, 32, 33, 100] {
            assert_eq!(rates.work(Work::Rescale, count), 2 * blocks(count, 32));
        }
    }
}
