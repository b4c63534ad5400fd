//! Weights that exceed DRAM: which stay resident, and how the rest streams from flash for every token.
//!
//! A decoder reads its weights from first to last for each token: a cyclic scan. Whatever the policy, at most `R` bytes of `W`
//! are resident when a scan begins, so a scan reads at least `W - R` bytes from flash. A *pinned prefix* reads exactly that. LRU
//! always evicts what is needed next, and reads all of `W`.
//!
//! The file has the weights in the order of use; each layer begins on a page. What is not pinned passes through two buffers in
//! DRAM: one is read from flash while compute uses the other.

use super::problem::MAX_BYTES;
use crate::{Error, Result};

/// Properties of the flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flash {
    /// Page size in bytes.
    pub page: u64,
    /// Pages in flight that reach the full rate.
    pub queue: u64,
    /// Bytes per second.
    pub rate: u64,
}

/// The largest number of a [`Flash`].
const MAX_FLASH: u64 = 1 << 40;

/// Where the weights are, and what moves per token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    /// The offset of each layer in the file, page-aligned, in the order of use.
    pub layers: Vec<u64>,
    /// Size of the file: layers, each padded to a page.
    pub file: u64,
    /// Size of the prefix that stays in DRAM; a multiple of the page size.
    pub pinned: u64,
    /// Size of each of the two buffers; 0 if everything is pinned.
    pub chunk: u64,
    /// Byte ranges of the file that are read per token, in order.
    pub chunks: Vec<(u64, u64)>,
}

impl Paging {
    /// Plans `layers` (their sizes in the order of use) for `dram` bytes. A chunk has at least `tile` bytes, the least that
    /// compute works on, and enough pages for the full rate.
    pub fn plan(layers: &[u64], dram: u64, tile: u64, flash: Flash) -> Result<Paging> {
        let Flash { page, queue, rate } = flash;
        if [page, queue, rate].iter().any(|number| !(1..=MAX_FLASH).contains(number)) {
            return Err(Error::Flash { page, queue, rate });
        }
        let (mut starts, mut file) = (Vec::new(), 0u64);
        for &bytes in layers {
            starts.push(file);
            let end = bytes.checked_next_multiple_of(page).and_then(|bytes| file.checked_add(bytes));
            file = end.filter(|&end| end <= MAX_BYTES).ok_or(Error::PagingWeights { most: MAX_BYTES })?;
        }
        if file <= dram {
            return Ok(Paging { layers: starts, file, pinned: file, chunk: 0, chunks: Vec::new() });
        }
        let room = |chunk: &u64| chunk.checked_mul(2).is_some_and(|both| both <= dram);
        let chunk = page.saturating_mul(queue).max(tile).checked_next_multiple_of(page).filter(room);
        let chunk = chunk.ok_or(Error::PagingRoom { dram, chunk: page.saturating_mul(queue).max(tile) })?;
        let pinned = (dram - 2 * chunk) / page * page;
        let chunks = (pinned..file).step_by(usize::try_from(chunk).unwrap_or(usize::MAX));
        let chunks = chunks.map(|start| (start, (start + chunk).min(file))).collect();
        Ok(Paging { layers: starts, file, pinned, chunk, chunks })
    }

    /// Bytes read from flash per token: `W - R` in whole pages.
    pub fn bytes_per_token(&self) -> u64 {
        self.file - self.pinned
    }

    /// Bytes of DRAM in use.
    pub fn dram(&self) -> u64 {
        self.pinned + 2 * self.chunk
    }

