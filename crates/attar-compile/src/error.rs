//! Why something cannot be compiled.

use std::path::PathBuf;

/// The result of compiling.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What does not fit, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A kernel that means nothing.
    #[error("kernel `{kernel}` {what}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file that is no plan.
    #[error("this is no plan file: it does not begin with `attarpln`")]
    NoPlan,
    /// A plan file that ends too soon.
    #[error("the plan file has {found} bytes; its header alone takes {wanted}")]
    PlanTruncated {
        /// Bytes.
        found: usize,
        /// Bytes.
        wanted: usize,
    },
    /// A plan file of another version of this tool.
    #[error("the plan file is of version {found}; this tool reads version {wanted}")]
    PlanVersion {
        /// Its version.
        found: u32,
        /// Ours.
        wanted: u32,
    },
    /// A plan file whose digest is not that of its contents.
    #[error("the plan file's digest does not match its contents ({bytes} bytes): it was cut short or changed")]
    PlanDamaged {
        /// What is there.
        bytes: usize,
    },
    /// A plan file with the right digest that does not read as a plan.
    #[error("the plan file cannot be read: {why}")]
    PlanMalformed {
        /// As the decoder says.
        why: String,
    },
    /// A plan that breaks a rule.
    #[error("`{call}`, {statement}: {what}")]
    Violation {
        /// The call, or the plan's title.
        call: String,
        /// What it was about to do.
        statement: String,
        /// The rule.
        what: crate::simulate::Violation,
    },
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
    /// Not even the smallest tile of a kernel fits.
    #[error("the smallest tile needs {needed} bytes of SRAM, and there are {sram}")]
    TileTooLarge {
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        sram: u64,
    },
    /// A kernel that has no room.
    #[error("kernel `{kernel}` does not fit")]
    DoesNotFit {
        /// Its name.
        kernel: String,
        /// How much is missing.
        source: Box<Error>,
    },
    /// Tensors that memory has no room for.
    #[error("{what} need {needed} bytes; there are {dram} of DRAM{}", if *flash > 0 { format!(" and {flash} of flash") } else { String::new() })]
    MemoryTooSmall {
        /// Which.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes.
        dram: u64,
        /// Bytes that could be used.
        flash: u64,
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
