//! The files that a run reads: identified before they are opened, and again before anything is kept of what they said.
//!
//! A file that changes in between would leave a mixture of two checkpoints under the digest of one. So no unit is recorded, no
//! folder moved into place and no manifest written before every input is found to be the file it was.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// What tells one state of a file from another without reading it. The time of the last change of the inode cannot be set
/// back, as that of the content can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// Of the file behind `path`; `None` if there is none.
    fn of(path: &Path) -> Result<Option<Identity>> {
        match fs::metadata(path) {
            Ok(found) => Ok(Some(Identity {
                inode: (found.dev(), found.ino()),
                length: found.len(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(attar_tensor::Error::Io { action: "read", path: path.into(), source }.into()),
        }
    }
}

/// Every file that a run reads, as it was when the run began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs(BTreeMap<PathBuf, Option<Identity>>);

impl Inputs {
    /// What is opened after this is what was identified, or [`Inputs::check`] fails.
    pub(crate) fn identify(files: impl IntoIterator<Item = PathBuf>) -> Result<Inputs> {
        let identified = |path: PathBuf| Identity::of(&path).map(|identity| (path, identity));
        files.into_iter().map(identified).collect::<Result<_>>().map(Inputs)
    }

    /// The files that exist, with their lengths, sorted by path.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.0.iter().filter_map(|(path, identity)| Some((&**path, (*identity)?.length)))
    }

    /// Fails if an input is another file than it was, or none.
    pub(crate) fn check(&self) -> Result<()> {
        for (path, identity) in &self.0 {
            if Identity::of(path)? != *identity {
                let message = format!("`{}` changed while the run was reading it", path.display());
                let hint = "nothing made from it was kept; run again when it no longer changes".to_owned();
                return Err(Error::input(message).hint(hint));
            }
        }
        Ok(())
    }

    /// Does `work` on the inputs. Work that fails while one of them changes fails because it changed, whatever it says: half a file reads
    /// as a broken one.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().map_err(|error| match (error.kind, self.check()) {
            (crate::ErrorKind::Interrupted, _) | (_, Ok(())) => error,
            (_, Err(changed)) => Error { causes: [vec![error.message], error.causes].concat(), ..changed },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_while_a_file_changes_is_that_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "before").unwrap();
        let inputs = Inputs::identify([path.clone()]).unwrap();
        let failed = || inputs.during::<()>(|| Err(Error::input("half a file"))).unwrap_err();
        assert_eq!(failed().message, "half a file");
        fs::write(&path, "more than before").unwrap();
        let changed = failed();
        assert!(changed.message.contains("changed while") && changed.causes == ["half a file"], "{changed:?}");
        assert_eq!(inputs.during::<()>(|| Err(Error::interrupted())).unwrap_err().kind, crate::ErrorKind::Interrupted);
    }

    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let other = folder.path().join("other");
        let seen = |change: &dyn Fn()| {
            fs::write(&path, "before").unwrap();
            let inputs = Inputs(BTreeMap::from([(path.clone(), Identity::of(&path).unwrap())]));
            inputs.check().unwrap();
            // Times have the resolution of the kernel's tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            inputs.check().is_err_and(|error| error.message.contains("changed while"))
        };
        let rewritten = || fs::write(&path, "behind").unwrap();
        let set_back = || {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            rewritten();
            fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        };
        let replaced = || {
            fs::write(&other, "before").unwrap();
            fs::rename(&other, &path).unwrap();
        };
        assert!(seen(&rewritten) && seen(&set_back) && seen(&replaced));
        assert!(seen(&|| fs::remove_file(&path).unwrap()));
        assert!(!seen(&|| drop(fs::read(&path).unwrap())), "reading changes nothing");
    }
}
