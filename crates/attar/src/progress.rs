//! Progress bars with an estimate of the time left, if stderr is a terminal.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use attar_recipe::{Observer, shown_on_a_line};
use indicatif::{ProgressBar, ProgressStyle};

use crate::printer::Printer;

/// Set by the first Ctrl-C: stop after the current unit of work. A second one stops at once.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the first Ctrl-C waits for the current unit of work.
static PATIENT: AtomicBool = AtomicBool::new(false);

/// The exit code after Ctrl-C: 128 plus the number of SIGINT, as in shells.
const STOPPED: i32 = 130;

/// From here on Ctrl-C ends the process, even if it was started with SIGINT ignored, as shells do for background jobs.
pub(crate) fn stop_at_once() {
    // Fails only if a handler is set already.
    let _ = ctrlc::set_handler(|| {
        if !PATIENT.load(Ordering::SeqCst) || INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(STOPPED);
        }
        crate::printer::stopping();
    });
}

/// From here on the first Ctrl-C lets the current unit of work finish. For callers that poll [`Observer::interrupted`].
pub(crate) fn stop_between_units() {
    PATIENT.store(true, Ordering::SeqCst);
}

/// Draws the progress of a run.
pub(crate) struct Bars<'p> {
    printer: &'p Printer,
    current: Mutex<ProgressBar>,
}

impl<'p> Bars<'p> {
    pub(crate) fn new(printer: &'p Printer) -> Bars<'p> {
        Bars { printer, current: Mutex::new(ProgressBar::hidden()) }
    }

    fn bar(&self) -> ProgressBar {
        self.current.lock().expect("no panic holds this lock").clone()
    }
}

impl Observer for Bars<'_> {
    fn stage(&self, name: &str, total: u64) {
        self.bar().finish_and_clear();
        if !self.printer.draws() {
            return;
        }
        let template = match total {
            0 => "{spinner} {prefix} {msg}",
            _ => "{prefix} [{bar:28}] {percent:>3}% eta {eta} {wide_msg}",
        };
        let style = ProgressStyle::with_template(template).expect("a constant").progress_chars("=> ");
        let bar = if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) };
        bar.set_style(style);
        bar.set_prefix(shown_on_a_line(name));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        *self.current.lock().expect("no panic holds this lock") = bar;
    }

    fn advance(&self, done: u64, what: &str) {
        let bar = self.bar();
        bar.set_position(done);
        bar.set_message(shown_on_a_line(what));
    }

    fn note(&self, text: &str) {
        self.bar().suspend(|| self.printer.note(text));
    }

    fn interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }
}

impl Drop for Bars<'_> {
    fn drop(&mut self) {
        self.bar().finish_and_clear();
    }
}
