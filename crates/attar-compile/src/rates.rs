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
            burst: 1,
            mac_pj: 0.2,
            sram_pj: 1.6,
            dram_pj: 64.0,
            cycle_pj: 0.0,
        };
        Rates { clock: 1e9, lanes: 32, flash: 0.0, dispatch: 0, tile, wide: Some([1, 16, 32]) }
    }

    /// The rates of products with activations of so many bits.
    pub(crate) fn of(&self, bits: u32) -> tile::Rates {
        let wide = self.wide.filter(|_| bits > 8);
        tile::Rates { array: wide.unwrap_or(self.tile.array), ..self.tile }
    }

    /// Cycles of a product of tiles, with activations of so many bits.
    pub(crate) fn multiply(&self, m: u64, n: u64, k: u64, bits: u32) -> u64 {
        let [rows, depth, columns] = self.of(bits).array;
        m.div_ceil(rows) * n.div_ceil(columns) * k.div_ceil(depth) + self.tile.fill as u64
    }

    /// Cycles of `operations` elementwise operations on each of `count` numbers.
    pub(crate) fn vector(&self, count: u64, operations: u64) -> u64 {
        count.div_ceil(self.lanes) * operations
    }

    /// Cycles of a transfer of `pieces` contiguous pieces of `bytes` each, after its setup.
    pub(crate) fn transfer(&self, pieces: u64, bytes: u64, port: Port) -> u64 {
        let speed = match port {
            Port::Read => self.tile.read,
            Port::Write => self.tile.write,
            Port::Flash => self.flash,
        };
        ((pieces * bytes.next_multiple_of(self.tile.burst)) as f64 / speed).ceil() as u64
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
