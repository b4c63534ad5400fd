//! What work costs: CPU-seconds of all threads, wall time, and the most memory a process held.

use std::{io, mem::MaybeUninit, process::Command, time::Instant};

use libc::{RUSAGE_SELF, rusage};

use crate::Failure;

/// What some work took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Of all threads, user and system.
    pub(crate) cpu: f64,
    /// From start to end.
    pub(crate) wall: f64,
    /// Bytes resident at most, over the life of the process that did it.
    pub(crate) peak: u64,
}

/// Does `work` here, and says what it cost.
pub(crate) fn of<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (before, start) = (own_usage(), Instant::now());
    let value = work();
    let (wall, after) = (start.elapsed().as_secs_f64(), own_usage());
    (value, Cost { cpu: seconds(&after) - seconds(&before), wall, peak: peak(&after) })
}

/// Runs `command` to its end; it must succeed. Its children count once it has waited for them. Until the program is
/// loaded the child is a copy of this process, so a peak below our own cannot be seen: hold little while calling this.
pub(crate) fn of_command(command: &mut Command) -> Result<Cost, Failure> {
    let start = Instant::now();
    let child = command.spawn().map_err(|error| format!("`{}` cannot be started: {error}", shown(command)))?;
    let (status, usage) = wait(child.id() as libc::pid_t)?;
    let wall = start.elapsed().as_secs_f64();
    if status != 0 {
        return Err(format!("`{}` ended with status {status:#x}", shown(command)).into());
    }
    Ok(Cost { cpu: seconds(&usage), wall, peak: peak(&usage) })
}

/// The program's name without its folder, and its arguments.
pub(crate) fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}

fn own_usage() -> rusage {
    let mut usage = MaybeUninit::uninit();
    // SAFETY: `usage` has room for one, and the call fills it: it cannot fail for these arguments.
    unsafe {
        libc::getrusage(RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    }
}

fn wait(child: libc::pid_t) -> io::Result<(i32, rusage)> {
    let (mut status, mut usage) = (0, MaybeUninit::zeroed());
    // SAFETY: both places are ours, and `rusage` is plain numbers, for which zeros are valid.
    let (answer, usage) = unsafe { (libc::wait4(child, &raw mut status, 0, usage.as_mut_ptr()), usage.assume_init()) };
    if answer == child { Ok((status, usage)) } else { Err(io::Error::last_os_error()) }
}

fn seconds(usage: &rusage) -> f64 {
    let of = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn peak(usage: &rusage) -> u64 {
    // Linux counts kibibytes, macOS bytes.
    usage.ru_maxrss as u64 * if cfg!(target_os = "macos") { 1 } else { 1024 }
}
