//! Files that are whole or not there: written under another name, flushed to the disk, then renamed.

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
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
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut buffered = BufWriter::with_capacity(1 << 16, temporary_in(folder).map_err(Error::io("create", path))?);
    write(&mut buffered)?;
    let temporary = buffered.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
    Ok(persist(temporary, path)?)
}

/// A temporary file that others may read once it is renamed, as far as the umask lets them.
pub(crate) fn temporary_in(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(PARTIAL).permissions(PermissionsExt::from_mode(0o644)).tempfile_in(folder)
}

/// Flushes a temporary file to the disk and gives it its name, in place of whatever has that name.
pub(crate) fn persist(temporary: NamedTempFile, path: &Path) -> Result<()> {
    temporary.as_file().sync_data().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
    Ok(())
}

/// Deletes a file or folder, if it is there.
pub(crate) fn delete(path: &Path) -> Result<()> {
    let deleted = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match deleted {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", path)(e)),
        _ => Ok(()),
    }
}
