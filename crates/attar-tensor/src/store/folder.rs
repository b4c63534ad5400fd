//! A store in a folder, on a local disk or on a network file system with locks.
//!
//! ```text
//! blobs/DIGEST           complete blobs
//! journal                which unit made which blob
//! leases/PID-RANDOM      what a living process uses; locked by it
//! partial/PID-RANDOM/    what that process is writing
//! lock                   held shared to lease blobs; exclusively to append to the journal and to delete
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tempfile::NamedTempFile;

use super::{
    Collected, Keep, Lease, NewBlob, Scratch, Store,
    journal::{self, Journal},
    lease::{self, Held},
};
use crate::{
    Digest, Error, Result,
    atomic::{delete, persist, temporary_in},
};

const BLOBS: &str = "blobs";
const PARTIAL: &str = "partial";
const LEASES: &str = "leases";
const JOURNAL: &str = "journal";
const LOCK: &str = "lock";

/// A use that is noted less precisely than this saves a write.
const FRESH: Duration = Duration::from_secs(60);

/// How long blobs and lines of the journal may wait until they are forced to the disk.
const UNFORCED: Duration = Duration::from_millis(250);

/// A store in a folder.
///
/// Units that take milliseconds are not forced to the disk one by one, which would take longer than they do: a machine that loses its
/// power loses the work of a moment. What is incomplete then has another digest than its name and is made again.
pub struct FolderStore {
    root: PathBuf,
    blobs_forced: Pace,
    lines_forced: Pace,
    journal: Mutex<Journal>,
    lease: Mutex<Option<Held>>,
}

