//! The content-addressed store, and the journal that says which unit of work made which blob.
//!
//! A blob is written to a temporary file, flushed to the disk and renamed to its digest, so it is either whole or not
//! there; only then does the journal get its line. A killed run therefore loses at most the unit it was in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Result};

/// A folder of blobs named by their digests.
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in `root`, made if need be.
    pub fn open(root: &Path) -> Result<Store> {
        for folder in ["blobs", "partial"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(Error::io("create", path))?;
        }
        Ok(Store { root: root.into() })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob of that digest is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.to_string())
    }

    /// Whether the blob is there and is what its name says. Reads it whole.
    pub fn verify(&self, digest: &Digest) -> Result<bool> {
        let path = self.path(digest);
        Ok(path.exists() && Digest::of_file(&path)? == *digest)
    }

    /// Stores what `write` writes.
    pub fn put<E: From<Error>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E>,
    ) -> std::result::Result<Digest, E> {
        let partial = self.root.join("partial");
        let temporary = tempfile::NamedTempFile::new_in(&partial).map_err(Error::io("create", &partial))?;
        let mut hashing = Hashing { to: BufWriter::with_capacity(1 << 16, temporary), hasher: blake3::Hasher::new() };
        write(&mut hashing)?;
        let digest = Digest::from(hashing.hasher);
        let path = self.path(&digest);
        let temporary = hashing.to.into_inner().map_err(|e| Error::io("write", &path)(e.into_error()))?;
        keep(temporary, &path)?;
        Ok(digest)
    }

    /// Deletes every blob that is not in `keep`, and what killed runs left half written. Returns the bytes freed.
    pub fn collect_garbage(&self, keep: &BTreeSet<Digest>) -> Result<u64> {
        let mut freed = 0;
        for folder in ["blobs", "partial"] {
            let folder = self.root.join(folder);
            for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
                let entry = entry.map_err(Error::io("read", &folder))?;
                let named = entry.file_name().to_string_lossy().parse::<Digest>();
                if named.is_ok_and(|digest| keep.contains(&digest)) {
                    continue;
                }
                freed += entry.metadata().map(|m| m.len()).unwrap_or(0);
                fs::remove_file(entry.path()).map_err(Error::io("delete", entry.path()))?;
            }
        }
        Ok(freed)
    }

    /// Digest and length of every blob.
    pub fn blobs(&self) -> Result<BTreeMap<Digest, u64>> {
        let folder = self.root.join("blobs");
        let entries = fs::read_dir(&folder).map_err(Error::io("read", &folder))?;
        Ok(entries.flatten().filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.metadata().ok()?.len()))).collect())
    }
}

struct Hashing<W> {
    to: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn keep(temporary: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    temporary.as_file().sync_data().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
    Ok(())
}

/// How the name of a file begins that is not whole yet. A killed process leaves one behind.
pub const PARTIAL: &str = ".partial-";

/// Replaces the file at `path` by what `write` writes: whole or not at all.
pub fn write_atomically<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(PARTIAL)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(Error::io("create", path))?;
    let mut buffered = BufWriter::with_capacity(1 << 16, temporary);
    write(&mut buffered)?;
    let temporary = buffered.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
    Ok(keep(temporary, path)?)
}

/// Which unit of work made which blob; a line is added when a unit is done.
pub struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    done: BTreeMap<Digest, Digest>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    unit: Digest,
    blob: Digest,
}

impl Journal {
    /// The journal at `path`. A last line that a kill cut short is dropped.
    pub fn open(path: &Path) -> Result<Journal> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(Error::io("create", path))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", path))?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(Error::io("write", path))?;
        }
        let lines = text[..whole].split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<Line>(l).ok());
        let done = lines.map(|line| (line.unit, line.blob)).collect();
        Ok(Journal { path: path.into(), state: Mutex::new(State { file, done }) })
    }

    /// The blob that a unit made.
    pub fn get(&self, unit: &Digest) -> Option<Digest> {
        self.state.lock().expect("no panic holds this lock").done.get(unit).copied()
    }

    /// Notes that `unit` made `blob`. On the disk when this returns.
    pub fn record(&self, unit: Digest, blob: Digest) -> Result<()> {
        let mut state = self.state.lock().expect("no panic holds this lock");
        let mut line = serde_json::to_vec(&Line { unit, blob }).expect("two digests are JSON");
        line.push(b'\n');
        state.file.write_all(&line).and_then(|()| state.file.sync_data()).map_err(Error::io("write", &self.path))?;
        state.done.insert(unit, blob);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_by_its_content_and_garbage_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let put = |text: &str| store.put::<Error>(|w| w.write_all(text.as_bytes()).map_err(Error::io("write", "blob"))).unwrap();
        let (a, b) = (put("one"), put("two"));
        assert_eq!(a, Digest::of(b"one"));
        assert_eq!(put("one"), a);
        assert!(store.verify(&a).unwrap() && store.verify(&b).unwrap());
        fs::write(store.path(&b), "tw0").unwrap();
        assert!(!store.verify(&b).unwrap());
        store.collect_garbage(&BTreeSet::from([a])).unwrap();
        assert_eq!(store.blobs().unwrap().into_keys().collect::<Vec<_>>(), [a]);
    }

    #[test]
    fn a_journal_cut_in_a_line_keeps_the_lines_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        Journal::open(&path).unwrap().record(one, two).unwrap();
        Journal::open(&path).unwrap().record(two, one).unwrap();
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 7]).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!((journal.get(&one), journal.get(&two)), (Some(two), None));
        journal.record(two, one).unwrap();
        assert_eq!(Journal::open(&path).unwrap().get(&two), Some(one));
    }
}
