//! `test`: cargo's tests with the engines in reach, and one closing line that sums all test binaries.
//!
//! All tests run in the release profile, which the README's commands build, too. With `-p CRATE` only that crate is built
//! and tested, in the dev profile: incremental for our crates, optimised where the arithmetic is.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;
use crate::engines;
use crate::tally::Tally;

pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    run_with(checkout, arguments, &[])
}

/// `run`, with more variables in the tests' environment.
pub(crate) fn run_with(checkout: &Checkout, arguments: &[String], variables: &[(&str, &str)]) -> Result<(), Failure> {
    engines::run(checkout, &[])?;
    let mut tally = Tally::default();
    let done = count(checkout, arguments, variables, &mut tally);
    close(done, &tally)
}

/// Runs the tests, showing their output as it comes and adding it up in `tally`, which is also good after a failure.
pub(crate) fn count(
    checkout: &Checkout,
    arguments: &[String],
    variables: &[(&str, &str)],
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut command = child::cargo(checkout);
    // One failing binary must not hide the count of the others.
    command.args(["test", "--no-fail-fast"]).args(scope(arguments));
    command.args(arguments.iter().filter(|argument| *argument != "--no-fail-fast")).envs(variables.iter().copied());
    let succeeded = stream(&mut command, tally)?;
    if tally.left_out > 0 {
        eprintln!("{} times a test said that it left something out (`skipped: …` above)", tally.left_out);
    }
    match (succeeded, tally.is_empty()) {
        (false, _) => Err(Failure::Broken(format!("`{}` failed", child::shown(&command)))),
        (true, true) => Err(Failure::Broken("no test ran".to_owned())),
        (true, false) => Ok(()),
    }
}

/// What is built when nothing narrower is asked for: everything, as it is released.
fn scope(arguments: &[String]) -> &'static [&'static str] {
    let ours = arguments.iter().take_while(|argument| *argument != "--");
    let mut named = ours.filter(|argument| argument.starts_with("-p") || argument.starts_with("--package"));
    if named.next().is_some() { &[] } else { &["--workspace", "--release"] }
}

/// The end of every run that tests: what went wrong, then the closing line, and nothing after it.
pub(crate) fn close(done: Result<(), Failure>, tally: &Tally) -> Result<(), Failure> {
    let done = done.map_err(|failure| {
        if let Failure::Broken(message) | Failure::Usage(message) = failure {
            eprintln!("error: {message}");
        }
        Failure::Told
    });
    println!("{tally}");
    done
}

/// Passes both streams on, line by line, and counts them; says whether the exit code was 0.
fn stream(command: &mut Command, tally: &mut Tally) -> Result<bool, Failure> {
    if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() && std::env::var_os("CARGO_TERM_COLOR").is_none() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    eprintln!("> {}", child::shown(command));
    let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut cargo = started.map_err(|error| child::unstartable(command, &error))?;
    let (stdout, stderr) = (cargo.stdout.take().expect("piped above"), cargo.stderr.take().expect("piped above"));
    let aside = thread::spawn(move || tee(stderr, io::stderr()));
    let (ours, theirs) = (tee(stdout, io::stdout()), aside.join().expect("tee does not panic"));
    for line in ours.iter().chain(&theirs) {
        tally.read(line);
    }
    let status = cargo.wait().map_err(|error| child::unstartable(command, &error))?;
    Ok(status.success())
}

/// Copies every line as it comes; returns those that a tally may want.
fn tee(from: impl Read, mut to: impl Write) -> Vec<String> {
    let (mut from, mut line, mut kept) = (BufReader::new(from), Vec::new(), Vec::new());
    while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // A reader that went away must not stop the count.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        let text = String::from_utf8_lossy(&line);
        if text.starts_with("test result: ") || text.contains("skipped: ") {
            kept.push(text.trim_end().to_owned());
        }
        line.clear();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_named_package_is_built_alone_in_the_dev_profile() {
        assert!(scope(&words("-p attar-compile tile")).is_empty());
        assert!(scope(&words("--package=attar")).is_empty());
        assert_eq!(scope(&words("gptq")), ["--workspace", "--release"]);
        assert_eq!(scope(&words("gptq -- -p")), ["--workspace", "--release"]);
    }

    #[test]
    fn every_byte_passes_through_even_what_is_not_utf8() {
        let said = b"one\n\xff\xfe\ntest result: ok. 1 passed; 0 failed\nno newline".as_slice();
        let mut heard = Vec::new();
        let kept = tee(said, &mut heard);
        assert_eq!(heard, said);
        assert_eq!(kept, ["test result: ok. 1 passed; 0 failed"]);
    }
}
