//! The only module that prints. Results go to stdout, everything else to stderr.

#![expect(clippy::print_stderr, reason = "this is the one place")]

use std::io::{IsTerminal, Write};

use attar_recipe::{Error, shown, shown_json};
use clap::ArgMatches;

/// Prints in the format that the user asked for.
pub(crate) struct Printer {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    color: bool,
}

impl Printer {
    pub(crate) fn new(matches: &ArgMatches) -> Printer {
        let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Printer { json: matches.get_flag("json"), quiet: matches.get_flag("quiet"), color }
    }

    /// Prints a result. Names in it may be from files.
    pub(crate) fn data(&self, text: &str) {
        self.raw(&shown(text));
    }

    fn raw(&self, text: &str) {
        // A closed pipe is not an error.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes());
        if !text.ends_with('\n') {
            let _ = out.write_all(b"\n");
        }
    }

    /// Prints a piece of a result at once, without a line break.
    pub(crate) fn piece(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(shown(text).as_bytes());
        let _ = out.flush();
    }

    /// Prints a result as JSON.
    pub(crate) fn value(&self, value: &impl serde::Serialize) {
        self.raw(&shown_json(&serde_json::to_string_pretty(value).expect("results are JSON")));
    }

    /// Prints a note to stderr, unless `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{}", shown(text));
        }
    }

    pub(crate) fn error(&self, error: &Error) {
        if self.json {
            self.value(&error.to_json());
        }
        eprintln!("{}", error.render(self.color));
    }

    pub(crate) fn bug(&self) {
        eprintln!(
            "error: this is a bug in attar, not a mistake in what you asked for\nhint: please report it with the lines above; finished work is kept"
        );
    }

    /// Whether progress bars can be drawn.
    pub(crate) fn draws(&self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }
}

/// Says that the first Ctrl-C was heard.
pub(crate) fn stopping() {
    eprintln!("stopping after the current unit of work; press Ctrl-C again to stop now (finished work is kept)");
}
