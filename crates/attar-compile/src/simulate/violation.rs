//! What a plan must not do.

/// A rule that a plan broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An index that names nothing.
    #[error("names {what} {index} of {count}")]
    Index {
        /// Of what kind.
        what: &'static str,
        /// As it stands.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// A box that reaches over its tensor's edge.
    #[error("rows {rows:?}, columns {columns:?} are not in `{tensor}` [{}, {}]", shape[0], shape[1])]
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
    /// More bytes than there is memory.
    #[error("`{what}` ends at byte {end}, {space} has {capacity}")]
    Capacity {
        /// Buffer or tensor.
        what: String,
        /// One behind its last byte.
        end: u64,
        /// Which memory.
        space: &'static str,
        /// Its bytes.
        capacity: u64,
    },
    /// A start that is no multiple of the alignment.
    #[error("`{what}` starts at byte {offset}, which is no multiple of {align}")]
    Misaligned {
        /// Buffer or tensor.
        what: String,
        /// Its first byte.
        offset: u64,
        /// What is asked for.
        align: u64,
    },
    /// Two things in one place at one time.
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
    #[error("rows {rows:?}, columns {columns:?} are no stored tile of `{tensor}`")]
    NoTile {
        /// Its name.
        tensor: String,
        /// From, to.
        rows: [u64; 2],
        /// From, to.
        columns: [u64; 2],
    },
    /// A load or result that is larger than its slot.
    #[error("{bytes} bytes do not fit {room} of `{buffer}`")]
    TooLarge {
        /// Where.
        buffer: String,
        /// Wanted.
        bytes: u64,
        /// There.
        room: u64,
    },
    /// A queue that would wait for ever.
    #[error("`{buffer}` waits for ever: {why}")]
    Deadlock {
        /// Which.
        buffer: String,
        /// What never comes.
        why: &'static str,
    },
    /// A box that no load brought.
    #[error("rows {rows:?}, columns {columns:?} are not in `{place}`")]
    NotThere {
        /// Where.
        place: String,
        /// From, to.
        rows: [u64; 2],
        /// From, to.
        columns: [u64; 2],
    },
    /// A read of bytes that nobody wrote since they were handed out.
    #[error("byte {at} of `{place}` is read before it is written")]
    Unwritten {
        /// Where.
        place: String,
        /// Address.
        at: u64,
    },
    /// Two accesses that nothing keeps in order.
    #[error("{kind} hazard: `{place}` at byte {at} is used by {queue} while {other} may still be at it")]
    Hazard {
        /// Read after write, write after read, write after write.
        kind: &'static str,
        /// Where.
        place: String,
        /// Address.
        at: u64,
        /// Who comes.
        queue: &'static str,
        /// Who was there.
        other: &'static str,
    },
    /// A tensor whose bytes another tensor took, or that nobody wrote.
    #[error("`{tensor}` is read, but what lies there is not it")]
    Undefined {
        /// Its name.
        tensor: String,
    },
    /// Operands that do not stand for the same rows, columns or depth.
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
    /// Another number of multiply-accumulates or bytes than foretold.
    #[error("{what}: {found}, foretold {wanted}")]
    Count {
        /// Of what.
        what: &'static str,
        /// Counted.
        found: u64,
        /// Foretold.
        wanted: u64,
    },
    /// Loops without end.
    #[error("its loops have more than {steps} steps")]
    TooLong {
        /// What is walked at most.
        steps: u64,
    },
}
