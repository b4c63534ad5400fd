//! How fast a device moves and computes: what a timeline needs of it.

/// Speeds and energies. Cycles are those of the compute clock. All of it is a model, nothing is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Cycles a second.
    pub clock: f64,
    /// Of the multiply array: inputs and outputs that it takes in a cycle.
    pub array: [u64; 2],
    /// Elementwise operations a cycle.
    pub lanes: u64,
    /// DRAM bytes a cycle, reads and writes sharing the port.
    pub dram: f64,
    /// What a transfer costs beside its bytes.
    pub setup: u64,
    /// Every contiguous piece of a transfer takes at least so many bytes of time.
    pub burst: u64,
    /// Picojoules of a multiply-accumulate, of a byte to or from SRAM, of one to or from DRAM.
    pub energy: [f64; 3],
    /// Watts whatever happens.
    pub static_power: f64,
}

impl Rates {
    /// The 32 x 32 array of published comparisons: 32 bytes of DRAM a cycle, at 1 GHz.
    pub fn generic() -> Rates {
        Rates {
            clock: 1e9,
            array: [32, 32],
            lanes: 32,
            dram: 32.0,
            setup: 0,
            burst: 1,
            energy: [0.2, 1.6, 64.0],
            static_power: 0.0,
        }
    }

    /// Cycles of a product of tiles: rows stream past a full array of weights.
    pub(crate) fn multiply(&self, m: u64, n: u64, k: u64) -> u64 {
        m * n.div_ceil(self.array[1]) * k.div_ceil(self.array[0])
    }

    /// Cycles of `operations` elementwise operations on each of `count` numbers.
    pub(crate) fn vector(&self, count: u64, operations: u64) -> u64 {
        count.div_ceil(self.lanes) * operations
    }

    /// Cycles of a transfer of `pieces` contiguous pieces of `bytes` each.
    pub(crate) fn transfer(&self, pieces: u64, bytes: u64) -> u64 {
        ((pieces * bytes.next_multiple_of(self.burst)) as f64 / self.dram).ceil() as u64
    }
}
