//! Placement problems, and placements.

use crate::{Error, Result};

/// The largest sum of sizes, and the largest capacity that makes a difference.
pub const MAX_BYTES: u64 = 1 << 60;

/// The largest alignment.
pub const MAX_ALIGN: u64 = 1 << 30;

/// A number of bytes with a lifetime.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Start of its lifetime.
    pub lower: u64,
    /// End of its lifetime, exclusive.
    pub upper: u64,
    /// Bytes, at least 1.
    pub size: u64,
    /// Its offset is a multiple of this; at least 1.
    pub align: u64,
    /// Its offset, if that is decided already.
    pub fixed: Option<u64>,
}

impl Buffer {
    /// `size` bytes, needed in `lower..upper`, anywhere.
    pub fn new(lower: u64, upper: u64, size: u64) -> Buffer {
        Buffer { lower, upper, size, align: 1, fixed: None }
    }
}

/// Buffers, and the capacity to place them in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In any order.
    pub buffers: Vec<Buffer>,
    /// Bytes.
    pub capacity: u64,
}

/// An offset for every buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Offset of each buffer, in the order of the problem.
    pub offsets: Vec<u64>,
    /// One past the last byte in use.
    pub height: u64,
}

/// The time with the most live bytes, a lower bound on the height of any placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peak {
    /// The moment; the first of several.
    pub time: u64,
    /// The sum of the sizes of the live buffers.
    pub bytes: u64,
    /// The live buffers, as increasing indices into the problem's buffers.
    pub buffers: Vec<usize>,
}

impl Problem {
    /// Checks every buffer.
    ///
    /// # Errors
    /// A buffer that could not be placed in any memory.
    pub fn check(&self) -> Result<()> {
        let mut total = 0u64;
        for (index, buffer) in self.buffers.iter().enumerate() {
            let Buffer { lower, upper, size, align, fixed } = *buffer;
            if lower >= upper {
                return Err(Error::Lifetime { buffer: index, lower, upper });
            }
            total = total.saturating_add(size);
            if size == 0 || total > MAX_BYTES || fixed.unwrap_or(0) > MAX_BYTES {
                return Err(Error::BufferSize { buffer: index, size, total });
            }
            if !(1..=MAX_ALIGN).contains(&align) || fixed.is_some_and(|offset| !offset.is_multiple_of(align)) {
                return Err(Error::Alignment { buffer: index, align, fixed });
            }
        }
        Ok(())
    }

    /// When most bytes are live; none if there are no buffers.
    pub fn peak(&self) -> Option<Peak> {
        let births = self.buffers.iter().map(|buffer| (buffer.lower, true, buffer.size));
        let deaths = self.buffers.iter().map(|buffer| (buffer.upper, false, buffer.size));
        let mut events: Vec<(u64, bool, u64)> = births.chain(deaths).collect();
        // At one moment deaths come before births.
        events.sort_unstable();
        let (mut live, mut bytes, mut time) = (0, 0, 0);
        for (at, born, size) in events {
            live = if born { live + size } else { live - size };
            if live > bytes {
                (bytes, time) = (live, at);
            }
        }
        let lives = |buffer: &Buffer| buffer.lower <= time && time < buffer.upper;
        let buffers: Vec<usize> = (0..self.buffers.len()).filter(|&b| lives(&self.buffers[b])).collect();
        (!buffers.is_empty()).then_some(Peak { time, bytes, buffers })
    }

    /// The most bytes that are live at once.
    pub fn max_live(&self) -> u64 {
        self.peak().map_or(0, |peak| peak.bytes)
    }

    /// The placement with these offsets.
    pub(super) fn placement(&self, offsets: Vec<u64>) -> Placement {
        let height = self.buffers.iter().zip(&offsets).map(|(buffer, offset)| offset + buffer.size).max().unwrap_or(0);
        Placement { offsets, height }
    }
}
