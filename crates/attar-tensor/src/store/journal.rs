//! The journal of a folder: one line of JSON per finished unit of work, appended under the store's lock.
//!
//! Readers take no lock: they read up to the last line break and go on from there the next time. A killed writer may leave
//! an incomplete line; whoever appends next ends it first, and readers skip it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Result, sync_folder, write_atomically};

/// What was read of a journal, and how far.
pub(super) struct Journal {
    path: PathBuf,
    /// Of the file that was read: collecting garbage replaces it.
    inode: u64,
    read: u64,
    made: BTreeMap<Digest, Digest>,
    lines: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    unit: Digest,
    blob: Digest,
}

impl Journal {
    /// Of the file at `path`, which need not exist. Reads nothing yet.
    pub(super) fn new(path: PathBuf) -> Journal {
        Journal { path, inode: 0, read: 0, made: BTreeMap::new(), lines: 0 }
    }

    /// Reads the lines that were added.
    pub(super) fn refresh(&mut self) -> Result<()> {
        match File::open(&self.path) {
            Ok(file) => self.read_from(file).map_err(Error::io("read", &self.path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("read", &self.path)(e)),
        }
    }

    fn read_from(&mut self, mut file: File) -> io::Result<()> {
        let found = file.metadata()?;
        if found.ino() != self.inode || found.len() < self.read {
            *self = Journal { inode: found.ino(), ..Journal::new(std::mem::take(&mut self.path)) };
        }
        if found.len() == self.read {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // What follows the last line break is still being written, or was cut off by a kill.
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for line in text[..whole].split_inclusive(|b| *b == b'\n') {
            self.lines += 1;
            self.made.extend(serde_json::from_slice::<Line>(line).ok().map(|line| (line.unit, line.blob)));
        }
        self.read += whole as u64;
        Ok(())
    }

    /// The blob that a unit made, as far as was read.
    pub(super) fn get(&self, unit: &Digest) -> Option<Digest> {
        self.made.get(unit).copied()
    }

    /// The blobs that some unit made, as far as was read.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.made.values()
    }

    /// Rewrites the file with the last line of every unit whose blob `keep` takes. The caller has the store's lock for itself
    /// and has refreshed. Returns how many lines were dropped.
    pub(super) fn compact(&mut self, keep: impl Fn(&Digest) -> bool, dry_run: bool) -> Result<usize> {
        let kept: Vec<(Digest, Digest)> = self.made.iter().filter(|(_, blob)| keep(blob)).map(|(u, b)| (*u, *b)).collect();
        let dropped = self.lines - kept.len();
        if dry_run || dropped == 0 {
            return Ok(dropped);
        }
        write_atomically(&self.path, |to| {
            kept.iter().try_for_each(|(unit, blob)| to.write_all(&line(*unit, *blob))).map_err(Error::io("write", &self.path))
        })?;
        Ok(dropped)
    }
}

/// Whether the file at `path` has the line of some unit.
pub(super) fn holds_units(path: &Path) -> bool {
    let mut journal = Journal::new(path.into());
    journal.refresh().is_ok() && !journal.made.is_empty()
}

/// Appends a line; `force` flushes it, and those before, to the disk. The caller has the store's lock for itself.
pub(super) fn append(path: &Path, unit: Digest, blob: Digest, force: bool) -> Result<()> {
    let write = || {
        let new = !path.exists();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut text = if ends_in_a_line(&mut file)? { Vec::new() } else { vec![b'\n'] };
        text.extend(line(unit, blob));
        file.write_all(&text)?;
        if force {
            file.sync_data()?;
        }
        Ok(new)
    };
    match write().map_err(Error::io("write", path))? {
        true => sync_folder(path.parent().expect("a journal lies in its store")),
        false => Ok(()),
    }
}

fn ends_in_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn line(unit: Digest, blob: Digest) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Line { unit, blob }).expect("two digests are JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(path: &Path) -> Journal {
        let mut journal = Journal::new(path.into());
        journal.refresh().unwrap();
        journal
    }

    #[test]
    fn a_line_that_was_cut_off_is_skipped_and_nothing_is_truncated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let [one, two, three] = [b"1", b"2", b"3"].map(|text| Digest::of(text));
        append(&path, one, two, true).unwrap();
        append(&path, two, one, true).unwrap();
        let text = fs::read(&path).unwrap();
        let cut = &text[..text.len() - 7];
        fs::write(&path, cut).unwrap();
        let mut journal = read(&path);
        assert_eq!((journal.get(&one), journal.get(&two)), (Some(two), None));
        append(&path, two, three, true).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(cut));
        journal.refresh().unwrap();
        assert_eq!((journal.get(&one), journal.get(&two)), (Some(two), Some(three)));
        assert_eq!(read(&path).get(&two), Some(three));
    }

    #[test]
    fn a_line_without_its_line_break_counts_once_the_next_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let [one, two] = [b"1", b"2"].map(|text| Digest::of(text));
        append(&path, one, two, true).unwrap();
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(read(&path).get(&one), None);
        append(&path, two, one, true).unwrap();
        assert_eq!((read(&path).get(&one), read(&path).get(&two)), (Some(two), Some(one)));
    }

    #[test]
    fn a_reader_follows_a_journal_that_was_rewritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let [one, two, three] = [b"1", b"2", b"3"].map(|text| Digest::of(text));
        append(&path, one, two, true).unwrap();
        append(&path, two, three, true).unwrap();
        append(&path, one, three, true).unwrap();
        let mut reader = read(&path);
        assert_eq!(read(&path).compact(|blob| *blob == three, true).unwrap(), 1);
        assert_eq!(read(&path).compact(|blob| *blob == three, false).unwrap(), 1);
        append(&path, three, one, true).unwrap();
        reader.refresh().unwrap();
        assert_eq!([one, two, three].map(|unit| reader.get(&unit)), [Some(three), Some(three), Some(one)]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }
}