    /// Simulates `tokens` tokens (or micro-batches). `compute` gives the nanoseconds of compute on a byte range of the file. A
    /// read starts as soon as a buffer is free, ahead into the next token, too.
    pub fn run(&self, flash: Flash, tokens: u64, compute: impl Fn(u64, u64) -> u64) -> Run {
        let prefix = if self.pinned > 0 { compute(0, self.pinned) } else { 0 };
        let mut run = Run::default();
        // When the flash is idle, and when each of the two buffers is free.
        let (mut read, mut free, mut buffer) = (0, [0, 0], 0);
        for _ in 0..tokens {
            run.nanoseconds += prefix;
            for &(start, end) in &self.chunks {
                let begin: u64 = free[buffer].max(read);
                read = begin + flash.nanoseconds(end - start);
                run.bytes += end - start;
                run.stalled += read.saturating_sub(run.nanoseconds);
                run.nanoseconds = run.nanoseconds.max(read) + compute(start, end);
                free[buffer] = run.nanoseconds;
                buffer = 1 - buffer;
            }
        }
        run
    }
}

/// The result of a simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Nanoseconds from the first read to the end of the last computation.
    pub nanoseconds: u64,
    /// Nanoseconds of them in which compute waited for flash.
    pub stalled: u64,
    /// Bytes read from flash.
    pub bytes: u64,
}

