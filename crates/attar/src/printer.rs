//! The only module that prints. Results go to stdout, everything else to stderr.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Mutex,
};

use attar_recipe::{Error, shown, shown_json};
use clap::ArgMatches;

/// Prints in the format that the user asked for.
pub(crate) struct Printer {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    color: bool,
    /// Why a result could not be written.
    failure: Mutex<Option<io::Error>>,
}

impl Printer {
    pub(crate) fn new(matches: &ArgMatches) -> Printer {
        let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Printer { json: matches.get_flag("json"), quiet: matches.get_flag("quiet"), color, failure: Mutex::default() }
    }

    /// Prints a result. Names in it may be from files.
    pub(crate) fn data(&self, text: &str) {
        self.raw(&shown(text));
    }

    fn raw(&self, text: &str) {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        self.write(|out| write!(out, "{text}{end}"));
    }

    /// Prints a piece of a result at once, without a line break.
    pub(crate) fn piece(&self, text: &str) {
        self.write(|out| out.write_all(shown(text).as_bytes()));
    }

    fn write(&self, write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) {
        let mut out = io::stdout().lock();
        if let Err(error) = write(&mut out).and_then(|()| out.flush()) {
            self.failure.lock().expect("no panic holds this lock").get_or_insert(error);
        }
    }

    /// `code`, if everything that was printed arrived. A reader that has seen enough and closes its pipe is no failure.
    pub(crate) fn done(&self, code: ExitCode) -> Result<ExitCode, Error> {
        match self.failure.lock().expect("no panic holds this lock").take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::input("cannot write to the standard output").because(&error))
            }
            _ => Ok(code),
        }
    }

    /// Prints a result as JSON.
    pub(crate) fn value(&self, value: &impl serde::Serialize) {
        self.raw(&shown_json(&serde_json::to_string_pretty(value).expect("results are JSON")));
    }

    /// Prints a note to stderr, unless `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            tell(&shown(text));
        }
    }

    /// Prints to stderr what went wrong without being an error.
    pub(crate) fn failure(&self, text: &str) {
        tell(text);
    }

    pub(crate) fn error(&self, error: &Error) {
        if self.json {
            self.value(&error.to_json());
        }
        tell(&error.render(self.color));
    }

    /// What [`Printer::error`] would print, to stdout and to stderr.
    pub(crate) fn last_words(&self, error: &Error) -> [String; 2] {
        let json = if self.json { format!("{:#}\n", error.to_json()) } else { String::new() };
        [json, format!("{}\n", error.render(self.color))]
    }

    pub(crate) fn bug(&self) {
        tell(
            "error: this is a bug in attar, not a mistake in what you asked for\nhint: please report it with the lines above; finished work is kept",
        );
    }

    /// Whether progress bars can be drawn.
    pub(crate) fn draws(&self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }
}

/// Prints a line to stderr. Where that is closed or full, nobody can be told.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says that the first signal was heard.
pub(crate) fn stopping() {
    tell("stopping after the current unit of work; press Ctrl-C again to stop now (finished work is kept)");
}
