//! Why something cannot be compiled.

/// The result of compiling.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What does not fit, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
}
