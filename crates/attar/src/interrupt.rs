//! Signals that end a process: SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which comes when a terminal goes.
//!
//! In a run, the first one lets the current unit of work finish; the same command goes on later. A second one, or the first
//! anywhere else, ends the process at once.

use std::{
    ffi::c_int,
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    iterator::Signals,
};

/// The first signal; 0 before.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// Whether the first signal waits for the current unit of work.
static PATIENT: AtomicBool = AtomicBool::new(false);

/// From here on a signal ends the process, even if it was started with SIGINT ignored, as shells do for background jobs.
/// SIGHUP stays ignored where it was, which `nohup` relies on.
pub(crate) fn stop_at_once() {
    // A file larger than the shell's limit is then an error of its writing, as on a full disk.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let heard = [SIGINT, SIGTERM].into_iter().chain((!is_ignored(SIGHUP)).then_some(SIGHUP));
    // Without a handler the signals end the process as they do any other.
    let Ok(mut signals) = Signals::new(heard) else { return };
    thread::spawn(move || signals.forever().for_each(hear));
}

/// From here on the first signal lets the current unit of work finish. For callers that poll [`heard`].
pub(crate) fn stop_between_units() {
    PATIENT.store(true, Ordering::SeqCst);
}

/// Whether to stop after the current unit of work.
pub(crate) fn heard() -> bool {
    FIRST.load(Ordering::SeqCst) != 0
}

/// The exit code after a signal, as in shells: 128 plus its number; that of SIGINT before any.
pub(crate) fn exit_code() -> u8 {
    code(match FIRST.load(Ordering::SeqCst) {
        0 => SIGINT,
        signal => signal,
    })
}

fn hear(signal: c_int) {
    let is_first = FIRST.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if !is_first || !PATIENT.load(Ordering::SeqCst) {
        attar_eval::engine::kill_all();
        exit(code(signal).into());
    }
    crate::printer::stopping();
}

fn code(signal: c_int) -> u8 {
    128 + u8::try_from(signal).unwrap_or_default()
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all bytes zero is a valid `sigaction`, which the call overwrites; without a new action it changes nothing.
    let (status, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &raw mut action), action)
    };
    status == 0 && action.sa_sigaction == libc::SIG_IGN
}
