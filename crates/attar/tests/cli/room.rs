//! An empty folder to run attar in, with the repository's `testdata` in it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use attar_eval::engine::{Engine, installed};
use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub(crate) const ATTAR: &str = env!("CARGO_BIN_EXE_attar");

/// The repository's root.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout is there")
}

/// Says that a test leaves something out. Not captured by the harness, so that a run can count it.
pub(crate) fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// A folder that is the current one of every command of a test.
pub(crate) struct Room {
    folder: TempDir,
}

impl Room {
    pub(crate) fn new() -> Room {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::os::unix::fs::symlink(repository().join("testdata"), folder.path().join("testdata")).expect("it is empty");
        Room { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("room for it");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// attar on a machine without engines.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.other_command(ATTAR, arguments)
    }

    /// Another program in the same surroundings.
    pub(crate) fn other_command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null()).env("COLUMNS", "120");
        // All that attar reads of the environment.
        for name in Engine::variables(installed()) {
            command.env_remove(name);
        }
        command
    }

    /// Runs attar to its end.
    pub(crate) fn attar(&self, arguments: &[&str]) -> Said {
        self.finish(self.command(arguments))
    }

    /// Runs a command to its end.
    pub(crate) fn finish(&self, mut command: Command) -> Said {
        let output = command.output().expect("the program starts");
        let room = self.folder.path().display().to_string();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&room, "ROOM");
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
        Said {
            command: format!("attar {}", words.join(" ")),
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Every file under a folder with its content; state that only attar uses is left out.
    pub(crate) fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.path(folder), "", &mut files);
        files
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == ".attar" {
            continue;
        }
        let path = format!("{prefix}{name}");
        match entry.path().is_dir() {
            true => collect(&entry.path(), &format!("{path}/"), files),
            false => {
                files.insert(path, fs::read(entry.path()).expect("it was listed"));
            }
        }
    }
}

/// Two folders hold the same files. A failure names them instead of printing megabytes.
pub(crate) fn assert_same_files(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>, why: &str) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other), "{why}");
    let differ: Vec<&String> = one.keys().filter(|name| one[*name] != other[*name]).collect();
    assert!(differ.is_empty(), "{why}: {differ:?} differ");
}

/// What came of a command.
pub(crate) struct Said {
    pub(crate) command: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// It ended with that exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Said {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.command, self.stdout, self.stderr);
        self
    }

    /// Stderr has these words.
    pub(crate) fn says(&self, words: &str) {
        assert!(self.stderr.contains(words), "{words:?} is not in\n{}", self.stderr);
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}\n{}", self.command, self.stdout))
    }
}
