//! Python virtual environments with pinned packages. A stamp file, written last, lists the pins that are installed:
//! an environment without it, or with another list, is thrown away and made again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Failure;
use crate::child;

const STAMP: &str = "attar-pins";

/// Makes the environment in `folder` unless it is there with exactly these pins; returns its interpreter.
pub(crate) fn ensure(folder: &Path, pins: &[&str]) -> Result<PathBuf, Failure> {
    let _one_at_a_time = lock(folder)?;
    let python = folder.join("bin").join("python");
    if is_complete(folder, pins) && python.exists() {
        eprintln!("{} is up to date", folder.display());
        return Ok(python);
    }
    eprintln!("making {} with {}", folder.display(), pins.join(", "));
    probe()?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| Failure::at(folder, &error))?;
    }
    child::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    install(&python, pins)?;
    fs::write(folder.join(STAMP), stamp(pins)).map_err(|error| Failure::at(folder, &error))?;
    Ok(python)
}

/// Two runs at once must not build into one folder. The lock ends with the file handle.
fn lock(folder: &Path) -> Result<File, Failure> {
    let path = folder.with_extension("lock");
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(|error| Failure::at(parent, &error))?;
    }
    let file = File::create(&path).map_err(|error| Failure::at(&path, &error))?;
    file.lock().map_err(|error| Failure::at(&path, &error))?;
    Ok(file)
}

fn is_complete(folder: &Path, pins: &[&str]) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|found| found == stamp(pins))
}

fn stamp(pins: &[&str]) -> String {
    pins.iter().map(|pin| format!("{pin}\n")).collect()
}

/// Asks before anything is removed whether `python3` can make environments at all.
fn probe() -> Result<(), Failure> {
    let mut probe = Command::new("python3");
    probe.args(["-c", "import venv, ensurepip"]).stdout(Stdio::null()).stderr(Stdio::null());
    let status = probe.status().map_err(|error| child::unstartable(&probe, &error))?;
    if status.success() {
        return Ok(());
    }
    let hint = "hint: on Debian and Ubuntu, `apt install python3-venv`";
    Err(Failure::Broken(format!("python3 has no `venv` or no `ensurepip` module\n{hint}")))
}

fn install(python: &Path, pins: &[&str]) -> Result<(), Failure> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]).args(pins);
    child::run(&mut pip).map_err(|_| {
        let hint = "hint: this needs Python 3.11 or later and access to PyPI";
        Failure::Broken(format!("pip could not install {}\n{hint}", pins.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_stamp_of_these_pins_is_not_complete() {
        let folder = std::env::temp_dir().join(format!("attar-xtask-stamp-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        assert!(!is_complete(&folder, &["onnx==1"]));
        fs::write(folder.join(STAMP), stamp(&["onnx==1"])).expect("the temporary folder can be written");
        assert!(is_complete(&folder, &["onnx==1"]));
        assert!(!is_complete(&folder, &["onnx==2"]));
        fs::remove_dir_all(&folder).expect("the temporary folder can be removed");
    }
}
