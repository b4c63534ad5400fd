//! Leases: which blobs a process uses, in a file that it holds locked for as long as it lives.
//!
//! The operating system drops the lock of a process that ends, however it ends, so a lease needs no heartbeat and no clock.
//! The first line says whose it is, for people; each later line is `+` or `-` and a digest.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Result, atomic::delete};

/// Who leases blobs of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Of the process.
    pub pid: u32,
    /// Of the machine that it runs on.
    pub host: String,
    /// When it began, in seconds since 1970.
    pub since: u64,
    /// What it uses.
    #[serde(default)]
    pub blobs: BTreeSet<Digest>,
}

impl Lease {
    fn of_this_process() -> Lease {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Lease { pid: std::process::id(), host, since, blobs: BTreeSet::new() }
    }

    fn parse(text: &str) -> Option<Lease> {
        let (owner, uses) = text.split_once('\n')?;
        let mut lease: Lease = serde_json::from_str(owner).ok()?;
        for line in uses.lines() {
            match (line.get(..1), line.get(1..).and_then(|digest| digest.parse().ok())) {
                (Some("+"), Some(digest)) => drop(lease.blobs.insert(digest)),
                (Some("-"), Some(digest)) => drop(lease.blobs.remove(&digest)),
                _ => {}
            }
        }
        Some(lease)
    }
}

/// The lease of this process: its file, locked. Deleted when dropped.
pub(super) struct Held {
    path: PathBuf,
    file: File,
    blobs: BTreeSet<Digest>,
}

impl Held {
    /// A lease of nothing in `folder`. The caller has the store's lock, so that nobody takes the file for abandoned before it
    /// is locked.
    pub(super) fn begin(folder: &Path) -> Result<Held> {
        let named = tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .rand_bytes(8)
            .make_in(folder, |path| OpenOptions::new().append(true).create_new(true).open(path));
        let (mut file, path) =
            named.map_err(Error::io("create", folder))?.keep().map_err(|e| Error::io("create", folder)(e.error))?;
        file.lock().map_err(Error::io("lock", &path))?;
        let mut owner = serde_json::to_vec(&Lease::of_this_process()).expect("a lease is JSON");
        owner.push(b'\n');
        file.write_all(&owner).map_err(Error::io("write", &path))?;
        Ok(Held { path, file, blobs: BTreeSet::new() })
    }

    /// The name of the lease's file.
    pub(super) fn name(&self) -> &std::ffi::OsStr {
        self.path.file_name().expect("a file in a folder has a name")
    }

    /// What is leased.
    pub(super) fn blobs(&self) -> &BTreeSet<Digest> {
        &self.blobs
    }

    pub(super) fn has(&self, blob: &Digest) -> bool {
        self.blobs.contains(blob)
    }

    /// Leases a blob. The caller has the store's lock.
    pub(super) fn add(&mut self, blob: Digest) -> Result<()> {
        if self.blobs.insert(blob) { self.note('+', blob) } else { Ok(()) }
    }

    /// Ends the lease of a blob.
    pub(super) fn remove(&mut self, blob: Digest) -> Result<()> {
        if self.blobs.remove(&blob) { self.note('-', blob) } else { Ok(()) }
    }

    fn note(&mut self, sign: char, blob: Digest) -> Result<()> {
        self.file.write_all(format!("{sign}{blob}\n").as_bytes()).map_err(Error::io("write", &self.path))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Whoever collects garbage deletes what cannot be deleted now.
        let _ = fs::remove_file(&self.path);
    }
}

/// The leases in `folder` of processes that are alive, without that in the file `own`, and the names of all of them. Leases
/// of dead processes are deleted if `clean`. The caller has the store's lock for itself.
pub(super) fn alive(folder: &Path, own: Option<&std::ffi::OsStr>, clean: bool) -> Result<Alive> {
    let mut alive = Alive { others: Vec::new(), names: own.map(Into::into).into_iter().collect() };
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(alive),
        entries => entries.map_err(Error::io("read", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        if own == Some(&*entry.file_name()) || !is_name_of_ours(&entry.file_name()) {
            continue;
        }
        if let Some(lease) = read(&entry.path(), clean)? {
            alive.others.push(lease);
            alive.names.insert(entry.file_name());
        }
    }
    Ok(alive)
}

/// Whether a lease, or the folder of what its process writes, can have that name: `PID-RANDOM`.
pub(super) fn is_name_of_ours(name: &std::ffi::OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.split_once('-'));
    parts.is_some_and(|(pid, random)| {
        !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()) && random.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

/// Leases of living processes.
pub(super) struct Alive {
    /// Those of other handles.
    pub(super) others: Vec<Lease>,
    /// Names of the files of all.
    pub(super) names: BTreeSet<std::ffi::OsString>,
}

/// The lease in a file, if its process is alive.
fn read(path: &Path, clean: bool) -> Result<Option<Lease>> {
    // A pipe would make us wait for a writer.
    if !fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(None);
    }
    let mut file = match File::open(path) {
        // Its process has just ended.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(Error::io("read", path))?,
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
        Ok(()) if clean => return delete(path).map(|()| None),
        Ok(()) => return Ok(None),
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(Error::io("read", path))?;
    Lease::parse(&text).map(Some).ok_or_else(|| Error::Lease { path: path.into() })
}
