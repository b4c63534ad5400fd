//! Why something cannot be compiled.

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
}
