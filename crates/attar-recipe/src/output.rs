//! The output folder: claimed before work, filled by renames, never half right.
//!
//! Its hidden folder `.attar` holds what a killed run needs: the store, the journal and who the folder belongs to.
//! What a run promises (`manifest.json`, `report.json`, `report.md`) is removed when it starts and written when it ends,
//! so a folder with a manifest is a finished one.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use attar_tensor::{PARTIAL, sync_folder, sync_tree};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The folder of what only a killed run needs, and the store in it.
pub(crate) const STATE: &str = ".attar";
/// See [`STATE`].
pub(crate) const STORE: &str = "store";

/// What a finished run writes next to its artifacts.
pub const PROMISED: [&str; 5] = ["manifest.json", "report.json", "report.md", "report.html", "measured.json"];

/// Recipes that may let a gate pass that failed.
pub(crate) const ADVICE: [&str; 3] = ["advice-1.toml", "advice-2.toml", "advice-3.toml"];

/// Their lock files.
const ADVICE_LOCKS: [&str; 3] = ["advice-1.lock", "advice-2.lock", "advice-3.lock"];

/// A claimed output folder.
pub(crate) struct Output {
    root: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Owner {
    attar: u32,
    made_by: String,
}

impl Output {
    /// Makes the folder, or takes it over if it is of an earlier run of `owner`.
    pub(crate) fn claim(root: &Path, owner: &str) -> Result<Output> {
        check(root, owner)?;
        let state = root.join(STATE);
        fs::create_dir_all(&state).map_err(|e| refused("create", &state, &e))?;
        let lock_path = state.join("lock");
        let lock = File::create(&lock_path).map_err(|e| refused("create", &lock_path, &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let hint = "wait for it to finish, or give this run another output".to_owned();
                return Err(Error::input(format!("another attar is writing to `{}`", root.display())).hint(hint));
            }
            Err(TryLockError::Error(e)) => return Err(refused("lock", &lock_path, &e)),
        }
        let text = serde_json::to_string(&Owner { attar: 1, made_by: owner.into() }).expect("an owner is JSON");
        let output = Output { root: root.into(), _lock: lock };
        output.write(&format!("{STATE}/owner.json"), text.as_bytes())?;
        sync_folder(root)?;
        sync_folder(root.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(output)
    }

    /// What an earlier run promised no longer holds, and what it was writing when it was killed goes.
    pub(crate) fn withdraw_promises(&self) -> Result<()> {
        for name in PROMISED.iter().chain(&ADVICE).chain(&ADVICE_LOCKS) {
            remove(&self.root.join(name))?;
        }
        let entries = fs::read_dir(&self.root).map_err(|e| refused("read", &self.root, &e))?;
        let partial = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PARTIAL);
        for entry in entries.flatten().filter(partial) {
            remove(&entry.path())?;
        }
        remove(&self.partial())?;
        Ok(sync_folder(&self.root)?)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.join(STATE).join(STORE)
    }

    fn partial(&self) -> PathBuf {
        self.root.join(STATE).join("partial")
    }

    /// An empty folder for an artifact that is not yet what it should be.
    pub(crate) fn unfinished(&self) -> Result<PathBuf> {
        let partial = self.partial();
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(|e| refused("create", &partial, &e))?;
        Ok(partial)
    }

