//! Everything that walks through the blocks of a model is interrupted in the middle of its walk: the next run takes up at that
//! block and ends with the same bytes. A new walker is tested the moment it is registered, and one that is not registered
//! cannot walk.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Mutex,
};

use attar_recipe::{
    Engines, ErrorKind, LockMode, Observer, Recipe, Report, Request, Result, Silent, Walker, run,
    step::{STEPS, WALKERS},
};

/// The block in which a walk is stopped, of the six of the model.
const STOPPED_IN: u64 = 3;

/// Hears in which blocks a walker is, and may stop it there.
struct Watching {
    walker: &'static Walker,
    stop: bool,
    /// Whether the walker walks at the moment, and the blocks that it was in.
    seen: Mutex<(bool, BTreeSet<u64>)>,
}

impl Watching {
    fn new(walker: &'static Walker, stop: bool) -> Watching {
        Watching { walker, stop, seen: Mutex::default() }
    }

    fn first(&self) -> Option<u64> {
        self.seen.lock().unwrap().1.first().copied()
    }
}

impl Observer for Watching {
    fn stage(&self, name: &str, _: u64) {
        self.seen.lock().unwrap().0 = name.ends_with(&format!(": {}", self.walker.doing));
    }

    fn advance(&self, block: u64, _: &str) {
        let (walks, seen) = &mut *self.seen.lock().unwrap();
        if *walks {
            seen.insert(block);
        }
    }

    fn note(&self, _: &str) {}

    fn interrupted(&self) -> bool {
        self.stop && self.seen.lock().unwrap().1.last().is_some_and(|block| *block >= STOPPED_IN)
    }
}

fn recipe(walker: &Walker, output: &Path) -> Recipe {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let head = format!("recipe = 1\nmodel = {:?}\noutput = {output:?}\n", data.join("models/shakespeare-1m"));
    let text = format!("[data.calibration]\npath = {:?}\nsamples = 6\nlength = 64\n", data.join("evals/shakespeare-valid.txt"));
    let export = "[[export]]\ntarget = \"checkpoint\"\n";
    Recipe::parse(Path::new("resume.toml"), &[&head, &text, walker.example, export].concat()).unwrap()
}

fn run_with(walker: &Walker, output: &Path, observer: &dyn Observer) -> Result<Report> {
    let engines = Engines::default();
    run(&recipe(walker, output), &Request { lock: LockMode::None, engines: &engines, observer, max_memory: None })
}

/// Every file that a run promises, by its path.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.file_name() != ".attar") {
        match entry.path() {
            path if path.is_dir() => {
                let inside = files(&path).into_iter().map(|(name, bytes)| (Path::new(&entry.file_name()).join(name), bytes));
                found.extend(inside);
            }
            path => drop(found.insert(entry.file_name().into(), std::fs::read(path).unwrap())),
        }
    }
    found
}

#[test]
fn every_walk_takes_up_at_the_block_where_it_was_stopped() {
    for walker in WALKERS {
        let [whole, stopped] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [whole, stopped] = [whole.path().join("out"), stopped.path().join("out")];
        run_with(walker, &whole, &Silent).unwrap();
        let error = run_with(walker, &stopped, &Watching::new(walker, true)).err();
        let error = error.unwrap_or_else(|| panic!("`{}` does not walk, or not so far", walker.name));
        assert_eq!(error.kind, ErrorKind::Interrupted, "{}: {error}", walker.name);
        let resumed = Watching::new(walker, false);
        run_with(walker, &stopped, &resumed).unwrap();
        let first = resumed.first().unwrap_or_else(|| panic!("nothing of `{}` was left to do", walker.name));
        // Work on a block may be over when its stop is heard, and what leaves it not be stored yet.
        assert!(first + 1 >= STOPPED_IN, "`{}` took up at block {first}", walker.name);
        let [whole, stopped] = [files(&whole), files(&stopped)];
        assert!(whole.keys().eq(stopped.keys()) && whole.len() > 3, "{}: {:?}", walker.name, stopped.keys());
        let different: Vec<_> = whole.keys().filter(|name| whole[*name] != stopped[*name]).collect();
        assert!(different.is_empty(), "{}: {different:?}", walker.name);
    }
}

#[test]
fn walkers_have_names_of_their_own_and_examples_that_parse() {
    let mut seen = BTreeSet::new();
    for walker in WALKERS {
        assert!(seen.insert(walker.name), "two walkers are called `{}`", walker.name);
        assert!(walker.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", walker.name);
        let steps = recipe(walker, Path::new("out")).settings();
        let steps = steps["variants"][0]["steps"].as_array().unwrap().len();
        assert!(steps > 0 && steps <= STEPS.len(), "{}", walker.name);
    }
}
