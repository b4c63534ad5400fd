//! The graphs under `testdata`: filetests, and whole models as the decoder prints them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The expected result follows this line.
const RESULT: &str = "; ---\n";

/// One filetest.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) path: PathBuf,
    /// The word after `; test`.
    pub(crate) test: String,
    /// What follows it.
    pub(crate) words: Vec<String>,
    /// All above the result: a graph with comments.
    pub(crate) input: String,
    result: Option<String>,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

/// Every filetest but those of passes, which the compiler runs, by path.
pub(crate) fn cases() -> Vec<Case> {
    let mut found = Vec::new();
    files(&testdata().join("filetests"), &mut found);
    found.retain(|path| !path.starts_with(testdata().join("filetests/pass")));
    found.iter().map(|path| Case::read(path)).collect()
}

/// The examples of an op: `ops/NAME.ir` and `ops/NAME-*.ir`.
pub(crate) fn cases_of(op: &str) -> Vec<Case> {
    let mut found = Vec::new();
    files(&testdata().join("filetests/ops"), &mut found);
    found.retain(|path| path.file_stem().is_some_and(|stem| stem.to_string_lossy().split('-').next() == Some(op)));
    found.iter().map(|path| Case::read(path)).collect()
}

/// Every text that is a graph: filetests that parse, and printed models.
pub(crate) fn valid_texts() -> Vec<String> {
    let mut models = Vec::new();
    files(&testdata().join("ir"), &mut models);
    files(&testdata().join("filetests/pass"), &mut models);
    let models = models.iter().map(|path| fs::read_to_string(path).unwrap());
    let models = models.map(|text| text.split(RESULT).next().unwrap_or_default().to_owned());
    models.chain(cases().into_iter().filter(|case| case.test != "error").map(|case| case.input)).collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => files(&path, found),
            false if path.extension().is_some_and(|e| e == "ir") => found.push(path),
            false => {}
        }
    }
}

impl Case {
    fn read(path: &Path) -> Case {
        let text = fs::read_to_string(path).unwrap();
        let (input, result) = match text.split_once(RESULT) {
            Some((input, result)) => (input.to_owned(), Some(result.to_owned())),
            None => (text, None),
        };
        let head = input.lines().next().and_then(|line| line.strip_prefix("; test ")).unwrap_or_default();
        let mut words = head.split_whitespace().map(str::to_owned);
        let test = words.next().unwrap_or_else(|| panic!("{}: the first line is `; test WHAT`", path.display()));
        Case { path: path.into(), test, words: words.collect(), input, result }
    }

    pub(crate) fn name(&self) -> String {
        self.path.strip_prefix(testdata()).unwrap_or(&self.path).display().to_string()
    }

    /// Whether `found` is what the file says; `BLESS=1` makes it so.
    pub(crate) fn judge(&self, found: &str) -> Result<(), String> {
        let checks: Vec<&str> =
            self.input.lines().filter_map(|line| line.split_once("; check:")).map(|(_, wanted)| wanted.trim()).collect();
        let mut rest = found;
        for wanted in &checks {
            let Some(at) = rest.find(wanted) else {
                return Err(format!("{}: `{wanted}` does not come, in\n{found}", self.name()));
            };
            rest = &rest[at + wanted.len()..];
        }
        let itself: String = self.input.split_inclusive('\n').filter(|line| !line.starts_with(';')).collect();
        let wanted = self.result.as_ref().unwrap_or(&itself);
        match self.result {
            None if !checks.is_empty() => Ok(()),
            _ if wanted == found => Ok(()),
            _ if std::env::var_os("BLESS").is_some() => {
                fs::write(&self.path, format!("{}{RESULT}{found}", self.input)).map_err(|error| error.to_string())
            }
            _ => Err(format!("{}: wanted\n{wanted}found\n{found}", self.name())),
        }
    }
}
