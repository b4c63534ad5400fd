//! The rules that the simulator checks.

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An index that is out of range.
    #[error("{what} {index} does not exist; there are {count}")]
    Index {
        /// What is indexed.
        what: &'static str,
        /// The index.
        index: u64,
        /// How many exist.
        count: u64,
    },
    /// A box that exceeds its tensor.
    #[error("rows {rows:?}, columns {columns:?} are outside `{tensor}` [{}, {}]", shape[0], shape[1])]
    OutOfBounds {
        /// Its name.
        tensor: String,
        /// Rows and columns.
        shape: [u64; 2],
        /// From, to.
        rows: [u64; 2],
        /// From, to.
        columns: [u64; 2],
    },
    /// A buffer or tensor that exceeds its memory.
    #[error("`{what}` ends at byte {end}; {space} has {capacity}")]
    Capacity {
        /// Buffer or tensor.
        what: String,
        /// One past its last byte.
        end: u64,
        /// Which memory.
        space: &'static str,
        /// Its bytes.
        capacity: u64,
    },
    /// An offset that is not aligned.
    #[error("`{what}` starts at byte {offset}, which is not a multiple of {align}")]
    Misaligned {
        /// Buffer or tensor.
        what: String,
        /// Its first byte.
        offset: u64,
        /// The alignment.
        align: u64,
    },
    /// Two live buffers or tensors that share bytes.
    #[error("`{first}` and `{second}` overlap at byte {at}")]
    Overlap {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// The first byte that both have.
        at: u64,
    },
    /// A box of a weight that is not one of the tiles it is stored in.
    #[error("rows {rows:?}, columns {columns:?} are not a stored tile of `{tensor}`")]
    NoTile {
        /// Its name.
        tensor: String,
        /// From, to.
        rows: [u64; 2],
        /// From, to.
        columns: [u64; 2],
    },
    /// A load or result that is larger than its slot.
    #[error("{bytes} bytes do not fit in the {room} bytes of `{buffer}`")]
    TooLarge {
        /// Name of the buffer.
        buffer: String,
        /// Bytes needed.
        bytes: u64,
        /// Bytes available.
        room: u64,
    },
    /// A queue that would wait forever.
    #[error("`{buffer}` waits forever: {why}")]
    Deadlock {
        /// Name of the buffer.
        buffer: String,
        /// What never happens.
        why: &'static str,
    },
    /// A box that was not loaded.
    #[error("rows {rows:?}, columns {columns:?} are not in `{place}`")]
    NotThere {
        /// Name of the buffer or tensor.
        place: String,
        /// From, to.
        rows: [u64; 2],
        /// From, to.
        columns: [u64; 2],
    },
    /// A read of bytes that were not written since their buffer was allocated.
    #[error("byte {at} of `{place}` is read before it is written")]
    Unwritten {
        /// Where.
        place: String,
        /// Address.
        at: u64,
    },
    /// Two unordered accesses.
    #[error("{kind} hazard: `{place}` at byte {at} is used by {queue} while {other} may still use it")]
    Hazard {
        /// Read after write, write after read, write after write.
        kind: &'static str,
        /// Where.
        place: String,
        /// Address.
        at: u64,
        /// The queue of the later access.
        queue: &'static str,
        /// The queue of the earlier one.
        other: &'static str,
    },
    /// A tensor that was overwritten by another, or never written.
    #[error("`{tensor}` is read, but its bytes are not there")]
    Undefined {
        /// Its name.
        tensor: String,
    },
    /// Operands whose rows, columns or depths differ.
    #[error("{what} of the operands are {found:?} and {wanted:?}")]
    Mismatch {
        /// Which of them.
        what: &'static str,
        /// One.
        found: [u64; 2],
        /// The other.
        wanted: [u64; 2],
    },
    /// A product that is added twice, or one that is missing where sums are finished.
    #[error("terms {found:?} of a sum over {wanted:?}: {why}")]
    Terms {
        /// From, to.
        found: Vec<[u64; 2]>,
        /// From, to.
        wanted: [u64; 2],
        /// Twice or missing.
        why: &'static str,
    },
    /// An output element that is stored twice in a call.
    #[error("row {row}, column {column} of `{tensor}` is stored twice")]
    StoredTwice {
        /// Its name.
        tensor: String,
        /// Where.
        row: u64,
        /// Where.
        column: u64,
    },
    /// Output elements that a call leaves out.
    #[error("{missing} elements of `{tensor}` were not stored")]
    NotStored {
        /// Its name.
        tensor: String,
        /// How many.
        missing: u64,
    },
    /// A result that differs from the reference.
    #[error("`{tensor}` differs from the reference at row {row}, column {column}: {found}, not {wanted}")]
    Differs {
        /// Its name.
        tensor: String,
        /// Where.
        row: u64,
        /// Where.
        column: u64,
        /// The plan's.
        found: i32,
        /// The reference's.
        wanted: i32,
    },
    /// A number of multiply-accumulates or bytes that differs from the prediction.
    #[error("{what}: found {found}, predicted {wanted}")]
    Count {
        /// Of what.
        what: &'static str,
        /// Counted.
        found: u64,
        /// Predicted.
        wanted: u64,
    },
    /// Loops that are too long to simulate.
    #[error("the loops have more than {steps} steps")]
    TooLong {
        /// The most steps that are simulated.
        steps: u64,
    },
}
