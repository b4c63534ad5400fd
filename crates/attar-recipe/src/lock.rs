//! `NAME.lock` next to `NAME.toml`: the recipe with every default filled in, and the digest of every input.

use std::path::{Path, PathBuf};

use attar_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a run was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    /// Version of this format: 1.
    pub lock: u32,
    /// The program, with its version.
    pub tool: String,
    /// Digest of the recipe with every default filled in.
    pub recipe: Digest,
    /// Every file that was read, sorted by path.
    #[serde(default, rename = "input")]
    pub inputs: Vec<Input>,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// As the recipe reaches it.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content.
    pub digest: Digest,
}

/// What to do with the lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Write it.
    Update,
    /// It must be there and agree.
    Require,
    /// There is none: the recipe was built from a command line.
    None,
}

impl Lock {
    /// Where the lock of a recipe is.
    pub fn path(recipe: &Path) -> PathBuf {
        recipe.with_extension("lock")
    }

    pub(crate) fn apply(&self, mode: LockMode, path: &Path) -> Result<()> {
        match mode {
            LockMode::None => Ok(()),
            LockMode::Update => self.write(path),
            LockMode::Require => self.require(path),
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let body = toml::to_string(self).expect("a lock is TOML");
        let text = format!("# Written by attar. Commit it: `attar run --locked` refuses to run on anything else.\n{body}");
        attar_tensor::sweep_partial(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        attar_tensor::write_atomically(path, |to| {
            to.write_all(text.as_bytes()).map_err(|source| attar_tensor::Error::Io { action: "write", path: path.into(), source })
        })?;
        Ok(())
    }

    fn require(&self, path: &Path) -> Result<()> {
        let hint = "run once without `--locked` to write it, look at what changed, and commit it";
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::recipe(format!("`--locked` needs `{}`", path.display())).because(&e).hint(hint.to_owned()))?;
        let there: Lock = toml::from_str(&text)
            .map_err(|e| Error::recipe(format!("`{}` is not a lock", path.display())).because(&e).hint(hint.to_owned()))?;
        match self.difference(&there) {
            None => Ok(()),
            Some(difference) => {
                Err(Error::recipe(format!("`{}` does not agree: {difference}", path.display())).hint(hint.to_owned()))
            }
        }
    }

    fn difference(&self, there: &Lock) -> Option<String> {
        if self.tool != there.tool {
            return Some(format!("it was written by {}, and this is {}", there.tool, self.tool));
        }
        if self.recipe != there.recipe {
            return Some("the recipe has changed".into());
        }
        for input in &self.inputs {
            match there.inputs.iter().find(|i| i.path == input.path) {
                None => return Some(format!("it does not know `{}`", input.path)),
                Some(known) if known.digest != input.digest => return Some(format!("`{}` has changed", input.path)),
                Some(_) => {}
            }
        }
        let gone = there.inputs.iter().find(|i| self.inputs.iter().all(|mine| mine.path != i.path));
        gone.map(|i| format!("`{}` is no longer read", i.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let input = |name: &str| Input { path: name.into(), bytes: 1, digest: Digest::of(name.as_bytes()) };
        Lock { lock: 1, tool: "attar 1".into(), recipe: Digest::of(b"recipe"), inputs: vec![input("model"), input("text")] }
    }

    /// What `--locked` says of `changed`, where [`lock`] was written.
    fn refused(changed: &Lock) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.lock");
        lock().apply(LockMode::Update, &path).unwrap();
        let error = changed.apply(LockMode::Require, &path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.message
    }

    #[test]
    fn a_lock_that_was_written_agrees_with_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.lock");
        lock().apply(LockMode::Update, &path).unwrap();
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        lock().apply(LockMode::Require, &path).unwrap();
        lock().apply(LockMode::Update, &path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written, "an equal lock is not written again");
    }

    #[test]
    fn every_way_to_disagree_is_named() {
        let tool = Lock { tool: "attar 2".into(), ..lock() };
        assert!(refused(&tool).ends_with("it was written by attar 1, and this is attar 2"));
        let recipe = Lock { recipe: Digest::of(b"other"), ..lock() };
        assert!(refused(&recipe).ends_with("the recipe has changed"));
        let mut changed = lock();
        changed.inputs[1].digest = Digest::of(b"other");
        assert!(refused(&changed).ends_with("`text` has changed"));
        let mut new = lock();
        new.inputs.push(Input { path: "new".into(), ..new.inputs[0].clone() });
        assert!(refused(&new).ends_with("it does not know `new`"));
        let mut gone = lock();
        gone.inputs.pop();
        assert!(refused(&gone).ends_with("`text` is no longer read"));
    }

    #[test]
    fn a_missing_and_a_broken_lock_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.lock");
        let error = lock().apply(LockMode::Require, &path).unwrap_err();
        assert!(error.message.starts_with("`--locked` needs `"), "{}", error.message);
        std::fs::write(&path, "lock = \"yes\"").unwrap();
        let error = lock().apply(LockMode::Require, &path).unwrap_err();
        assert!(error.message.ends_with("is not a lock"), "{}", error.message);
    }
}
