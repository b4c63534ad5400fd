//! Progress: a bar with an estimate of the time left on a terminal, otherwise a line per stage and one every 30 seconds.

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use attar_recipe::{Observer, shown_on_a_line};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::{interrupt, printer::Printer};

/// How often a long stage is heard of where there is no terminal.
const EVERY: Duration = Duration::from_secs(30);

/// Work that is done by then may come from an earlier run, and says nothing about the speed of this one.
const WARM_UP: Duration = Duration::from_secs(1);

/// Columns of the bar itself.
const BAR: usize = 16;

/// Shows the progress of a run.
pub(crate) struct Bars<'p> {
    printer: &'p Printer,
    current: Mutex<Stage>,
}

/// What is being done.
struct Stage {
    name: String,
    total: u64,
    bar: ProgressBar,
    pace: Pace,
    /// When a line was printed last.
    told: Instant,
}

impl<'p> Bars<'p> {
    pub(crate) fn new(printer: &'p Printer) -> Bars<'p> {
        Bars { printer, current: Mutex::new(Stage::new("", 0, ProgressBar::hidden())) }
    }

    fn current(&self) -> MutexGuard<'_, Stage> {
        self.current.lock().expect("no panic holds this lock")
    }
}

impl Observer for Bars<'_> {
    fn stage(&self, name: &str, total: u64) {
        let mut stage = self.current();
        stage.bar.finish_and_clear();
        let bar = if self.printer.draws() { bar(name, total) } else { ProgressBar::hidden() };
        // The same stage may begin again, once its total is known.
        if !self.printer.draws() && stage.name != name {
            self.printer.note(name);
        }
        *stage = Stage::new(name, total, bar);
    }

    fn advance(&self, done: u64, what: &str) {
        let stage = &mut *self.current();
        let left = stage.pace.left(Instant::now(), done, stage.total);
        if self.printer.draws() {
            stage.show(done, left, what);
        } else if stage.told.elapsed() >= EVERY {
            self.printer.note(&stage.line(done, left, what));
            stage.told = Instant::now();
        }
    }

    fn note(&self, text: &str) {
        let bar = self.current().bar.clone();
        bar.suspend(|| self.printer.note(text));
    }

    fn interrupted(&self) -> bool {
        interrupt::heard()
    }
}

impl Drop for Bars<'_> {
    fn drop(&mut self) {
        self.current().bar.finish_and_clear();
    }
}

fn bar(name: &str, total: u64) -> ProgressBar {
    let (bar, template) = match total {
        0 => (ProgressBar::new_spinner(), "{spinner} {prefix} {msg}".to_owned()),
        _ => (ProgressBar::new(total), format!("{{prefix}} [{{bar:{BAR}}}] {{percent:>3}}% {{msg}}")),
    };
    bar.set_style(ProgressStyle::with_template(&template).expect("a constant").progress_chars("=> "));
    bar.set_prefix(shown_on_a_line(name));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Stage {
    fn new(name: &str, total: u64, bar: ProgressBar) -> Stage {
        let now = Instant::now();
        Stage { name: name.to_owned(), total, bar, pace: Pace::new(now), told: now }
    }

    /// On a terminal: what does not fit is cut out of the middle of `what`, where names differ least.
    fn show(&self, done: u64, left: Option<Duration>, what: &str) {
        let eta = left.map(|left| format!("eta {}, ", HumanDuration(left))).unwrap_or_default();
        let columns = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
        let taken = self.name.chars().count() + BAR + " [] 100% ".len() + eta.chars().count() + 1;
        self.bar.set_position(done);
        self.bar.set_message(format!("{eta}{}", shortened(&shown_on_a_line(what), columns.saturating_sub(taken))));
    }

    /// Without a terminal.
    fn line(&self, done: u64, left: Option<Duration>, what: &str) -> String {
        let share = match self.total {
            0 => String::new(),
            total => format!(": {}%", 100 * done.min(total) / total),
        };
        let left = left.map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default();
        let what = if what.is_empty() { String::new() } else { format!(" ({what})") };
        format!("{}{share}{left}{what}", self.name)
    }
}

/// How fast a stage goes: on average, so that the estimate does not swing with the units.
struct Pace {
    began: Instant,
    /// When the warm-up was over, and what was done by then.
    from: Option<(Instant, u64)>,
}

impl Pace {
    fn new(began: Instant) -> Pace {
        Pace { began, from: None }
    }

    /// The time left, if the rest goes as fast as everything since the warm-up.
    fn left(&mut self, now: Instant, done: u64, total: u64) -> Option<Duration> {
        if now - self.began < WARM_UP {
            return None;
        }
        let (from, before) = *self.from.get_or_insert((now, done));
        let (worked, rest) = (done.saturating_sub(before), total.saturating_sub(done));
        (worked > 0 && total > 0).then(|| (now - from).mul_f64(rest as f64 / worked as f64))
    }
}

/// `text` in at most `columns` characters: the middle is left out.
fn shortened(text: &str, columns: usize) -> String {
    let count = text.chars().count();
    if count <= columns {
        return text.to_owned();
    }
    let kept = columns.saturating_sub(1);
    let head: String = text.chars().take(kept / 2).collect();
    let tail: String = text.chars().skip(count - (kept - kept / 2)).collect();
    if columns == 0 { String::new() } else { format!("{head}…{tail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_an_earlier_run_does_not_count_as_speed() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut pace = Pace::new(began);
        assert_eq!(pace.left(began, 60, 100), None);
        assert_eq!(pace.left(at(2), 60, 100), None);
        assert_eq!(pace.left(at(12), 70, 100), Some(Duration::from_secs(30)));
        assert_eq!(pace.left(at(42), 100, 100), Some(Duration::ZERO));
        assert_eq!(pace.left(at(42), 70, 0), None, "a stage without a total");
    }

    #[test]
    fn labels_lose_their_middle() {
        assert_eq!(shortened("blocks.12.mlp.up", 16), "blocks.12.mlp.up");
        assert_eq!(shortened("blocks.12.mlp.up", 9), "bloc…p.up");
        assert_eq!([0, 1, 2].map(|columns| shortened("äöü", columns)), ["", "…", "…ü"]);
    }

    #[test]
    fn a_line_says_how_far_and_how_long() {
        let stage = Stage::new("quantize", 200, ProgressBar::hidden());
        assert_eq!(stage.line(50, Some(Duration::from_secs(30)), "w"), "quantize: 25%, 30 seconds left (w)");
        let stage = Stage::new("write onnx", 0, ProgressBar::hidden());
        assert_eq!(stage.line(3, None, ""), "write onnx");
    }
}
