//! `--max-memory`, held in every verb: the allocator looks at what the process has, and ends it when it would take more.
//!
//! A plan refuses what it knows to need more before any work. This is for what no plan foresees: the tokenizer of a strange
//! file, a report of ten thousand tensors. Finished work is on the disk by then, so ending is no worse than a kill. What counts
//! is resident memory as the kernel sees it, program and all; Linux tells, elsewhere only plans refuse.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use mimalloc::MiMalloc;

/// mimalloc, with a limit if one is set.
pub(crate) struct Limited;

struct Limit {
    bytes: usize,
    /// `/proc/self/statm`, open.
    statm: i32,
    page: usize,
    /// What the process says at its end, on stdout and on stderr: made while there is memory.
    last_words: [String; 2],
}

static LIMIT: OnceLock<Limit> = OnceLock::new();
/// Bytes that were asked for since the last look.
static ASKED: AtomicUsize = AtomicUsize::new(0);
static ENDING: AtomicBool = AtomicBool::new(false);

/// Bytes between two looks.
const STEP: usize = 256 << 10;

/// An allocation of these sizes counts in full before it is made. A larger one may be a reserve that is hardly touched, such as
/// gemm's, which is as large as the last-level cache: it counts once it is resident.
const LARGE: std::ops::RangeInclusive<usize> = 1 << 20..=128 << 20;

/// That of every [`attar_recipe::ErrorKind::Input`].
const EXIT_CODE: i32 = 3;

unsafe extern "C" {
    /// mimalloc's: gives what is free back to the system.
    fn mi_collect(force: bool);
    /// mimalloc's.
    fn mi_option_set(option: libc::c_int, value: libc::c_long);
}

/// Whether arenas are committed whole: `mi_option_arena_eager_commit`.
const EAGER_COMMIT: libc::c_int = 4;

static STARTED: AtomicBool = AtomicBool::new(false);

/// Before the first arena is made. Whole arenas would be asked for in huge pages: an allocation then costs up to 2 MiB of zeros, which takes
/// longer than it gains here, and a process of 60 MB has 85.
fn start() {
    if !STARTED.swap(true, Relaxed) {
        // SAFETY: it writes one entry of a static table.
        unsafe { mi_option_set(EAGER_COMMIT, 0) };
    }
}

/// Ends the process, with `stdout` and `stderr` as its last words, when it would take more than `bytes` in all.
pub(crate) fn set(bytes: u64, stdout: String, stderr: String) {
    // SAFETY: the path ends in a zero.
    let statm = unsafe { libc::open(c"/proc/self/statm".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    // SAFETY: it has no preconditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    if let (0.., Ok(page)) = (statm, page) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        LIMIT.get_or_init(|| Limit { bytes, statm, page, last_words: [stdout, stderr] });
    }
}

impl Limit {
    /// Bytes in memory.
    fn resident(&self) -> usize {
        let mut text = [0u8; 128];
        // SAFETY: the buffer is valid for its length.
        let read = unsafe { libc::pread(self.statm, text.as_mut_ptr().cast(), text.len(), 0) };
        let text = text.get(..usize::try_from(read).unwrap_or(0)).unwrap_or_default();
        let pages = text.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        pages.iter().fold(0, |pages: usize, digit| pages.saturating_mul(10) + usize::from(digit.wrapping_sub(b'0') % 10))
            * self.page
    }

    fn look(&self, more: usize) {
        let beyond = || self.resident().saturating_add(more) > self.bytes;
        if beyond() {
            // SAFETY: no lock of mimalloc is held: it was not called yet.
            unsafe { mi_collect(true) };
            if beyond() {
                self.end();
            }
        }
    }

    #[cold]
    fn end(&self) -> ! {
        while ENDING.swap(true, Relaxed) {
            // SAFETY: it has no preconditions. Another thread is at the end.
            unsafe { libc::pause() };
        }
        for (stream, text) in [libc::STDOUT_FILENO, libc::STDERR_FILENO].into_iter().zip(&self.last_words) {
            // SAFETY: the bytes are valid for the call. Rust's own streams could wait for a lock, or allocate.
            unsafe { libc::write(stream, text.as_ptr().cast(), text.len()) };
        }
        // SAFETY: it has no preconditions; nothing runs after it, destructors included.
        unsafe { libc::_exit(EXIT_CODE) }
    }
}

/// Called before memory is given.
fn ask(bytes: usize) {
    if !STARTED.load(Relaxed) {
        start();
    }
    let Some(limit) = LIMIT.get() else { return };
    if LARGE.contains(&bytes) {
        limit.look(bytes);
    } else if ASKED.fetch_add(bytes, Relaxed) + bytes >= STEP {
        ASKED.store(0, Relaxed);
        limit.look(0);
    }
}

// SAFETY: every call is passed on to mimalloc as it came; looking at the limit touches none of its memory.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ask(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ask(layout.size());
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ask(size.saturating_sub(layout.size()));
        // SAFETY: as above.
        unsafe { MiMalloc.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(at, layout) }
    }
}
