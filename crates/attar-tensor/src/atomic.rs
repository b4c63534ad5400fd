//! Files that are whole or not there: written under another name, flushed to the disk, then renamed; then the folder is flushed,
//! so that the name, too, outlives a loss of power.
//!
//! Whoever writes keeps the unfinished file locked (`flock`). The lock ends with the process, so a partial file without one is
//! what a killed process left, and [`sweep_partial`] deletes it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Prefix of the name of a file that is still being written. A killed process leaves one behind.
pub const PARTIAL: &str = ".partial-";

/// Replaces the file at `path` by what `write` writes, whole or not at all.
pub fn write_atomically<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let folder = folder_of(path);
    sweep_partial(folder)?;
    let mut buffered = BufWriter::with_capacity(1 << 16, temporary_in(folder).map_err(Error::io("create", path))?);
    write(&mut buffered)?;
    let temporary = buffered.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
    Ok(persist(temporary, path)?)
}

/// Deletes what killed processes left unfinished in a folder. Files that someone is writing stay.
pub fn sweep_partial(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("read", folder))?,
    };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)) {
        let (path, is_file) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_file()));
        // What cannot be opened or locked may be another's.
        if is_file
            && let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            delete(&path)?;
        }
    }
    Ok(())
}

/// Flushes the names in a folder to the disk.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("write", folder))
}

/// Flushes all files in a folder to the disk, and all folders in it, itself last.
pub fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?,
        }
    }
    sync_folder(folder)
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary file that others may read once it is renamed, as far as the umask lets them. It is locked as long as it is open.
pub(crate) fn temporary_in(folder: &Path) -> io::Result<NamedTempFile> {
    loop {
        let made = tempfile::Builder::new().prefix(PARTIAL).permissions(PermissionsExt::from_mode(0o644)).tempfile_in(folder)?;
        // Where files have no locks, nobody takes them for abandoned either.
        let _ = made.as_file().lock();
        // Before it was locked, somebody may have swept it away.
        if made.as_file().metadata()?.nlink() > 0 {
            return Ok(made);
        }
    }
}

/// Flushes a temporary file to the disk, gives it its name, in place of whatever has that name, and flushes the folder.
pub(crate) fn persist(temporary: NamedTempFile, path: &Path) -> Result<()> {
    temporary.as_file().sync_data().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
    sync_folder(folder_of(path))
}

/// Deletes a file or folder, if it is there.
pub(crate) fn delete(path: &Path) -> Result<()> {
    let deleted = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match deleted {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_of_the_dead_are_swept_and_those_of_the_living_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let dead = folder.path().join(".partial-dead");
        fs::write(&dead, "abc").unwrap();
        let living = temporary_in(folder.path()).unwrap();
        fs::create_dir(folder.path().join(".partial-folder")).unwrap();
        write_atomically::<Error>(&folder.path().join("file"), |to| Ok(to.write_all(b"whole")?)).unwrap();
        assert!(!dead.exists() && living.path().exists() && folder.path().join(".partial-folder").exists());
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"whole");
    }
}
