//! The limits of a machine: a disk that is full, files that may not be read, memory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use crate::{
    checkpoint::{Llama, copy},
    room::{ATTAR, Room, skip},
    snapshot::Session,
};

/// A file system of a few hundred kilobytes; gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where we may not mount.
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir(at).expect("the room is writable");
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], at).then(|| SmallDisk(at.into()))
    }

    fn grow(&self, size: &str) {
        assert!(mount(&["-o", &format!("remount,size={size}")], &self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn mount(options: &[&str], at: &Path) -> bool {
    Command::new("mount").args(options).arg(at).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_is_told_and_the_same_command_goes_on() {
    let mut session = Session::new("disk-full");
    let room = Room::new();
    let Some(disk) = SmallDisk::mount(&room.path("disk"), "400k") else {
        return skip("a file system cannot be mounted here, so no disk can be filled");
    };
    let quantize = |out: &str| room.attar(&["quantize", "testdata/models/shakespeare-1m", "--grid", "int4", "--out", out]);
    session.note("too small for the codes", &quantize("disk/out").exits(3));
    assert!(room.files("disk/out").is_empty());
    disk.grow("900k");
    session.note("too small for the artifact", &quantize("disk/out").exits(3));
    assert!(!room.path("disk/out/model.safetensors").exists() && !room.path("disk/out/manifest.json").exists());
    disk.grow("8m");
    quantize("disk/out").exits(0);
    quantize("out").exits(0);
    let artifact = |folder: &str| room.files(folder).remove("model.safetensors").unwrap();
    assert!(artifact("disk/out") == artifact("out"));
    session.check();
}

#[test]
fn files_that_may_not_be_read() {
    let mut session = Session::new("unreadable");
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    room.write("recipe.toml", "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n");
    fs::copy(ATTAR, room.path("attar")).unwrap();
    let allow = |name: &str, mode: u32| fs::set_permissions(room.path(name), fs::Permissions::from_mode(mode)).unwrap();
    allow("", 0o777);
    let run = |arguments: &[&str]| match root() {
        false => Some(room.attar(arguments)),
        true => as_nobody(&room, arguments),
    };
    let quantize = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "out"];
    for name in ["model/model.safetensors", "model/config.json", "model"] {
        allow(name, 0o000);
        let Some(said) = run(&quantize) else {
            allow(name, 0o755);
            return skip("root may read everything, and there is no setpriv to become somebody else");
        };
        session.note(name, &said.exits(3));
        assert!(!room.path("out").exists());
        allow(name, 0o755);
    }
    allow("recipe.toml", 0o000);
    session.note("the recipe", &run(&["run", "recipe.toml"]).expect("it ran before").exits(2));
    fs::create_dir(room.path("closed")).unwrap();
    allow("closed", 0o555);
    let into = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "closed/out"];
    session.note("a folder that may not be written", &run(&into).expect("it ran before").exits(3));
    session.check();
}

fn root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// attar, run by somebody whom permissions bind.
fn as_nobody(room: &Room, arguments: &[&str]) -> Option<crate::room::Said> {
    let become_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let works = Command::new("setpriv").args(become_nobody).arg("true").status().is_ok_and(|status| status.success());
    works.then(|| {
        let mut said = room.finish(room.other_command("setpriv", &[&become_nobody[..], &["./attar"], arguments].concat()));
        said.command = format!("attar {}", arguments.join(" "));
        said
    })
}

/// 0.3 billion weights, 0.6 GB, in four files.
const LARGE: Llama = Llama { hidden: 1536, intermediate: 4096, blocks: 10, vocabulary: 16384, shards: 4 };

/// What any checkpoint may take, however large.
const PEAK_LIMIT: u64 = 300_000_000;

#[test]
fn quantizing_a_large_checkpoint_takes_little_memory() {
    let room = Room::new();
    let bytes = LARGE.write(&room.path("model"));
    assert!(bytes >= 600_000_000, "{bytes}");
    let mut command = room.command(&["quantize", "model", "--grid", "int4", "--group", "128", "--out", "out", "--quiet"]);
    let mut child = command.spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        // The high-water mark only grows: what counts is the last look.
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => sleep(Duration::from_millis(2)),
        }
    };
    assert!(status.success());
    assert!(room.path("out/model.safetensors").exists());
    assert!(peak > 1_000_000, "the peak was not seen");
    assert!(peak < PEAK_LIMIT, "{peak} bytes of memory at the peak, for {bytes} bytes of weights");
}

/// Linux: the resident set's high-water mark.
fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}