impl Flash {
    /// Nanoseconds of a read at the full rate, rounded up.
    pub fn nanoseconds(self, bytes: u64) -> u64 {
        let time = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.rate));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// The smallest micro-batch whose compute takes as long as reading `bytes` from flash once:
    /// `c* = flash time * MACs per second / MACs per token`, rounded up. `None` if a token computes nothing.
    pub fn micro_batch(self, bytes: u64, macs_per_second: u64, macs_per_token: u64) -> Option<u64> {
        let done = u128::from(self.rate) * u128::from(macs_per_token);
        let wanted = u128::from(bytes) * u128::from(macs_per_second);
        (done > 0).then(|| u64::try_from(wanted.div_ceil(done)).unwrap_or(u64::MAX).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLASH: Flash = Flash { page: 16, queue: 2, rate: 1_000_000_000 };

    /// Pages read per scan in the steady state, for `pages` pages and a cache of `room`.
    fn misses(pages: u64, room: u64, scans: u64, keep: impl Fn(&mut Vec<u64>, u64, u64)) -> u64 {
        let (mut held, mut missed) = (Vec::new(), 0);
        for time in 0..pages * scans {
            let page = time % pages;
            if !held.contains(&page) {
                missed += u64::from(time >= pages * (scans - 1));
                held.push(page);
            }
            keep(&mut held, page, room);
            assert!(held.len() as u64 <= room);
        }
        missed
    }

    /// Most recently used last.
    fn least_recently_used(held: &mut Vec<u64>, page: u64, room: u64) {
        held.retain(|&other| other != page);
        held.push(page);
        if held.len() as u64 > room {
            held.remove(0);
        }
    }

    /// Belady's policy: evicts the page whose next use is furthest away, which may be the one just read.
    fn belady(held: &mut Vec<u64>, page: u64, room: u64, pages: u64) {
        if held.len() as u64 > room {
            let wait = |other: u64| if other > page { other - page } else { other + pages - page };
            let last = (0..held.len()).max_by_key(|&i| wait(held[i])).unwrap();
            held.remove(last);
        }
    }

    proptest! {
        /// The pinned prefix reads as much as Belady's policy; LRU reads everything.
        #[test]
        fn a_pinned_prefix_reads_as_little_as_can_be(pages in 2..40u64, part in 1..100u64) {
            let room = (pages * part / 100).max(1);
            let paging = Paging::plan(&[16 * pages], 16 * room + 64, 1, FLASH).unwrap();
            let prefix = misses(pages, room, 4, |held, page, room| held.retain(|&p| p != page || p < room));
            prop_assert_eq!(prefix, pages - room);
            prop_assert_eq!(misses(pages, room, 4, |held, page, room| belady(held, page, room, pages)), pages - room);
            prop_assert_eq!(misses(pages, room, 4, least_recently_used), pages);
            // Four more pages hold the two chunks, or everything.
            let wanted = if room + 4 >= pages { 0 } else { 16 * (pages - room) };
            prop_assert_eq!(paging.bytes_per_token(), wanted);
        }

        #[test]
        fn a_plan_reads_the_rest_of_the_file_once_in_order(
            layers in prop::collection::vec(1..500u64, 1..12), dram in 0..3000u64, tile in 1..100u64,
        ) {
            let Ok(paging) = Paging::plan(&layers, dram, tile, FLASH) else {
                prop_assert!(dram < 2 * tile.max(32).next_multiple_of(16));
                return Ok(());
            };
            prop_assert!(paging.dram() <= dram);
            let mut at = paging.pinned;
            for &(start, end) in &paging.chunks {
                prop_assert!(start == at && end > start && end - start <= paging.chunk && start % 16 == 0);
                at = end;
            }
            prop_assert_eq!(at, paging.file);
            let ends = paging.layers.iter().skip(1).chain([&paging.file]);
            for ((start, end), bytes) in paging.layers.iter().zip(ends).zip(&layers) {
                prop_assert_eq!(end - start, bytes.next_multiple_of(16));
            }
        }

        /// After the first chunk, whose load nothing hides if nothing is pinned. After the last chunk of a
        /// token, where that is a smaller rest, the next whole one is not hidden wholly.
        #[test]
        fn nothing_stalls_where_compute_takes_as_long_as_flash(bytes in 100..5000u64, dram in 64..3000u64, slower in 1..4u64) {
            let paging = Paging::plan(&[bytes], dram, 1, FLASH).unwrap();
            let run = paging.run(FLASH, 3, |start, end| slower * FLASH.nanoseconds(end - start));
            let first = paging.chunks.first().map_or(0, |&(start, end)| FLASH.nanoseconds(end - start));
            let last = paging.chunks.last().map_or(0, |&(start, end)| FLASH.nanoseconds(end - start));
            let at_most = first.saturating_sub(slower * paging.pinned) + 3 * first.saturating_sub(last);
            prop_assert!(run.stalled <= at_most, "{:?}", run);
            prop_assert_eq!(run.bytes, 3 * paging.bytes_per_token());
        }

        /// Nor can anything be faster than flash, or than compute.
        #[test]
        fn a_run_takes_as_long_as_its_slower_half(bytes in 100..5000u64, dram in 64..3000u64, nanoseconds in 0..5u64) {
            let paging = Paging::plan(&[bytes], dram, 1, FLASH).unwrap();
            let run = paging.run(FLASH, 3, |start, end| nanoseconds * (end - start));
            let (compute, flash) = (3 * nanoseconds * paging.file, FLASH.nanoseconds(run.bytes));
            prop_assert!(run.nanoseconds >= compute.max(flash));
            prop_assert_eq!(run.nanoseconds, compute + run.stalled);
        }

        #[test]
        fn the_micro_batch_is_the_least_that_hides_flash(bytes in 1..10_000u64, speed in 1..1000u64, macs in 1..1000u64) {
            let flash = Flash { rate: 7, ..FLASH };
            let batch = flash.micro_batch(bytes, speed, macs).unwrap();
            // Times crossed out to whole numbers: batch * macs / speed against bytes / rate.
            let hides = |batch: u64| batch * macs * flash.rate >= bytes * speed;
            prop_assert!(hides(batch) && (batch == 1 || !hides(batch - 1)));
        }
    }

    #[test]
    fn what_cannot_be_paged_is_refused() {
        assert!(matches!(Paging::plan(&[1000], 63, 1, FLASH), Err(Error::PagingRoom { dram: 63, chunk: 32 })));
        assert!(matches!(Paging::plan(&[1000], 100, 200, FLASH), Err(Error::PagingRoom { .. })));
        assert!(matches!(Paging::plan(&[u64::MAX], 100, 1, FLASH), Err(Error::PagingWeights { .. })));
        let broken = Flash { rate: 0, ..FLASH };
        assert!(matches!(Paging::plan(&[1], 100, 1, broken), Err(Error::Flash { rate: 0, .. })));
        assert_eq!(FLASH.micro_batch(10, 10, 0), None);
    }
}
