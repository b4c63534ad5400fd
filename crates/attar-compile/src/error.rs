//! Errors of this crate.

use std::path::PathBuf;

/// The result of compiling.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model cannot be compiled, or a file not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid kernel.
    #[error("kernel `{kernel}` {what}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file that is not a plan.
    #[error("not a plan file: expected the magic bytes `{magic}`")]
    NoPlan {
        /// The first bytes of a plan file.
        magic: &'static str,
    },
    /// A plan file that is shorter than its header.
    #[error("the plan file has {found} bytes; its header alone takes {wanted}")]
    PlanTruncated {
        /// Bytes of the file.
        found: usize,
        /// Bytes of a header.
        wanted: usize,
    },
    /// A plan file of another format version.
    #[error("the plan file has format version {found}; this attar reads version {wanted}")]
    PlanVersion {
        /// The version of the file.
        found: u32,
        /// The version that this tool reads.
        wanted: u32,
    },
    /// A plan file whose digest is not that of its contents.
    #[error("the digest of the plan file does not match its contents: the file was truncated or changed")]
    PlanDamaged,
    /// A plan file with the right digest whose contents are not a plan.
    #[error("the plan file cannot be read: {why}")]
    PlanMalformed {
        /// The decoder's message.
        why: String,
    },
    /// A plan that breaks a rule.
    #[error("`{call}`, {statement}: {what}")]
    Violation {
        /// The call, or the plan's title.
        call: String,
        /// The statement that breaks the rule.
        statement: String,
        /// The rule and how it is broken.
        what: crate::simulate::Violation,
    },
    /// Not even the smallest tile of a product fits.
    #[error(
        "the product [{m}, {k}] x [{k}, {n}] needs {needed} bytes of SRAM for its smallest tile {tile:?}; {sram} are available"
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
    #[error("the smallest tile needs {needed} bytes of SRAM; {sram} are available")]
    TileTooLarge {
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        sram: u64,
    },
    /// Kernels that cannot be joined, because another plan stores their weights in other tiles.
    #[error("`{weight}` is stored in the tiles of another kernel")]
    Stored {
        /// Its name.
        weight: String,
    },
    /// A tensor whose address has been passed while writing a memory image: a bug in attar.
    #[error("a tensor has address {address}, but {written} bytes of the image are written already")]
    ImageOrder {
        /// Address of its first byte.
        address: u64,
        /// Bytes written so far.
        written: u64,
    },
    /// A memory image that cannot be written.
    #[error("writing a memory image")]
    ImageWrite {
        /// The cause.
        source: std::io::Error,
    },
    /// A kernel that does not fit on the chip.
    #[error("kernel `{kernel}` does not fit")]
    DoesNotFit {
        /// Its name.
        kernel: String,
        /// What it needs.
        source: Box<Error>,
    },
    /// Tensors that do not fit in memory.
    #[error("{what} need {needed} bytes; the device has {dram} of DRAM{}", if *flash > 0 { format!(" and {flash} of flash") } else { String::new() })]
    MemoryTooSmall {
        /// Which tensors.
        what: &'static str,
        /// Bytes they need.
        needed: u64,
        /// Usable bytes of DRAM.
        dram: u64,
        /// Usable bytes of flash.
        flash: u64,
    },
    /// A node that no kernel computes in this form.
    #[error("`{node}` {why}")]
    Unsupported {
        /// Name of the value that it makes.
        node: String,
        /// The reason, as the rest of a sentence.
        why: String,
        /// The way out.
        hint: &'static str,
    },
    /// An op that no kernel computes.
    #[error("`{op}` ({node}) cannot be compiled for a device yet")]
    NoKernel {
        /// Its name, with what is special about this one.
        op: String,
        /// Name of the value that it makes.
        node: String,
    },
    /// A draft that is none, or longer than the prompt.
    #[error("`verify` is {verify}: a draft has 2 tokens or more, and no more than `seq`, {seq}")]
    Verify {
        /// Its tokens.
        verify: u64,
        /// Tokens of the prompt.
        seq: u64,
    },
    /// More sequences than are planned side by side.
    #[error("`batch` is {batch}: at most {most} sequences run side by side")]
    Batch {
        /// Its sequences.
        batch: u64,
        /// How many there can be.
        most: u64,
    },
    /// A draft of several sequences.
    #[error("a draft is of one sequence, and `batch` is {batch}")]
    Drafts {
        /// Its sequences.
        batch: u64,
    },
    /// More tokens than a table of positions has rows.
    #[error("the model has positions for {rows} tokens, and the plans would read {tokens}: `seq`, and a token after it")]
    Positions {
        /// Tokens that the plans would read.
        tokens: u64,
        /// Rows of the table.
        rows: u64,
    },
    /// A setting of what an encoder does not have.
    #[error("`{setting}` is of decoders: an encoder reads all of its tokens in one run")]
    Encoder {
        /// Its name.
        setting: &'static str,
    },
    /// A graph without a block that a device could run.
    #[error("the graph has no block with attention; only transformer blocks can be compiled for a device")]
    NothingToRun,
    /// A dimension that must be constant.
    #[error("the width of `{value}` is not constant")]
    Unbound {
        /// Its name.
        value: String,
    },
    /// A value without a calibrated range.
    #[error("no calibrated range for `{value}`")]
    NoRange {
        /// Its name.
        value: String,
    },
    /// A value that is infinite or NaN.
    #[error("block `{block}`: `{value}` is not finite on the calibration text")]
    NotFinite {
        /// Its name.
        value: String,
        /// The block that computes it.
        block: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A weight could not be read.
    #[error(transparent)]
    Graph(#[from] attar_graph::Error),
    /// No shipped device has this name.
    #[error("no device is named `{name}`{}", did_you_mean(nearest))]
    DeviceUnknown {
        /// The requested name.
        name: String,
        /// The most similar name.
        nearest: Option<String>,
    },
    /// A device file cannot be read.
    #[error("reading the device file `{}`", path.display())]
    DeviceRead {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A device file is not TOML.
    #[error("{place}: {message}")]
    DeviceSyntax {
        /// File and line.
        place: String,
        /// The parser's message.
        message: String,
    },
    /// A device that inherits from itself.
    #[error("devices inherit from each other in a cycle: {}", chain.join(" -> "))]
    DeviceCycle {
        /// From the first file to the one that closes the cycle.
        chain: Vec<String>,
    },
    /// A key that devices do not have.
    #[error("{place}: unknown device key `{key}`{}", did_you_mean(nearest))]
    DeviceKey {
        /// The key.
        key: String,
        /// The most similar key.
        nearest: Option<String>,
        /// File and line, or `--set`.
        place: String,
    },
    /// A value that its key cannot have.
    #[error("{place}: `{key}` is `{found}`; expected {wanted}")]
    DeviceValue {
        /// The key.
        key: String,
        /// The value.
        found: String,
        /// The values that it may have.
        wanted: &'static str,
        /// File and line, or `--set`.
        place: String,
    },
    /// A key that every device needs.
    #[error("the device `{device}` has no `{key}`")]
    DeviceMissing {
        /// Its name.
        device: String,
        /// The key.
        key: &'static str,
    },
    /// A memory with more usable bytes than bytes.
    #[error("`{device}` has {bytes} bytes of {memory}, but {usable} usable ones")]
    DeviceUsable {
        /// Its name.
        device: String,
        /// Which memory.
        memory: &'static str,
        /// Its usable bytes.
        usable: u64,
        /// Its size.
        bytes: u64,
    },
    /// Its own smallest tile does not fit in SRAM.
    #[error("one tile {tile:?} of `{device}` needs {needed} bytes of SRAM; {sram} are usable")]
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
    /// A pair of widths that the device does not multiply.
    #[error("`{device}` does not multiply {weights}-bit weights with {activations}-bit activations")]
    DevicePair {
        /// Its name.
        device: String,
        /// Bits.
        weights: u32,
        /// Bits.
        activations: u32,
    },
    /// A kernel that the device cannot run.
    #[error("`{device}` cannot run `{kernel}` (`{key}` of its device file)")]
    DeviceCannot {
        /// Its name.
        device: String,
        /// The key that says so.
        key: &'static str,
        /// Name of the kernel.
        kernel: String,
    },
    /// A kernel that does not fit because of what the device cannot do.
    #[error("kernel `{kernel}` does not fit on `{device}` as its `{key}` demands")]
    DeviceNeeds {
        /// Its name.
        device: String,
        /// The key of what it cannot do.
        key: &'static str,
        /// Name of the kernel.
        kernel: String,
        /// What it needs.
        source: Box<Error>,
    },
    /// A buffer with an empty lifetime.
    #[error("buffer {buffer} has the lifetime {lower}..{upper}, which is empty")]
    Lifetime {
        /// Index of the buffer.
        buffer: usize,
        /// Start of the lifetime.
        lower: u64,
        /// End of the lifetime, exclusive.
        upper: u64,
    },
    /// A buffer of 0 bytes, or buffers that no memory could hold.
    #[error("buffer {buffer} has {size} bytes, {total} with those before it; expected 1 to 2^60")]
    BufferSize {
        /// Index of the buffer.
        buffer: usize,
        /// Its bytes.
        size: u64,
        /// The sum up to and with this one.
        total: u64,
    },
    /// An alignment that is 0 or too large, or a fixed offset that is not a multiple of it.
    #[error("buffer {buffer} has alignment {align} and fixed offset {fixed:?}")]
    Alignment {
        /// Index of the buffer.
        buffer: usize,
        /// Its alignment.
        align: u64,
        /// Its fixed offset.
        fixed: Option<u64>,
    },
    /// A file of buffers that is too large.
    #[error("the file has {found} {what}; expected at most {most}")]
    CsvLarge {
        /// Number found.
        found: usize,
        /// Largest number that is read.
        most: usize,
        /// Bytes or rows.
        what: &'static str,
    },
    /// A file of buffers that is not text.
    #[error("byte {at} is not UTF-8 text")]
    CsvText {
        /// Offset of the first invalid byte.
        at: usize,
    },
    /// A file of buffers without rows.
    #[error("the file has no buffers; expected a header `id,lower,upper,size` and rows")]
    CsvEmpty,
    /// A header that lacks a column.
    #[error("line {line}: the header has no column `{column}`; expected `id`, `lower`, `upper` and `size`")]
    CsvColumn {
        /// Of the header.
        line: usize,
        /// Name of the column.
        column: &'static str,
    },
    /// A header with a column twice.
    #[error("line {line}: the header has the column `{column}` twice")]
    CsvColumnTwice {
        /// Of the header.
        line: usize,
        /// Name of the column.
        column: &'static str,
    },
    /// A row with more or fewer fields than the header.
    #[error("line {line} has {found} fields; expected {wanted}, as in the header")]
    CsvFields {
        /// Of the row.
        line: usize,
        /// Fields of the row.
        found: usize,
        /// Fields of the header.
        wanted: usize,
    },
    /// An id that is empty or too long.
    #[error("line {line}: the `id` has {length} bytes; expected 1 to {most}")]
    CsvId {
        /// Of the row.
        line: usize,
        /// Bytes of it.
        length: usize,
        /// Bytes at most.
        most: usize,
    },
    /// A field that is not a number, or too large.
    #[error("line {line}: `{column}` is `{found}`; expected a whole number from 0 to 2^64 - 1")]
    CsvNumber {
        /// Of the row.
        line: usize,
        /// Name of the column.
        column: &'static str,
        /// Its text, cut.
        found: String,
    },
    /// A row with an empty lifetime.
    #[error("line {line}: buffer `{id}` has the lifetime {lower}..{upper}; expected `lower` less than `upper`")]
    CsvLifetime {
        /// Of the row.
        line: usize,
        /// Of the buffer.
        id: String,
        /// Start of the lifetime.
        lower: u64,
        /// End of the lifetime, exclusive.
        upper: u64,
    },
    /// A row with a size of 0, or with one that is too large.
    #[error("line {line}: buffer `{id}` has {size} bytes; expected 1 to {most}")]
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
    /// Two rows with the same id.
    #[error("line {line}: the id `{id}` is used in line {first} already")]
    CsvTwice {
        /// Of the second.
        line: usize,
        /// Of both.
        id: String,
        /// Line of the first.
        first: usize,
    },
    /// Buffers that are too large together.
    #[error("line {line}: the sizes up to here add up to more than {most} bytes")]
    CsvTotal {
        /// Of the row.
        line: usize,
        /// Bytes at most.
        most: u64,
    },
    /// An op that names a buffer that does not exist. Kept buffers count as read by an op after the last.
    #[error("op {op} names buffer {buffer}, which does not exist")]
    OpBuffer {
        /// Index of the op.
        op: usize,
        /// Index of the buffer.
        buffer: usize,
    },
    /// Two ops that write the same buffer.
    #[error("op {op} writes buffer {buffer}, which another op writes")]
    OpWritesAgain {
        /// Index of the second op.
        op: usize,
        /// Index of the buffer.
        buffer: usize,
    },
    /// A buffer that nothing uses.
    #[error("buffer {buffer} is neither written nor read nor kept")]
    OpUnused {
        /// Index of the buffer.
        buffer: usize,
    },
    /// Ops that depend on each other.
    #[error("op {op} depends on itself")]
    OpCycle {
        /// One of them.
        op: usize,
    },
    /// An order that misses an op, has it twice, or runs it before its inputs are written.
    #[error("op {op} is missing, runs twice, or runs before its inputs are written")]
    OrderOfOps {
        /// Index of the op.
        op: usize,
    },
    /// A memory too small for the two chunks between flash and compute.
    #[error("{dram} bytes for weights do not hold two chunks of {chunk} bytes")]
    PagingRoom {
        /// Available bytes.
        dram: u64,
        /// Bytes of one chunk.
        chunk: u64,
    },
    /// A number of the flash that is zero or too large.
    #[error("the flash has pages of {page} bytes, {queue} in flight, {rate} bytes/s; expected 1 to 2^40 for each")]
    Flash {
        /// Bytes per page.
        page: u64,
        /// Pages in flight.
        queue: u64,
        /// Bytes per second.
        rate: u64,
    },
    /// Weights that no memory could hold.
    #[error("the weights have more than {most} bytes")]
    PagingWeights {
        /// Largest number of bytes.
        most: u64,
    },
    /// A pass that does not exist.
    #[error("no pass is named `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownPass {
        /// The requested name.
        name: String,
        /// The most similar name.
        nearest: Option<String>,
    },
    /// A pass whose result is not a valid graph: a bug in attar.
    #[error("pass `{pass}`")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// The verifier's error.
        source: attar_graph::Error,
    },
}

impl Error {
    /// The way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Unsupported { hint, .. } => Some((*hint).into()),
            Error::DoesNotFit { .. } | Error::DeviceNeeds { .. } | Error::TileTooLarge { .. } | Error::SramTooSmall { .. } => {
                Some("give the device more SRAM (`set = [\"sram=…\"]`), or compile fewer tokens at once (`seq`)".into())
            }
            Error::MemoryTooSmall { .. } => {
                Some("quantize to fewer bits, compile fewer tokens at once, or choose a device with more DRAM or flash".into())
            }
            Error::DeviceUnknown { .. } => {
                Some("`attar devices` lists them; the path of a TOML file names a device of your own".into())
            }
            Error::NotFinite { .. } => Some("the checkpoint overflows on this text: check it, or calibrate on other text".into()),
            Error::NoRange { .. } => Some("compile the model that the calibration text was seen on".into()),
            Error::PlanVersion { .. } => Some("compile the model again with this attar".into()),
            Error::PlanDamaged | Error::PlanTruncated { .. } => Some("copy the file again, or compile the model again".into()),
            _ => None,
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
