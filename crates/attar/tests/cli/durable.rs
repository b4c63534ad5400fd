//! What a run promises outlives a loss of power, and what killed runs leave is gone after the next one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    checkpoint::copy,
    room::{ATTAR, Room, skip},
};

const QUANTIZE: [&str; 8] = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "out"];

/// A system call that matters here.
#[derive(Debug)]
enum Call {
    /// A file or folder reached the disk.
    Flush(PathBuf),
    Rename(PathBuf, PathBuf),
}

/// What attar does with files, in order; nothing where there is no strace, or it may not trace.
fn traced(room: &Room, arguments: &[&str]) -> Option<Vec<Call>> {
    let trace = room.path("trace");
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2";
    let mut words = vec!["-f", "-y", "-s", "4096", "-e", calls, "-o", trace.to_str()?, ATTAR];
    words.extend(arguments);
    if Command::new("strace").arg("-V").output().is_err() {
        return None;
    }
    let said = room.finish(room.other_command("strace", &words));
    if said.code != Some(0) {
        assert!(said.stderr.contains("ptrace"), "{}{}", said.stdout, said.stderr);
        return None;
    }
    let root = room.path(".").canonicalize().expect("the room is there");
    let text = fs::read_to_string(trace).expect("strace wrote it");
    Some(text.lines().filter_map(|line| call(&root, line)).collect())
}

/// `PID fsync(7</path>) = 0`, `PID rename("from", "to") = 0`; a call that another thread interrupts is in two lines, of which the
/// first has all of this.
fn call(root: &Path, line: &str) -> Option<Call> {
    let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
    if rest.contains(" = -1 ") {
        return None;
    }
    if name.ends_with("sync") {
        let path = rest.split_once('<')?.1.split_once(">)").or(rest.split_once('<')?.1.split_once("> "))?.0;
        return Some(Call::Flush(path.into()));
    }
    let mut quoted = rest.split('"');
    let (from, to) = (quoted.nth(1)?, quoted.nth(1)?);
    Some(Call::Rename(root.join(from), root.join(to)))
}

/// Whether these calls flush `path`.
fn flushed(calls: &[Call], path: &Path) -> bool {
    calls.iter().any(|call| matches!(call, Call::Flush(flushed) if flushed == path))
}

#[test]
fn files_reach_the_disk_before_their_names_and_the_manifest_comes_last() {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    let Some(calls) = traced(&room, &QUANTIZE) else {
        return skip("strace is not here, or may not trace");
    };
    let out = room.path("out").canonicalize().expect("it was written");
    let (mut renamed, mut blobs) = (Vec::new(), Vec::new());
    for (at, call) in calls.iter().enumerate() {
        let Call::Rename(from, to) = call else { continue };
        // Blobs of a moment's work are flushed together: what a loss of power leaves of them has another digest, and is made again.
        if to.parent().is_some_and(|folder| folder.ends_with("store/blobs")) {
            blobs.push(flushed(&calls[..at], from));
            continue;
        }
        assert!(flushed(&calls[..at], from), "{} was not flushed before it was renamed", from.display());
        let folder = to.parent().expect("it lies in a folder").canonicalize();
        // The store of a run without `keep_store` is gone by now.
        let folder = folder.unwrap_or_else(|_| to.parent().expect("it lies in a folder").to_owned());
        assert!(flushed(&calls[at..], &folder), "{} was not flushed after {} came", folder.display(), to.display());
        renamed.push(to.clone());
    }
    assert!(blobs.first() == Some(&true), "the first blob was not flushed: {blobs:?}");
    let promised = |name: &str| renamed.iter().rposition(|path| path.ends_with(name) && path.parent() == Some(&*out));
    assert_eq!(promised("manifest.json"), Some(renamed.len() - 1), "{renamed:?}");
    for before in ["model.safetensors", "artifact.json", "report.json", "report.md"] {
        assert!(promised(before).is_some(), "{before} is not among {renamed:?}");
    }
}

#[test]
fn what_killed_runs_left_is_gone_after_the_next_run() {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    let recipe = r#"
recipe = 1
model = "model"
output = "out"
store = "store"

[[step]]
kind = "quantize"
grid = "int4"
group = 16

[[export]]
target = "checkpoint"
"#;
    room.write("recipe.toml", recipe);
    room.attar(&["run", "recipe.toml"]).exits(0);
    fs::create_dir_all(room.path("store/partial/4711-dead")).expect("the room is writable");
    let litter = [".partial-recipe", "out/.partial-report", "store/partial/4711-dead/.partial-blob"];
    litter.iter().for_each(|path| room.write(path, "half"));
    fs::create_dir_all(room.path("out/.attar/partial")).expect("the room is writable");
    room.write("out/.attar/partial/model.safetensors", "half");
    room.attar(&["run", "recipe.toml"]).exits(0);
    for path in litter.iter().chain(&["out/.attar/partial", "store/partial/4711-dead"]) {
        assert!(!room.path(path).exists(), "{path} is still there");
    }
}
