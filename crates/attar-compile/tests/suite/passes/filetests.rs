//! Runs `testdata/filetests/pass/**/*.ir`.
//!
//! The first line says which passes run, the second why it matters:
//!
//! ```text
//! ; test PASS[,PASS …]
//! ; test all
//! ```
//!
//! Behind `; check:` stands what must come out, in that order, and behind `; absent:` what must not. All that comes out
//! may stand below a line `; ---`, which `BLESS=1` rewrites.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attar_compile::pass::{PASSES, Pass, find, run_passes};
use attar_graph::Graph;

use super::numbers::{FOLDED, assert_same};

/// What is expected stands below this line.
const RESULT: &str = "; ---\n";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/filetests/pass")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => files(&path, found),
            false if path.extension().is_some_and(|extension| extension == "ir") => found.push(path),
            false => {}
        }
    }
}

struct Case {
    path: PathBuf,
    passes: Vec<&'static dyn Pass>,
    input: String,
    result: Option<String>,
}

impl Case {
    fn read(path: &Path) -> Case {
        let text = fs::read_to_string(path).unwrap();
        let (input, result) = match text.split_once(RESULT) {
            Some((input, result)) => (input.to_owned(), Some(result.to_owned())),
            None => (text, None),
        };
        let head = input.lines().next().and_then(|line| line.strip_prefix("; test ")).unwrap_or_default();
        let passes = match head {
            "all" => PASSES.to_vec(),
            names => {
                names.split(',').map(|name| find(name.trim()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).collect()
            }
        };
        let why = input.lines().nth(1).is_some_and(|line| line.starts_with("; "));
        assert!(why, "{}: the second line says why it matters", path.display());
        Case { path: path.into(), passes, input, result }
    }

    /// What stands behind a word, line by line.
    fn said(&self, word: &str) -> Vec<&str> {
        self.input.lines().filter_map(|line| line.split_once(word)).map(|(_, text)| text.trim()).collect()
    }

    fn judge(&self) -> Result<(), String> {
        let name = self.path.display();
        let before = Graph::parse(&self.input).map_err(|error| format!("{name}: {error}"))?;
        let (after, _) = run_passes(&before, &self.passes).map_err(|error| format!("{name}: {error}"))?;
        let found = after.to_string();
        assert_eq!(Graph::parse(&found).unwrap().to_string(), found, "{name}");
        let (again, reports) = run_passes(&after, &self.passes).unwrap();
        let changes: usize = reports.iter().map(|report| report.changes.len()).sum();
        assert_eq!((again.to_string(), changes), (found.clone(), 0), "{name}: a second run changes something");
        let rounds = !self.passes.iter().all(|pass| pass.is_exact());
        assert_same(&before, &after, rounds.then_some(FOLDED));
        let (checks, absent) = (self.said("; check:"), self.said("; absent:"));
        let mut rest = found.as_str();
        for wanted in &checks {
            let at = rest.find(wanted).ok_or_else(|| format!("{name}: `{wanted}` does not come, in\n{found}"))?;
            rest = &rest[at + wanted.len()..];
        }
        if let Some(unwanted) = absent.iter().find(|unwanted| found.contains(**unwanted)) {
            return Err(format!("{name}: `{unwanted}` is there, in\n{found}"));
        }
        match &self.result {
            None if checks.is_empty() && absent.is_empty() => Err(format!("{name}: nothing is expected of\n{found}")),
            None => Ok(()),
            Some(wanted) if *wanted == found => Ok(()),
            Some(_) if std::env::var_os("BLESS").is_some() => {
                fs::write(&self.path, format!("{}{RESULT}{found}", self.input)).map_err(|error| error.to_string())
            }
            Some(wanted) => Err(format!("{name}: wanted\n{wanted}found\n{found}")),
        }
    }
}

#[test]
fn every_file_gives_what_it_says() {
    let mut found = Vec::new();
    files(&folder(), &mut found);
    assert!(!found.is_empty(), "{} has no files", folder().display());
    let failures: Vec<String> = found.iter().filter_map(|path| Case::read(path).judge().err()).collect();
    assert!(failures.is_empty(), "{} files differ\n{}", failures.len(), failures.join("\n"));
}

/// One that fires and one that must not, for every pass.
#[test]
fn every_pass_has_files() {
    for pass in PASSES {
        let mut found = Vec::new();
        files(&folder().join(pass.name()), &mut found);
        let changed = |path: &PathBuf| {
            let case = Case::read(path);
            assert_eq!(case.passes.last().unwrap().name(), pass.name(), "{}", path.display());
            let (_, reports) = run_passes(&Graph::parse(&case.input).unwrap(), &case.passes).unwrap();
            !reports.last().unwrap().changes.is_empty()
        };
        let fires = found.iter().filter(|path| changed(path)).count();
        assert!(fires > 0 && fires < found.len(), "{}: {fires} of {} files are changed", pass.name(), found.len());
    }
}
