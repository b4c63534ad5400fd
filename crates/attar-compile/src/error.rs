//! Why something cannot be compiled.

use std::path::PathBuf;

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
    /// Not even the smallest blocks of a fused chain fit.
    #[error(
        "a fused chain of {rows} rows and {inner} inner columns needs {needed} bytes of SRAM for blocks of {tile:?}, and there are {sram}"
    )]
    ChainTooLarge {
        /// Rows.
        rows: u64,
        /// Columns between its products.
        inner: u64,
        /// The smallest blocks: rows, inner columns.
        tile: [u64; 2],
        /// Bytes they take.
        needed: u64,
        /// Bytes there are.
        sram: u64,
    },
    /// No shipped device has this name.
    #[error("no device is called `{name}`{}", did_you_mean(nearest))]
    DeviceUnknown {
        /// As asked for.
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A device file cannot be read.
    #[error("reading the device file `{}`", path.display())]
    DeviceRead {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A device file is not TOML.
    #[error("{place}: {message}")]
    DeviceSyntax {
        /// File and line.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// A device inherits itself.
    #[error("devices inherit in a circle: {}", chain.join(" -> "))]
    DeviceCycle {
        /// From the first file to the one that closes the circle.
        chain: Vec<String>,
    },
    /// A key that devices do not have.
    #[error("{place}: devices have no `{key}`{}", did_you_mean(nearest))]
    DeviceKey {
        /// As written.
        key: String,
        /// What may have been meant.
        nearest: Option<String>,
        /// File and line, or `--set`.
        place: String,
    },
    /// A value that its key cannot have.
    #[error("{place}: `{key}` is `{found}`, which is not {wanted}")]
    DeviceValue {
        /// Of the number.
        key: String,
        /// As written.
        found: String,
        /// What it may be.
        wanted: &'static str,
        /// File and line, or `--set`.
        place: String,
    },
    /// A number that every device needs.
    #[error("the device `{device}` does not say `{key}`")]
    DeviceMissing {
        /// Its name.
        device: String,
        /// Of the number.
        key: &'static str,
    },
    /// More of a memory is usable than there is.
    #[error("`{device}` has {bytes} bytes of {memory} and says that {usable} are usable")]
    DeviceUsable {
        /// Its name.
        device: String,
        /// Which.
        memory: &'static str,
        /// Said to be usable.
        usable: u64,
        /// There are.
        bytes: u64,
    },
    /// Its own smallest tile does not fit in SRAM.
    #[error("one tile {tile:?} of `{device}` needs {needed} bytes of SRAM, and {sram} are usable")]
    DeviceSram {
        /// Its name.
        device: String,
        /// m, k, n.
        tile: [u64; 3],
        /// Bytes.
        needed: u64,
        /// Bytes.
        sram: u64,
    },
    /// Widths that the device does not multiply.
    #[error("`{device}` does not multiply {weights}-bit weights with {activations}-bit activations")]
    DevicePair {
        /// Its name.
        device: String,
        /// Bits.
        weights: u32,
        /// Bits.
        activations: u32,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
