//! `engines`: the real runtimes that open what `attar` writes, an environment each, since their pins exclude each other.
//! `attar` finds them in the folder `ATTAR_ENGINES` by their names.
//!
//! What an environment holds is a file of requirements, `crates/attar-eval/engines/NAME.txt`. Versions are pinned there,
//! because tolerances are. What needs more than Python is a folder there, with `environment.txt` and a script `install.sh` that
//! completes the environment; it is installed only if it is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;
use crate::{child, venv};

const REQUIREMENTS: &str = "crates/attar-eval/engines";

pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    let chosen = chosen(&requirements(&checkout.root.join(REQUIREMENTS))?, arguments)?;
    let folder = checkout.engines();
    remove_shared_environment(&folder)?;
    for entry in chosen {
        let (file, script) = match entry.is_dir() {
            true => (entry.join("environment.txt"), Some(entry.join("install.sh"))),
            false => (entry.clone(), None),
        };
        let text = fs::read_to_string(&file).map_err(|error| Failure::at(&file, &error))?;
        let environment = folder.join(name(&entry));
        venv::ensure(&environment, &pins(&text))?;
        if let Some(script) = script {
            child::run(Command::new("sh").arg(script).arg(&environment))?;
        }
    }
    Ok(())
}

/// The files of requirements, and the folders of what is installed only if it is named, in the order of their names.
fn requirements(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(folder).map_err(|error| Failure::at(folder, &error))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.is_dir() || file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    Ok(files)
}

/// Those of the engines that are named; all that are files, if none is.
fn chosen(files: &[PathBuf], names: &[String]) -> Result<Vec<PathBuf>, Failure> {
    if names.is_empty() {
        return Ok(files.iter().filter(|file| !file.is_dir()).cloned().collect());
    }
    let find = |wanted: &String| {
        let found = files.iter().find(|file| name(file) == *wanted).cloned();
        let known = || files.iter().map(|file| name(file)).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| Failure::Usage(format!("no engine is named `{wanted}`; known: {}", known())))
    };
    names.iter().map(find).collect()
}

fn name(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn pins(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Earlier versions kept one environment for all engines in the folder itself.
fn remove_shared_environment(folder: &Path) -> Result<(), Failure> {
    if folder.join("pyvenv.cfg").exists() {
        fs::remove_dir_all(folder).map_err(|error| Failure::at(folder, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_chosen_by_name() {
        let files = ["engines/one.txt", "engines/two.txt"].map(PathBuf::from);
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(chosen(&files, &[]).is_ok_and(|all| all == files));
        assert!(chosen(&files, &names(&["two"])).is_ok_and(|one| one == files[1..]));
        assert!(matches!(chosen(&files, &names(&["tow"])), Err(Failure::Usage(message)) if message.ends_with("known: one, two")));
    }

    #[test]
    fn every_engine_is_pinned() {
        let folder = Checkout::find().root.join(REQUIREMENTS);
        let Ok(files) = requirements(&folder) else { panic!("{} cannot be read", folder.display()) };
        assert!(!files.is_empty());
        for entry in files {
            let file = if entry.is_dir() { entry.join("environment.txt") } else { entry };
            let text = fs::read_to_string(&file).expect("it was just listed");
            assert!(!pins(&text).is_empty() && pins(&text).iter().all(|pin| pin.contains("==")), "{}", file.display());
        }
    }
}
