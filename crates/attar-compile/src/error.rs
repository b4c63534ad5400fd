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
    #[error("this is no such file: it does not begin with `{magic}`")]
    NoPlan {
        /// How it should begin.
        magic: &'static str,
    },
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
    #[error("the file's digest does not match its contents: it was cut short or changed")]
    PlanDamaged,
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
    /// Kernels that cannot be joined, since another plan stores their weights in other tiles.
    #[error("`{weight}` is stored in tiles of another kernel")]
    Stored {
        /// Its name.
        weight: String,
    },
    /// A tensor before what is written of its memory already: a bug of ours.
    #[error("a tensor lies at byte {address}, and {written} bytes are written already")]
    ImageOrder {
        /// Its first byte.
        address: u64,
        /// Bytes.
        written: u64,
    },
    /// A memory that cannot be written.
    #[error("writing a memory image")]
    ImageWrite {
        /// Why.
        source: std::io::Error,
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
    /// Something that the device has no kernel for.
    #[error("`{node}` {why}")]
    Unsupported {
        /// The node, by its value.
        node: String,
        /// What is wrong with it.
        why: String,
        /// The way out.
        hint: &'static str,
    },
    /// A graph without a block that a device could run.
    #[error("the graph has no block with attention in it")]
    NothingToRun,
    /// A dimension that must be a number.
    #[error("the width of `{value}` is no number")]
    Unbound {
        /// Its name.
        value: String,
    },
    /// A value whose magnitude is not known.
    #[error("calibration has not seen `{value}`")]
    NoRange {
        /// Its name.
        value: String,
    },
    /// A value that is infinite or no number.
    #[error("block `{block}`: `{value}` is not finite on the calibration text")]
    NotFinite {
        /// Its name.
        value: String,
        /// Where it is made.
        block: String,
    },
    /// Somebody said to stop.
    #[error("interrupted")]
    Interrupted,
    /// A weight could not be read.
    #[error(transparent)]
    Graph(#[from] attar_graph::Error),
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
    /// A buffer dies before it is born.
    #[error("buffer {buffer} lives in {lower}..{upper}, which is empty")]
    Lifetime {
        /// Which.
        buffer: usize,
        /// The first moment.
        lower: u64,
        /// The first moment after.
        upper: u64,
    },
    /// A buffer is empty, or the buffers are more than any memory.
    #[error("buffer {buffer} has {size} bytes, {total} with those before it: 1 to 2^60 are wanted")]
    BufferSize {
        /// Which.
        buffer: usize,
        /// Its bytes.
        size: u64,
        /// With those before it.
        total: u64,
    },
    /// An alignment is 0 or too large, or a fixed offset is no multiple of it.
    #[error("buffer {buffer} has the alignment {align} and the offset {fixed:?}")]
    Alignment {
        /// Which.
        buffer: usize,
        /// What its offset has to be a multiple of.
        align: u64,
        /// Where it has to lie.
        fixed: Option<u64>,
    },
    /// A file of buffers is too large.
    #[error("it has {found} {what}; at most {most} are wanted")]
    CsvLarge {
        /// How many.
        found: usize,
        /// How many at most.
        most: usize,
        /// Bytes or rows.
        what: &'static str,
    },
    /// A file of buffers is not text.
    #[error("byte {at} is not UTF-8 text")]
    CsvText {
        /// The first byte that is none.
        at: usize,
    },
    /// A file of buffers has no rows.
    #[error("it has no buffers; a header `id,lower,upper,size` and rows are wanted")]
    CsvEmpty,
    /// A column is missing from the header.
    #[error("line {line}: the header has no column `{column}`; `id`, `lower`, `upper` and `size` are wanted")]
    CsvColumn {
        /// Of the header.
        line: usize,
        /// Which.
        column: &'static str,
    },
    /// A column is twice in the header.
    #[error("line {line}: the header has the column `{column}` twice")]
    CsvColumnTwice {
        /// Of the header.
        line: usize,
        /// Which.
        column: &'static str,
    },
    /// A row is shorter or longer than the header.
    #[error("line {line} has {found} fields; {wanted} are wanted, as in the header")]
    CsvFields {
        /// Of the row.
        line: usize,
        /// Fields of the row.
        found: usize,
        /// Fields of the header.
        wanted: usize,
    },
    /// An id is empty or very long.
    #[error("line {line}: the `id` has {length} bytes; 1 to {most} are wanted")]
    CsvId {
        /// Of the row.
        line: usize,
        /// Bytes of it.
        length: usize,
        /// Bytes at most.
        most: usize,
    },
    /// A field is no number, or too large.
    #[error("line {line}: `{column}` is `{found}`; a whole number from 0 to 2^64 - 1 is wanted")]
    CsvNumber {
        /// Of the row.
        line: usize,
        /// Which.
        column: &'static str,
        /// Its text, cut.
        found: String,
    },
    /// A buffer dies before it is born.
    #[error("line {line}: buffer `{id}` lives in {lower}..{upper}; `lower` less than `upper` is wanted")]
    CsvLifetime {
        /// Of the row.
        line: usize,
        /// Of the buffer.
        id: String,
        /// The first moment.
        lower: u64,
        /// The first moment after.
        upper: u64,
    },
    /// A buffer has no bytes, or too many.
    #[error("line {line}: buffer `{id}` has {size} bytes; 1 to {most} are wanted")]
    CsvSize {
        /// Of the row.
        line: usize,
        /// Of the buffer.
        id: String,
        /// Its bytes.
        size: u64,
        /// Bytes at most.
        most: u64,
    },
    /// Two buffers have one id.
    #[error("line {line}: the id `{id}` is in line {first} already; distinct ones are wanted")]
    CsvTwice {
        /// Of the second.
        line: usize,
        /// Of both.
        id: String,
        /// Line of the first.
        first: usize,
    },
    /// All buffers together are too large.
    #[error("line {line}: the sizes up to here are more than {most} bytes")]
    CsvTotal {
        /// Of the row.
        line: usize,
        /// Bytes at most.
        most: u64,
    },
    /// An op names a buffer that there is not; so do the kept ones, as an op after the last.
    #[error("op {op} names buffer {buffer}, which there is not")]
    OpBuffer {
        /// Which.
        op: usize,
        /// What it names.
        buffer: usize,
    },
    /// Two ops write one buffer.
    #[error("op {op} writes buffer {buffer}, which another op writes")]
    OpWritesAgain {
        /// The second.
        op: usize,
        /// What both write.
        buffer: usize,
    },
    /// A buffer is there from the start and nobody wants it.
    #[error("buffer {buffer} is neither written nor read nor kept")]
    OpUnused {
        /// Which.
        buffer: usize,
    },
    /// Ops wait for each other.
    #[error("op {op} waits for what waits for it")]
    OpCycle {
        /// One of them.
        op: usize,
    },
    /// An order leaves an op out, has it twice, or runs it before what it reads is there.
    #[error("op {op} is left out, runs twice, or runs before what it reads is written")]
    OrderOfOps {
        /// Which.
        op: usize,
    },
    /// The memory does not hold the two chunks between flash and compute.
    #[error("{dram} bytes for weights do not hold two chunks of {chunk} bytes")]
    PagingRoom {
        /// Bytes there are.
        dram: u64,
        /// Bytes of one chunk.
        chunk: u64,
    },
    /// A number of the flash is zero, or too large.
    #[error("the flash has pages of {page} bytes, {queue} in flight, {rate} bytes a second: none may be 0, all at most 2^40")]
    Flash {
        /// Bytes of a page.
        page: u64,
        /// Pages in flight.
        queue: u64,
        /// Bytes a second.
        rate: u64,
    },
    /// The weights are more than any memory.
    #[error("the weights have more than {most} bytes")]
    PagingWeights {
        /// Bytes at most.
        most: u64,
    },
    /// A pass that is not there.
    #[error("no pass is named `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownPass {
        /// What was asked for.
        name: String,
        /// What there is.
        nearest: Option<String>,
    },
    /// What a pass made is no graph: a bug of ours.
    #[error("pass `{pass}`")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// What is wrong.
        source: attar_graph::Error,
    },
}

impl Error {
    /// The way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Unsupported { hint, .. } => Some((*hint).into()),
            Error::DoesNotFit { .. } | Error::TileTooLarge { .. } | Error::SramTooSmall { .. } => {
                Some("give the device more SRAM (`set = [\"sram=…\"]`), or compile fewer tokens at once (`seq`)".into())
            }
            Error::MemoryTooSmall { .. } => {
                Some("quantize to fewer bits, compile fewer tokens at once, or choose a device with more DRAM or flash".into())
            }
            Error::NotFinite { .. } => Some("the checkpoint overflows on this text: check it, or calibrate on other text".into()),
            Error::NoRange { .. } => Some("compile the model that the calibration text was seen on".into()),
            Error::PlanVersion { .. } => Some("compile it again with this attar".into()),
            Error::PlanDamaged | Error::PlanTruncated { .. } => Some("copy it again, or compile it again".into()),
            _ => None,
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