impl FolderStore {
    /// The store in `root`, made if need be.
    pub fn open(root: &Path) -> Result<FolderStore> {
        for folder in [BLOBS, PARTIAL, LEASES] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(Error::io("create", path))?;
        }
        let store = FolderStore::at(root);
        store.sweep()?;
        Ok(store)
    }

    /// Deletes what killed processes were writing.
    fn sweep(&self) -> Result<()> {
        let _lock = self.exclusive()?;
        self.sweep_partial(&self.alive(true)?, false, &mut Collected::default())
    }

    /// The store in `root`, which must be there. Writes nothing.
    pub fn existing(root: &Path) -> Result<FolderStore> {
        if FolderStore::is_at(root) { Ok(FolderStore::at(root)) } else { Err(Error::NoStore { path: root.into() }) }
    }

    /// Whether `root` is the folder of a store: it has all the folders of one or, if older versions made it, finished units.
    /// Folders `blobs` alone are other tools', too.
    pub fn is_at(root: &Path) -> bool {
        let has = |folders: &[&str]| folders.iter().all(|folder| root.join(folder).is_dir());
        has(&[BLOBS]) && (has(&[PARTIAL, LEASES]) || journal::holds_units(&root.join(JOURNAL)))
    }

    fn at(root: &Path) -> FolderStore {
        let journal = Mutex::new(Journal::new(root.join(JOURNAL)));
        FolderStore {
            root: root.into(),
            blobs_forced: Pace::default(),
            lines_forced: Pace::default(),
            journal,
            lease: Mutex::new(None),
        }
    }

    /// Where the blob of that digest is, or would be.
    fn path(&self, blob: &Digest) -> PathBuf {
        self.root.join(BLOBS).join(blob.to_string())
    }

    fn lock(&self, how: impl FnOnce(&File) -> io::Result<()>) -> Result<File> {
        let path = self.root.join(LOCK);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(Error::io("create", &path))?;
        how(&file).map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    /// Until the file is dropped, nobody deletes.
    fn shared(&self) -> Result<File> {
        self.lock(File::lock_shared)
    }

    /// Until the file is dropped, nobody else leases, appends or deletes.
    fn exclusive(&self) -> Result<File> {
        self.lock(File::lock)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.lease.lock().expect("no panic holds this lock")
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("no panic holds this lock")
    }

    /// Does something to the lease of this handle, which begins now if it has not. The caller has the store's lock.
    fn with_lease<T>(&self, what: impl FnOnce(&mut Held) -> Result<T>) -> Result<T> {
        let mut held = self.held();
        if held.is_none() {
            *held = Some(Held::begin(&self.root.join(LEASES))?);
        }
        what(held.as_mut().expect("it has begun"))
    }

    /// The folder for what this handle writes.
    fn partial(&self) -> Result<PathBuf> {
        let lock = self.shared()?;
        let path = self.with_lease(|lease| Ok(self.root.join(PARTIAL).join(lease.name())))?;
        drop(lock);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    fn alive(&self, clean: bool) -> Result<lease::Alive> {
        let held = self.held();
        lease::alive(&self.root.join(LEASES), held.as_ref().map(Held::name), clean)
    }

    /// Deletes what dead processes left under `partial`.
    fn sweep_partial(&self, alive: &lease::Alive, dry_run: bool, collected: &mut Collected) -> Result<()> {
        for (path, _) in entries(&self.root.join(PARTIAL))? {
            if !path.file_name().is_some_and(lease::is_name_of_ours) {
                continue;
            }
            if path.file_name().is_some_and(|name| alive.names.contains(name)) {
                continue;
            }
            let files = if path.is_dir() { entries(&path)? } else { vec![(path.clone(), length(&path))] };
            files.iter().for_each(|(_, bytes)| collected.incomplete.add(*bytes));
            if !dry_run {
                delete(&path)?;
            }
        }
        Ok(())
    }
}

impl Store for FolderStore {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self) -> Result<Box<dyn NewBlob + '_>> {
        let partial = self.partial()?;
        let temporary = temporary_in(&partial).map_err(Error::io("create", &partial))?;
        let to = BufWriter::with_capacity(1 << 16, temporary);
        Ok(Box::new(NewFile { store: self, to, hasher: blake3::Hasher::new() }))
    }

    fn has(&self, blob: &Digest) -> Result<bool> {
        let path = self.path(blob);
        match fs::metadata(&path) {
            // A pipe or a folder is no blob, whatever its name.
            Ok(found) => Ok(found.is_file()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    fn lease(&self, blob: &Digest) -> Result<bool> {
        if self.held().as_ref().is_some_and(|lease| lease.has(blob)) {
            return self.has(blob);
        }
        let _lock = self.shared()?;
        if !self.has(blob)? {
            return Ok(false);
        }
        note_use(&self.path(blob));
        self.with_lease(|lease| lease.add(*blob))?;
        Ok(true)
    }

    fn open(&self, blob: &Digest) -> Result<PathBuf> {
        if self.lease(blob)? { Ok(self.path(blob)) } else { Err(Error::MissingBlob { store: self.name(), digest: *blob }) }
    }

    fn verify(&self, blob: &Digest) -> Result<bool> {
        Ok(self.lease(blob)? && Digest::of_file(&self.path(blob))? == *blob)
    }

    fn release(&self, blob: &Digest) -> Result<()> {
        let _lock = self.exclusive()?;
        if let Some(lease) = self.held().as_mut() {
            lease.remove(*blob)?;
        }
        let needed = self.alive(true)?.others.iter().any(|lease| lease.blobs.contains(blob));
        if needed { Ok(()) } else { delete(&self.path(blob)) }
    }

    fn lookup(&self, unit: &Digest) -> Result<Option<Digest>> {
        let mut journal = self.journal();
        journal.refresh()?;
        Ok(journal.get(unit))
    }

    fn record(&self, unit: Digest, blob: Digest) -> Result<()> {
        let _lock = self.exclusive()?;
        journal::append(&self.root.join(JOURNAL), unit, blob, self.lines_forced.is_due())
    }

    fn blobs(&self) -> Result<BTreeMap<Digest, u64>> {
        let digest = |path: &Path| path.file_name()?.to_str()?.parse().ok();
        Ok(entries(&self.root.join(BLOBS))?.iter().filter_map(|(path, bytes)| Some((digest(path)?, *bytes))).collect())
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        let _lock = self.exclusive()?;
        Ok(self.alive(false)?.others)
    }

    fn collect_garbage(&self, keep: Keep<'_>, dry_run: bool) -> Result<Collected> {
        let _lock = self.exclusive()?;
        let alive = self.alive(!dry_run)?;
        let mut leased: BTreeSet<Digest> = alive.others.iter().flat_map(|lease| lease.blobs.iter().copied()).collect();
        if let (Keep::Used(_), Some(own)) = (keep, self.held().as_ref()) {
            leased.extend(own.blobs());
        }
        let mut journal = self.journal();
        journal.refresh()?;
        let reached: BTreeSet<Digest> = journal.blobs().copied().collect();
        let mut collected = Collected::default();
        let mut stays = BTreeSet::new();
        for (blob, bytes) in self.blobs()? {
            if leased.contains(&blob) {
                collected.leased.add(bytes);
            } else if !wanted(keep, &blob, &reached, &self.path(&blob)) {
                let why = if reached.contains(&blob) { &mut collected.expired } else { &mut collected.unreachable };
                why.add(bytes);
                if !dry_run {
                    delete(&self.path(&blob))?;
                }
                continue;
            }
            collected.kept.add(bytes);
            stays.insert(blob);
        }
        self.sweep_partial(&alive, dry_run, &mut collected)?;
        if let Keep::Used(_) = keep {
            collected.journal_lines = journal.compact(|blob| stays.contains(blob), dry_run)?;
        }
        Ok(collected)
    }

    fn scratch(&self) -> Result<Scratch> {
        let partial = self.partial()?;
        tempfile::tempdir_in(&partial).map(Scratch).map_err(Error::io("create", partial))
    }
}

impl Drop for FolderStore {
    fn drop(&mut self) {
        if let Some(lease) = self.held().as_ref() {
            // Whoever collects garbage deletes what cannot be deleted now.
            let _ = fs::remove_dir_all(self.root.join(PARTIAL).join(lease.name()));
        }
    }
}

/// When something was forced to the disk.
#[derive(Default)]
struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Whether it is time again; if so, it is done now.
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= UNFORCED);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// A blob that is being written to a temporary file.
struct NewFile<'s> {
    store: &'s FolderStore,
    to: BufWriter<NamedTempFile>,
    hasher: blake3::Hasher,
}

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl NewBlob for NewFile<'_> {
    fn commit(self: Box<Self>) -> Result<Digest> {
        let NewFile { store, to, hasher } = *self;
        let digest = Digest::from(hasher);
        let path = store.path(&digest);
        let temporary = to.into_inner().map_err(|e| Error::io("write", &path)(e.into_error()))?;
        let force = store.blobs_forced.is_due();
        if force {
            // Outside the lock: flushing a large file takes a while.
            temporary.as_file().sync_data().map_err(Error::io("write", &path))?;
        }
        let _lock = store.shared()?;
        store.with_lease(|lease| lease.add(digest))?;
        // An empty folder in its place was nobody's; one that holds something is an error.
        let _ = fs::remove_dir(&path);
        match force {
            true => persist(temporary, &path)?,
            false => drop(temporary.persist(&path).map_err(|e| Error::io("write", &path)(e.error))?),
        }
        Ok(digest)
    }
}

