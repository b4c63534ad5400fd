//! The content-addressed store: blobs named by their digests, and a journal of which unit of work made which blob.
//!
//! Any number of runs may use one store at the same time. [`Store`] is what they need from it, [`FolderStore`] the
//! implementation in a folder. The rules that make sharing safe hold for every implementation:
//!
//! - A blob is complete or absent. It gets its name when its last byte is stored; only then is it recorded in the journal.
//! - A handle *leases* the blobs that it uses, from first use until it is dropped or its process ends, however that ends.
//!   No other process deletes a leased blob.
//! - The journal is append-only for runs. A line that a killed process left incomplete is ignored, never cut off.
//! - A run deletes only what it [releases](Store::release). Everything else is deleted by
//!   [`collect_garbage`](Store::collect_garbage), which someone asks for.
//!
//! Keys and lines of the journal hold digests only: no path and no name of a machine. A store can be copied or moved.
//!
//! ```
//! use attar_tensor::{Digest, Error, FolderStore, Store};
//! let folder = tempfile::tempdir().unwrap();
//! let store: &dyn Store = &FolderStore::open(folder.path()).unwrap();
//! let blob = store.put(|to| to.write_all(b"codes").map_err(Error::from)).unwrap();
//! let unit = Digest::of(b"all that decides the codes");
//! store.record(unit, blob).unwrap();
//! assert_eq!(store.lookup(&unit).unwrap(), Some(blob));
//! assert_eq!(std::fs::read(store.open(&blob).unwrap()).unwrap(), b"codes");
//! ```

mod folder;
mod journal;
mod lease;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use tempfile::TempDir;

pub use folder::FolderStore;
pub use lease::Lease;

use crate::{Digest, Error, Result};

/// Where finished units of work are kept. A handle belongs to one process; its threads share it.
pub trait Store: Send + Sync {
    /// The store in messages: its folder or address.
    fn name(&self) -> String;

    /// Starts a blob. Nothing is stored under a digest until it is committed.
    fn create(&self) -> Result<Box<dyn NewBlob + '_>>;

    /// Whether the store holds the blob. Neither reads nor leases it.
    fn has(&self, blob: &Digest) -> Result<bool>;

    /// Leases the blob, if the store holds it; tells whether it does.
    fn lease(&self, blob: &Digest) -> Result<bool>;

    /// A local file with the content of the blob, which is leased. It stays as long as the lease does. An error if the
    /// store does not hold the blob.
    fn open(&self, blob: &Digest) -> Result<PathBuf>;

    /// Leases the blob and reads all of it. `false` if it is absent or its content does not have that digest.
    fn verify(&self, blob: &Digest) -> Result<bool>;

    /// Ends this handle's lease of the blob and deletes it, unless another process leases it, too.
    fn release(&self, blob: &Digest) -> Result<()>;

    /// The blob that a unit made, by the last line of the journal that names the unit, whichever process wrote it. The blob
    /// may be gone.
    fn lookup(&self, unit: &Digest) -> Result<Option<Digest>>;

    /// Appends to the journal that `unit` made `blob`. It outlives this process when this returns, and is on the disk soon.
    fn record(&self, unit: Digest, blob: Digest) -> Result<()>;

    /// Digest and length of every blob.
    fn blobs(&self) -> Result<BTreeMap<Digest, u64>>;

    /// The leases of processes that are alive; not the one of this handle.
    fn leases(&self) -> Result<Vec<Lease>>;

    /// Deletes the blobs that `keep` does not cover and nobody leases, and what killed processes left incomplete; under
    /// [`Keep::Used`], also the lines of the journal whose blobs are gone. Changes nothing if `dry_run`.
    fn collect_garbage(&self, keep: Keep<'_>, dry_run: bool) -> Result<Collected>;

    /// An empty local folder for temporary files, deleted when it is dropped or, after a kill, as garbage.
    fn scratch(&self) -> Result<Scratch>;
}

/// A blob that is being written.
pub trait NewBlob: Write {
    /// Stores it under its digest and leases it. It outlives this process when this returns, and is on the disk soon.
    fn commit(self: Box<Self>) -> Result<Digest>;
}

impl dyn Store + '_ {
    /// Stores what `write` writes, and leases it.
    pub fn put<E: From<Error>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E>,
    ) -> std::result::Result<Digest, E> {
        let mut blob = self.create()?;
        write(&mut *blob)?;
        Ok(blob.commit()?)
    }

    /// The blob of a unit that is done, if it is there and undamaged. It is leased.
    pub fn done(&self, unit: &Digest) -> Result<Option<Digest>> {
        match self.lookup(unit)? {
            Some(blob) if self.verify(&blob)? => Ok(Some(blob)),
            _ => Ok(None),
        }
    }
}

/// A local folder for temporary files, deleted when dropped.
pub struct Scratch(TempDir);

impl Scratch {
    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Which blobs are no garbage. Leased blobs never are.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// Those that the journal names and that some run used within this time.
    Used(Duration),
    /// These. Leases of the handle that collects do not count.
    Only(&'a BTreeSet<Digest>),
}

/// What [`Store::collect_garbage`] did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Collected {
    /// Blobs that stay.
    pub kept: Total,
    /// Those among them that a living process leases.
    pub leased: Total,
    /// Blobs that no line of the journal names.
    pub unreachable: Total,
    /// Blobs that the journal names and that nobody used for too long, or that were not to be kept.
    pub expired: Total,
    /// Files of killed processes.
    pub incomplete: Total,
    /// Lines of the journal that were dropped.
    pub journal_lines: usize,
}

impl Collected {
    /// Bytes that were freed.
    pub fn freed(&self) -> u64 {
        self.unreachable.bytes + self.expired.bytes + self.incomplete.bytes
    }
}

/// Number and length of some files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many.
    pub count: usize,
    /// Bytes in all.
    pub bytes: u64,
}

impl Total {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}
