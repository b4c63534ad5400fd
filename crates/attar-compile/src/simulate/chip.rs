//! On-chip memory: its bytes, which of them mean something, and who was last at them.

use super::Violation;

/// The queues, in the order of [`Clock`].
pub(super) const QUEUES: [&str; 4] = ["activation loads", "weight loads", "compute", "stores"];
pub(super) const ACTIVATIONS: usize = 0;
pub(super) const WEIGHTS: usize = 1;
pub(super) const COMPUTE: usize = 2;
pub(super) const STORES: usize = 3;

/// A vector clock: how far each queue had come, at most, when this was known.
pub(super) type Clock = [u64; 4];

pub(super) fn join(clock: &mut Clock, other: &Clock) {
    clock.iter_mut().zip(other).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}

#[derive(Clone, Copy, Default)]
struct Granule {
    /// Queue and time of the last write.
    written: (u8, u64),
    /// The last reads of each queue.
    read: Clock,
}

/// A run of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    pub(super) start: u64,
    pub(super) length: u64,
}

pub(super) struct Chip {
    pub(super) bytes: Vec<u8>,
    valid: Vec<bool>,
    granules: Vec<Granule>,
    granule: u64,
}

impl Chip {
    /// Without `checked`, nothing is stored and nothing is checked: for timelines of plans that were proven smaller.
    pub(super) fn new(size: u64, granule: u64, checked: bool) -> Chip {
        let size = if checked { size as usize } else { 0 };
        let granules = size.div_ceil(granule as usize);
        Chip { bytes: vec![0; size], valid: vec![false; size], granules: vec![Granule::default(); granules], granule }
    }

    /// What lay there means nothing any more.
    pub(super) fn forget(&mut self, bytes: Bytes) {
        if !self.bytes.is_empty() {
            self.valid[bytes.start as usize..][..bytes.length as usize].fill(false);
        }
    }

    /// `queue`, which knows `clock`, reads.
    pub(super) fn read(&mut self, place: &str, queue: usize, clock: &Clock, bytes: Bytes) -> Result<(), Violation> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        if let Some(at) = self.valid[bytes.start as usize..][..bytes.length as usize].iter().position(|valid| !valid) {
            return Err(Violation::Unwritten { place: place.into(), at: bytes.start + at as u64 });
        }
        let size = self.granule;
        for (at, granule) in self.granules_of(bytes) {
            let (writer, time) = granule.written;
            if time > clock[writer as usize] {
                return Err(hazard("read after write", place, at as u64 * size, queue, writer as usize));
            }
            granule.read[queue] = clock[queue];
        }
        Ok(())
    }

    /// `queue`, which knows `clock`, writes.
    pub(super) fn write(&mut self, place: &str, queue: usize, clock: &Clock, bytes: Bytes) -> Result<(), Violation> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let size = self.granule;
        for (at, granule) in self.granules_of(bytes) {
            let (writer, time) = granule.written;
            if time > clock[writer as usize] {
                return Err(hazard("write after write", place, at as u64 * size, queue, writer as usize));
            }
            if let Some(reader) = (0..4).find(|reader| granule.read[*reader] > clock[*reader]) {
                return Err(hazard("write after read", place, at as u64 * size, queue, reader));
            }
            granule.written = (queue as u8, clock[queue]);
        }
        self.valid[bytes.start as usize..][..bytes.length as usize].fill(true);
        Ok(())
    }

    fn granules_of(&mut self, bytes: Bytes) -> impl Iterator<Item = (usize, &mut Granule)> {
        let (from, to) = (bytes.start / self.granule, (bytes.start + bytes.length).div_ceil(self.granule));
        self.granules[from as usize..to as usize].iter_mut().enumerate().map(move |(at, granule)| (from as usize + at, granule))
    }
}

fn hazard(kind: &'static str, place: &str, at: u64, queue: usize, other: usize) -> Violation {
    Violation::Hazard { kind, place: place.into(), at, queue: QUEUES[queue], other: QUEUES[other] }
}
