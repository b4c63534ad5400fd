//! Programs of the system: found on the PATH, and installed where the caller may.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::child;

/// Installs a program by its Debian package where it is missing and the caller may.
pub(crate) fn ensure(program: &str, package: &str) -> Result<(), Failure> {
    if has(program) {
        return Ok(());
    }
    let missing = format!("`{program}` is not installed\nhint: on Debian and Ubuntu, `apt install {package}`");
    if !has("apt-get") || !is_root()? {
        return Err(Failure::Broken(missing));
    }
    child::run(Command::new("apt-get").args(["update", "-qq"]))?;
    child::run(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends"]).args(package.split(' ')))?;
    if has(program) { Ok(()) } else { Err(Failure::Broken(missing)) }
}

/// Whether a program is on the PATH.
pub(crate) fn has(program: &str) -> bool {
    let folders: Vec<PathBuf> = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    on_path(program, &folders)
}

fn is_root() -> Result<bool, Failure> {
    Ok(child::output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn on_path(program: &str, folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| Path::new(folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_where_it_is_and_nowhere_else() {
        let sh = [PathBuf::from("/nowhere"), PathBuf::from("/bin")];
        assert!(on_path("sh", &sh) && !on_path("sh", &sh[..1]));
    }
}
