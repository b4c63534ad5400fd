//! The project's own verbs: `cargo xtask VERB`. What a person or a CI machine runs lives here, in Rust, so that both
//! run the same thing. It is not a build system: cargo builds, and every verb is a few child processes in order.
//!
//! ```text
//! cargo xtask            # lists the verbs
//! cargo xtask test gptq  # the tests whose name contains `gptq`, with the real engines in reach
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "xtask talks to people")]

mod bench;
mod bless;
mod checkout;
mod child;
mod ci;
mod engines;
mod fuzz;
mod page;
mod processor;
mod smollm2;
mod system;
mod tally;
mod test;
mod venv;

use std::path::Path;
use std::process::ExitCode;

use checkout::Checkout;

/// One word after `cargo xtask`.
struct Verb {
    name: &'static str,
    /// How its arguments are shown; empty if it takes none.
    arguments: &'static str,
    about: &'static str,
    run: fn(&Checkout, &[String]) -> Result<(), Failure>,
}

/// Every verb, in the order the listing shows.
static VERBS: &[Verb] = &[
    Verb {
        name: "test",
        arguments: "[ARGS...]",
        about: "run all tests with the engines in reach, or with `-p CRATE` those of one crate; ARGS go to cargo test",
        run: test::run,
    },
    Verb {
        name: "as",
        arguments: "PROCESSOR [ARGS...]",
        about: "run the tests of engines with the engines on another processor (haswell), emulated by QEMU",
        run: processor::run,
    },
    Verb {
        name: "bless",
        arguments: "[ARGS...]",
        about: "run the tests and rewrite their golden files; read the diff afterwards",
        run: bless::run,
    },
    Verb { name: "bench", arguments: "[NAME...]", about: "run the benchmarks, or those named", run: bench::run },
    Verb {
        name: "engines",
        arguments: "[NAME...]",
        about: "install the engines that open artifacts, or those named, into target/engines",
        run: engines::run,
    },
    Verb {
        name: "smollm2",
        arguments: "",
        about: "make a real 135M checkpoint and its GGUF in target/models, for the larger recipes",
        run: smollm2::run,
    },
    Verb {
        name: "fuzz",
        arguments: "[TARGET] [SECONDS]",
        about: "fuzz all readers of foreign bytes, or that of one target, for so many seconds each (60)",
        run: fuzz::run,
    },
    Verb {
        name: "page",
        arguments: "FILE.html FOLDER",
        about: "pictures of a report's page in a real browser, 1280 and 400 pixels wide, in FOLDER",
        run: page::run,
    },
    Verb { name: "ci", arguments: "", about: "everything that must hold before a merge, in order", run: ci::run },
];

/// Why a verb did not do what it promises.
enum Failure {
    /// The command line was wrong: exit code 2.
    Usage(String),
    /// Something did not work: exit code 1.
    Broken(String),
    /// As `Broken`, and the verb has said so itself.
    Told,
}

impl Failure {
    /// A file or folder that cannot be read, written or removed.
    fn at(path: &Path, error: &std::io::Error) -> Self {
        Self::Broken(format!("{}: {error}", path.display()))
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            eprintln!("error: {message}\n\n{}", listing());
            ExitCode::from(2)
        }
        Err(Failure::Broken(message)) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
        Err(Failure::Told) => ExitCode::FAILURE,
    }
}

fn dispatch(words: &[String]) -> Result<(), Failure> {
    let Some((name, arguments)) = words.split_first() else {
        println!("{}", listing());
        return Ok(());
    };
    let verb = VERBS.iter().find(|verb| verb.name == name);
    let verb = verb.ok_or_else(|| Failure::Usage(format!("there is no verb `{name}`")))?;
    if verb.arguments.is_empty() && !arguments.is_empty() {
        return Err(Failure::Usage(format!("`{name}` takes no arguments, found `{}`", arguments.join(" "))));
    }
    (verb.run)(&Checkout::find(), arguments)
}

fn listing() -> String {
    let shown = |verb: &Verb| format!("{} {}", verb.name, verb.arguments);
    let width = VERBS.iter().map(|verb| shown(verb).len()).max().unwrap_or(0);
    let lines: Vec<String> = VERBS.iter().map(|verb| format!("  {:width$}  {}", shown(verb), verb.about)).collect();
    format!("usage: cargo xtask VERB\n\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_unknown_verb_is_wrong_usage() {
        assert!(matches!(dispatch(&words("tset")), Err(Failure::Usage(_))));
    }

    #[test]
    fn an_argument_no_verb_reads_is_wrong_usage() {
        assert!(matches!(dispatch(&words("ci --fast")), Err(Failure::Usage(_))));
    }

    #[test]
    fn the_listing_names_every_verb() {
        let listing = listing();
        assert!(VERBS.iter().all(|verb| listing.contains(&format!("\n  {} ", verb.name))), "{listing}");
    }
}
