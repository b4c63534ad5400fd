//! Why something cannot be compiled.

/// The result of compiling.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What does not fit, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not even the smallest tile of a product fits.
    #[error(
        "the product [{m}, {k}] x [{k}, {n}] needs {needed} bytes of SRAM for its smallest tile {tile:?}, and there are {sram}"
    )]
    SramTooSmall {
        /// Rows.
        m: u64,
        /// Depth.
        k: u64,
        /// Columns.
        n: u64,
        /// The smallest tile: m, k, n.
        tile: [u64; 3],
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        sram: u64,
    },
}
