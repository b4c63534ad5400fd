//! Child processes: started in the repository's root, shown before they run, and an error when they fail.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;

/// The cargo that runs us, building into the target folder that we use, with the engines in reach.
pub(crate) fn cargo(checkout: &Checkout) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&checkout.root).env("CARGO_TARGET_DIR", &checkout.target).env("ATTAR_ENGINES", checkout.engines());
    if let Some(shared) = &checkout.shared {
        command.env("ATTAR_SHARED", shared);
    }
    command
}

/// Says what runs, runs it, and wants exit code 0.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    eprintln!("> {}", shown(command));
    let status = command.status().map_err(|error| unstartable(command, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::Broken(format!("`{}` ended with {status}", shown(command)))) }
}

/// What it printed on stdout; quiet about everything else.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(|error| unstartable(command, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Broken(format!("`{}` ended with {}\n{said}", shown(command), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The error for a program that could not even be started.
pub(crate) fn unstartable(command: &Command, error: &std::io::Error) -> Failure {
    let program = command.get_program().to_string_lossy();
    Failure::Broken(match error.kind() {
        ErrorKind::NotFound => format!("`{program}` is not installed or not on the PATH"),
        _ => format!("`{program}` cannot be started: {error}"),
    })
}

/// The program's name without its folder, and the arguments, one line each at most.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let arguments = command.get_args().map(|argument| {
        let argument = argument.to_string_lossy();
        if argument.contains('\n') { "…".to_owned() } else { argument.into_owned() }
    });
    std::iter::once(program.into_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}
