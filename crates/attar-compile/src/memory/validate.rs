//! Validation of a placement, pair by pair; shares no code with the search.

use super::problem::{Placement, Problem};

/// Why a placement is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// There are more or fewer offsets than buffers.
    #[error("{offsets} offsets for {buffers} buffers")]
    Count {
        /// Of the placement.
        offsets: usize,
        /// Of the problem.
        buffers: usize,
    },
    /// A buffer ends above the capacity.
    #[error("buffer {buffer} ends at {end}, above the capacity of {capacity}")]
    Above {
        /// Which.
        buffer: usize,
        /// One past its last byte.
        end: u128,
        /// Of the problem.
        capacity: u64,
    },
    /// A buffer does not lie where it must.
    #[error("buffer {buffer} lies at {offset}, not at {fixed}")]
    Moved {
        /// Which.
        buffer: usize,
        /// Where it lies.
        offset: u64,
        /// Where it has to lie.
        fixed: u64,
    },
    /// An offset is no multiple of the buffer's alignment.
    #[error("buffer {buffer} lies at {offset}, no multiple of {align}")]
    Unaligned {
        /// Which.
        buffer: usize,
        /// Where it lies.
        offset: u64,
        /// What that has to be a multiple of.
        align: u64,
    },
    /// Two buffers that live at once share a byte.
    #[error("buffers {one} and {other} live at once and overlap")]
    Overlap {
        /// The first.
        one: usize,
        /// The second.
        other: usize,
    },
    /// The height is not where the highest buffer ends.
    #[error("the height is said to be {said} and is {found}")]
    Height {
        /// By the placement.
        said: u64,
        /// By its offsets.
        found: u128,
    },
}

/// Checks every buffer, and every pair of buffers, in time that grows with the square of their number.
pub fn validate(problem: &Problem, placement: &Placement) -> Result<(), Violation> {
    let (buffers, offsets) = (&problem.buffers, &placement.offsets);
    if buffers.len() != offsets.len() {
        return Err(Violation::Count { offsets: offsets.len(), buffers: buffers.len() });
    }
    let end = |i: usize| u128::from(offsets[i]) + u128::from(buffers[i].size);
    let mut found = 0;
    for (i, buffer) in buffers.iter().enumerate() {
        let offset = offsets[i];
        if end(i) > u128::from(problem.capacity) {
            return Err(Violation::Above { buffer: i, end: end(i), capacity: problem.capacity });
        }
        if let Some(fixed) = buffer.fixed
            && fixed != offset
        {
            return Err(Violation::Moved { buffer: i, offset, fixed });
        }
        if offset % buffer.align != 0 {
            return Err(Violation::Unaligned { buffer: i, offset, align: buffer.align });
        }
        for (j, other) in buffers.iter().enumerate().take(i) {
            let in_time = buffer.lower < other.upper && other.lower < buffer.upper;
            let in_space = u128::from(offset) < end(j) && u128::from(offsets[j]) < end(i);
            if in_time && in_space {
                return Err(Violation::Overlap { one: j, other: i });
            }
        }
        found = found.max(end(i));
    }
    if found != u128::from(placement.height) {
        return Err(Violation::Height { said: placement.height, found });
    }
    Ok(())
}