    /// Moves the unfinished folder to `folder`, in place of what is there. Its files are on the disk before it is, and it is
    /// before a manifest promises it.
    pub(crate) fn publish(&self, folder: &str) -> Result<()> {
        let (partial, to) = (self.partial(), self.root.join(folder));
        sync_tree(&partial)?;
        if folder == "." {
            return self.publish_at_root();
        }
        remove(&to)?;
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| refused("create", parent, &e))?;
        }
        rename(&partial, &to)?;
        let mut above = to.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
        Ok(above.try_for_each(sync_folder)?)
    }

    /// Moves the files of the unfinished folder to the root. What was moved there before goes first: a kill can leave some
    /// files of one artifact there, and never files of two.
    fn publish_at_root(&self) -> Result<()> {
        let partial = self.partial();
        let entries = fs::read_dir(&partial).map_err(|e| refused("read", &partial, &e))?.flatten();
        let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let list = format!("{STATE}/published.json");
        let before = fs::read(self.root.join(&list)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let mut before: Vec<String> = before.unwrap_or_default();
        before.retain(|name| Path::new(name).file_name().is_some_and(|own| own == name.as_str()));
        before.iter().chain(&names).try_for_each(|name| remove(&self.root.join(name)))?;
        sync_folder(&self.root)?;
        self.write(&list, &serde_json::to_vec(&names).expect("names are JSON"))?;
        names.iter().try_for_each(|name| rename(&partial.join(name), &self.root.join(name)))?;
        remove(&partial)?;
        Ok(sync_folder(&self.root)?)
    }

    /// Writes a file whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        attar_tensor::write_atomically(&path, |to| to.write_all(bytes).map_err(|e| refused("write", &path, &e)))
    }

    /// Removes the store and everything else that only a killed run needs.
    pub(crate) fn forget_state(&self) -> Result<()> {
        remove(&self.store())
    }
}

/// Whether the folder can be claimed. Changes nothing.
pub(crate) fn check(root: &Path, owner: &str) -> Result<()> {
    let mut entries = match fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(refused("read", root, &e)),
        Ok(entries) => entries,
    };
    let state = root.join(STATE).join("owner.json");
    let made_by = fs::read(&state).ok().and_then(|text| serde_json::from_slice::<Owner>(&text).ok()).map(|o| o.made_by);
    match made_by {
        Some(made_by) if made_by == owner => Ok(()),
        Some(made_by) => Err(Error::recipe(format!("`{}` holds the output of `{made_by}`", root.display()))
            .hint("give this run another output, or delete that folder".to_owned())),
        // A kill can fall between making the state folder and naming the owner.
        None if entries.all(|e| e.is_ok_and(|e| e.file_name() == STATE)) => Ok(()),
        None => Err(Error::recipe(format!("`{}` exists and holds other things", root.display()))
            .hint("give this run an output of its own: nothing that attar did not write is overwritten".to_owned())),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| refused("write", to, &e))
}

/// Removes a file or folder, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.map_err(|e| refused("delete", path, &e))
}

fn refused(action: &'static str, path: &Path, error: &std::io::Error) -> Error {
    let source = std::io::Error::new(error.kind(), error.to_string());
    attar_tensor::Error::Io { action, path: path.into(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = entries.filter(|name| name != STATE).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_published_at_the_root_before_is_gone_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::claim(folder.path(), "test").unwrap();
        let publish = |files: &[&str]| {
            let partial = output.unfinished().unwrap();
            files.iter().for_each(|file| fs::write(partial.join(file), file).unwrap());
            output.publish(".").unwrap();
        };
        publish(&["model.onnx", "model.onnx.data"]);
        output.write("report.md", b"x").unwrap();
        publish(&["model.onnx", "config.json"]);
        assert_eq!(names(folder.path()), ["config.json", "model.onnx", "report.md"]);
        // Killed between taking away and putting in place: what is known to be published may be absent, or of either.
        fs::remove_file(folder.path().join("model.onnx")).unwrap();
        publish(&["other"]);
        assert_eq!(names(folder.path()), ["other", "report.md"]);
        // A list that somebody changed leads nowhere else.
        let outside = folder.path().join(STATE).join("lock");
        output.write(&format!("{STATE}/published.json"), br#"["../x", ".attar/lock", "", "other"]"#).unwrap();
        publish(&["last"]);
        assert_eq!(names(folder.path()), ["last", "report.md"]);
        assert!(outside.exists());
    }
}