/// Whether a blob that nobody leases is kept.
fn wanted(keep: Keep<'_>, blob: &Digest, reached: &BTreeSet<Digest>, path: &Path) -> bool {
    match keep {
        Keep::Only(blobs) => blobs.contains(blob),
        Keep::Used(within) => reached.contains(blob) && age(path).is_none_or(|age| age <= within),
    }
}

/// Time since the last use that was noted.
fn age(path: &Path) -> Option<Duration> {
    let used = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    SystemTime::now().duration_since(used).ok()
}

/// Makes the time of the last use now, if the blob is this user's: others cannot, and their use counts for less.
fn note_use(path: &Path) {
    if age(path).is_some_and(|age| age > FRESH)
        && let Ok(file) = File::open(path)
    {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Path and length of all that a folder holds, by name. Nothing, if there is no folder.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let list = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(Error::io("read", folder))?,
    };
    let paths: io::Result<Vec<PathBuf>> = list.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(Error::io("read", folder))?;
    paths.sort();
    Ok(paths.into_iter().map(|path| (path.clone(), length(&path))).collect())
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn store(root: &Path) -> Box<dyn Store> {
        Box::new(FolderStore::open(root).unwrap())
    }

    fn put(store: &dyn Store, text: &str) -> Digest {
        store.put::<Error>(|to| to.write_all(text.as_bytes()).map_err(Error::io("write", "blob"))).unwrap()
    }

    /// Puts and records a blob under the digest of its own text.
    fn unit(store: &dyn Store, text: &str) -> Digest {
        let blob = put(store, text);
        store.record(blob, blob).unwrap();
        blob
    }

    fn make_old(root: &Path, blob: &Digest) {
        let file = File::open(root.join(BLOBS).join(blob.to_string())).unwrap();
        file.set_modified(SystemTime::now() - 40 * DAY).unwrap();
    }

    fn names(folder: PathBuf) -> usize {
        entries(&folder).unwrap().len()
    }

    #[test]
    fn a_pipe_or_a_folder_in_place_of_a_blob_is_no_blob() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path()).unwrap();
        let text = b"codes";
        let digest = Digest::of(text);
        let path = store.path(&digest);
        let pipe = || assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for make in [&pipe as &dyn Fn(), &|| fs::create_dir(&path).unwrap()] {
            make();
            assert!(!store.has(&digest).unwrap() && !store.verify(&digest).unwrap());
            assert!(Digest::of_file(&path).is_err());
            let store: &dyn Store = &store;
            assert_eq!(store.put(|to| Ok::<(), Error>(to.write_all(text)?)).unwrap(), digest);
            assert!(store.verify(&digest).unwrap());
            store.release(&digest).unwrap();
        }
    }

    #[test]
    fn what_killed_processes_were_writing_goes_when_a_store_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let living = FolderStore::open(folder.path()).unwrap();
        let scratch = living.scratch().unwrap();
        let dead = folder.path().join(PARTIAL).join("4711-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(".partial-x"), "abc").unwrap();
        fs::write(folder.path().join(LEASES).join("4711-dead"), "{\"pid\":4711,\"host\":\"h\",\"since\":0}\n").unwrap();
        FolderStore::open(folder.path()).unwrap();
        assert!(!dead.exists() && !folder.path().join(LEASES).join("4711-dead").exists() && scratch.path().exists());
    }

    #[test]
    fn a_blob_is_named_by_its_content_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let (a, b) = (put(&*store, "one"), put(&*store, "two"));
        assert_eq!(a, Digest::of(b"one"));
        assert_eq!(put(&*store, "one"), a);
        assert!(store.verify(&a).unwrap() && store.verify(&b).unwrap());
        fs::write(store.open(&b).unwrap(), "tw0").unwrap();
        assert!(!store.verify(&b).unwrap());
        assert_eq!(put(&*store, "two"), b);
        assert!(store.verify(&b).unwrap());
    }

    #[test]
    fn a_blob_that_is_not_committed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.put(|to| to.write_all(b"half").map_err(Error::from).and(Err(Error::NoStore { path: "".into() }))).unwrap_err();
        assert!(store.blobs().unwrap().is_empty());
        drop(store);
        assert_eq!((names(folder.path().join(PARTIAL)), names(folder.path().join(LEASES))), (0, 0));
    }

    #[test]
    fn opening_a_blob_that_is_missing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let blob = Digest::of(b"never stored");
        assert!(!store.has(&blob).unwrap() && !store.lease(&blob).unwrap() && !store.verify(&blob).unwrap());
        assert!(matches!(store.open(&blob), Err(Error::MissingBlob { .. })));
    }

    #[test]
    fn handles_see_what_others_record() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (store(folder.path()), store(folder.path()));
        let key = Digest::of(b"key");
        assert_eq!(two.lookup(&key).unwrap(), None);
        let blob = put(&*one, "made by one");
        one.record(key, blob).unwrap();
        assert_eq!(two.done(&key).unwrap(), Some(blob));
        let again = put(&*two, "made by two");
        two.record(key, again).unwrap();
        assert_eq!(one.lookup(&key).unwrap(), Some(again));
    }

    #[test]
    fn garbage_is_what_is_unreachable_or_unused_for_long_and_not_leased() {
        let folder = tempfile::tempdir().unwrap();
        let [fresh, old, used, unreachable] = {
            let past = store(folder.path());
            [unit(&*past, "fresh"), unit(&*past, "old"), unit(&*past, "used"), put(&*past, "unreachable")]
        };
        let other = store(folder.path());
        [old, used].iter().for_each(|blob| make_old(folder.path(), blob));
        assert!(other.lease(&used).unwrap());
        let new = put(&*other, "not yet recorded");
        make_old(folder.path(), &used);
        let collector = store(folder.path());
        let dry = collector.collect_garbage(Keep::Used(30 * DAY), true).unwrap();
        assert_eq!(collector.blobs().unwrap().len(), 5);
        let collected = collector.collect_garbage(Keep::Used(30 * DAY), false).unwrap();
        assert_eq!(dry, collected);
        assert_eq!(collected.expired, super::super::Total { count: 1, bytes: 3 });
        assert_eq!(collected.unreachable, super::super::Total { count: 1, bytes: 11 });
        assert_eq!((collected.kept.count, collected.leased.count, collected.journal_lines), (3, 2, 1));
        let blobs = collector.blobs().unwrap();
        assert!([fresh, used, new].iter().all(|blob| blobs.contains_key(blob)));
        assert!(!blobs.contains_key(&unreachable));
        assert_eq!((collector.lookup(&old).unwrap(), collector.lookup(&used).unwrap()), (None, Some(used)));
    }

    #[test]
    fn what_a_handle_uses_is_young_again() {
        let folder = tempfile::tempdir().unwrap();
        let blob = unit(&*store(folder.path()), "reused");
        make_old(folder.path(), &blob);
        assert!(store(folder.path()).verify(&blob).unwrap());
        let collected = store(folder.path()).collect_garbage(Keep::Used(DAY), false).unwrap();
        assert_eq!((collected.kept.count, collected.expired.count), (1, 0));
    }

    #[test]
    fn releasing_deletes_unless_another_handle_uses_the_blob() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (store(folder.path()), store(folder.path()));
        let blob = put(&*one, "activations");
        assert!(two.lease(&blob).unwrap());
        one.release(&blob).unwrap();
        assert!(two.verify(&blob).unwrap());
        two.release(&blob).unwrap();
        assert!(!two.has(&blob).unwrap());
        two.release(&blob).unwrap();
    }

    #[test]
    fn the_end_of_a_run_keeps_what_it_names_and_what_others_use() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (store(folder.path()), store(folder.path()));
        let [kept, left, shared] = ["kept", "left", "shared"].map(|text| unit(&*one, text));
        assert!(two.lease(&shared).unwrap());
        one.collect_garbage(Keep::Only(&BTreeSet::from([kept])), false).unwrap();
        assert_eq!(one.blobs().unwrap().into_keys().collect::<BTreeSet<_>>(), BTreeSet::from([kept, shared]));
        assert!(one.done(&left).unwrap().is_none() && one.done(&kept).unwrap().is_some());
    }

    #[test]
    fn a_lease_says_whose_it_is_and_ends_with_its_handle() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (store(folder.path()), store(folder.path()));
        let blob = put(&*one, "leased");
        let leases = two.leases().unwrap();
        assert_eq!((leases.len(), leases[0].pid), (1, std::process::id()));
        assert_eq!(leases[0].blobs, BTreeSet::from([blob]));
        assert!(one.leases().unwrap().is_empty());
        drop(one);
        assert!(two.leases().unwrap().is_empty());
    }

    #[test]
    fn what_dead_processes_leave_is_garbage_and_what_living_ones_write_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let one = FolderStore::open(root).unwrap();
        let mut writing = one.create().unwrap();
        writing.write_all(b"half").unwrap();
        writing.flush().unwrap();
        let other = store(root);
        // As after a kill: nobody holds the lock.
        fs::create_dir(root.join(PARTIAL).join("4711-dead")).unwrap();
        fs::write(root.join(PARTIAL).join("4711-dead/.partial-x"), "abc").unwrap();
        let blob = Digest::of(b"x");
        fs::write(root.join(LEASES).join("4711-dead"), format!("{{\"pid\":4711,\"host\":\"h\",\"since\":0}}\n+{blob}\n"))
            .unwrap();
        let collected = other.collect_garbage(Keep::Used(DAY), false).unwrap();
        assert_eq!(collected.incomplete, super::super::Total { count: 1, bytes: 3 });
        assert_eq!((names(root.join(PARTIAL)), names(root.join(LEASES))), (1, 1));
        let digest = writing.commit().unwrap();
        assert!(one.verify(&digest).unwrap());
    }

    #[test]
    fn scratch_folders_of_two_handles_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (store(folder.path()), store(folder.path()));
        let (a, b) = (one.scratch().unwrap(), two.scratch().unwrap());
        assert_ne!(a.path(), b.path());
        assert!(a.path().starts_with(folder.path()));
    }

    #[test]
    fn a_folder_that_is_no_store_is_not_made_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(FolderStore::existing(folder.path()), Err(Error::NoStore { .. })));
        assert_eq!(names(folder.path().into()), 0);
    }

    #[test]
    fn threads_that_put_record_and_collect_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let store = store(root);
                    for i in 0..25 {
                        let blob = unit(&*store, &format!("{thread} {i}"));
                        let shared = unit(&*store, &format!("the same {i}"));
                        assert!(store.verify(&blob).unwrap() && store.verify(&shared).unwrap());
                        assert_eq!(store.lookup(&blob).unwrap(), Some(blob));
                    }
                });
            }
            scope.spawn(|| {
                let store = store(root);
                (0..50).for_each(|_| _ = store.collect_garbage(Keep::Used(Duration::ZERO), false).unwrap());
            });
        });
    }
}
