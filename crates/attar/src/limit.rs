//! `--max-memory`, held in every verb: the heap counts what is in use and ends the process before it takes more.
//!
//! A plan refuses what it knows to need more before any work. This is for what no plan foresees: the tokenizer of a strange
//! file, a report of ten thousand tensors. Finished work is on the disk by then, so ending is no worse than a kill.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::{
        OnceLock,
        atomic::{AtomicIsize, Ordering::Relaxed},
    },
};

use mimalloc::MiMalloc;

/// mimalloc, which counts where there is a limit.
pub(crate) struct Counting;

/// Bytes that may be in use; `isize::MAX` without a limit, and then nothing is counted.
static LIMIT: AtomicIsize = AtomicIsize::new(isize::MAX);
/// Bytes in use since there is a limit, less those that were in use before and were freed.
static LIVE: AtomicIsize = AtomicIsize::new(0);
/// What the process says at its end, on stdout and on stderr: made while there is memory.
static LAST_WORDS: OnceLock<[String; 2]> = OnceLock::new();

/// Bytes of a process that are not on its heap: the program, its stacks, what mimalloc keeps.
const PROGRAM: u64 = 24 << 20;

/// That of every [`attar_recipe::ErrorKind::Input`].
const EXIT_CODE: i32 = 3;

/// Ends the process, with `stdout` and `stderr` as its last words, when it would take more than `bytes` in all.
pub(crate) fn set(bytes: u64, stdout: String, stderr: String) {
    LAST_WORDS.get_or_init(|| [stdout, stderr]);
    LIMIT.store(isize::try_from(bytes.saturating_sub(PROGRAM)).unwrap_or(isize::MAX), Relaxed);
}

fn grow(by: isize) {
    let limit = LIMIT.load(Relaxed);
    if limit != isize::MAX && LIVE.fetch_add(by, Relaxed).saturating_add(by) > limit && by > 0 {
        end();
    }
}

#[cold]
fn end() -> ! {
    let words = LAST_WORDS.get().map(|words| [&*words[0], &*words[1]]).unwrap_or_default();
    for (stream, text) in [libc::STDOUT_FILENO, libc::STDERR_FILENO].into_iter().zip(words) {
        // SAFETY: the bytes are valid for the call. Rust's own streams could wait for a lock, or allocate.
        unsafe { libc::write(stream, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: it has no preconditions; nothing runs after it, destructors included.
    unsafe { libc::_exit(EXIT_CODE) }
}

// SAFETY: every call is passed on to mimalloc as it came; counting touches no memory but two integers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size() as isize);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size() as isize);
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { MiMalloc.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        grow(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(at, layout) }
    }
}
